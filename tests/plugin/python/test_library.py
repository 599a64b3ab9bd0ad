# SPDX-License-Identifier: Apache-2.0
"""autoep.load_library: finds the file, takes it once, and never lets torch abort on a second one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autoep
from autoep import _library


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, where no library is loaded yet."""
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)


@pytest.fixture(scope="module")
def library() -> Path:
    return _library._find(None)


def test_the_same_file_may_be_loaded_again(library: Path, tmp_path: Path) -> None:
    (tmp_path / "link.so").symlink_to(library)
    run = _run(
        f"import autoep, torch; autoep.load_library(); autoep.load_library({str(tmp_path / 'link.so')!r});"
        "print(torch.ops.autoep.dispatch)"
    )
    assert run.returncode == 0, run.stderr
    assert "autoep.dispatch" in run.stdout


def test_a_library_that_torch_loaded_is_taken(library: Path) -> None:
    run = _run(f"import autoep, torch; torch.ops.load_library({str(library)!r}); autoep.load_library({str(library)!r})")
    assert run.returncode == 0, run.stderr


def test_a_second_file_is_refused_where_torch_would_abort(library: Path, tmp_path: Path) -> None:
    second = tmp_path / "libautoep.so"
    shutil.copy(library, second)
    aborted = _run(f"import torch; [torch.ops.load_library(p) for p in ({str(library)!r}, {str(second)!r})]")
    assert aborted.returncode < 0

    run = _run(f"import autoep; autoep.load_library(); autoep.load_library({str(second)!r})")
    assert run.returncode == 1
    assert f"RuntimeError: autoep: the ops are already loaded from {library}, and loading {second} too would abort" in run.stderr

    run = _run(f"import autoep, torch; torch.ops.load_library({str(second)!r}); autoep.load_library({str(library)!r})")
    assert run.returncode == 1
    assert f"RuntimeError: autoep: the ops are already loaded from {second}" in run.stderr


def test_the_environment_names_the_library(library: Path, tmp_path: Path) -> None:
    run = _run("import autoep; autoep.load_library()", AUTOEP_LIBRARY=str(tmp_path / "none.so"))
    assert f"autoep: {tmp_path / 'none.so'} is not a file: AUTOEP_LIBRARY must name libautoep.so" in run.stderr
    second = tmp_path / "libautoep.so"
    shutil.copy(library, second)
    run = _run("import autoep; autoep.load_library(); print(open('/proc/self/maps').read())", AUTOEP_LIBRARY=str(second))
    assert str(second) in run.stdout and str(library) not in run.stdout


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AUTOEP_LIBRARY", raising=False)
    monkeypatch.setattr(_library, "_candidates", lambda: [tmp_path / "libautoep.so"])
    with pytest.raises(RuntimeError, match="was not found at .*libautoep.so: build it"):
        autoep.load_library()


def test_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    with pytest.raises(RuntimeError, match="is built for torch 2.11, and this is torch 2.12.0"):
        autoep.load_library()
