"""The access matrix: every kind of line against every kind of access, tried on real memory.

Nothing here predicts anything. Each cell makes a small memory, brings one line into the state that the
row names, performs the access that the column names, and reports what happened:

==============  ======================================================================================
``contents``    the read gave what the line holds
``old``         the read gave what the line held at an earlier time
``zeros``       the read gave zeros          ``ones``    the read was aborted: all ones
``noise``       the read gave what decrypting with a wrong key, or of altered ciphertext, gives
``#PF``         page fault with RSVD         ``#MC``     machine check
``hidden``      raw DRAM does not show the contents      ``plain``   it does
==============  ======================================================================================

A write is shown as ``what happened -> what the line's owner reads afterwards`` (``new``: what was just
written, perhaps beside contents that were there).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swtdx.machine.memory.addresses import LINE
from swtdx.machine.memory.dram import Dram, DramLine
from swtdx.machine.memory.faults import MachineCheck, Requestor, ReservedBitFault
from swtdx.machine.memory.keys import Algorithm, Command, Integrity
from swtdx.machine.memory.physical import DEVICE, HOST, SEAM, TD, PhysicalMemory

SHARED, OTHER_SHARED, OWN, FOREIGN = 1, 2, 32, 33
_AT: Final = 0x8000
_ELSEWHERE: Final = 0xA040
_SEAM: Final = 0x10000
_HOLE: Final = 0x20000

_CONTENTS: Final = bytes(range(0x40, 0x80))
_OLD: Final = bytes(range(0x80, 0xC0))
_NEW: Final = b"\xee" * 8


class _Stage:
    """A small memory, one line in it, and who that line belongs to."""

    def __init__(self, integrity: Integrity) -> None:
        self.memory = PhysicalMemory([(0, 0x20000)], b"access matrix, any seed", integrity=integrity)
        self.dram = Dram(self.memory)
        for keyid in (SHARED, OTHER_SHARED, OWN, FOREIGN):
            private = self.memory.addresses.is_private(keyid)
            mac = private and integrity is Integrity.CRYPTOGRAPHIC
            algorithm = Algorithm.AES_XTS_128_INTEGRITY if mac else Algorithm.AES_XTS_128
            self.memory.keys.program(keyid, Command.SET_KEY_RANDOM, algorithm, seam=True)
        self.hpa = _AT
        self.keyid = 0
        self.requestor = HOST
        self.contents = _CONTENTS

    def belongs(self, keyid: int, requestor: Requestor, hpa: int = _AT) -> None:
        self.keyid, self.requestor, self.hpa = keyid, requestor, hpa

    def put(self, data: bytes = _CONTENTS) -> None:
        """The owner stores the line in its cache."""
        pa = self.memory.addresses.join(self.hpa, self.keyid)
        if self.keyid >= OWN:
            self.memory.direct_zero(pa & -4096, 4096)
        self.memory.write(pa, data, self.requestor)

    def look(self, keyid: int, requestor: Requestor) -> str:
        """The name of what a read gives."""
        return self.name(
            lambda: self.memory.read(self.memory.addresses.join(self.hpa, keyid), LINE, requestor)
        )

    def name(self, read: Callable[[], bytes]) -> str:
        try:
            data = read()
        except MachineCheck:
            return "#MC"
        except ReservedBitFault:
            return "#PF"
        known = {self.contents: "contents", _OLD: "old", bytes(LINE): "zeros", b"\xff" * LINE: "ones"}
        if data in known:
            return known[data]
        if data.startswith(_NEW) and data[len(_NEW) :] in (
            self.contents[len(_NEW) :], _OLD[len(_NEW) :], bytes(LINE - 8), _NEW * 7,
        ):  # fmt: skip
            return "new"
        return "noise"

    def after(self, write: Callable[[int], None], keyid: int) -> str:
        """The name of a write and of what the owner then reads."""
        try:
            write(self.memory.addresses.join(self.hpa, keyid))
        except MachineCheck:
            happened = "#MC"
        except ReservedBitFault:
            happened = "#PF"
        else:
            happened = "done"
        return f"{happened} -> {self.look(self.keyid, self.requestor)}"


def _untouched(stage: _Stage) -> None:
    stage.contents = bytes(LINE)


def _host_cached(stage: _Stage) -> None:
    stage.put()


def _host_dram(stage: _Stage) -> None:
    stage.put()
    stage.memory.wbinvd()


def _shared_cached(stage: _Stage) -> None:
    stage.belongs(SHARED, HOST)
    stage.put()


def _shared_dram(stage: _Stage) -> None:
    _shared_cached(stage)
    stage.memory.wbinvd()


def _td_cached(stage: _Stage) -> None:
    stage.belongs(OWN, TD)
    stage.put()


def _td_dram(stage: _Stage) -> None:
    _td_cached(stage)
    stage.memory.wbinvd()


def _td_host_wrote(stage: _Stage) -> None:
    _td_dram(stage)
    stage.contents = b"\x99" * LINE
    stage.memory.write(stage.hpa, stage.contents)


def _td_bit_flipped(stage: _Stage) -> None:
    _td_dram(stage)
    stage.dram.flip(stage.hpa + 20, 3)


def _td_mac_flipped(stage: _Stage) -> None:
    _td_dram(stage)
    line = stage.dram.read_line(stage.hpa)
    stage.dram.write_line(stage.hpa, DramLine(line.ciphertext, line.mac ^ 1 << 27, line.owner))


def _td_owner_cleared(stage: _Stage) -> None:
    _td_dram(stage)
    line = stage.dram.read_line(stage.hpa)
    stage.dram.write_line(stage.hpa, DramLine(line.ciphertext, line.mac, False))


def _td_swapped(stage: _Stage) -> None:
    _td_cached(stage)
    stage.memory.direct_store(stage.memory.addresses.join(_ELSEWHERE, OWN), _CONTENTS)
    stage.memory.wbinvd()
    stage.dram.swap(stage.hpa, _ELSEWHERE)


def _td_replayed(stage: _Stage) -> None:
    stage.belongs(OWN, TD)
    stage.put(_OLD)
    stage.memory.wbinvd()
    old = stage.dram.read_line(stage.hpa)
    stage.put()
    stage.memory.wbinvd()
    stage.dram.write_line(stage.hpa, old)


def _host_owner_set(stage: _Stage) -> None:
    _host_dram(stage)
    line = stage.dram.read_line(stage.hpa)
    stage.dram.write_line(stage.hpa, DramLine(line.ciphertext, line.mac, True))


def _host_bit_flipped(stage: _Stage) -> None:
    _host_dram(stage)
    stage.dram.flip(stage.hpa + 20, 3)


def _seam(stage: _Stage) -> None:
    stage.belongs(0, SEAM, _SEAM)
    stage.memory.set_seamrr(_SEAM, 0x10000)
    stage.put()


def _hole(stage: _Stage) -> None:
    stage.belongs(0, HOST, _HOLE)
    stage.contents = b"\xff" * LINE


#: What a line can be, in the order of the rows.
LINES: Final[dict[str, Callable[[_Stage], None]]] = {
    "untouched": _untouched,
    "host's, cached": _host_cached,
    "host's, in DRAM": _host_dram,
    "shared KeyID's, cached": _shared_cached,
    "shared KeyID's, in DRAM": _shared_dram,
    "TD's, cached": _td_cached,
    "TD's, in DRAM": _td_dram,
    "TD's, then written by the host": _td_host_wrote,
    "TD's, a DRAM bit flipped": _td_bit_flipped,
    "TD's, a MAC bit flipped": _td_mac_flipped,
    "TD's, owner bit cleared": _td_owner_cleared,
    "TD's, swapped with another": _td_swapped,
    "TD's, an old version replayed": _td_replayed,
    "host's, owner bit set": _host_owner_set,
    "host's, a DRAM bit flipped": _host_bit_flipped,
    "in the SEAM range": _seam,
    "no memory there": _hole,
}


def _raw(stage: _Stage) -> str:
    if not stage.memory.bus.is_populated(stage.hpa, LINE):
        return "ones"
    seen = stage.dram.read(stage.hpa, LINE)
    return "plain" if seen in (stage.contents, _OLD) else "hidden"


def _reader(keyid: int, requestor: Requestor) -> Callable[[_Stage], str]:
    return lambda stage: stage.look(keyid, requestor)


def _writer(keyid: int, requestor: Requestor) -> Callable[[_Stage], str]:
    return lambda stage: stage.after(lambda pa: stage.memory.write(pa, _NEW, requestor), keyid)


def _mover(keyid: int, requestor: Requestor) -> Callable[[_Stage], str]:
    return lambda stage: stage.after(lambda pa: stage.memory.direct_store(pa, _NEW * 8, requestor), keyid)


#: Who accesses it and how, in the order of the columns. Writes are of 8 bytes; "TD" and "SEAM" use the
#: KeyID of the TD whose lines these are.
ACCESSES: Final[dict[str, Callable[[_Stage], str]]] = {
    "host reads": _reader(0, HOST),
    "host reads, other KeyID": _reader(OTHER_SHARED, HOST),
    "host reads, private KeyID": _reader(OWN, HOST),
    "host writes": _writer(0, HOST),
    "host writes, private KeyID": _writer(OWN, HOST),
    "host MOVDIR64B": _mover(0, HOST),
    "device reads": _reader(0, DEVICE),
    "device writes": _writer(0, DEVICE),
    "device reads, private KeyID": _reader(OWN, DEVICE),
    "TD reads": _reader(OWN, TD),
    "TD writes": _writer(OWN, TD),
    "other TD reads": _reader(FOREIGN, TD),
    "SEAM reads": _reader(OWN, SEAM),
    "SEAM MOVDIR64B": _mover(OWN, SEAM),
    "raw DRAM": _raw,
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What one access to one kind of line gave."""

    line: str
    access: str
    outcome: str


def run_matrix(integrity: Integrity) -> list[Cell]:
    """Try every access on every kind of line, each on a machine of its own; row by row."""
    cells: list[Cell] = []
    for line, prepare in LINES.items():
        for access, attempt in ACCESSES.items():
            stage = _Stage(integrity)
            prepare(stage)
            cells.append(Cell(line, access, attempt(stage)))
            stage.memory.close()
    return cells
