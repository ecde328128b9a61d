"""What the files of a submission do to reach forbidden modules.

Two kinds of value are watched: forbidden modules, which must not be reached at all, and *gateways* (`fla`,
`fla.ops`, `sys`), from which they could be. A gateway may be imported, renamed and followed by an attribute;
handing it to anything else is refused, because from there on nothing can be followed. No honest kernel does
that.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Final

from protocol.import_names import (
    GATEWAYS,
    ImportNames,
    attribute_access,
    import_source,
    is_forbidden,
    namespace_key,
    package_of,
    plain_module,
)

_LOADERS: Final = frozenset(
    (
        *("importlib", "builtins", "imp", "runpy", "pkgutil", "pydoc", "zipimport", "code", "codeop"),
        *("pickle", "_pickle", "cloudpickle", "dill", "marshal"),
        *("_imp", "_frozen_importlib", "_frozen_importlib_external"),
    )
)
"""Modules that load modules or run code under names that cannot be read from the source."""

_LOADER_MEMBERS: Final = frozenset({"importlib", "builtins", "runpy", "pkgutil", "pydoc", "zipimport"})
"""Those of them whose names mean nothing else: found as members of any other module too."""

_BUILTINS: Final = frozenset(
    {"exec", "eval", "compile", "__import__", "__builtins__", "__loader__", "__spec__"}
)
_MEMBERS: Final = frozenset(
    (
        *("__import__", "__builtins__", "__loader__", "__spec__", "__globals__", "__subclasses__"),
        *("__getattribute__", "f_globals", "f_builtins", "f_locals", "import_module", "pythonapi"),
        *("get_objects", "get_referrers", "get_type_hints"),
    )
)
_SYS_MEMBERS: Final = frozenset(
    (
        *("modules", "meta_path", "path", "path_hooks", "path_importer_cache"),
        *("_getframe", "_current_frames", "settrace", "setprofile"),
    )
)
_NAMESPACES: Final = frozenset({"globals", "locals", "vars"})
_NOTED_MODULES: Final = frozenset({"ctypes", "gc", "inspect", "subprocess", "timeit", "doctest", "unittest"})
_FORBIDDEN_TEXT = re.compile(r"\bops\W+(gla|kda)\b")
_LIKENESS = re.compile(r"(^|_)(gla|kda)(_|$)", re.IGNORECASE)
_UNREADABLE_CHARS: Final = 200
"""Code that came with a kernel in another form would be longer."""
_UNSEEN: Final = "through which any module can be reached unseen"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node stands."""

    parent: ast.AST | None
    grandparent: ast.AST | None
    in_class: bool
    """Among the statements of a class, whose names are reached as attributes."""


class Reach:
    """What is wrong with the files of a submission, and what a person should look at."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self._trees = trees
        self._names = ImportNames(trees)

    def problems(self, name: str) -> list[str]:
        """List what one file does against the rules, one sentence each, without repetitions."""
        found: dict[str, None] = {}
        if not self._names.complete:
            found[f"{name}: renames packages so often that the names cannot be followed"] = None
        for node, place in _places(self._trees[name]):
            for problem in self._problems_at(name, node, place):
                found[f"{name}: line {_line_of(node)}: {problem}"] = None
        return list(found)

    def notes(self, name: str) -> list[str]:
        """List what in one file is worth a person's look, and no fault by itself."""
        found: dict[str, None] = {}
        for node, place in _places(self._trees[name]):
            for note in _notes_at(node, place):
                found[f"{name}: line {_line_of(node)}: {note}"] = None
        return list(found)

    def _problems_at(self, name: str, node: ast.AST, place: _Place) -> Iterator[str]:
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    yield from _import_problems(plain_module(alias.name))
                    if place.in_class and alias.asname is not None and plain_module(alias.name) in GATEWAYS:
                        yield f"imports {alias.name} into a class, from where it cannot be followed"
            case ast.ImportFrom():
                yield from self._from_problems(name, node, place)
            case ast.Name(ctx=ast.Load()):
                yield from _builtin_problems(node, place)
                yield from self._gateway_problems(name, node, place)
            case ast.expr():
                yield from self._member_problems(name, node)
                yield from self._gateway_problems(name, node, place)
            case _:
                pass

    def _from_problems(self, name: str, node: ast.ImportFrom, place: _Place) -> Iterator[str]:
        module = import_source(node, package_of(name))
        if not module:
            yield "a relative import leaves the package fla"
            return
        yield from _import_problems(module)
        for alias in node.names:
            if alias.name == "*":
                yield f"star import from {module}; name what you import"
                continue
            paths = self._names.member(module, alias.name)
            for path in sorted(filter(is_forbidden, paths)):
                if not is_forbidden(module):
                    yield f"imports {path}, which is forbidden"
            if place.in_class and paths & GATEWAYS:
                yield f"imports {alias.name} into a class, from where it cannot be followed"
            yield from _unseen_members(alias.name, {module})

    def _member_problems(self, name: str, node: ast.expr) -> Iterator[str]:
        access = attribute_access(node)
        if access is None:
            return
        base, attribute = access
        bases = self._names.paths(name, base)
        if attribute is None:
            if bases & GATEWAYS:
                yield f"takes an attribute of {_listed(bases & GATEWAYS)} under a computed name"
            return
        yield from _unseen_members(attribute, bases)
        if any(map(is_forbidden, bases)):
            return
        reached = sorted(filter(is_forbidden, self._names.paths(name, node)))
        if (
            not reached
            and attribute in ("gla", "kda")
            and isinstance(base, ast.Attribute)
            and base.attr == "ops"
        ):
            reached = [f"ops.{attribute}"]
        for path in reached:
            yield f"reaches {path}, which is forbidden"

    def _gateway_problems(self, name: str, node: ast.expr, place: _Place) -> Iterator[str]:
        if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            return
        gateways = self._names.paths(name, node) & GATEWAYS
        if gateways and not _may_hold_gateway(node, place):
            yield f"hands on the module {_listed(gateways)}, from where it cannot be followed"


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, _Place]]:
    stack: list[tuple[ast.AST, _Place]] = [(tree, _Place(None, None, in_class=False))]
    while stack:
        node, place = stack.pop()
        yield node, place
        in_class = isinstance(node, ast.ClassDef) or (
            place.in_class and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        )
        below = _Place(node, place.parent, in_class)
        stack += [(child, below) for child in reversed(list(ast.iter_child_nodes(node)))]


def _import_problems(module: str) -> Iterator[str]:
    if is_forbidden(module):
        yield f"imports {module}, which is forbidden"
    if module.partition(".")[0] in _LOADERS:
        yield f"imports {module}, {_UNSEEN}"


def _unseen_members(attribute: str, bases: Set[str]) -> Iterator[str]:
    if attribute in _LOADER_MEMBERS or attribute in _MEMBERS:
        yield f"uses {attribute}, {_UNSEEN}"
    elif "sys" in bases and attribute in _SYS_MEMBERS:
        yield f"uses sys.{attribute}, {_UNSEEN}"
    elif bases & GATEWAYS and attribute.startswith("__") and attribute not in ("__version__", "__name__"):
        yield f"uses {attribute} of {_listed(bases & GATEWAYS)}, {_UNSEEN}"


def _builtin_problems(node: ast.Name, place: _Place) -> Iterator[str]:
    parent = place.parent
    if node.id in _BUILTINS:
        yield f"uses {node.id}, {_UNSEEN}"
    called = isinstance(parent, ast.Call) and parent.func is node
    if node.id == "getattr" and not (called and attribute_access(parent) is not None):
        yield "uses getattr other than as getattr(object, name), so that it cannot be followed"
    if node.id in _NAMESPACES:
        key = namespace_key(place.grandparent)
        of_an_object = node.id == "vars" and isinstance(parent, ast.Call) and called and bool(parent.args)
        if key is not None and (key in _BUILTINS or key in _LOADER_MEMBERS):
            yield f"looks up {key}, {_UNSEEN}"
        elif key is None and not of_an_object:
            yield f"uses {node.id} so that the names it looks up cannot be read"


def _may_hold_gateway(node: ast.expr, place: _Place) -> bool:
    match place.parent:
        case ast.Expr() | ast.Attribute():
            return True
        case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[first, *_]):
            return first is node
        case ast.Assign(targets=targets):
            return not place.in_class and all(isinstance(target, ast.Name) for target in targets)
        case ast.AnnAssign(target=ast.Name()) | ast.NamedExpr():
            return not place.in_class
        case _:
            return False


def _notes_at(node: ast.AST, place: _Place) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=text) | ast.AsyncFunctionDef(name=text) | ast.ClassDef(name=text):
            if _LIKENESS.search(text):
                yield f"defines {text}, named like code of the forbidden modules"
        case ast.Import(names=aliases):
            noted = {alias.name.partition(".")[0] for alias in aliases} & _NOTED_MODULES
            if noted:
                yield f"imports {_listed(noted)}"
        case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in _NOTED_MODULES:
            yield f"imports {module}"
        case ast.Constant(value=str(text)) if not isinstance(place.parent, ast.Expr):
            if _FORBIDDEN_TEXT.search(text):
                yield "a string names a forbidden module"
            if len(text) >= _UNREADABLE_CHARS and not any(map(str.isspace, text)):
                yield f"holds a string of {len(text):,} characters without a space, which nobody can read"
        case ast.Constant(value=bytes(data)) if len(data) >= _UNREADABLE_CHARS:
            yield f"holds {len(data):,} bytes as a constant, which nobody can read"
        case _:
            pass


def _line_of(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _listed(modules: Set[str]) -> str:
    return ", ".join(sorted(modules))
