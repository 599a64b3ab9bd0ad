# SPDX-License-Identifier: Apache-2.0
"""Runs models that autoep made expert-parallel: loads libautoep.so into torch, and a converted directory into a module.

    import autoep
    model = autoep.load("mixtral-ep8")          # one process a rank, after torch.distributed.init_process_group
    autoep.load_library()                       # enough for a per-rank file: torch.jit.load("rank-00003-of-00008.pt")
"""

from autoep._library import load_library
from autoep._load import load
from autoep.groups import new_edp_group, new_ep_group

__all__ = ["load", "load_library", "new_edp_group", "new_ep_group"]
