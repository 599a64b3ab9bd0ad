# SPDX-License-Identifier: Apache-2.0
"""The fakes, for torch.compile and torch.export, of the ops that exchange rows. The other ops have theirs in the library.

What dispatch gives away is known only at run time, and its plan is on the CPU beside rows on a GPU, which a fake of the library
may not mix."""

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
            ids.new_empty(ep_size, slots if ep_size == 1 else slots + ep_size, device=plan_device),
        )

    @torch.library.register_fake("autoep::dispatch_backward")
    def dispatch_backward(grad_rows, x, scale, order, counts, received, placement, ep_size, group, layer):
        grad_x = grad_rows.new_empty(order.shape[0], grad_rows.shape[1])
        return grad_x, grad_x.new_empty(0) if x is None or scale is None else scale.new_empty(scale.shape)

    @torch.library.register_fake("autoep::combine")
    def combine(rows, weights, order, counts, received, placement, ep_size, group, layer, abi):
        dtype = rows.dtype if weights is None else torch.promote_types(rows.dtype, weights.dtype)
        return rows.new_empty(order.shape[0], rows.shape[1], dtype=dtype)

    @torch.library.register_fake("autoep::combine_backward")
    def combine_backward(grad, rows, weights, order, counts, received, placement, num_rows, rows_dtype, ep_size, group, layer):
        grad_rows = grad.new_empty(num_rows, grad.shape[1], dtype=rows_dtype)
        return grad_rows, grad.new_empty(0) if rows is None or weights is None else weights.new_empty(weights.shape)
