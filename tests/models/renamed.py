# SPDX-License-Identifier: Apache-2.0
# The same TorchScript file with other names: modules, attributes, classes, files and values have random ones, and the
# attributes of each class stand in another order. What a file computes does not depend on any of it.
import ast
import random
from pathlib import Path

from models import archives

# What LibTorch itself asks for by name.
_KEPT = {"training", "_is_full_backward_hook"}
_KEPT_MODULES = {"__torch__.torch.autograd.grad_mode"}


class _Names:
    """A random name for each name, always the same one."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.known: dict[tuple[str, str], str] = {}

    def of(self, kind: str, name: str) -> str:
        if (kind, name) not in self.known:
            self.known[kind, name] = "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz", k=12))
        return self.known[kind, name]


class _Renamer(ast.NodeTransformer):
    def __init__(self, names: _Names, attributes: set[str], modules: set[str]):
        self.names, self.attributes, self.modules = names, attributes, modules
        self.locals: set[str] = set()

    def attribute(self, name: str) -> str:
        return self.names.of("attribute", name) if name in self.attributes else name

    def qualified(self, module: str, name: str) -> str:
        return f"__torch__.{self.names.of('module', module)}.{self.names.of('class', name)}"

    def visit_Module(self, node: ast.Module) -> ast.Module:
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                statement.name = self.names.of("class", statement.name)
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.name = self.names.of("class", node.name)
        for lists in (s for s in node.body if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)):
            lists.value.elts = [ast.Constant(self.attribute(word.value)) for word in lists.value.elts]
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign):
                statement.target.id = self.attribute(statement.target.id)
                statement.annotation = self.visit(statement.annotation)
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
                statement.targets[0].slice.value = self.attribute(statement.targets[0].slice.value)
                statement.value = self.visit(statement.value)
        places = [i for i, s in enumerate(node.body) if self._declares(s)]
        shuffled = [node.body[i] for i in places]
        self.names.random.shuffle(shuffled)
        for place, statement in zip(places, shuffled):
            node.body[place] = statement
        node.body = [self.visit(s) if isinstance(s, ast.FunctionDef) else s for s in node.body]
        return node

    @staticmethod
    def _declares(statement: ast.stmt) -> bool:
        subscript = isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript)
        return subscript or isinstance(statement, ast.AnnAssign)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.locals = (stored | {argument.arg for argument in node.args.args}) - {"self"}
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self.names.of("value", node.arg) if node.arg in self.locals else node.arg
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.of("value", node.id) if node.id in self.locals else node.id
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        text = ast.unparse(node)
        if text.startswith("__torch__."):
            module, name = text.rsplit(".", 1)
            return ast.parse(self.qualified(module, name), mode="eval").body if module in self.modules else node
        if not text.startswith(("torch.", "ops.", "CONSTANTS.")):
            node.attr = self.attribute(node.attr)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr":
            node.args[1] = ast.Constant(self.attribute(node.args[1].value))
        return self.generic_visit(node)


def rename(source: Path, target: Path, seed: int) -> Path:
    archive, names = archives.read(source), _Names(seed)
    objects = archive.objects()
    attributes = {name for found in objects for name in found.state} - _KEPT
    kept = {module: tree for module, tree in archive.code.items() if module in _KEPT_MODULES}
    renamer = _Renamer(names, attributes, archive.code.keys() - kept.keys())
    archive.code = kept | {
        f"__torch__.{names.of('module', module)}": renamer.visit(archive.code[module]) for module in sorted(renamer.modules)
    }
    for found in {id(o): o for o in objects}.values():
        found.state = {renamer.attribute(name): value for name, value in found.state.items()}
    for kind in {type(o) for o in objects}:
        kind.qualified = renamer.qualified(*kind.qualified.rsplit(".", 1))
    return archives.write(archive, target)
