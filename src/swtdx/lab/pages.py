"""Attacks on the mapping: whose page is where, and who may change it when."""

from __future__ import annotations

from typing import Final

from swtdx.arch.exits import ExitReason, ExtendedQualification
from swtdx.arch.regs import RDX
from swtdx.lab.attack import attack
from swtdx.lab.bench import Bench
from swtdx.lab.victim import CODE, RAM, SECOND

FAMILY: Final = "pages"
#: A GPA in a range that has Secure EPT tables and no page.
_EMPTY: Final = RAM + 0x10000


@attack(FAMILY, "map the victim's page into a TD of the attacker's")
def alias_in_two_TDs(bench: Bench) -> None:
    """TDH.MEM.PAGE.AUG, in another TD, of a page that the victim has."""
    other = bench.second_td()
    page = bench.victim.hpa()
    bench.attempt("TDH.MEM.PAGE.AUG", "in another TD", rcx=_EMPTY, rdx=other.td.root, r8=page)


@attack(FAMILY, "map one page at two addresses of the victim")
def alias_in_one_TD(bench: Bench) -> None:
    """TDH.MEM.PAGE.AUG of a page that is mapped already."""
    bench.attempt("TDH.MEM.PAGE.AUG", "a second time", rcx=_EMPTY, rdx=bench.tdr, r8=bench.victim.hpa())


@attack(FAMILY, "put another page in place of the victim's")
def augment_over_a_mapping(bench: Bench) -> None:
    """TDH.MEM.PAGE.AUG at a GPA that has a page."""
    bench.attempt("TDH.MEM.PAGE.AUG", "over a mapping", rcx=RAM, rdx=bench.tdr, r8=bench.page())


@attack(FAMILY, "add a page of the attacker's contents to a TD that is measured")
def add_a_page_after_FINALIZE(bench: Bench) -> None:
    """TDH.MEM.PAGE.ADD, which copies from the host's memory."""
    source, page = bench.page(), bench.page()
    bench.attempt("TDH.MEM.PAGE.ADD", "after FINALIZE", rcx=_EMPTY, rdx=bench.tdr, r8=page, r9=source)


@attack(FAMILY, "take a page away while processors may still use its translation")
def remove_without_blocking(bench: Bench) -> None:
    """TDH.MEM.PAGE.REMOVE of a page that is mapped."""
    bench.attempt("TDH.MEM.PAGE.REMOVE", "without BLOCK", rcx=SECOND, rdx=bench.tdr)


@attack(FAMILY, "take a page away while a processor's TLB still has it")
def remove_without_tracking(bench: Bench) -> None:
    """TDH.MEM.RANGE.BLOCK, then REMOVE without TDH.MEM.TRACK."""
    bench.must("TDH.MEM.RANGE.BLOCK", rcx=SECOND, rdx=bench.tdr)
    bench.attempt("TDH.MEM.PAGE.REMOVE", "without TRACK", rcx=SECOND, rdx=bench.tdr)
    # Tracked and unblocked again, the victim must find everything in place.
    bench.must("TDH.MEM.TRACK", rcx=bench.tdr)
    bench.must("TDH.MEM.RANGE.UNBLOCK", rcx=SECOND, rdx=bench.tdr)


@attack(FAMILY, "take a page away from under a processor that is in the guest, with a TLB that knows it")
def remove_while_the_victim_runs(bench: Bench) -> None:
    """BLOCK and TRACK, then REMOVE and a second TRACK before the victim has left the old epoch."""
    other = bench.other

    def meanwhile() -> None:
        bench.must("TDH.MEM.RANGE.BLOCK", other, rcx=SECOND, rdx=bench.tdr)
        bench.must("TDH.MEM.TRACK", other, rcx=bench.tdr)
        bench.attempt("TDH.MEM.PAGE.REMOVE", "in the old epoch", other, rcx=SECOND, rdx=bench.tdr)
        bench.attempt("TDH.MEM.TRACK", "before it has left", other, rcx=bench.tdr)

    # The victim goes on with the translation that it has, and finds its own page there.
    bench.while_it_runs(meanwhile)
    bench.must("TDH.MEM.RANGE.UNBLOCK", other, rcx=SECOND, rdx=bench.tdr)


@attack(FAMILY, "make the victim read a fresh page where its secret was")
def remove_and_replace(bench: Bench) -> None:
    """All by the rules: BLOCK, TRACK, REMOVE, and AUG of another page.  The victim must notice."""
    bench.must("TDH.MEM.RANGE.BLOCK", rcx=RAM, rdx=bench.tdr)
    bench.must("TDH.MEM.TRACK", rcx=bench.tdr)
    bench.must("TDH.MEM.PAGE.REMOVE", rcx=RAM, rdx=bench.tdr)
    bench.must("TDH.MEM.PAGE.AUG", rcx=RAM, rdx=bench.tdr, r8=bench.page())
    rax = bench.victim.enter()
    extended = bench.cpu.gpr[RDX] & 0xF
    stopped = rax == ExitReason.EPT_VIOLATION and extended == ExtendedQualification.PENDING_EPT_VIOLATION
    answer = "EPT violation: the page is PENDING until the victim accepts it" if stopped else f"RAX {rax:#x}"
    bench.note("BLOCK, TRACK, REMOVE, AUG of another page, TDH.VP.ENTER", answer, stopped)
    if bench.victim.damage:
        bench.note("the victim's next read", bench.victim.damage[0], False)
    # It waits in front of that page for ever.
    bench.dead = stopped


@attack(FAMILY, "get the page back while the victim still has its key")
def reclaim_a_live_page(bench: Bench) -> None:
    """TDH.PHYMEM.PAGE.RECLAIM of private, Secure EPT and control pages."""
    pages = (("a page", bench.victim.hpa()), ("the TDVPR", bench.victim.tdvpr), ("the TDR", bench.tdr))
    for what, page in pages:
        bench.attempt("TDH.PHYMEM.PAGE.RECLAIM", what, rcx=page)


@attack(FAMILY, "have the module write over its own structures")
def control_pages_as_memory(bench: Bench) -> None:
    """TDH.MEM.PAGE.AUG of a TDR, a TDVPR and a Secure EPT page."""
    table = next(iter(bench.victim.td.private.tables[1].values()))
    for what, page in (("the TDR", bench.tdr), ("the TDVPR", bench.victim.tdvpr), ("a SEPT page", table)):
        bench.attempt("TDH.MEM.PAGE.AUG", f"of {what}", rcx=_EMPTY, rdx=bench.tdr, r8=page)


@attack(FAMILY, "map the module's own memory into a TD")
def SEAM_range_and_PAMT_as_memory(bench: Bench) -> None:
    """TDH.MEM.PAGE.AUG of the SEAM range, and of a PAMT."""
    seam = bench.machine.memory.seamrr
    assert seam is not None
    bench.attempt("TDH.MEM.PAGE.AUG", "of the SEAM range", rcx=_EMPTY, rdx=bench.tdr, r8=seam[0])
    pamt = bench.hypervisor.platform.tdmrs[0].pamts[0][0]
    bench.attempt("TDH.MEM.PAGE.AUG", "of the PAMT", rcx=_EMPTY, rdx=bench.tdr, r8=pamt)
    bench.attempt_read("load from the SEAM range", seam[0], b"\xff" * 64)


@attack(FAMILY, "move the victim's page to where the attacker has something")
def relocate_onto_another_page(bench: Bench) -> None:
    """TDH.MEM.PAGE.RELOCATE without BLOCK; then, by the rules, onto pages that have an owner."""
    taken = bench.victim.hpa(SECOND)
    bench.attempt("TDH.MEM.PAGE.RELOCATE", "without BLOCK", rcx=RAM, rdx=bench.tdr, r8=bench.page())
    bench.must("TDH.MEM.RANGE.BLOCK", rcx=RAM, rdx=bench.tdr)
    bench.must("TDH.MEM.TRACK", rcx=bench.tdr)
    bench.attempt("TDH.MEM.PAGE.RELOCATE", "onto its own page", rcx=RAM, rdx=bench.tdr, r8=taken)
    bench.attempt("TDH.MEM.PAGE.RELOCATE", "onto the TDR", rcx=RAM, rdx=bench.tdr, r8=bench.tdr)
    bench.must("TDH.MEM.RANGE.UNBLOCK", rcx=RAM, rdx=bench.tdr)


@attack(FAMILY, "change the code that was measured")
def replace_the_code(bench: Bench) -> None:
    """The measured page: add again, and augment over it."""
    source, page = bench.page(), bench.page()
    bench.attempt("TDH.MEM.PAGE.ADD", "over measured code", rcx=CODE, rdx=bench.tdr, r8=page, r9=source)
    bench.attempt("TDH.MEM.PAGE.AUG", "over measured code", rcx=CODE, rdx=bench.tdr, r8=page)
