"""The table of rooms in docs/architecture.md says what the contracts do: every possible import is tried."""

from __future__ import annotations

import re

import pytest

from tests.house.linter import SOURCE, TOP, House

_ROW = re.compile(r"^\| `swtdx\.([\w.]+)` \|[^|]*\|([^|]*)\|$", re.MULTILINE)
_NAME = re.compile(r"`([\w.]+)`")

#: What stands for a room when another one imports it; two where one file of it is shown to more.
_TARGETS = {"machine": ("machine.machine", "machine.host"), "proof": ("proof.invariants", "proof.probe")}


def _table() -> dict[str, set[str]]:
    """Room -> what it may import, as the document says."""
    text = (TOP / "docs" / "architecture.md").read_text(encoding="utf-8")
    return {room: set(_NAME.findall(may)) for room, may in _ROW.findall(text)}


def _rooms() -> set[str]:
    """The rooms that there are."""
    return {
        path.stem
        for path in SOURCE.iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("__")
    }


def test_the_table_lists_every_room() -> None:
    assert {room for room in _table() if "." not in room} == _rooms()
    named = {_room(name) for may in _table().values() for name in may}
    assert named <= _rooms()


def _granted(may: set[str], target: str) -> bool:
    return target in may or _room(target) in may


def _room(name: str) -> str:
    return name.partition(".")[0]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[House, dict[tuple[str, str], tuple[str, str]]]:
    """A house in which every room imports every other, and (room, target) by (importer, imported)."""
    house = House(tmp_path_factory.mktemp("house"))
    pairs: dict[tuple[str, str], tuple[str, str]] = {}
    for room in _table():
        # A row that is one file gets its imports at the end.
        module = f"swtdx.{room}.planted" if (SOURCE / room.replace(".", "/")).is_dir() else f"swtdx.{room}"
        for other in _rooms() - {_room(room)}:
            for target in _TARGETS.get(other, (other,)):
                house.plant(module, f"from swtdx.{target} import *")
                pairs[module, f"swtdx.{target}"] = (room, target)
    return house, pairs


def test_the_table_and_the_contracts_agree(
    planted: tuple[House, dict[tuple[str, str], tuple[str, str]]],
) -> None:
    house, pairs = planted
    table = _table()
    protected = {pairs[edge] for edge in house.lint("protected").edges if edge in pairs}
    upwards = {
        (importer.removeprefix("swtdx."), imported.removeprefix("swtdx."))
        for importer, imported in house.lint("layers").against_layers
    }
    # One of the two directions between any two rooms is against the order, or the contract did not run.
    rooms = len(_rooms())
    assert len(upwards) >= rooms * (rooms - 1) / 2
    refused = protected | {pair for pair in pairs.values() if (_room(pair[0]), _room(pair[1])) in upwards}
    expected = {(room, target) for room, target in pairs.values() if not _granted(table[room], target)}
    assert sorted(refused - expected) == [], "the contracts refuse what the table grants"
    assert sorted(expected - refused) == [], "the contracts let through what the table does not grant"
