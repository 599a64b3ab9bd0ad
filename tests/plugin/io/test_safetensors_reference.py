# SPDX-License-Identifier: Apache-2.0
# The strict safetensors reader and the writer against the reference implementation, the PyPI package: equal bytes for equal
# tensors, and nothing accepted that the reference refuses.
import os
import random
import subprocess
from pathlib import Path

import numpy
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[3]
TOOL = Path(os.environ.get("AUTOEP_BIN", REPOSITORY / "bazel-bin")) / "tests" / "plugin" / "io" / "safetensors_tool"
DTYPES = ["bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "int64", "uint64", "float64"]


def tool(*words) -> subprocess.CompletedProcess:
    assert TOOL.is_file(), f"{TOOL} is not there: build the project first (tools/dev build)"
    return subprocess.run([TOOL, *map(str, words)], capture_output=True, text=True, timeout=60)


def accepts(files: list[Path]) -> list[bool]:
    lines = tool("check", *files).stdout.splitlines()
    assert len(lines) == len(files)
    return [line == "ok" for line in lines]


def reference_accepts(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys()) is not None
    except SafetensorError:
        return False


def random_tensors(rng: random.Random) -> dict[str, numpy.ndarray]:
    def tensor() -> numpy.ndarray:
        shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
        size = int(numpy.prod(shape, dtype=int))
        return numpy.array([rng.randrange(2) for _ in range(size)], dtype=rng.choice(DTYPES)).reshape(shape)

    names = ["a", "b.weight", "Z", "expert 1", "ünïcode", 'quote"d', "new\nline", "", "a.b"]
    return {name: tensor() for name in rng.sample(names, rng.randrange(len(names) + 1))}


def test_the_writer_gives_the_references_bytes(tmp_path):
    rng = random.Random(1)
    for i in range(60):
        source, copy = tmp_path / f"{i}", tmp_path / f"{i}.copy"
        save_file(random_tensors(rng), source, metadata=rng.choice([None, {"format": "pt"}]))
        done = tool("copy", source, copy)
        assert done.returncode == 0, done.stderr
        assert copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "BF16", "C64", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"])
def test_dtypes_that_numpy_lacks_are_taken_by_both(tmp_path, dtype):
    bits = {"BF16": 16, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(dtype, 8)
    size = 4 * bits // 8
    header = f'{{"t":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,{size}]}}}}'.encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "t"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    assert reference_accepts(path)
    assert accepts([path]) == [True]
    assert tool("copy", path, tmp_path / "copy").returncode == 0
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def mutate(data: bytes, rng: random.Random) -> bytes:
    header = int.from_bytes(data[:8], "little")
    out = bytearray(data)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(out[: rng.randrange(len(out))])
    if kind == 1:
        return bytes(out) + b"x" * rng.randrange(1, 9)
    if kind == 2:  # a bit of the length
        out[rng.randrange(8)] ^= 1 << rng.randrange(8)
    elif kind == 3:  # a digit for a digit, which leaves the JSON valid
        digits = [i for i in range(8, 8 + header) if chr(out[i]).isdigit()]
        out[rng.choice(digits)] = ord(rng.choice("0123456789"))
    elif kind == 4:  # any byte of the header for another
        out[8 + rng.randrange(header)] = rng.choice(b'{}[]",:0-1.eE \t\\xF')
    else:  # two bytes of the header change places
        a, b = 8 + rng.randrange(header), 8 + rng.randrange(header)
        out[a], out[b] = out[b], out[a]
    return bytes(out)


def test_nothing_is_accepted_that_the_reference_refuses(tmp_path):
    rng = random.Random(2)
    source = tmp_path / "source"
    files = []
    for i in range(1500):
        if i % 50 == 0:
            save_file({"a": numpy.zeros((2, 3), "float32"), "b.c": numpy.ones(4, "int64")} | random_tensors(rng), source)
        files.append(tmp_path / f"mutant-{i}")
        files[-1].write_bytes(mutate(source.read_bytes(), rng))
    ours = accepts(files)
    reference = [reference_accepts(path) for path in files]
    wrong = [path.read_bytes() for path, mine, theirs in zip(files, ours, reference) if mine and not theirs]
    assert not wrong
    # The corpus must hold files of both kinds, or it shows nothing. Stricter than the reference is allowed, and rare.
    assert sum(ours) > 20 and sum(not theirs for theirs in reference) > 500
    stricter = sum(theirs and not mine for mine, theirs in zip(ours, reference))
    assert stricter < 100


def test_both_read_the_same_values(tmp_path):
    rng = random.Random(3)
    tensors = random_tensors(rng) | {"x": numpy.arange(12, dtype="float32").reshape(3, 4)}
    save_file(tensors, tmp_path / "a")
    assert tool("copy", tmp_path / "a", tmp_path / "b").returncode == 0
    copied = load_file(tmp_path / "b")
    assert copied.keys() == tensors.keys()
    assert all(numpy.array_equal(copied[name], tensors[name]) and copied[name].dtype == tensors[name].dtype for name in tensors)
