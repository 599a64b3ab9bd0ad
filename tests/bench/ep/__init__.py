# SPDX-License-Identifier: Apache-2.0
"""One MoE block over several ranks: ours and torch's all-to-all pipeline, in one process group, on the same weights and tokens."""
