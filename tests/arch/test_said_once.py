"""The ABI is said once, in ``arch``: no room declares a number again that ``arch`` or another room names.

A declaration is a module-level ``NAME = <integer expression>`` of literals; what is computed from an import
is not one.  Names are compared without leading underscores.
"""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import swtdx

ROOT = Path(swtdx.__file__).parent
#: Names that happen to be alike: what each of the rooms means is its own.
OWN = {
    "BLOCK": "SHA-384's block: measure shares nothing with the module, so that each checks the other",
    "CODE": "GPAs of two guests",
    "RAM": "GPAs of two guests",
    "FORMAT": "two file formats",
    "MAJOR": "two versions",
    "VERSION": "several formats",
    "MAX_PACKAGES": "of the machine, and of the module",
    "NO_VECTOR": "of virtio, and of posted interrupts",
    "STEP": "two loops",
    "REPORTDATA": "of the public interface, which verifies without guests, and of a guest's script",
    "HEADER": "of an ACPI table: reading logs shares nothing with the board",
    "SEED_BYTES": "of a command that loads no guests until it needs them, and of the guest's agent",
    "LARGEST": "limits of two kinds of files",
    "RAM_SIZE": "of our fw_cfg, and of QEMU's, which is asked",
    "NO_GRAPHIC": "of our fw_cfg, and of QEMU's, which is asked",
    "CPU_COUNT": "of our fw_cfg, and of QEMU's, which is asked",
    "MAX_CPUS": "of our fw_cfg, and of QEMU's, which is asked",
    "SECTOR": "of virtio-blk, and of a kernel's image",
    "RECEIVE": "queues of three devices",
    "TRANSMIT": "queues of three devices",
    "PIECE": "of two channels",
    "PML4": "tables of two loaders",
    "PDPT": "tables of two loaders",
    "PR_SET_PDEATHSIG": "Linux's: the hypervisor shares nothing with the engine",
    "KEEP_SIZE": "Linux's: the hypervisor shares nothing with the machine's memory",
    "PUNCH_HOLE": "Linux's: the hypervisor shares nothing with the machine's memory",
    "MOST": "limits of two",
}


class Declared(NamedTuple):
    """One declaration."""

    where: str
    name: str
    value: int

    @property
    def key(self) -> tuple[str, int]:
        return self.name.lstrip("_"), self.value


def number(node: ast.expr | None) -> int | None:
    """The value of an expression of integer literals."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.UnaryOp() | ast.BinOp():
            parts = ast.walk(node)
            allowed = (ast.Constant, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)
            if all(isinstance(part, allowed) for part in parts):
                value = eval(compile(ast.Expression(node), "", "eval"))
                return value if isinstance(value, int) else None
    return None


def declarations(source: str, where: str) -> Iterator[Declared]:
    """The integers that a module's top level gives names to."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign):
            targets: list[ast.expr] = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        for target in targets:
            names, values = [target], [statement.value]
            if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                names, values = target.elts, list(statement.value.elts)
            for name, node in zip(names, values, strict=False):
                value = number(node)
                if isinstance(name, ast.Name) and value is not None:
                    yield Declared(where, name.id, value)


def named_in_arch() -> Iterator[Declared]:
    """The integers that ``arch`` gives names to, computed ones too."""
    for path in sorted((ROOT / "arch").glob("*.py")):
        module = importlib.import_module(f"swtdx.arch.{path.stem}")
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                value = getattr(module, statement.target.id)
                if type(value) is int:
                    yield Declared(f"arch/{path.name}", statement.target.id, value)


@cache
def everything() -> tuple[Declared, ...]:
    """The integers of ``arch``, and those that the other rooms declare."""
    found = list(named_in_arch())
    for path in sorted(ROOT.rglob("*.py")):
        where = str(path.relative_to(ROOT))
        if not where.startswith("arch/"):
            found += declarations(path.read_text(), where)
    return tuple(found)


def said_again(found: Sequence[Declared]) -> list[str]:
    """Complaints: a room's declaration that ``arch`` makes, or that another room makes too."""
    arch = {each.key: each.where for each in found if each.where.startswith("arch/")}
    rooms = defaultdict(list)
    complaints = []
    for each in found:
        if each.where.startswith("arch/"):
            continue
        if each.key in arch:
            complaints.append(f"{each.where}: {each.name} = {each.value:#x} is in {arch[each.key]}")
        rooms[each.key].append(each)
    for (name, value), same in rooms.items():
        files = sorted({each.where for each in same})
        if len(files) > 1 and name not in OWN:
            complaints.append(f"{name} = {value:#x} is declared in {', '.join(files)}: import it")
    return complaints


def test_no_number_is_declared_twice() -> None:
    found = everything()
    assert len(found) > 1000, "the whole package was read"
    assert said_again(found) == []


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("_PAGE: Final = 4096", "arch/units.py"),
        ("CR4_PKS = 1 << 24", "arch/x86.py"),
        ("_A, MASK32 = 5, 0xFFFFFFFF", "arch/units.py"),
        ("PM_BASE = 0x600", "devices/power.py"),
    ],
)
def test_a_planted_declaration_is_named(source: str, where: str) -> None:
    planted = declarations(source, "vmm/planted.py")
    (complaint,) = said_again((*everything(), *planted))
    assert where in complaint
    assert "vmm/planted.py" in complaint


def test_the_list_of_likenesses_is_needed() -> None:
    """Every name of it is in more than one room, with one value."""
    rooms = defaultdict(set)
    for each in everything():
        if not each.where.startswith("arch/"):
            rooms[each.key].add(each.where)
    alike = {name for (name, _), files in rooms.items() if len(files) > 1}
    assert alike == set(OWN)
