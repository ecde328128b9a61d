"""Which modules the names and expressions of a submission's files may stand for.

Names are followed through imports, plain assignments and the files of the submission, without regard to
flow or scope: what a name may be anywhere in a file, it may be everywhere in it.
"""

import ast
from collections.abc import Mapping, Set
from typing import Final

PACKAGE: Final = "fla.ops.quasar"
FORBIDDEN_MODULES: Final = ("fla.ops.gla", "fla.ops.kda")
GATEWAYS: Final = frozenset({"fla", "fla.ops", "sys"})
"""Modules from which the forbidden ones can be reached."""

_REEXPORTED: Final = frozenset(
    f"fla.ops.{name}"
    for name in ("chunk_gla", "fused_chunk_gla", "fused_recurrent_gla", "chunk_kda", "fused_recurrent_kda")
)
"""What the original `fla.ops` re-exports from the forbidden modules."""

_NOTHING: Final[frozenset[str]] = frozenset()
_NAMESPACES: Final = frozenset({"globals", "locals", "vars"})
_MAX_PASSES: Final = 20
_MAX_MEANINGS: Final = 32
"""Limits of following; no honest file comes near."""


def package_of(name: str) -> str:
    """Name the package of a file given by its path inside `fla/ops/quasar`."""
    return ".".join((PACKAGE, *name.split("/")[:-1]))


def module_of(name: str) -> str:
    """Name the module of a file given by its path inside `fla/ops/quasar`."""
    stem = name.rpartition("/")[2].removesuffix(".py")
    return package_of(name) if stem == "__init__" else f"{package_of(name)}.{stem}"


def _packages(module: str) -> list[str]:
    """A module and the packages that it lies in."""
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def import_source(statement: ast.ImportFrom, package: str) -> str:
    """Resolve the module of a from-import; "" when a relative one leaves the outermost package."""
    if statement.level == 0:
        return plain_module(statement.module or "")
    parts = package.split(".")
    if statement.level > len(parts):
        return ""
    base = parts[: len(parts) - statement.level + 1]
    return plain_module(".".join((*base, statement.module) if statement.module else base))


def plain_module(module: str) -> str:
    """Write a package's own module as the package."""
    return module.replace(".__init__", "")


def is_forbidden(path: str) -> bool:
    """Tell whether a dotted path lies in a forbidden module."""
    return path in _REEXPORTED or any(
        path == module or path.startswith(f"{module}.") for module in FORBIDDEN_MODULES
    )


def folded_text(node: ast.expr) -> str | None:
    """Compute a string that the source spells out in constant pieces; None when it does not."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(op=ast.Add()):
            pieces = [folded_text(node.left), folded_text(node.right)]
        case ast.JoinedStr():
            pieces = [folded_text(value) for value in node.values]
        case ast.FormattedValue(conversion=-1, format_spec=None):
            return folded_text(node.value)
        case _:
            return None
    known = [piece for piece in pieces if piece is not None]
    return "".join(known) if len(known) == len(pieces) else None


def attribute_access(node: ast.AST | None) -> tuple[ast.expr, str | None] | None:
    """Split `base.name` or `getattr(base, name)`; the name is None when it is computed."""
    match node:
        case ast.Attribute():
            return node.value, node.attr
        case ast.Call(func=ast.Name(id="getattr"), args=[base, text, *_]) if not isinstance(
            base, ast.Starred
        ):
            return base, folded_text(text)
        case _:
            return None


def namespace_key(node: ast.AST | None) -> str | None:
    """The name that `globals()["name"]` looks up, when the source spells it out."""
    match node:
        case ast.Subscript(value=ast.Call(func=ast.Name(id=name), args=[], keywords=[])) if (
            name in _NAMESPACES
        ):
            return folded_text(node.slice)
        case _:
            return None


class ImportNames:
    """The meanings of every name of every file."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self._file_of = {module_of(name): name for name in trees}
        self._packages = {package for module in self._file_of for package in _packages(module)}
        self._names: dict[str, dict[str, set[str]]] = {name: {} for name in trees}
        self._imports: list[tuple[str, ast.ImportFrom]] = []
        self._assignments: list[tuple[str, str, ast.expr]] = []
        self._crowded = False
        self._known: dict[int, frozenset[str]] = {}
        for name, tree in trees.items():
            for node in ast.walk(tree):
                self._collect(name, node)
        self.complete = any(not self._follow() for _ in range(_MAX_PASSES)) and not self._crowded
        """False when names are passed on so often that following them was given up."""

    def paths(self, name: str, node: ast.AST) -> frozenset[str]:
        """The dotted paths that an expression in a file may stand for, as far as they lead anywhere."""
        known = self._known.get(id(node))
        if known is None:
            known = self._known[id(node)] = self._paths(name, node)
        return known

    def _paths(self, name: str, node: ast.AST) -> frozenset[str]:
        if isinstance(node, ast.Name):
            return self._meanings(name, node.id)
        if isinstance(node, ast.NamedExpr):
            return self.paths(name, node.value)
        access = attribute_access(node)
        if access is None:
            return self._meanings(name, namespace_key(node) or "")
        base, attribute = access
        if attribute is None:
            return _NOTHING
        return _NOTHING.union(*(self.member(path, attribute) for path in self.paths(name, base) or {"?"}))

    def _meanings(self, name: str, target: str) -> frozenset[str]:
        return frozenset(self._names[name].get(target, _NOTHING))

    def member(self, module: str, attribute: str) -> frozenset[str]:
        """What a member of a module may be; any module may carry `fla` and `sys` under their names."""
        if is_forbidden(module):
            return frozenset({module})
        paths = {f"{module}.{attribute}"}
        if attribute in GATEWAYS:
            paths.add(attribute)
        if module in self._file_of:
            paths |= self._names[self._file_of[module]].get(attribute, _NOTHING) & GATEWAYS
        return frozenset(filter(self._leads_on, paths))

    def _leads_on(self, path: str) -> bool:
        """Whether a forbidden module or a gateway can be a member: hostile files make paths without end."""
        return path in GATEWAYS or path in self._packages or is_forbidden(path)

    def _collect(self, name: str, node: ast.AST) -> None:
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    root = alias.name.partition(".")[0]
                    self._add(
                        name, alias.asname or root, {plain_module(alias.name) if alias.asname else root}
                    )
            case ast.ImportFrom():
                self._imports.append((name, node))
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if isinstance(target, ast.Name):
                        self._assignments.append((name, target.id, value))
            case ast.AnnAssign(target=ast.Name(id=text), value=ast.expr() as value):
                self._assignments.append((name, text, value))
            case ast.NamedExpr(target=ast.Name(id=text), value=value):
                self._assignments.append((name, text, value))
            case _:
                pass

    def _follow(self) -> bool:
        """Give names the meanings of what is assigned to them; tell whether any was new."""
        new = False
        self._known.clear()
        for name, node in self._imports:
            module = import_source(node, package_of(name))
            for alias in node.names:
                new |= self._add(name, alias.asname or alias.name, self.member(module, alias.name))
        for name, target, value in self._assignments:
            new |= self._add(name, target, self.paths(name, value) & GATEWAYS)
        return new

    def _add(self, name: str, target: str, paths: Set[str]) -> bool:
        known = self._names[name].setdefault(target, set())
        new = set(filter(self._leads_on, paths)) - known
        if len(known) + len(new) > _MAX_MEANINGS:
            self._crowded = True
            return False
        known |= new
        return bool(new)
