"""The access matrix against a table written by hand from design §3, before the code was run.

Reading the table: ``mc`` machine check, ``pf`` reserved-bit page fault; a write is
``what happened/what the line's owner reads afterwards``. Where the two integrity modes differ, a cell is
``cryptographic|logical``.
"""

from __future__ import annotations

import pytest

from swtdx.machine.memory import Integrity
from swtdx.machine.memory.matrix import ACCESSES, LINES, run_matrix

COLUMNS = [
    "host reads", "host reads, other KeyID", "host reads, private KeyID",
    "host writes", "host writes, private KeyID", "host MOVDIR64B",
    "device reads", "device writes", "device reads, private KeyID",
    "TD reads", "TD writes", "other TD reads",
    "SEAM reads", "SEAM MOVDIR64B", "raw DRAM",
]  # fmt: skip

TABLE = {
    "untouched":
        "zeros noise pf   ok/new pf/zeros ok/new   zeros ok/new ones"
        "   mc mc/zeros mc   mc ok/zeros hidden",
    "host's, cached":
        "contents noise pf   ok/new pf/contents ok/new   contents ok/new ones"
        "   mc mc/contents mc   mc ok/zeros hidden",
    "host's, in DRAM":
        "contents noise pf   ok/new pf/contents ok/new   contents ok/new ones"
        "   mc mc/contents mc   mc ok/zeros hidden",
    "shared KeyID's, cached":
        "noise noise pf   ok/noise pf/contents ok/noise   noise ok/noise ones"
        "   mc mc/contents mc   mc ok/zeros hidden",
    "shared KeyID's, in DRAM":
        "noise noise pf   ok/noise pf/contents ok/noise   noise ok/noise ones"
        "   mc mc/contents mc   mc ok/zeros hidden",
    "TD's, cached":
        "zeros zeros pf   ok/mc pf/contents ok/mc   zeros ok/mc ones"
        "   contents ok/new mc|noise   contents ok/new hidden",
    "TD's, in DRAM":
        "zeros zeros pf   ok/mc pf/contents ok/mc   zeros ok/mc ones"
        "   contents ok/new mc|noise   contents ok/new hidden",
    "TD's, then written by the host":
        "contents noise pf   ok/mc pf/mc ok/mc   contents ok/mc ones"
        "   mc mc/mc mc   mc ok/new hidden",
    "TD's, a DRAM bit flipped":
        "zeros zeros pf   ok/mc pf/mc|pf/noise ok/mc   zeros ok/mc ones"
        "   mc|noise mc/mc|ok/noise mc|noise   mc|noise ok/new hidden",
    "TD's, a MAC bit flipped":
        "zeros zeros pf   ok/mc pf/mc|pf/contents ok/mc   zeros ok/mc ones"
        "   mc|contents mc/mc|ok/new mc|noise   mc|contents ok/new hidden",
    "TD's, owner bit cleared":
        "noise noise pf   ok/mc pf/mc ok/mc   noise ok/mc ones"
        "   mc mc/mc mc   mc ok/new hidden",
    "TD's, swapped with another":
        "zeros zeros pf   ok/mc pf/mc|pf/noise ok/mc   zeros ok/mc ones"
        "   mc|noise mc/mc|ok/noise mc|noise   mc|noise ok/new hidden",
    "TD's, an old version replayed":
        "zeros zeros pf   ok/mc pf/old ok/mc   zeros ok/mc ones"
        "   old ok/new mc|noise   old ok/new hidden",
    "host's, owner bit set":
        "zeros zeros pf   ok/new pf/zeros ok/new   zeros ok/new ones"
        "   mc|noise mc/zeros|ok/zeros mc|noise   mc|noise ok/zeros hidden",
    "host's, a DRAM bit flipped":
        "noise noise pf   ok/noise pf/noise ok/new   noise ok/noise ones"
        "   mc mc/noise mc   mc ok/zeros hidden",
    "in the SEAM range":
        "ones ones pf   ok/contents pf/contents ok/contents   ones ok/contents ones"
        "   ones ok/contents ones   mc ok/zeros hidden",
    "no memory there":
        "ones ones pf   ok/ones pf/ones ok/ones   ones ok/ones ones"
        "   ones ok/ones ones   ones ok/ones ones",
}  # fmt: skip

NAMES = {"mc": "#MC", "pf": "#PF", "ok": "done"}


def expected(cell: str, integrity: Integrity) -> str:
    modes = cell.split("|")
    chosen = modes[0] if integrity is Integrity.CRYPTOGRAPHIC else modes[-1]
    return " -> ".join(NAMES.get(word, word) for word in chosen.split("/"))


def test_the_table_covers_every_row_and_column() -> None:
    assert list(TABLE) == list(LINES)
    assert list(ACCESSES) == COLUMNS
    assert all(len(row.split()) == len(COLUMNS) for row in TABLE.values())


@pytest.mark.parametrize("integrity", list(Integrity), ids=lambda mode: mode.value)
def test_every_cell_is_as_the_design_says(integrity: Integrity) -> None:
    wanted = {
        (line, access): expected(cell, integrity)
        for line, row in TABLE.items()
        for access, cell in zip(COLUMNS, row.split(), strict=True)
    }
    got = {(cell.line, cell.access): cell.outcome for cell in run_matrix(integrity)}
    assert {key: (got[key], want) for key, want in wanted.items() if got[key] != want} == {}
    assert len(got) == len(wanted)
