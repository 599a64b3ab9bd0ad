# SPDX-License-Identifier: Apache-2.0
# Adds up a test run: the ten slowest tests, the skipped ones with their reasons, the failed ones, then 'N passed, N failed' over
# Bazel's and pytest's tests.
# usage: summary.py FOLDER RUNNERS_FAILED, where FOLDER holds bazel*.json (build events) and pytest*.xml (JUnit).
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse


@dataclass
class Test:
    name: str
    seconds: float
    failed: bool
    skipped: str | None = None  # the reason


def junit_tests(path: Path, prefix: str) -> list[Test]:
    tests = []
    for case in ElementTree.parse(path).iter("testcase"):
        skip = case.find("skipped")
        reason = None if skip is None else " ".join((skip.get("message") or skip.text or "no reason given").split())
        failed = any(child.tag in ("failure", "error") for child in case)
        name = f"{prefix}{case.get('classname', '')}.{case.get('name', '')}"
        tests.append(Test(name, float(case.get("time") or 0), failed, reason))
    return tests


def bazel_tests(events: Path) -> list[Test]:
    """One test for every case of a GoogleTest binary; a binary that was not built or left no cases counts as one. The names of
    a run with another configuration, bazel-NAME.json, begin with NAME."""
    tests = []
    prefix = events.stem.removeprefix("bazel").removeprefix("-") + " "
    for line in events.read_text().splitlines():
        event = json.loads(line)
        label = next(iter(event["id"].values()), {}).get("label", "")
        if "testResult" in event:
            tests += _target_tests((prefix + label).lstrip(), event["testResult"])
        elif event["id"].get("targetCompleted") and not event.get("completed", {}).get("success"):
            tests.append(Test(f"{label} (not built)", 0, failed=True))
    return tests


def _target_tests(label: str, result: dict) -> list[Test]:
    failed = result.get("status") != "PASSED"
    cases = []
    for output in result.get("testActionOutput", []):
        if output["name"] == "test.xml":
            cases = junit_tests(Path(unquote(urlparse(output["uri"]).path)), f"{label} ")
    # A binary that died after its last case, or was killed, has failed whatever its cases say.
    if not cases or (failed and not any(case.failed for case in cases)):
        cases.append(Test(label, 0, failed))
    return cases


def main() -> int:
    folder, runners_failed = Path(sys.argv[1]), sys.argv[2] != "0"
    tests = [test for events in sorted(folder.glob("bazel*.json")) for test in bazel_tests(events)]
    for report in sorted(folder.glob("pytest*.xml")):
        tests += junit_tests(report, "pytest ")
    if runners_failed and not any(test.failed for test in tests):
        tests.append(Test("the run itself: see above", 0, failed=True))

    print("\nThe ten slowest tests:")
    for test in sorted(tests, key=lambda test: -test.seconds)[:10]:
        print(f"  {test.seconds:7.1f} s  {test.name}")
    skipped = [test for test in tests if test.skipped is not None]
    if skipped:
        print(f"\nSkipped, {len(skipped)}:")
        for test in skipped:
            print(f"  {test.name}: {test.skipped}")
    tests = [test for test in tests if test.skipped is None]
    failures = [test for test in tests if test.failed]
    if failures:
        print("\nFailed:")
        for test in failures:
            print(f"  {test.name}")
    print(f"\n{len(tests) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
