# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch 2.11 (or 2.12, with which `tools/dev test --full` tests too): the folder named by LIBTORCH, else the project's .venv, else the torch of python3.
#   @libtorch//:torch       headers, libtorch_cpu, libc10
#   @libtorch//:torch_cuda  libtorch_cuda, libc10_cuda

_VERSION = "2.11"
_SECOND_VERSION = "2.12"

# The wheel's include/ also holds other projects' headers (fmt, pybind11, ...), which would hide the system's.
_INCLUDES = ["ATen", "c10", "caffe2", "torch"]

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob(["include/**"]),
    includes = ["include", "include/torch/csrc/api/include"],
)

cc_library(
    name = "torch",
    linkopts = [{paths}, "-ltorch_cpu", "-lc10"],
    deps = [":headers"],
)

cc_library(
    name = "torch_cuda",
    linkopts = [{paths}, "-Wl,--no-as-needed", "-ltorch_cuda", "-lc10_cuda", "-Wl,--as-needed"],
    deps = [":torch"],
)
"""

def _python_torch(ctx, python):
    """The torch folder that this Python would import, or None. Does not import torch, which takes seconds."""
    code = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    result = ctx.execute([python, "-c", code])
    folder = result.stdout.strip()
    return ctx.path(folder) if result.return_code == 0 and folder else None

def _find(ctx):
    named = ctx.os.environ.get("LIBTORCH", "")
    if named:
        return ctx.path(named)
    venv = ctx.path(Label("//:WORKSPACE")).dirname.get_child(".venv").get_child("bin").get_child("python")
    for python in [venv if venv.exists else None, ctx.which("python3")]:
        folder = _python_torch(ctx, python) if python else None
        if folder:
            return folder
    fail("LibTorch was not found: run tools/dev build, which installs torch {}, or set LIBTORCH to its folder".format(_VERSION))

def _version(ctx, folder):
    header = folder.get_child("include").get_child("torch").get_child("headeronly").get_child("version.h")
    if not header.exists:
        fail("{} is no LibTorch {}: set LIBTORCH to the folder that holds its include/ and lib/".format(folder, _VERSION))
    numbers = {}
    for line in ctx.read(header).split("\n"):
        words = line.split(" ")
        if len(words) == 3 and words[0] == "#define":
            numbers[words[1]] = words[2]
    return "{}.{}".format(numbers.get("TORCH_VERSION_MAJOR"), numbers.get("TORCH_VERSION_MINOR"))

def torch_folder(ctx):
    """The folder that holds LibTorch's include/ and lib/, of the right version; fails with what to do if there is none."""
    folder = _find(ctx)
    version = _version(ctx, folder)
    if version not in [_VERSION, _SECOND_VERSION]:
        fail("LibTorch in {} is version {}, and autoep is built for {}: set LIBTORCH to another folder".format(folder, version, _VERSION))
    return folder

def _local_torch_impl(ctx):
    folder = torch_folder(ctx)
    for name in _INCLUDES:
        ctx.symlink(folder.get_child("include").get_child(name), "include/" + name)
    lib = folder.get_child("lib")
    paths = ["'-L{}'".format(lib), "'-Wl,-rpath,{}'".format(lib)]
    ctx.file("BUILD", _BUILD.format(paths = ", ".join(["\"{}\"".format(path) for path in paths])))

local_torch = repository_rule(implementation = _local_torch_impl, environ = ["LIBTORCH"], local = True)
