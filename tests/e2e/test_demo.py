# SPDX-License-Identifier: Apache-2.0
# The README's first command, as a person types it.
import re
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_converts_and_verifies_a_mixtral():
    done = subprocess.run([_ROOT / "tools/dev", "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = re.search(r"autoep: OK verify 2 layers, 2 ranks, .*, 0 flips, max error (\S+)\n", done.stdout)
    assert last, done.stdout
    assert 0 < float(last.group(1)) <= 2e-4
