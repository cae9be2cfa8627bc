"""Imports that import-linter cannot see: by name at run time, or through the package itself.

A contract type of import-linter, named in ``pyproject.toml``, so that ``make lint`` reports these beside the
others.  It reads the source of every module and objects to

* the means of importing at run time (``importlib``, ``__import__``, ``sys.modules``, ``exec`` ...), except in
  the files that the contract lists;
* a string that is the name of a module of another room, such as the one a lazy command is found by, unless
  the contract lists that pair;
* a string from which the name of a module of ours is put together;
* ``import swtdx.room.file``, which binds ``swtdx``: by its attributes the code would reach whatever another
  file has imported.  ``from swtdx.room import file`` is seen.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Final

import grimp
from importlinter import Contract, ContractCheck, fields, output

#: Modules that import, or hand out what has been imported, with those parts of them that do neither.
_MACHINERY: Final[dict[str, tuple[str, ...]]] = {
    "importlib": ("importlib.resources", "importlib.metadata"),
    "runpy": (),
    "pkgutil": (),
    "imp": (),
    "zipimport": (),
    "builtins": (),
}
#: Built-in names that execute text or import.
_NAMES: Final = frozenset({"__import__", "__builtins__", "__loader__", "__spec__", "exec", "eval", "compile"})
#: Attributes by which any object leads to the rest of the program.
_ATTRIBUTES: Final = frozenset(
    {"__builtins__", "__globals__", "__import__", "__loader__", "__spec__", "__subclasses__"}
)
#: Parts of ``sys`` that hold or find modules.
_OF_SYS: Final = frozenset({"modules", "meta_path", "path_hooks", "path_importer_cache"})

_MODULE_NAME: Final = re.compile(r"swtdx((?:\.\w+)+)(?::[\w.]+)?")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """``module`` does, in ``line``, what the contract forbids; ``target`` is the module of ours it names."""

    module: str
    line: int
    what: str
    target: str = ""

    def __str__(self) -> str:
        if self.target:
            return f"{self.module} -> {self.target} (l.{self.line}): {self.what}"
        return f"{self.module} (l.{self.line}): {self.what}"


def _is_machinery(name: str) -> bool:
    for module, harmless in _MACHINERY.items():
        if name == module or name.startswith(module + "."):
            return not any(name == part or name.startswith(part + ".") for part in harmless)
    return False


def _docstrings(tree: ast.AST) -> set[ast.expr]:
    """Strings that are statements: texts for people."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def findings(module: str, source: str, modules: frozenset[str]) -> Iterator[Finding]:
    """What ``source``, the text of ``module``, does besides plain imports; ``modules`` are all of ours."""
    tree = ast.parse(source)
    texts = _docstrings(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.startswith("swtdx.") and alias.asname is None:
                        what = f"'import {alias.name}' binds swtdx, and by it every room; use 'from'"
                        yield Finding(module, node.lineno, what, alias.name)
                    if alias.name == "sys" and alias.asname is not None:
                        yield Finding(module, node.lineno, "imports sys under another name")
                    # `import importlib.resources` binds all of importlib, unless it is given a name.
                    if _is_machinery(alias.name if alias.asname else alias.name.partition(".")[0]):
                        yield Finding(module, node.lineno, f"imports {alias.name}")
            case ast.ImportFrom(module=str(parent), names=names, level=0):
                for alias in names:
                    if _is_machinery(f"{parent}.{alias.name}"):
                        yield Finding(module, node.lineno, f"imports {parent}.{alias.name}")
                    elif parent == "sys" and alias.name in _OF_SYS:
                        yield Finding(module, node.lineno, f"imports sys.{alias.name}")
            case ast.Name(id=name) if name in _NAMES:
                yield Finding(module, node.lineno, f"uses {name}")
            case ast.Attribute(value=ast.Name(id="sys"), attr=name) if name in _OF_SYS:
                yield Finding(module, node.lineno, f"uses sys.{name}")
            case ast.Attribute(attr=name) if name in _ATTRIBUTES:
                yield Finding(module, node.lineno, f"uses {name}")
            case ast.Constant(value=str(text)) if node not in texts:
                yield from _string(module, node.lineno, text, modules)


def _string(module: str, line: int, text: str, modules: frozenset[str]) -> Iterator[Finding]:
    if text.startswith("swtdx.") and text.endswith("."):
        yield Finding(module, line, f"puts the name of a module together from {text!r}")
    found = _MODULE_NAME.fullmatch(text)
    if found is None:
        return
    # "swtdx.cli.run:run" and "swtdx.module.entry.TdxModule" name the longest part of them that is a module.
    name = "swtdx" + found[1]
    while name not in modules:
        name = name.rpartition(".")[0]
    if name != "swtdx" and _room(name) != _room(module):
        yield Finding(module, line, f"names it in the string {text!r}", name)


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@lru_cache
def _root() -> Path:
    spec = importlib.util.find_spec("swtdx")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.parent


def read(module: str, root: Path | None = None) -> str:
    """The source of ``module`` below ``root``, by default where swtdx is imported from."""
    path = (root or _root()).joinpath(*module.split("."))
    if path.is_dir():
        # A folder without this file is a namespace package, and has no text.
        path = path / "__init__.py"
        return path.read_text(encoding="utf-8") if path.exists() else ""
    return path.with_suffix(".py").read_text(encoding="utf-8")


class DynamicImportsContract(Contract):
    """See the module.  Options: ``import_machinery``, modules that may import at run time; and
    ``named_in_strings``, pairs ``importer -> imported`` (``*`` stands for any text) of which the first may
    name the second in a string.
    """

    type_name = "dynamic"

    import_machinery = fields.ListField(subfield=fields.StringField())
    named_in_strings = fields.ListField(subfield=fields.StringField())

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Read every module of ours; ``verbose`` says nothing more."""
        modules = frozenset(name for name in graph.modules if name.partition(".")[0] == "swtdx")
        machinery: list[str] = list(self.import_machinery)  # type: ignore[call-overload]
        named: list[str] = list(self.named_in_strings)  # type: ignore[call-overload]
        found: list[Finding] = []
        used: set[str] = set()
        for module in sorted(modules):
            for finding in findings(module, read(module), modules):
                if finding.target:
                    pair = f"{module} -> {finding.target}"
                    granted = [pattern for pattern in named if fnmatchcase(pair, pattern)]
                else:
                    granted = [module] if module in machinery else []
                used.update(granted)
                if not granted:
                    found.append(finding)
        # What is listed but not done would be a hole for the next one.
        unused = [name for name in (*machinery, *named) if name not in used]
        return ContractCheck(kept=not found and not unused, metadata={"found": found, "unused": unused})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name each finding, and each exception of the contract that has become needless."""
        for finding in check.metadata["found"]:
            output.print_error(f"- {finding}", bold=False)
        for name in check.metadata["unused"]:
            output.print_error(f"- {name} is allowed by the contract, and does not happen", bold=False)
        output.new_line()
