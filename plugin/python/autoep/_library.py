# SPDX-License-Identifier: Apache-2.0
"""Loading libautoep.so, once: torch aborts the process when the same ops are registered from a second file."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from autoep import _fakes

_NAME = "libautoep.so"
_TORCH = "2.11"
_PACKAGE = Path(__file__).resolve().parent

# torch takes a fake once.
_register_fakes = functools.cache(_fakes.register)


def _candidates() -> list[Path]:
    """Beside the package, else where a checkout's build leaves it."""
    return [_PACKAGE / _NAME, _PACKAGE.parents[2] / "bazel-bin" / "plugin" / _NAME]


def _find(path: str | os.PathLike[str] | None) -> Path:
    named = path or os.environ.get("AUTOEP_LIBRARY")
    if named:
        library = Path(named).resolve()
        if not library.is_file():
            source = "load_library" if path else "AUTOEP_LIBRARY"
            raise RuntimeError(f"autoep: {library} is not a file: {source} must name {_NAME}")
        return library
    for library in _candidates():
        if library.is_file():
            return library.resolve()
    places = " and ".join(str(library) for library in _candidates())
    raise RuntimeError(f"autoep: {_NAME} was not found at {places}: build it (tools/dev build) or set AUTOEP_LIBRARY to its path")


def _check_torch() -> None:
    version = torch.__version__
    if not version.startswith(_TORCH + "."):
        raise RuntimeError(f"autoep: {_NAME} is built for torch {_TORCH}, and this is torch {version}: install torch {_TORCH}")


def _mapped_files() -> dict[str, tuple[int, int]]:
    """The files in this process's memory: path -> (device, inode)."""
    files = {}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/"):
                major, minor = (int(number, 16) for number in fields[3].split(":"))
                files[fields[5]] = (os.makedev(major, minor), int(fields[4]))
    return files


def _check_same(library: Path) -> None:
    """Raises unless the ops that torch already has came from this very file, by whatever path."""
    mapped = _mapped_files()
    status = library.stat()
    # On some file systems the two inode numbers differ; the path then decides.
    if str(library) in mapped or (status.st_dev, status.st_ino) in mapped.values():
        return
    loaded = ", ".join(sorted(path for path in mapped if "autoep" in os.path.basename(path))) or "a file that is gone"
    raise RuntimeError(
        f"autoep: the ops are already loaded from {loaded}, and loading {library} too would abort the process: "
        f"use one {_NAME}, or start a new process"
    )


def load_library(path: str | os.PathLike[str] | None = None) -> None:
    """Registers the autoep ops with torch. Calling it again with the same file does nothing.

    path: libautoep.so; by default AUTOEP_LIBRARY, else the one beside the package, else the checkout's build.
    Raises RuntimeError for another torch version, a missing file, or when the ops came from another file already.
    """
    _check_torch()
    library = _find(path)
    if hasattr(torch.ops.autoep, "dispatch"):
        _check_same(library)
    else:
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            raise RuntimeError(f"autoep: {library} cannot be loaded: {error.__cause__ or error}") from error
    _register_fakes()
