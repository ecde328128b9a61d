"""What the files of a submission can reach: modules followed through imports, aliases and attributes.

Names are followed without regard to flow or scope. Two kinds of value are watched: forbidden modules, which must
not be reached at all, and *gateways* (`fla`, `fla.ops`, `sys`), from which they could be reached. A gateway may be
imported, renamed and followed by an attribute; handing it to anything else is refused, because from there on
nothing can be followed. No honest kernel does that.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Final

PACKAGE: Final = "fla.ops.quasar"
FORBIDDEN_MODULES: Final = ("fla.ops.gla", "fla.ops.kda")
GATEWAYS: Final = frozenset({"fla", "fla.ops", "sys"})

_REEXPORTED: Final = frozenset(
    f"fla.ops.{name}"
    for name in ("chunk_gla", "fused_chunk_gla", "fused_recurrent_gla", "chunk_kda", "fused_recurrent_kda")
)
"""What the original `fla.ops` re-exports from the forbidden modules."""

_LOADERS: Final = frozenset(
    "importlib builtins imp runpy pkgutil pydoc zipimport code codeop pickle _pickle cloudpickle dill marshal "
    "_imp _frozen_importlib _frozen_importlib_external".split()
)
"""Modules that load modules or run code under names that cannot be read from the source."""

_LOADER_ATTRIBUTES: Final = frozenset("importlib builtins runpy pkgutil pydoc zipimport".split())
"""Those of them whose names mean nothing else: reached as an attribute of any other module too."""

_BUILTINS: Final = frozenset("exec eval compile __import__ __builtins__ __loader__ __spec__".split())

_ATTRIBUTES: Final = frozenset(
    "__import__ __builtins__ __loader__ __spec__ __globals__ __subclasses__ __getattribute__ f_globals f_builtins "
    "f_locals import_module pythonapi get_objects get_referrers get_type_hints".split()
)
_SYS_ATTRIBUTES: Final = frozenset(
    "modules meta_path path path_hooks path_importer_cache _getframe _current_frames settrace setprofile".split()
)
_NAMESPACES: Final = frozenset({"globals", "locals", "vars"})
_NOTED_MODULES: Final = frozenset("ctypes gc inspect subprocess timeit doctest unittest".split())
_FORBIDDEN_TEXT = re.compile(r"\bops\W+(gla|kda)\b")
_LIKENESS = re.compile(r"(^|_)(gla|kda)(_|$)", re.IGNORECASE)
_MAX_PASSES: Final = 20

Binding = tuple[str, ast.expr]


def package_of(name: str) -> str:
    """Name the package of a file given by its path inside `fla/ops/quasar`."""
    return ".".join((PACKAGE, *name.split("/")[:-1]))


def module_of(name: str) -> str:
    """Name the module of a file given by its path inside `fla/ops/quasar`."""
    stem = name.rpartition("/")[2].removesuffix(".py")
    return package_of(name) if stem == "__init__" else f"{package_of(name)}.{stem}"


def import_source(statement: ast.ImportFrom, package: str) -> str:
    """Resolve the module of a from-import; "" when a relative one leaves the outermost package."""
    if statement.level == 0:
        return statement.module or ""
    parts = package.split(".")
    if statement.level > len(parts):
        return ""
    base = parts[: len(parts) - statement.level + 1]
    return ".".join((*base, statement.module) if statement.module else base)


def folded_text(node: ast.expr) -> str | None:
    """Compute a string that the source spells out in constant pieces; None when it does not."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = folded_text(node.left), folded_text(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr):
        pieces = [folded_text(value) for value in node.values]
        return None if None in pieces else "".join(piece for piece in pieces if piece is not None)
    if isinstance(node, ast.FormattedValue) and node.conversion == -1 and node.format_spec is None:
        return folded_text(node.value)
    return None


def is_forbidden(path: str) -> bool:
    """Tell whether a dotted path lies in a forbidden module."""
    return path in _REEXPORTED or any(
        path == module or path.startswith(f"{module}.") for module in FORBIDDEN_MODULES
    )


class Reach:
    """The modules that each name of each file may stand for, and what is wrong with their use."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self._trees = trees
        self._file_of = {module_of(name): name for name in trees}
        self._names: dict[str, dict[str, set[str]]] = {name: {} for name in trees}
        self._opaque = False
        self.notes: list[str] = []
        self._bind()

    def problems(self, name: str) -> list[str]:
        """List what one file does against the rules, one sentence each, without repetitions."""
        found: dict[str, None] = {}
        if self._opaque:
            found[f"{name}: renames packages so often that the names cannot be followed"] = None
        for node, parent, grandparent in _with_parents(self._trees[name]):
            for problem in self._problems_at(name, node, parent, grandparent):
                found[f"{name}: line {getattr(node, 'lineno', 0)}: {problem}"] = None
            self._take_notes(name, node, parent)
        return list(found)

    # --- names ---

    def _bind(self) -> None:
        """Follow imports and plain assignments until no name gains a meaning."""
        bindings: dict[str, list[Binding]] = {}
        for name, tree in self._trees.items():
            bindings[name] = []
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        root = alias.name.partition(".")[0]
                        self._add(name, alias.asname or root, {alias.name if alias.asname else root})
                else:
                    bindings[name] += _plain_assignments(node)
        for _ in range(_MAX_PASSES):
            if not self._bind_once(bindings):
                return
        self._opaque = True

    def _bind_once(self, bindings: Mapping[str, list[Binding]]) -> bool:
        changed = False
        for name, tree in self._trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    module = import_source(node, package_of(name))
                    for alias in node.names:
                        paths = self._member(module, alias.name)
                        changed |= self._add(name, alias.asname or alias.name, paths)
            for target, value in bindings[name]:
                changed |= self._add(name, target, self._paths(name, value) & GATEWAYS)
        return changed

    def _add(self, name: str, target: str, paths: set[str]) -> bool:
        known = self._names[name].setdefault(target, set())
        before = len(known)
        known |= paths
        return len(known) > before

    def _member(self, module: str, attribute: str) -> set[str]:
        """What `module.attribute` may be."""
        paths = {f"{module}.{attribute}"}
        if attribute in ("fla", "sys"):
            paths.add(attribute)
        if module in self._file_of:
            paths |= self._names[self._file_of[module]].get(attribute, set()) & GATEWAYS
        return paths

    def _paths(self, name: str, node: ast.expr) -> set[str]:
        """The dotted paths that an expression may stand for."""
        if isinstance(node, ast.Name):
            return self._names[name].get(node.id, set())
        if isinstance(node, ast.NamedExpr):
            return self._paths(name, node.value)
        access = _attribute_access(node)
        if access is not None:
            base, attribute = access
            if attribute is None:
                return set()
            bases = self._paths(name, base) or {"?"}
            return set().union(*(self._member(path, attribute) for path in bases))
        key = _namespace_key(node)
        return self._names[name].get(key, set()) if key is not None else set()

    # --- findings ---

    def _problems_at(
        self, name: str, node: ast.AST, parent: ast.AST | None, grandparent: ast.AST | None
    ) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _import_problems(alias.name)
        elif isinstance(node, ast.ImportFrom):
            yield from self._from_problems(name, node)
        elif isinstance(node, ast.Name):
            yield from _builtin_problems(node, parent, grandparent)
        if isinstance(node, ast.expr):
            yield from self._expression_problems(name, node, parent, grandparent)

    def _from_problems(self, name: str, node: ast.ImportFrom) -> Iterator[str]:
        module = import_source(node, package_of(name))
        if not module:
            yield "a relative import leaves the package fla"
            return
        yield from _import_problems(module)
        for alias in node.names:
            if alias.name == "*":
                yield f"star import from {module}; name what you import"
                continue
            for path in self._member(module, alias.name):
                if is_forbidden(path) and not is_forbidden(module):
                    yield f"imports {path}, which is forbidden"
            yield from _attribute_problems(alias.name, {module})

    def _expression_problems(
        self, name: str, node: ast.expr, parent: ast.AST | None, grandparent: ast.AST | None
    ) -> Iterator[str]:
        access = _attribute_access(node)
        if access is not None:
            base, attribute = access
            bases = self._paths(name, base)
            if attribute is None:
                if bases & GATEWAYS:
                    yield f"takes an attribute of {_listed(bases & GATEWAYS)} under a computed name"
            else:
                yield from _attribute_problems(attribute, bases)
                if not any(map(is_forbidden, bases)):
                    for path in sorted(filter(is_forbidden, self._paths(name, node))):
                        yield f"reaches {path}, which is forbidden"
                if attribute in ("gla", "kda") and isinstance(base, ast.Attribute) and base.attr == "ops":
                    yield f"reaches ops.{attribute}, which is forbidden"
        if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            return
        gateways = self._paths(name, node) & GATEWAYS
        if gateways and not _may_hold_gateway(node, parent, grandparent):
            yield f"hands on the module {_listed(gateways)}, from where it cannot be followed"

    def _take_notes(self, name: str, node: ast.AST, parent: ast.AST | None) -> None:
        note = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and _LIKENESS.search(
            node.name
        ):
            note = f"defines {node.name}, named like code of the forbidden modules"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
            )
            noted = {module.partition(".")[0] for module in modules} & _NOTED_MODULES
            note = f"imports {_listed(noted)}" if noted else None
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not isinstance(parent, ast.Expr)
        ):
            note = "a string names a forbidden module" if _FORBIDDEN_TEXT.search(node.value) else None
        if note is not None:
            self.notes.append(f"{name}: line {getattr(node, 'lineno', 0)}: {note}")


def _with_parents(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST | None, ast.AST | None]]:
    stack: list[tuple[ast.AST, ast.AST | None, ast.AST | None]] = [(tree, None, None)]
    while stack:
        node, parent, grandparent = stack.pop()
        yield node, parent, grandparent
        children = list(ast.iter_child_nodes(node))
        stack += [(child, node, parent) for child in reversed(children)]


def _plain_assignments(node: ast.AST) -> list[Binding]:
    if isinstance(node, ast.Assign):
        return [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign | ast.NamedExpr) and isinstance(node.target, ast.Name) and node.value:
        return [(node.target.id, node.value)]
    return []


def _attribute_access(node: ast.expr) -> tuple[ast.expr, str | None] | None:
    """Split `base.name` or `getattr(base, name)`; the name is None when it is computed."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        if len(node.args) < 2 or any(isinstance(one, ast.Starred) for one in node.args[:2]):
            return None
        return node.args[0], folded_text(node.args[1])
    return None


def _namespace_key(node: ast.expr) -> str | None:
    """The name that `globals()["name"]` looks up, when the source spells it out."""
    if isinstance(node, ast.Subscript) and _is_namespace_call(node.value):
        return folded_text(node.slice)
    return None


def _is_namespace_call(node: ast.AST | None) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _NAMESPACES
        and not node.args
        and not node.keywords
    )


def _import_problems(module: str) -> Iterator[str]:
    if is_forbidden(module):
        yield f"imports {module}, which is forbidden"
    if module.partition(".")[0] in _LOADERS:
        yield f"imports {module}, which can load any module unseen"


def _attribute_problems(attribute: str, bases: set[str]) -> Iterator[str]:
    if attribute in _LOADER_ATTRIBUTES or attribute in _ATTRIBUTES:
        yield f"uses {attribute}, through which any module can be reached unseen"
    elif "sys" in bases and attribute in _SYS_ATTRIBUTES:
        yield f"uses sys.{attribute}, through which any module can be reached unseen"
    elif bases & GATEWAYS and attribute.startswith("__") and attribute not in ("__version__", "__name__"):
        yield f"uses {attribute} of {_listed(bases & GATEWAYS)}, through which any module can be reached unseen"


def _builtin_problems(node: ast.Name, parent: ast.AST | None, grandparent: ast.AST | None) -> Iterator[str]:
    if not isinstance(node.ctx, ast.Load):
        return
    if node.id in _BUILTINS or node.id in _ATTRIBUTES:
        yield f"uses {node.id}, through which any module can be reached unseen"
    called = isinstance(parent, ast.Call) and parent.func is node
    if node.id == "getattr" and not (called and _attribute_access(parent) is not None):  # type: ignore[arg-type]
        yield "uses getattr other than as getattr(object, name), so that it cannot be followed"
    if node.id in _NAMESPACES:
        plain = called and isinstance(parent, ast.Call) and bool(parent.args) and node.id == "vars"
        key = _namespace_key(grandparent) if isinstance(grandparent, ast.expr) else None
        if not plain and key is None:
            yield f"uses {node.id} so that the names it looks up cannot be read"
        elif key is not None and (key in _BUILTINS or key in _ATTRIBUTES):
            yield f"looks up {key}, through which any module can be reached unseen"


def _may_hold_gateway(node: ast.expr, parent: ast.AST | None, grandparent: ast.AST | None) -> bool:
    if isinstance(parent, ast.Expr | ast.Attribute):
        return True
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name):
        return parent.func.id in ("getattr", "hasattr") and bool(parent.args) and parent.args[0] is node
    if isinstance(parent, ast.NamedExpr):
        return True
    in_class = isinstance(grandparent, ast.ClassDef)
    if isinstance(parent, ast.Assign):
        return not in_class and all(isinstance(target, ast.Name) for target in parent.targets)
    return isinstance(parent, ast.AnnAssign) and not in_class and isinstance(parent.target, ast.Name)


def _listed(modules: set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(modules))
