# SPDX-License-Identifier: Apache-2.0
# Finds nvcc: in CUDA_HOME, on PATH, in /usr/local/cuda, or among the compiler wheels beside torch. Without one, or with
# AUTOEP_CUDA=off, the build is CPU-only.
#   @cuda//:defs.bzl  CUDA_AVAILABLE and cuda_library(name, srcs, hdrs, deps)
#   @cuda//:cudart    CUDA runtime headers and libcudart, empty in a CPU-only build

load("//tools/deps:local_torch.bzl", "torch_folder")

_CPU_BUILD = """
cc_library(name = "cudart", visibility = ["//visibility:public"])
"""

_CUDA_BUILD = """
cc_library(
    name = "cudart",
    hdrs = glob({globs}),
    includes = {includes},
    linkopts = [{linkopts}],
    visibility = ["//visibility:public"],
)
"""

_DEFS = """
load("@autoep//tools/deps:cuda_library.bzl", "cuda_library_with")

CUDA_AVAILABLE = {available}

def cuda_library(name, **kwargs):
    cuda_library_with({nvcc}, name, **kwargs)
"""

def _is_cuda13(ctx, nvcc):
    """torch 2.11 is built with CUDA 13; another major version's objects do not link with its libcudart."""
    return nvcc.exists and "release 13." in ctx.execute([str(nvcc), "--version"]).stdout

def _nvcc(ctx, wheels):
    """The path of nvcc, or None."""
    home = ctx.os.environ.get("CUDA_HOME", "")
    if home:
        nvcc = ctx.path(home).get_child("bin").get_child("nvcc")
        if not _is_cuda13(ctx, nvcc):
            fail("CUDA_HOME is {}, which has no bin/nvcc of CUDA 13: point it to one, unset it, or set AUTOEP_CUDA=off".format(home))
        return nvcc.realpath
    for nvcc in [ctx.which("nvcc"), ctx.path("/usr/local/cuda/bin/nvcc"), wheels.get_child("bin").get_child("nvcc")]:
        if nvcc and _is_cuda13(ctx, nvcc):
            return nvcc.realpath
    return None

def _local_cuda_impl(ctx):
    wheels = torch_folder(ctx).dirname.get_child("nvidia").get_child("cu13")
    nvcc = None if ctx.os.environ.get("AUTOEP_CUDA", "") == "off" else _nvcc(ctx, wheels)
    ctx.file("defs.bzl", _DEFS.format(available = nvcc != None, nvcc = repr(str(nvcc)) if nvcc else None))
    if not nvcc:
        ctx.file("BUILD", _CPU_BUILD)
        return

    # The runtime that torch itself loads, and the headers of the same version first.
    lib = wheels.get_child("lib")
    includes = []
    for folder in [wheels, nvcc.dirname.dirname]:
        if folder.get_child("include").get_child("cuda_runtime.h").exists and str(folder.get_child("include")) not in includes:
            ctx.symlink(folder.get_child("include"), "include{}".format(len(includes)))
            includes.append(str(folder.get_child("include")))
    if not includes or not lib.get_child("libcudart.so.13").exists:
        fail("nvcc is {}, but {} has no CUDA runtime: reinstall torch, or set AUTOEP_CUDA=off".format(nvcc, lib))
    names = ["include{}".format(i) for i in range(len(includes))]
    options = ["'-L{}'".format(lib), "'-Wl,-rpath,{}'".format(lib), "-l:libcudart.so.13"]
    ctx.file("BUILD", _CUDA_BUILD.format(
        globs = repr([name + "/**" for name in names]),
        includes = repr(names),
        linkopts = ", ".join(["\"{}\"".format(option) for option in options]),
    ))

local_cuda = repository_rule(
    implementation = _local_cuda_impl,
    environ = ["AUTOEP_CUDA", "CUDA_HOME", "LIBTORCH", "PATH"],
    local = True,
)
