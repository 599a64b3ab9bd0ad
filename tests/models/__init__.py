# SPDX-License-Identifier: Apache-2.0
# The real models that tests and the demo convert: tiny, random weights, made with transformers' own classes.
