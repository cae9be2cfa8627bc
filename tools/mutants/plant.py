"""A mutant put into the running interpreter.

Functions get their mutated code in place, whoever holds them; a constant of a module is bound anew in every
module that has imported it by its name, and so are constants of its module that are computed from it.  So a
mutant costs milliseconds, not the import of everything.  (What else was computed at import time stays as it
was: such a mutant may live though a real one would be seen.)
"""

from __future__ import annotations

import ast
import gc
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from tools.mutants.mutate import Mutant

#: (qualified name, first line) of a function.
Name = tuple[str, int]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


class Planter:
    """Knows all functions there are; make it when everything has been imported."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._functions: dict[str, dict[Name, list[FunctionType]]] = defaultdict(lambda: defaultdict(list))
        gc.unfreeze()
        for each in gc.get_objects():
            if isinstance(each, FunctionType):
                code = each.__code__
                self._functions[code.co_filename][code.co_qualname, code.co_firstlineno].append(each)
        gc.freeze()

    def plant(self, mutant: Mutant) -> None:
        """From now on this process has the fault.

        Raises:
            LookupError: no function and no constant of this process has it.
        """
        path = str(self._root / mutant.path)
        changed = self._swap(path, mutant) if mutant.inside else _rebind(path, mutant)
        if not changed:
            raise LookupError(f"nothing in this process is changed by {mutant.key}")

    def _swap(self, path: str, mutant: Mutant) -> int:
        functions = self._functions[path]
        changed = 0
        for code in _codes(mutant.code()):
            code = code.replace(co_filename=path)
            for function in functions.get((code.co_qualname, code.co_firstlineno), ()):
                if function.__code__ != code:
                    function.__code__ = code
                    changed += 1
        return changed


def assigned(statement: ast.stmt) -> list[str]:
    """The module-level name that ``statement`` gives a value, or none."""
    if isinstance(statement, ast.Assign):
        targets: list[ast.expr] = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    else:
        targets = []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def constants(mutant: Mutant) -> dict[str, ast.stmt]:
    """The constant that the mutant changes, and those of its module that are computed from it, in order."""
    found: dict[str, ast.stmt] = {}
    for statement in mutant.tree.body:
        names = assigned(statement)
        first = statement.lineno <= mutant.line <= (statement.end_lineno or 0)
        used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        if names and (first or used & found.keys()):
            found.update(dict.fromkeys(names, statement))
    return found


def _rebind(path: str, mutant: Mutant) -> int:
    (module,) = [each for each in list(sys.modules.values()) if getattr(each, "__file__", None) == path]
    return sum(_rebind_one(vars(module), name, statement) for name, statement in constants(mutant).items())


def _rebind_one(space: dict[str, Any], name: str, statement: ast.stmt) -> int:
    assert isinstance(statement, (ast.Assign, ast.AnnAssign))
    assert statement.value is not None
    old = space[name]
    new = eval(compile(ast.Expression(statement.value), "<mutant>", "eval"), dict(space))
    changed = 0
    for module in list(sys.modules.values()):
        others = getattr(module, "__dict__", {})
        if module.__name__.startswith(("swtdx", "tests")) and others.get(name) is old:
            others[name] = new
            changed += 1
    return changed
