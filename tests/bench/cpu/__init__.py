# SPDX-License-Identifier: Apache-2.0
"""One MoE block on the CPU."""
