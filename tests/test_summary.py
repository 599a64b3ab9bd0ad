# SPDX-License-Identifier: Apache-2.0
# summary.py counts every failure that a runner can report, and says nothing passed when nothing ran.
import json
import subprocess
import sys
from pathlib import Path

import pytest

_SUMMARY = Path(__file__).with_name("summary.py")
_PASSES = (
    '<testsuites><testsuite><testcase name="a" classname="S" time="2.5"/>'
    '<testcase name="b" classname="S" time="0.1"/></testsuite></testsuites>'
)
_FAILS = _PASSES.replace('time="0.1"/>', 'time="0.1"><failure message="no"/></testcase>')


def _event(label: str, status: str, xml: Path | None) -> dict:
    output = [{"name": "test.xml", "uri": xml.as_uri()}] if xml else []
    return {"id": {"testResult": {"label": label}}, "testResult": {"status": status, "testActionOutput": output}}


def _run(folder: Path, events: list[dict], pytest_xml: str = _PASSES, runners_failed: str = "0") -> tuple[int, str]:
    (folder / "bazel.json").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "pytest.xml").write_text(pytest_xml)
    done = subprocess.run([sys.executable, str(_SUMMARY), str(folder), runners_failed], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "with space" / "test.xml"
    path.parent.mkdir()
    path.write_text(_PASSES)
    return path


def test_adds_both_runners_and_names_the_slowest(tmp_path, cases):
    code, text = _run(tmp_path, [_event("//x:y", "PASSED", cases)])
    assert (code, text.splitlines()[-1]) == (0, "4 passed, 0 failed")
    assert text.index("2.5 s  //x:y S.a") < text.index("0.1 s  //x:y S.b")


def test_skipped_ones_are_counted_apart_with_their_reasons(tmp_path, cases):
    cases.write_text(_PASSES.replace('time="0.1"/>', 'time="0.1"><skipped message="x.cc:3&#x0A;there is no GPU here"/></testcase>'))
    code, text = _run(tmp_path, [_event("//x:y", "PASSED", cases)])
    assert (code, text.splitlines()[-1]) == (0, "3 passed, 0 failed")
    assert "\nSkipped, 1:\n  //x:y S.b: x.cc:3 there is no GPU here\n" in text


def test_a_failed_case_fails(tmp_path, cases):
    cases.write_text(_FAILS)
    code, text = _run(tmp_path, [_event("//x:y", "FAILED", cases)])
    assert (code, text.splitlines()[-1]) == (1, "3 passed, 1 failed")
    code, text = _run(tmp_path, [], pytest_xml=_FAILS, runners_failed="1")
    assert (code, text.splitlines()[-1]) == (1, "1 passed, 1 failed")


def test_a_binary_that_died_fails_whatever_its_cases_say(tmp_path, cases):
    assert _run(tmp_path, [_event("//x:y", "FAILED", cases)])[1].endswith("4 passed, 1 failed\n")
    assert _run(tmp_path, [_event("//x:y", "TIMEOUT", None)])[1].endswith("2 passed, 1 failed\n")


def test_a_target_that_was_not_built_fails(tmp_path):
    events = [{"id": {"targetCompleted": {"label": "//x:y"}}, "completed": {}}]
    code, text = _run(tmp_path, events)
    assert code == 1 and "//x:y (not built)" in text


def test_a_runner_that_failed_without_a_test_fails(tmp_path, cases):
    assert _run(tmp_path, [_event("//x:y", "PASSED", cases)], runners_failed="1")[0] == 1


def test_nothing_run_is_no_success(tmp_path):
    code, text = _run(tmp_path, [], pytest_xml="<testsuites/>")
    assert (code, text.splitlines()[-1]) == (1, "0 passed, 0 failed")
