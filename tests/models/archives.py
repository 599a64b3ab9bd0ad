# SPDX-License-Identifier: Apache-2.0
# A saved TorchScript file taken apart, so that tests can make another one of it: its code as Python syntax trees, its objects
# as a tree of what the pickle holds.
import ast
import io
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(eq=False)
class Global:
    """A function or a storage type that the pickle names."""

    module: str
    name: str

    def __call__(self, *args) -> "Called":
        return Called(self, args)


@dataclass(eq=False)
class Called:
    function: Global
    args: tuple


@dataclass(eq=False)
class Persistent:
    key: tuple  # ("storage", type, name of the record, device, elements)


class Object:
    """A TorchScript object: its class by qualified name, its attributes in `state`."""

    qualified: str
    state: dict

    def __setstate__(self, state: dict) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if module.startswith("__torch__"):
            return type(name, (Object,), {"qualified": f"{module}.{name}"})
        return Global(module, name)

    def persistent_load(self, key: tuple) -> Persistent:
        return Persistent(key)


class _Writer:
    """Pickles with the opcodes that LibTorch reads."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02")
        self.places: dict[int, int] = {}

    def dump(self, root: Any) -> bytes:
        self.write(root)
        return bytes(self.out + b".")

    def write(self, value: Any) -> None:
        if id(value) in self.places:
            self.out += b"j" + struct.pack("<I", self.places[id(value)])
        elif isinstance(value, Object):
            self.write_global(*value.qualified.rsplit(".", 1))
            self.out += b")\x81"
            self.write(value.state)
            self.out += b"b"
            self.remember(value)
        elif isinstance(value, Called):
            self.write(value.function)
            self.write(value.args)
            self.out += b"R"
            self.remember(value)
        elif isinstance(value, Persistent):
            self.write(value.key)
            self.out += b"Q"
        elif isinstance(value, Global):
            self.write_global(value.module, value.name)
        else:
            self.write_plain(value)

    def remember(self, value: Any) -> None:
        self.places[id(value)] = len(self.places)
        self.out += b"r" + struct.pack("<I", self.places[id(value)])

    def write_global(self, module: str, name: str) -> None:
        self.out += f"c{module}\n{name}\n".encode()

    def write_plain(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self.out += b"\x8a\x08" + struct.pack("<q", value)
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            self.out += b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        elif isinstance(value, tuple):
            self.write_many(b"(", value, b"t")
        elif isinstance(value, list):
            self.write_many(b"](", value, b"e")
        else:
            self.write_many(b"}(", [word for item in value.items() for word in item], b"u")

    def write_many(self, begin: bytes, values, end: bytes) -> None:
        self.out += begin
        for value in values:
            self.write(value)
        self.out += end


@dataclass
class Archive:
    code: dict[str, ast.Module]  # by module path, "__torch__.torch.nn.modules.linear"
    root: Object
    records: dict[str, bytes]  # the rest, without debug records
    version: int  # of the file format: which meaning its operators have

    def objects(self) -> list[Object]:
        found, queue = [], [self.root]
        while queue:
            found.append(queue.pop())
            queue += [value for value in found[-1].state.values() if isinstance(value, Object)]
        return found


def read(path: Path) -> Archive:
    reader = torch._C.PyTorchFileReader(str(path))
    code, records = {}, {}
    for name in reader.get_all_records():
        data = reader.get_record(name)
        if name.startswith("code/") and name.endswith(".py"):
            code[name[len("code/") : -len(".py")].replace("/", ".")] = ast.parse(data.decode())
        elif not name.endswith(".debug_pkl") and not name.startswith((".data", "version", "byteorder")):
            records[name] = data
    root = _Reader(io.BytesIO(records.pop("data.pkl")), encoding="utf-8").load()
    return Archive(code, root, records, int(reader.get_record("version")))


def write(archive: Archive, path: Path) -> Path:
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.set_min_version(archive.version)
    records = archive.records | {"data.pkl": _Writer().dump(archive.root)}
    for module, tree in archive.code.items():
        records[f"code/{module.replace('.', '/')}.py"] = (ast.unparse(tree) + "\n").encode()
    for name, data in records.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return path
