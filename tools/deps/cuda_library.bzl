# SPDX-License-Identifier: Apache-2.0
# cuda_library: compiles .cu files with nvcc into a library that C++ targets depend on.

# Ampere, Hopper with its own instructions (wgmma), and PTX for what comes later.
_ARCHITECTURES = ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90"]

_FLAGS = [
    "-std=c++20",
    "-O2",
    "-DNDEBUG",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "-Xcompiler=-fPIC",
    "-Xcompiler=-Wall",
    # LibTorch's headers give a screenful of these.
    "-Xcudafe=--diag_suppress=20012,--diag_suppress=20208",
]

def _nvcc_objects_impl(ctx):
    context = cc_common.merge_cc_infos(cc_infos = [dep[CcInfo] for dep in ctx.attr.deps]).compilation_context
    objects = []
    for src in ctx.files.srcs:
        out = ctx.actions.declare_file("{}/{}.pic.o".format(ctx.label.name, src.basename))
        args = ctx.actions.args()
        args.add_all(_FLAGS)
        args.add_all(_ARCHITECTURES, format_each = "-gencode=%s")
        args.add_all(context.defines, format_each = "-D%s")
        args.add("-I.")
        args.add_all(context.includes, before_each = "-I")
        args.add_all(context.quote_includes, before_each = "-I")
        args.add_all(context.system_includes, before_each = "-isystem")
        args.add("-c", src)
        args.add("-o", out)
        ctx.actions.run(
            executable = ctx.attr.nvcc,
            arguments = [args],
            inputs = depset([src] + ctx.files.hdrs, transitive = [context.headers]),
            outputs = [out],
            mnemonic = "NvccCompile",
            progress_message = "Compiling {} with nvcc".format(src.short_path),
            use_default_shell_env = True,
        )
        objects.append(out)
    return [DefaultInfo(files = depset(objects))]

_nvcc_objects = rule(
    implementation = _nvcc_objects_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "nvcc": attr.string(mandatory = True),
    },
)

def cuda_library_with(nvcc, name, srcs, hdrs = [], deps = [], **kwargs):
    """cuda_library for the nvcc at this path; with None, an empty library."""
    if not nvcc:
        native.cc_library(name = name, **kwargs)
        return
    deps = deps + ["@cuda//:cudart"]
    _nvcc_objects(name = name + "_objects", srcs = srcs, hdrs = hdrs, deps = deps, nvcc = nvcc)

    # alwayslink: an op registers itself when the library is loaded.
    native.cc_library(name = name, srcs = [name + "_objects"], hdrs = hdrs, deps = deps, alwayslink = True, **kwargs)
