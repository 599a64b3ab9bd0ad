# SPDX-License-Identifier: Apache-2.0
"""The fake of autoep::dispatch, for torch.compile and torch.export. The other ops have theirs in the library."""

import torch


def register() -> None:
    """Registers the fakes. Call it once, after the library is loaded."""

    @torch.library.register_fake("autoep::dispatch")
    def dispatch(x, ids, scale, placement, ep_size, group, layer, abi):
        experts = placement.shape[0]
        slots = experts // ep_size
        # What other ranks send is known only at run time.
        rows = ids.numel() if ep_size == 1 else torch.library.get_ctx().new_dynamic_size()
        plan_device = x.device if ep_size == 1 else torch.device("cpu")
        return (
            x.new_empty(rows, x.shape[1]),
            ids.new_empty(slots, dtype=torch.int32),
            ids.new_empty(experts, device=plan_device),
            ids.new_empty(ids.shape[0], ids.shape[1] * (1 if ep_size == 1 else 2)),
            ids.new_empty(ep_size, slots if ep_size == 1 else slots + 2, device=plan_device),
        )
