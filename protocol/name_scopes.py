"""Which binding each name of a set of files refers to (Python's scoping rules, on the syntax tree)."""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from protocol.import_names import import_source, package_of

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(slots=True, eq=False)
class Scope:
    """One namespace: what it binds, how often, and which names it declares to be another's."""

    kind: Literal["module", "class", "function", "comprehension"]
    parent: "Scope | None"
    file: str
    bound: Counter[str] = field(default_factory=Counter)
    elsewhere: dict[str, Literal["global", "nonlocal"]] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    """Functions defined under a name here (the last one)."""
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Name -> (module, name in it); None for the module itself."""
    pinned: set[str] = field(default_factory=set)
    """Names that count as they are spelled."""

    def module(self) -> "Scope":
        """The module's scope around this one."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def find(self, text: str) -> "Scope | None":
        """The scope whose binding a name used here refers to; None for a name from outside the file."""
        scope: Scope | None = self
        while scope is not None:
            declared = scope.elsewhere.get(text)
            if declared == "global":
                return self.module()
            if declared is None and text in scope.bound and (scope.kind != "class" or scope is self):
                return scope
            scope = scope.parent
        return None


def parameters_of(function: Function) -> list[ast.arg]:
    """All parameters of a function in the order of their places, `*` and `**` last."""
    arguments = function.args
    last = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *last]


class ScopeTree:
    """The scopes of a set of files. `scope_of` tells where a node's own names live."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self.modules: dict[str, Scope] = {}
        self.scoped_functions: list[tuple[Function, Scope]] = []
        self.calls: list[tuple[ast.Call, Scope]] = []
        self._starts: dict[int, Scope] = {}
        for name, tree in trees.items():
            self.modules[name] = Scope("module", None, name)
            self._visit(tree, self.modules[name])

    def scope_of(self, node: ast.AST, inherited: Scope) -> Scope:
        """The scope of a node: its own when one starts there, otherwise that of the node around it."""
        return self._starts.get(id(node), inherited)

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        scope = self.scope_of(node, scope)
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._open_function(node, scope)
            case ast.ClassDef():
                scope.bound[node.name] += 1
                self._start(node.body, Scope("class", scope, scope.file))
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._start(ast.iter_child_nodes(node), Scope("comprehension", scope, scope.file))
                self._start([node.generators[0].iter], scope)
            case ast.NamedExpr():
                owner = scope
                while owner.kind == "comprehension" and owner.parent is not None:
                    owner = owner.parent
                self._start([node.target], owner)
            case ast.Call():
                self.calls.append((node, scope))
            case _:
                _bind(node, scope)
        for child in ast.iter_child_nodes(node):
            self._visit(child, scope)

    def _open_function(self, node: Function, scope: Scope) -> None:
        inner = Scope("function", scope, scope.file)
        if not isinstance(node, ast.Lambda):
            scope.bound[node.name] += 1
            scope.functions[node.name] = node
        self.scoped_functions.append((node, inner))
        self._start([node.args], inner)
        self._start([node.body] if isinstance(node, ast.Lambda) else node.body, inner)
        outside = [*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)]
        for parameter in parameters_of(node):
            inner.bound[parameter.arg] += 1
            if parameter.annotation is not None:
                outside.append(parameter.annotation)
        self._start(outside, scope)

    def _start(self, nodes: Iterable[ast.AST], scope: Scope) -> None:
        for node in nodes:
            self._starts[id(node)] = scope


def _bind(node: ast.AST, scope: Scope) -> None:
    match node:
        case ast.Name(id=text, ctx=ast.Store() | ast.Del()):
            scope.bound[text] += 1
        case ast.Import(names=aliases):
            for alias in aliases:
                root = alias.name.partition(".")[0]
                scope.bound[alias.asname or root] += 1
                scope.imports[alias.asname or root] = (alias.name if alias.asname else root, None)
        case ast.ImportFrom(names=aliases):
            module = import_source(node, package_of(scope.file))
            for alias in aliases:
                scope.bound[alias.asname or alias.name] += 1
                scope.imports[alias.asname or alias.name] = (module, alias.name)
        case ast.Global(names=names):
            scope.elsewhere.update(dict.fromkeys(names, "global"))
            for text in names:
                scope.module().bound[text] += 1
        case ast.Nonlocal(names=names):
            scope.elsewhere.update(dict.fromkeys(names, "nonlocal"))
        case ast.ExceptHandler(name=str(text)) | ast.MatchAs(name=str(text)) | ast.MatchStar(name=str(text)):
            scope.bound[text] += 1
        case ast.MatchMapping(rest=str(text)):
            scope.bound[text] += 1
        case _:
            pass
