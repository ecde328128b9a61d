"""Normal form of a set of files: their syntax trees as tokens that do not depend on the files' own names."""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

from protocol.import_names import import_source, module_of, package_of
from protocol.name_scopes import Function, Scope, ScopeTree, parameters_of

PUBLIC_FUNCTIONS: Final = frozenset({"chunk_quasar", "fused_recurrent_quasar", "forward_substitution_kernel"})
"""Called from outside by name."""

_POSITIONAL: Final = 4
"""Parameters of a public function that are given by place (q, k, v, beta); the others are given by name."""

_NAMESPACES: Final = frozenset({"globals", "locals", "vars"})


class NormalForm:
    """The tokens of a set of files, and the decisions that they rest on.

    A name counts as it is spelled (is *pinned*) where something outside the scoping rules may refer to it:
    class members, public functions, parameters that a call passes by name to something that cannot be
    followed, module members while a file of the set is imported as a whole, everything when a namespace is
    read by strings.
    """

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self._trees = trees
        self._file_of = {module_of(name): name for name in trees}
        self._scopes = ScopeTree(trees)
        self._numbers: dict[tuple[int, str], int] = {}
        self._slots = self._kernel_slots()
        self._named: dict[tuple[int, str], Function | None] = {}
        self._callees = {id(call): self._callee(call.func, scope) for call, scope in self._scopes.calls}
        self._pin()
        self._places: dict[int, dict[str, int]] = {}
        self._tokens: list[str] = []

    def tokens(self) -> list[str]:
        """Write the files down."""
        if not self._tokens:
            for name, tree in self._trees.items():
                self._tokens.append(name)
                self._emit(tree, self._scopes.modules[name], in_decorator=False)
        return self._tokens

    # --- what refers to what ---

    def _kernel_slots(self) -> dict[str, str]:
        """Map the parameter names of decorated functions to their places: tuners name them in strings."""
        slots: dict[str, list[str]] = {}
        for order, (function, _) in enumerate(self._scopes.scoped_functions):
            if not isinstance(function, ast.Lambda) and function.decorator_list:
                for place, parameter in enumerate(parameters_of(function)):
                    slots.setdefault(parameter.arg, []).append(f"{order}.{place}")
        return {text: hashlib.sha256(" ".join(places).encode()).hexdigest() for text, places in slots.items()}

    def _callee(self, func: ast.expr, scope: Scope) -> Function | None:
        """The function of these files that `name(...)` or `name[grid](...)` calls; None when not certain."""
        while isinstance(func, ast.Subscript):
            func = func.value
        if not isinstance(func, ast.Name):
            return None
        # Once for each name: a hostile file has hundreds of thousands, which lead through all the others.
        asked = id(scope), func.id
        if asked not in self._named:
            self._named[asked] = self._function(func.id, scope)
        return self._named[asked]

    def _function(self, text: str, scope: Scope) -> Function | None:
        """The function of these files that a name stands for."""
        owner = scope.find(text)
        for _ in range(1 + len(self._trees)):  # Files can import a name from each other in a circle.
            if owner is None or owner.bound[text] != 1:
                return None
            if text in owner.functions:
                return owner.functions[text]
            module, member = owner.imports.get(text, ("", None))
            if member is None or module not in self._file_of:
                return None
            owner, text = self._scopes.modules[self._file_of[module]], member
        return None

    def _is_foreign(self, call: ast.Call, scope: Scope) -> bool:
        """Tell whether a call certainly leaves these files and takes none of their functions with it."""
        func: ast.expr = call.func
        while isinstance(func, ast.Attribute | ast.Subscript):
            func = func.value
        if not isinstance(func, ast.Name):
            return False
        owner = scope.find(func.id)
        if owner is not None:
            module, _ = owner.imports.get(func.id, ("", None))
            if owner.bound[func.id] != 1 or not module or module in self._file_of:
                return False
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        return all(self._callee(argument, scope) is None for argument in given)

    def _pin(self) -> None:
        by_name: set[str] = set()
        strings = set(self._free_strings())
        unpacks = False
        for call, scope in self._scopes.calls:
            if self._is_foreign(call, scope):
                continue
            if self._callees[id(call)] is None:
                by_name |= {keyword.arg for keyword in call.keywords if keyword.arg is not None}
            unpacks |= any(keyword.arg is None for keyword in call.keywords)
        if unpacks:
            by_name |= strings
        for function, scope in self._scopes.scoped_functions:
            scope.pinned |= by_name & {parameter.arg for parameter in parameters_of(function)}
            if getattr(function, "name", "") in PUBLIC_FUNCTIONS:
                scope.pinned |= {parameter.arg for parameter in parameters_of(function)[_POSITIONAL:]}
        members = self._members_read_from_outside()
        for scope in self._scopes.modules.values():
            scope.pinned |= PUBLIC_FUNCTIONS | members
        self._pinned_everywhere = strings if self._reads_namespaces() else set()

    def _free_strings(self) -> Iterator[str]:
        """Every string but a tuner's in a decorator."""
        stack: list[ast.AST] = list(self._trees.values())
        while stack:
            node = stack.pop()
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            decorators = {id(one) for one in getattr(node, "decorator_list", [])}
            stack += [child for child in ast.iter_child_nodes(node) if id(child) not in decorators]

    def _reads_namespaces(self) -> bool:
        return any(
            isinstance(node, ast.Name) and node.id in _NAMESPACES
            for tree in self._trees.values()
            for node in ast.walk(tree)
        )

    def _members_read_from_outside(self) -> set[str]:
        """Attribute names that may be module members: only when a file of the set is imported as a whole."""
        attributes: set[str] = set()
        whole = False
        for name, tree in self._trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute):
                    attributes.add(node.attr)
                elif isinstance(node, ast.Import):
                    whole |= any(alias.name.startswith("fla") for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    module = import_source(node, package_of(name))
                    whole |= any(f"{module}.{alias.name}" in self._file_of for alias in node.names)
        return attributes if whole else set()

    # --- tokens ---

    def _name(self, text: str, scope: Scope) -> str:
        owner = scope.find(text)
        if owner is None or owner.kind == "class" or text in owner.pinned or text in self._pinned_everywhere:
            return f"={text}"
        number = self._numbers.setdefault((id(owner), text), len(self._numbers))
        return f"${number}"

    def _emit(self, node: ast.AST, scope: Scope, *, in_decorator: bool) -> None:
        scope = self._scopes.scope_of(node, scope)
        self._tokens.append(type(node).__name__)
        match node:
            case ast.ImportFrom():
                self._emit_import_from(node, scope)
                return
            case ast.Import(names=aliases):
                for alias in aliases:
                    root = alias.name.partition(".")[0]
                    self._tokens += ["as", alias.name, self._name(alias.asname or root, scope)]
                return
            case ast.Constant(value=str(text)) if in_decorator and text in self._slots:
                self._tokens.append(f"@{self._slots[text]}")
                return
            case ast.Subscript(slice=ast.Constant(value=str(text))) if text in self._slots:
                self._emit(node.value, scope, in_decorator=in_decorator)
                self._tokens.append(f"@{self._slots[text]}")
                return
        for field, value in ast.iter_fields(node):
            self._tokens.append(field)
            self._emit_field(node, field, value, scope, in_decorator or field == "decorator_list")

    def _emit_field(self, node: ast.AST, field: str, value: object, scope: Scope, in_decorator: bool) -> None:
        if isinstance(value, list):
            self._tokens.append("[")
            for one in value:
                if not says_nothing(one):
                    self._emit_field(node, field, one, scope, in_decorator)
            self._tokens.append("]")
        elif isinstance(value, ast.keyword) and isinstance(node, ast.Call):
            self._tokens.append(self._keyword(node, value))
            self._emit(value.value, scope, in_decorator=in_decorator)
        elif isinstance(value, ast.AST):
            self._emit(value, scope, in_decorator=in_decorator)
        elif isinstance(value, str) and _is_name(node, field):
            self._tokens.append(self._name(value, scope))
        elif field not in ("type_comment", "kind"):
            self._tokens.append(f"{type(value).__name__} {value!r}")

    def _keyword(self, call: ast.Call, keyword: ast.keyword) -> str:
        callee = self._callees[id(call)]
        if callee is None or keyword.arg is None:
            return f"={keyword.arg}"
        places = self._places.get(id(callee))
        if places is None:
            places = {parameter.arg: place for place, parameter in enumerate(parameters_of(callee))}
            self._places[id(callee)] = places
        return f"#{places[keyword.arg]}" if keyword.arg in places else f"={keyword.arg}"

    def _emit_import_from(self, node: ast.ImportFrom, scope: Scope) -> None:
        module = import_source(node, package_of(scope.file))
        self._tokens.append(module)
        for alias in node.names:
            member = f"={alias.name}"
            if module in self._file_of:
                member = self._name(alias.name, self._scopes.modules[self._file_of[module]])
            self._tokens += ["as", member, self._name(alias.asname or alias.name, scope)]


def says_nothing(node: object) -> bool:
    """A docstring or any other bare constant, and `pass`."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_name(node: ast.AST, field: str) -> bool:
    """Tell whether a text field of a node is a name under the scoping rules."""
    match node:
        case ast.Name():
            return field == "id"
        case ast.arg():
            return field == "arg"
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.ExceptHandler():
            return field == "name"
        case ast.MatchAs() | ast.MatchStar():
            return field == "name"
        case ast.MatchMapping():
            return field == "rest"
        case ast.Global() | ast.Nonlocal():
            return field == "names"
        case _:
            return False
