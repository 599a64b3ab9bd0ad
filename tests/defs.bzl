# SPDX-License-Identifier: Apache-2.0
# autoep_cc_test: a GoogleTest test with its own main.

def autoep_cc_test(name, srcs, deps = [], **kwargs):
    """A GoogleTest test. `deps` names what is tested; GoogleTest, GoogleMock and their main are added."""
    native.cc_test(
        name = name,
        srcs = srcs,
        deps = deps + ["@system//:gtest"],
        # Virtual ranks and small tensors: one thread is faster than a pool for each test, and its sums are the same every time.
        env = dict({"OMP_NUM_THREADS": "1"}, **kwargs.pop("env", {})),
        **kwargs
    )
