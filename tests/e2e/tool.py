# SPDX-License-Identifier: Apache-2.0
# Runs the built command line as a person would.
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cli_path() -> Path:
    """AUTOEP_CLI, else where a checkout's build leaves the tool."""
    path = Path(os.environ.get("AUTOEP_CLI", REPOSITORY / "bazel-bin" / "tools" / "autoep"))
    assert path.is_file(), f"{path} is not there: build the project first (tools/dev build)"
    return path.resolve()


@dataclass
class Outcome:
    """What a run of the tool left on its streams."""

    code: int
    out: str
    err: str

    def json(self) -> dict:
        return json.loads(self.out)

    @property
    def last_line(self) -> str:
        return self.out.rstrip("\n").rpartition("\n")[2]


def environment(**changes: str) -> dict[str, str]:
    """One thread: tests run beside each other, and sums come out the same every time."""
    return os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | changes


def autoep(*words, cwd: Path | None = None, timeout: float = 120, **env: str) -> Outcome:
    done = subprocess.run(
        [cli_path(), *map(str, words)], cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def succeed(*words, **options) -> Outcome:
    outcome = autoep(*words, **options)
    assert outcome.code == 0, f"autoep {' '.join(map(str, words))} gave {outcome.code}:\n{outcome.err}"
    return outcome


def fails(code: int, *words, **options) -> str:
    """Runs a command line that must fail with `code` and one sentence; returns the sentence."""
    outcome = autoep(*words, **options)
    assert outcome.code == code, f"autoep {' '.join(map(str, words))} gave {outcome.code}, not {code}:\n{outcome.out}{outcome.err}"
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, f"one error line was expected:\n{outcome.err}"
    assert "Traceback" not in outcome.err and "frame #" not in outcome.err
    return errors[0].removeprefix("error: ")


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: relative path -> a file's bytes, None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }
