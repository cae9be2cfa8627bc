"""Mutants of a source file: one small fault each, in a copy of its syntax tree.

A fault is one that a person might make: a comparison off by its border, a constant by one, ``and`` for
``or``, a mask left away, a check or a store left out, branches swapped, an item missing from a list.  Text
for people, annotations, docstrings, defaults and decorators stay as they are.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Final

_COMPARE: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_BINARY: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}  # fmt: skip
#: Functions whose result is for people only.
_FOR_PEOPLE: Final = ("__repr__", "__str__", "describe")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.  ``key`` names it by what it does, not by a line number, so that it stays the same when
    other code changes; ``path`` is relative to the checkout.
    """

    key: str
    path: str
    line: int
    #: First and last line of the statement that it is in, without what is inside of that.
    around: tuple[int, int]
    #: Whether it is in the body of a function; else it is in a constant of the module.
    inside: bool
    #: Of the whole file, mutated.
    tree: ast.Module

    @property
    def short(self) -> str:
        """A name for the command line: 8 hexadecimal digits."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:8]

    def code(self) -> CodeType:
        """The whole file's code, with the fault in it."""
        return compile(self.tree, self.path, "exec", dont_inherit=True)


def _replacements(node: ast.AST) -> Iterator[ast.AST | None]:
    """What may stand in place of ``node``; None: nothing (it is a statement, and is left out)."""
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            other = copy.copy(node)
            other.ops = [*node.ops]
            other.ops[index] = _COMPARE[type(op)]()
            yield other
    elif isinstance(node, ast.BoolOp):
        other_op: ast.boolop = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield ast.BoolOp(other_op, node.values)
        for index in range(len(node.values)):
            rest = node.values[:index] + node.values[index + 1 :]
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp):
        if isinstance(node.op, (ast.Not, ast.Invert)) or not isinstance(node.operand, ast.Constant):
            yield node.operand
    elif isinstance(node, ast.BinOp):
        if type(node.op) in _BINARY and not isinstance(node.left, (ast.JoinedStr, ast.List, ast.Tuple)):
            yield ast.BinOp(node.left, _BINARY[type(node.op)](), node.right)
            if isinstance(node.op, (ast.BitAnd, ast.BitOr, ast.LShift, ast.RShift, ast.Mod)):
                yield node.left
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield ast.Constant(node.value + 1)
            if node.value:
                yield ast.Constant(node.value - 1)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, (ast.UnaryOp, ast.Constant)):
        negated = copy.copy(node)
        negated.test = ast.UnaryOp(ast.Not(), node.test)
        yield negated
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        if len(node.elts) > 1 and isinstance(getattr(node, "ctx", None), (ast.Load, type(None))):
            for index in range(len(node.elts)):
                shorter = copy.copy(node)
                shorter.elts = node.elts[:index] + node.elts[index + 1 :]
                yield shorter
    elif isinstance(node, (ast.Raise, ast.Continue, ast.Break, ast.AugAssign)):
        yield None
    elif isinstance(node, ast.Expr):
        if not isinstance(node.value, (ast.Constant, ast.Yield, ast.YieldFrom)):
            yield None
    elif isinstance(node, ast.Assign) and not isinstance(node.targets[0], (ast.Name, ast.Tuple)):
        yield None


def _ignored(node: ast.AST, field: str, parent: ast.AST) -> bool:
    """Whether nothing in ``node``, which is ``parent.field``, is mutated."""
    if field in ("annotation", "returns", "decorator_list", "args", "keywords", "bases", "type_params"):
        return not isinstance(parent, ast.Call)
    if isinstance(node, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)):
        return True
    # The words of an error.
    return isinstance(parent, ast.Call) and isinstance(node, ast.Constant) and isinstance(node.value, str)


def _places(tree: ast.Module) -> Iterator[tuple[list[Any], ast.stmt, str, bool]]:
    """(path, statement, qualified name, in a function?) of all nodes worth a look; a path is what leads from
    the tree to the node: (field, index or None) each.
    """

    def children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                for index, each in enumerate(value):
                    if isinstance(each, ast.AST) and not _ignored(each, field, node):
                        yield field, index, each
            elif isinstance(value, ast.AST) and not _ignored(value, field, node):
                yield field, None, value

    def walk(
        node: ast.AST, path: list[Any], statement: ast.stmt | None, names: list[str], inside: bool
    ) -> Iterator[tuple[list[Any], ast.stmt, str, bool]]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if node.name in _FOR_PEOPLE:
                return
            names = [*names, node.name]
            inside = inside or isinstance(node, ast.FunctionDef)
        elif isinstance(node, ast.Lambda):
            inside = True
        if isinstance(node, ast.stmt):
            statement = node
        in_class = bool(names) and not inside
        if statement is not None and not in_class:
            yield path, statement, ".".join(names), inside
        for field, index, child in children(node):
            if in_class and not isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                continue
            yield from walk(child, [*path, (field, index)], statement, names, inside)

    yield from walk(tree, [], None, [], False)


def _head(statement: ast.stmt) -> str:
    """A statement in one line, without its body."""
    bare = copy.copy(statement)
    for field in ("body", "orelse", "handlers", "finalbody"):
        if getattr(bare, field, None):
            setattr(bare, field, [])
    return " ".join(ast.unparse(ast.fix_missing_locations(bare)).split())


def _lines(statement: ast.stmt) -> tuple[int, int]:
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return statement.lineno, max(statement.lineno, last or 0)


def _at(tree: ast.AST, path: list[Any]) -> Any:
    node: Any = tree
    for field, index in path:
        node = getattr(node, field) if index is None else getattr(node, field)[index]
    return node


def _with(tree: ast.Module, path: list[Any], new: ast.AST | None) -> ast.Module:
    """A copy of ``tree`` with another node at ``path``; what is not on the way is shared."""
    if not path:
        raise ValueError("the module itself is not replaced")

    def rebuilt(node: Any, rest: list[Any]) -> Any:
        if not rest:
            located = ast.Pass() if new is None else new
            return ast.fix_missing_locations(ast.copy_location(copy.copy(located), node))
        (field, index), *deeper = rest
        changed = copy.copy(node)
        if index is None:
            setattr(changed, field, rebuilt(getattr(node, field), deeper))
        else:
            items = list(getattr(node, field))
            items[index] = rebuilt(items[index], deeper)
            setattr(changed, field, items)
        return changed

    result: ast.Module = rebuilt(tree, path)
    return result


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _same_shape(old: CodeType, new: CodeType) -> bool:
    """Whether the functions of one can take the code of the other: closures have the same variables."""
    shapes = [
        [(each.co_qualname, each.co_firstlineno, each.co_freevars) for each in _codes(code)]
        for code in (old, new)
    ]
    return shapes[0] == shapes[1]


def mutants_of(file: Path, root: Path) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its text."""
    path = str(file.relative_to(root))
    tree = ast.parse(file.read_text(), path)
    seen: dict[str, int] = {}
    for way, statement, qualname, inside in _places(tree):
        node = _at(tree, way)
        if isinstance(node, ast.Tuple) and isinstance(statement, ast.Assign) and node is statement.value:
            # a, b = x, y with an item less is a fault that needs no test; x and y have their own turns.
            continue
        for new in _replacements(node):
            if not inside and not _constant(statement, node):
                continue
            changed = _with(tree, way, new)
            before = _head(statement)
            at = next(
                (_at(changed, way[:length]) for length in range(len(way), 0, -1)
                 if _at(tree, way[:length]) is statement),
            )  # fmt: skip
            after = "nothing" if isinstance(at, ast.Pass) else _head(at)
            key = f"{path}::{qualname or 'module'}: {before} → {after}"
            seen[key] = seen.get(key, 0) + 1
            if seen[key] > 1:
                key += f" #{seen[key]}"
            yield Mutant(
                key, path, getattr(node, "lineno", statement.lineno), _lines(statement), inside, changed
            )


def _constant(statement: ast.stmt, node: ast.AST) -> bool:
    """Whether ``node`` is part of the value that a module-level name is given."""
    return isinstance(statement, (ast.Assign, ast.AnnAssign)) and node is not statement


def usable(mutant: Mutant, file: Path) -> bool:
    """Whether it can be put into a running program: its functions keep the variables of their closures."""
    old = compile(file.read_text(), mutant.path, "exec", dont_inherit=True)
    new = mutant.code()
    return old != new if not mutant.inside else _same_shape(old, new) and old != new


def chosen(files: list[Path], root: Path, seed: str, count: int) -> list[Mutant]:
    """``count`` of all mutants of ``files``, by hash: what is chosen hardly changes when code does.

    Raises:
        ValueError: there are not so many.
    """
    ranked = sorted(
        (mutant for file in files for mutant in mutants_of(file, root)),
        key=lambda mutant: hashlib.sha256(f"{seed}:{mutant.key}".encode()).digest(),
    )
    found: list[Mutant] = []
    for mutant in ranked:
        if usable(mutant, root / mutant.path):
            found.append(mutant)
            if len(found) == count:
                return found
    raise ValueError(f"there are {len(found)} mutants, not {count}")
