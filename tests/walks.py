"""Count a walk: the files that a reader opens to follow one value (docs/architecture.md, "Walks").

python tests/walks.py [-v] [--type jsonl] PACKAGES MODULE:FUNCTION:PARAMETER, such as

    python tests/walks.py data_pipeline data_pipeline.ingest:ingest:sources

The walk begins at the parameter and goes through the source in order. It enters each function or constructor that
receives the value, or a value computed from it, once for each set of such parameters. A function that is passed along,
or chosen from a table of its module, counts as called; methods of `self` are followed, those of other values are not.
With `--type`, `isinstance` and the keys of tables are decided for sources of that type: the walk of a reader who
follows one format.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = ("assay", "pretrain", "data_pipeline", "governance", "slurm")
Function = ast.FunctionDef | ast.Lambda


class Module:
    """Definitions, imports and tables of one file."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.definitions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        self.imports: dict[str, tuple[str, str]] = {}
        self.tables: dict[str, ast.Dict] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                self.imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and isinstance(getattr(node, "value", None), ast.Dict):
                self.tables[target.id] = node.value


class Walk:
    """One walk through a tree of files."""

    def __init__(self, root: Path, packages: Sequence[str], of_type: str = "") -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            self.modules[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")))
        self.packages, self.of_type = packages, of_type
        self.source_classes = {
            node.name: [c.value for c in ast.walk(field.annotation) if isinstance(c, ast.Constant)]
            for module in self.modules.values()
            for node in module.definitions.values()
            if isinstance(node, ast.ClassDef) and node.name.endswith("Source")
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id == "type"
        }
        self.stays: list[str] = []
        self.lines: list[str] = []
        self._seen: set[object] = set()
        self._depth = 0

    def begin(self, module: str, function: str, parameter: str) -> None:
        """Walk from a parameter of a function."""
        start = self.modules[module].definitions[function]
        assert isinstance(start, ast.FunctionDef)
        self.enter(self.modules[module], start, {parameter})

    def resolve(self, module: Module, name: str, hops: int = 4) -> tuple[Module, ast.FunctionDef | ast.ClassDef] | None:
        """The definition that a name has in a module."""
        if name in module.definitions:
            return module, module.definitions[name]
        origin, original = module.imports.get(name, ("", ""))
        return self.resolve(self.modules[origin], original, hops - 1) if origin in self.modules and hops else None

    def is_of_type(self, test: ast.expr) -> bool | None:
        """The value of an `isinstance` of a source; None of any other condition."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.is_of_type(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            values = [self.is_of_type(value) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            return decisive if decisive in values else None if None in values else not decisive
        named = isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "isinstance"
        if not (self.of_type and named):
            return None
        names = {node.id for node in ast.walk(test.args[1]) if isinstance(node, ast.Name)}
        if not names <= self.source_classes.keys():
            return None
        return any(self.of_type in self.source_classes[name] for name in names)

    def enter(
        self, module: Module, function: Function, received: set[str], around: Frame | None = None, owner: str = ""
    ) -> None:
        """Enter a function with these parameters, unless this was done before."""
        key = (module.name, function.lineno, function.col_offset, frozenset(received))
        if key in self._seen or module.name.split(".")[0] not in self.packages:
            return
        self._seen.add(key)
        name = getattr(function, "name", "lambda")
        self.stay(module, f"{name}({', '.join(sorted(received))})")
        frame = Frame(self, module, received, around, owner)
        self._depth += 1
        frame.expression(function.body) if isinstance(function, ast.Lambda) else frame.body(function.body)
        self._depth -= 1

    def construct(self, module: Module, cls: ast.ClassDef, call: ast.Call, frame: Frame) -> None:
        """Enter the constructor of a class; without one, the class itself."""
        methods = {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}
        if "__init__" in methods:
            received = frame.received(methods["__init__"], call, skip=1)
            self.enter(module, methods["__init__"], received, owner=cls.name)
            return
        places = [str(n) for n, value in enumerate(call.args) if frame.holds(value)]
        key = (module.name, cls.name, *places, *(k.arg for k in call.keywords if frame.holds(k.value)))
        if key not in self._seen and module.name.split(".")[0] in self.packages:
            self._seen.add(key)
            self.stay(module, cls.name)
            if "__post_init__" in methods:
                self.enter(module, methods["__post_init__"], {"self"}, owner=cls.name)

    def stay(self, module: Module, entered: str) -> None:
        """Note that a file was entered."""
        self.lines.append("  " * self._depth + f"{module.name}: {entered}")
        if self.stays[-1:] != [module.name]:
            self.stays.append(module.name)


def parameters(function: Function) -> list[str]:
    """Names of a function's parameters, those of rest included."""
    args = function.args
    rest = [arg for arg in (args.vararg, args.kwarg) if arg]
    return [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, *rest)]


class Frame:
    """The names of one function body that hold the value."""

    def __init__(self, walk: Walk, module: Module, received: set[str], around: Frame | None, owner: str) -> None:
        self.walk, self.module, self.owner = walk, module, owner or (around.owner if around else "")
        self.names = received | (around.names if around else set())
        self.inner: dict[str, ast.FunctionDef] = dict(around.inner) if around else {}

    def holds(self, expression: ast.AST | None) -> bool:
        """Return whether an expression is computed from the value."""
        names = {n.id for n in ast.walk(expression) if isinstance(n, ast.Name)} if expression else set()
        closures = (node for name in names & self.inner.keys() for node in ast.walk(self.inner[name]))
        return bool(names & self.names) or any(isinstance(n, ast.Name) and n.id in self.names for n in closures)

    def assign(self, target: ast.expr, value: ast.AST | None) -> None:
        """Let the target's names hold the value, where the assigned one does."""
        if self.holds(value):
            self.names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name) and n.id not in ("self", "_")}

    def received(self, function: Function, call: ast.Call, skip: int = 0) -> set[str]:
        """Parameters of a called function that get the value."""
        names, args = parameters(function)[skip:], function.args
        positional = [arg.arg for arg in (*args.posonlyargs, *args.args)][skip:]
        got = set()
        for place, value in enumerate(call.args):
            if self.holds(value):
                if isinstance(value, ast.Starred):
                    got |= set(positional[place:])
                got |= {positional[place]} if place < len(positional) else {args.vararg.arg} if args.vararg else set()
        for keyword in call.keywords:
            if self.holds(keyword.value):
                got |= {keyword.arg} & set(names) if keyword.arg else set(names)
        return got

    def body(self, statements: Sequence[ast.stmt]) -> bool:
        """Follow statements; return whether they certainly leave the function."""
        for statement in statements:
            if isinstance(statement, ast.FunctionDef):
                self.inner[statement.name] = statement
            elif isinstance(statement, ast.If):
                decided = self.walk.is_of_type(statement.test)
                self.expression(statement.test)
                left = decided is not False and self.body(statement.body)
                if (decided is not True and self.body(statement.orelse) and left) or (decided and left):
                    return True
            elif self.statement(statement):
                return True
        return False

    def statement(self, statement: ast.stmt) -> bool:
        """Follow one statement that is neither a definition nor an `if`."""
        if isinstance(statement, ast.For | ast.AsyncFor):
            self.expression(statement.iter)
            self.assign(statement.target, statement.iter)
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            self.expression(statement.value)
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                self.assign(target, statement.value)
        elif isinstance(statement, ast.With | ast.AsyncWith):
            for item in statement.items:
                self.expression(item.context_expr)
                if item.optional_vars:
                    self.assign(item.optional_vars, item.context_expr)
        elif not isinstance(statement, ast.ClassDef):
            for child in ast.iter_child_nodes(statement):
                if isinstance(child, ast.expr):
                    self.expression(child)
        blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        for handler in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            blocks.insert(-1, handler.body)
        if not isinstance(statement, ast.ClassDef):
            for block in blocks:
                self.body(block)
        return isinstance(statement, ast.Return | ast.Raise | ast.Continue)

    def expression(self, node: ast.AST | None) -> None:
        """Follow the calls of an expression, arguments first."""
        if isinstance(node, ast.IfExp) and (decided := self.walk.is_of_type(node.test)) is not None:
            self.expression(node.body if decided else node.orelse)
            return
        for child in children_in_order(node):
            self.expression(child)
        if isinstance(node, ast.comprehension):
            self.assign(node.target, node.iter)
        elif isinstance(node, ast.NamedExpr):
            self.assign(node.target, node.value)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and self.holds(node.slice):
            self.table(self.module.tables.get(node.value.id))
        elif isinstance(node, ast.Call):
            self.call(node)

    def table(self, table: ast.Dict | None) -> None:
        """Enter the functions of a table, or of the row of the walk's type."""
        for key, value in zip(table.keys, table.values, strict=True) if table else ():
            if not self.walk.of_type or (isinstance(key, ast.Constant) and key.value == self.walk.of_type):
                self.passed(value)

    def passed(self, value: ast.expr) -> None:
        """Enter a function that is passed along as a value."""
        if isinstance(value, ast.Lambda):
            self.walk.enter(self.module, value, set(parameters(value)), self)
        elif isinstance(value, ast.Name) and value.id in self.inner:
            inner = self.inner[value.id]
            self.walk.enter(self.module, inner, set(parameters(inner)), self)
        elif isinstance(value, ast.Name) and (found := self.walk.resolve(self.module, value.id)):
            if isinstance(found[1], ast.FunctionDef):
                self.walk.enter(*found, set(parameters(found[1])))
        elif isinstance(value, ast.Call) and getattr(value.func, "id", "") == "partial":
            self.passed(value.args[0])

    def call(self, call: ast.Call) -> None:
        """Enter what a call calls, and the functions among its arguments."""
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        function = call.func
        of_self = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "self"
        if not any(map(self.holds, values)) and not (of_self and "self" in self.names):
            return
        if of_self and isinstance(function, ast.Attribute) and self.owner in self.module.definitions:
            methods = [n for n in self.module.definitions[self.owner].body if getattr(n, "name", "") == function.attr]
            if methods and isinstance(methods[0], ast.FunctionDef):
                received = self.received(methods[0], call, skip=1) | ({"self"} & self.names)
                self.walk.enter(self.module, methods[0], received, owner=self.owner)
        elif isinstance(function, ast.Name) and function.id in self.inner:
            inner = self.inner[function.id]
            self.walk.enter(self.module, inner, self.received(inner, call), self)
        elif found := self._called(function):
            module, definition = found
            if isinstance(definition, ast.ClassDef):
                self.walk.construct(module, definition, call, self)
            else:
                self.walk.enter(module, definition, self.received(definition, call))
        for value in values:
            self.passed(value)

    def _called(self, function: ast.expr) -> tuple[Module, ast.FunctionDef | ast.ClassDef] | None:
        """The definition of a called name, or of a name in an imported module."""
        if isinstance(function, ast.Name):
            return self.walk.resolve(self.module, function.id)
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            module = self.walk.modules.get(".".join(self.module.imports.get(function.value.id, ())))
            return self.walk.resolve(module, function.attr) if module else None
        return None


def children_in_order(node: ast.AST | None) -> Iterator[ast.AST]:
    """Parts of an expression in the order in which they are computed."""
    if isinstance(node, ast.Lambda):
        yield node.body
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        yield from node.generators
        yield from [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
    elif node is not None:
        yield from (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context))


def main(arguments: Sequence[str]) -> None:
    """Count one walk of this tree, or of the tree in the working folder."""
    words = [word for word in arguments if word != "-v"]
    of_type = ""
    if "--type" in words:
        place = words.index("--type")
        of_type = words[place + 1]
        del words[place : place + 2]
    packages, start = words
    walk = Walk(Path.cwd(), packages.split(","), of_type)
    walk.begin(*start.split(":"))
    if "-v" in arguments:
        sys.stdout.write("\n".join(walk.lines) + "\n")
    stays, files = len(walk.stays), len(set(walk.stays))
    sys.stdout.write(f"{start} {of_type}: {stays} stays, {files} files, {stays - files} returns\n")


if __name__ == "__main__":
    sys.setrecursionlimit(20_000)
    main(sys.argv[1:])
