# SPDX-License-Identifier: Apache-2.0
"""Loads the library once, and makes moe.py importable."""

import sys
from pathlib import Path

import autoep

sys.path.insert(0, str(Path(__file__).resolve().parent))
autoep.load_library()
