"""Recorded calls and exits of Intel's module: ours does the same.

``vectors/*.jsonl.gz`` (``zcat`` shows them) have inputs and right outputs of SEAMCALLs and VM exits, as
facts: the first line of each says where they come from, and each recording which files of Intel's source
decided.  A recording goes on where the one before it in the same world ended; a world begins with the events
of its stage, which ``stages.jsonl.gz`` has (:mod:`.replay` says what events are).
"""

from __future__ import annotations

import gzip
import json
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pytest

from swtdx.arch.features import MODULE_1_5_01
from swtdx.arch.leaf import HOST
from swtdx.arch.leaves import BY_NAME
from swtdx.proof.conformance.world import World
from tests.module.replay import Differs, Replay, numbers

_HERE: Final = Path(__file__).parent / "vectors"
_SETS: Final = ("conformance", "host", "guest", "events", "states")
#: SEAMCALLs and VM exits that no two vectors share, at least.
_CALLS, _EXITS = 2_000, 1_000
#: Leaves that nobody calls here: they need what the recording's model of a processor has not.
_WITHOUT: Final = {"TDH.SYS.SHUTDOWN", "TDH.SYS.UPDATE"}

Recording = dict[str, Any]


def recordings(name: str) -> list[Recording]:
    """A file without its first line."""
    with gzip.open(_HERE / f"{name}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines][1:]


def _replay(events: list[list[Any]], replay: Replay, wrong: list[str], name: str) -> None:
    try:
        replay.run(events)
    except Differs as difference:
        wrong.append(str(difference))
    assert not wrong, f"{name}: {'; '.join(wrong)}"


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow if each == "states" else ()) for each in _SETS]
)
def test_ours_does_the_same(name: str) -> None:
    stages = {each["stage"]: each["events"] for each in recordings("stages")}
    for number, cases in groupby(recordings(name), key=lambda each: each["world"]):
        wrong: list[str] = []
        with World(MODULE_1_5_01, part="sapphire-rapids") as world:
            replay = Replay(world, wrong.extend)
            for place, case in enumerate(cases):
                if not place:
                    _replay(stages[case["stage"]], replay, wrong, case["stage"])
                _replay(case["events"], replay, wrong, f"world {number}, {case['case']}")


def test_there_are_enough_for_every_leaf() -> None:
    calls, exits, leaves = set(), set(), set()
    for name in ("stages", *_SETS):
        for recording in recordings(name):
            assert recording["from"] or not recording["events"]
            for event in recording["events"]:
                if event[0] == "call":
                    calls.add(json.dumps(event))
                elif event[0] == "exit":
                    exits.add(json.dumps(event))
                if event[0] in ("call", "enter"):
                    leaves.add(numbers(event[2]).get("rax", 0) & 0xFFFF)
    assert len(calls) >= _CALLS
    assert len(exits) >= _EXITS
    unseen = {
        leaf.name
        for leaf in BY_NAME.values()
        if leaf.side == HOST and leaf.support == "base" and leaf.number not in leaves
    }
    assert unseen <= _WITHOUT
