# SPDX-License-Identifier: Apache-2.0
"""One MoE block on a GPU: ours and its peers, in one process, on the same weights, tokens and routing."""
