# SPDX-License-Identifier: Apache-2.0
# The arrows between folders: tools -> passes -> presets -> plugin/contract -> plugin/io, and tools -> plugin.
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]

# folder: the folders that it may include from, itself included.
_MAY_SEE = {
    "plugin/io": ["plugin/io"],
    "plugin/contract": ["plugin/contract", "plugin/io"],
    "plugin": ["plugin"],
    "presets": ["presets", "plugin/contract", "plugin/io"],
    "passes": ["passes", "presets", "plugin/contract", "plugin/io"],
    "tools": ["tools", "passes", "presets", "plugin"],
}
_INCLUDE = re.compile(r'^\s*#\s*include\s+"((?:plugin|passes|presets|tools|tests)/[^"]+)"', re.MULTILINE)


def _inside(path: str, folders) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def violations(path: str, text: str) -> list[str]:
    """The includes of the file at `path` that its folder may not have."""
    folder = next(folder for folder in _MAY_SEE if _inside(path, [folder]))
    return [f"{path} includes {name}" for name in _INCLUDE.findall(text) if not _inside(name, _MAY_SEE[folder])]


def _sources():
    for top in ("plugin", "passes", "presets", "tools"):
        for suffix in ("*.cc", "*.h", "*.cu", "*.cuh"):
            yield from (_ROOT / top).rglob(suffix)


def test_includes_follow_the_arrows():
    sources = list(_sources())
    assert sources
    assert not [text for path in sources for text in violations(str(path.relative_to(_ROOT)), path.read_text())]


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("plugin/io/a.cc", "plugin/contract/manifest.h"),
        ("plugin/load/a.cc", "passes/detect/match.h"),
        ("passes/detect/a.cc", "plugin/ops/recorder.h"),
        ("presets/a.cc", "passes/detect/match.h"),
        ("tools/a.cc", "tests/a.h"),
    ],
)
def test_a_wrong_include_is_seen(path, include):
    assert violations(path, f'#include "plugin/io/status.h"\n#include "{include}"\n') == [f"{path} includes {include}"]
