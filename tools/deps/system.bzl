# SPDX-License-Identifier: Apache-2.0
# @system: the Debian libraries that autoep uses, each checked to be there.

# target: (Debian package, a header of it, defines, linkopts)
_LIBRARIES = {
    # Header-only, so that a process that loads libautoep.so needs no libfmt.
    "fmt": ("libfmt-dev", "fmt/format.h", ["FMT_HEADER_ONLY"], []),
    "yaml_cpp": ("libyaml-cpp-dev", "yaml-cpp/yaml.h", [], ["-lyaml-cpp"]),
    "cli11": ("libcli11-dev", "CLI/CLI.hpp", [], []),
    "json": ("nlohmann-json3-dev", "nlohmann/json.hpp", [], []),
    "crypto": ("libssl-dev", "openssl/evp.h", [], ["-lcrypto"]),
    "z": ("zlib1g-dev", "zlib.h", [], ["-lz"]),
    "gloo_headers": ("libgloo-dev", "gloo/transport/tcp/device.h", ["USE_C10D_GLOO"], []),
    "gmock": ("libgmock-dev", "gmock/gmock.h", [], ["-lgmock"]),
    "gtest_main": ("libgtest-dev", "gtest/gtest.h", [], ["-lgtest_main", "-lgtest", "-lpthread"]),
}

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(name = "gtest", deps = [":gmock", ":gtest_main"])
"""

_LIBRARY = "\ncc_library(name = \"{}\", defines = {}, linkopts = {})\n"

def _system_impl(ctx):
    build = _BUILD
    missing = []
    for name, (package, header, defines, linkopts) in _LIBRARIES.items():
        if not ctx.path("/usr/include/" + header).exists:
            missing.append(package)
        build += _LIBRARY.format(name, defines, linkopts)
    if missing:
        fail("system libraries are missing: apt-get install " + " ".join(missing))
    ctx.file("BUILD", build)

system = repository_rule(implementation = _system_impl, local = True)
