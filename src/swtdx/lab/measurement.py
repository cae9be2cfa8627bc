"""Attacks on what the TD says it is."""

from __future__ import annotations

from typing import Final

from swtdx.arch.metadata import Context, by_name
from swtdx.lab.attack import attack
from swtdx.lab.bench import Bench
from swtdx.lab.victim import CODE, Victim

FAMILY: Final = "measurement"


def mrtd(bench: Bench, victim: Victim) -> bytes:
    """MRTD of a TD, by TDH.MNG.RD."""
    field = by_name(Context.TD, "MRTD")
    words = []
    for element in range(field.total):
        bench.must("TDH.MNG.RD", rcx=victim.td.root, rdx=field.element_id(element))
        words.append(bench.answer[8])
    return b"".join(word.to_bytes(8, "little") for word in words)


@attack(FAMILY, "change MRTD after the TD was measured")
def extend_after_FINALIZE(bench: Bench) -> None:
    """TDH.MR.EXTEND and TDH.MR.FINALIZE of a runnable TD; MRTD must stay what it is."""
    before = mrtd(bench, bench.victim)
    bench.attempt("TDH.MR.EXTEND", "after FINALIZE", rcx=CODE, rdx=bench.tdr)
    bench.attempt("TDH.MR.FINALIZE", "again", rcx=bench.tdr)
    same = mrtd(bench, bench.victim) == before
    bench.note("MRTD afterwards", "unchanged" if same else "it has changed", same)


@attack(FAMILY, "write another MRTD")
def write_MRTD(bench: Bench) -> None:
    """TDH.MNG.WR of MRTD and RTMR0."""
    for name in ("MRTD", "RTMR"):
        field = by_name(Context.TD, name)
        bench.attempt("TDH.MNG.WR", name, rcx=bench.tdr, rdx=field.element_id(0), r8=0, r9=(1 << 64) - 1)


@attack(FAMILY, "pass another TD off as the victim")
def build_it_with_one_bit_changed(bench: Bench) -> None:
    """The same TD with one bit of its code changed must have another MRTD; without a change, the same."""
    genuine = mrtd(bench, bench.victim)
    code = bytearray(bench.victim.code)
    code[-1] ^= 0x80
    differs = mrtd(bench, bench.second_td("impostor", bytes(code))) != genuine
    answer = "another MRTD" if differs else "the victim's MRTD"
    bench.note("a TD like the victim's, with one bit of its code changed", answer, differs)
    # Else the comparison would say nothing.
    assert mrtd(bench, bench.second_td("twin")) == genuine, "a twin of the victim has another MRTD"


@attack(FAMILY, "initialise the TD again, with other attributes")
def initialise_again(bench: Bench) -> None:
    """TDH.MNG.INIT and TDH.MNG.ADDCX of a TD that runs."""
    bench.attempt("TDH.MNG.INIT", "again", rcx=bench.tdr, rdx=bench.page())
    bench.attempt("TDH.MNG.ADDCX", "again", rcx=bench.page(), rdx=bench.tdr)
