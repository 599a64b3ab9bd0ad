# SPDX-License-Identifier: Apache-2.0
"""A whole language model on a GPU, before and after."""
