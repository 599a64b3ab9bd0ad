# SPDX-License-Identifier: Apache-2.0
# Stand-ins for the two repositories that Bazel 4.2 would otherwise fetch from the network.

_RULES = [
    "cc_library",
    "cc_binary",
    "cc_test",
    "cc_import",
    "cc_proto_library",
    "cc_toolchain",
    "cc_toolchain_suite",
    "fdo_prefetch_hints",
    "fdo_profile",
    "objc_library",
    "objc_import",
]

def _rules_cc_impl(ctx):
    ctx.file("WORKSPACE", "workspace(name = \"rules_cc\")\n")
    ctx.file("BUILD", "")
    ctx.file("cc/BUILD", "")
    defs = ["{0} = native.{0}".format(rule) for rule in _RULES] + ["cc_flags_supplier = None", "compiler_flag = None"]
    ctx.file("cc/defs.bzl", "\n".join(defs) + "\n")

def _coverage_tools_impl(ctx):
    ctx.file("WORKSPACE", "workspace(name = \"remote_coverage_tools\")\n")
    names = ["coverage_report_generator", "coverage_output_generator", "lcov_merger"]
    groups = ["filegroup(name = \"{}\", visibility = [\"//visibility:public\"])".format(name) for name in names]
    ctx.file("BUILD", "\n".join(groups) + "\n")

stand_in_rules_cc = repository_rule(implementation = _rules_cc_impl)

stand_in_coverage_tools = repository_rule(implementation = _coverage_tools_impl)
