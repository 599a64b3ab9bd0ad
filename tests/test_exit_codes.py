# SPDX-License-Identifier: Apache-2.0
# The README's table of exit codes is the tool's own.
import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_has_the_tools_table():
    values = dict(re.findall(r"^\s+(k\w+) = (\d+),", (_ROOT / "plugin/io/status.h").read_text(), re.MULTILINE))
    table = re.findall(r'\{Code::(k\w+), "([^"]+)"\}', (_ROOT / "tools/exit_codes.cc").read_text())
    section = (_ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", section, re.MULTILINE)
    assert table and rows == [(values[name], meaning) for name, meaning in table]
