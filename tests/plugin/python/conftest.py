# SPDX-License-Identifier: Apache-2.0
# Makes this folder's sample directory importable by its tests.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
