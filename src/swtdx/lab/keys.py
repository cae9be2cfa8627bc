"""Attacks on the keys: an HKID in two hands, or given back too early."""

from __future__ import annotations

from typing import Final

from swtdx.arch.regs import RAX, RBX
from swtdx.lab.attack import attack
from swtdx.lab.bench import Bench
from swtdx.machine.memory import MKTME_KEY_PROGRAM, ProgramResult

FAMILY: Final = "keys"


@attack(FAMILY, "own a TD with the victim's key")
def create_a_TD_with_the_HKID_in_use(bench: Bench) -> None:
    """TDH.MNG.CREATE with the victim's HKID, the module's own, and a shared one."""
    page = bench.page()
    bench.attempt("TDH.MNG.CREATE", "with the victim's HKID", rcx=page, rdx=bench.hkid)
    own = bench.hypervisor.platform.hkids.global_hkid
    bench.attempt("TDH.MNG.CREATE", "with the module's HKID", rcx=page, rdx=own)
    bench.attempt("TDH.MNG.CREATE", "with a shared KeyID", rcx=page, rdx=1)


@attack(FAMILY, "free the key while the victim lives, to give it to another TD")
def free_a_key_in_use(bench: Bench) -> None:
    """TDH.MNG.KEY.FREEID of a TD that was not blocked."""
    bench.attempt("TDH.MNG.KEY.FREEID", "of a living TD", rcx=bench.tdr)


@attack(FAMILY, "block the TD while a processor still holds its vCPU")
def flush_done_without_flushing(bench: Bench) -> None:
    """TDH.MNG.VPFLUSHDONE before TDH.VP.FLUSH."""
    bench.attempt("TDH.MNG.VPFLUSHDONE", "before VP.FLUSH", rcx=bench.tdr)


@attack(FAMILY, "reuse the key while caches hold lines that would be written back under it")
def free_a_key_without_writing_back(bench: Bench) -> None:
    """FLUSH and VPFLUSHDONE, then KEY.FREEID without TDH.PHYMEM.CACHE.WB, and CREATE with the HKID."""
    bench.must("TDH.VP.FLUSH", rcx=bench.victim.tdvpr)
    bench.must("TDH.MNG.VPFLUSHDONE", rcx=bench.tdr)
    bench.dead = True  # the hypervisor may end a TD at any time
    bench.attempt("TDH.MNG.KEY.FREEID", "before CACHE.WB", rcx=bench.tdr)
    bench.attempt("TDH.MNG.CREATE", "with the HKID that waits", rcx=bench.page(), rdx=bench.hkid)
    bench.attempt("TDH.PHYMEM.PAGE.RECLAIM", "before KEY.FREEID", rcx=bench.victim.hpa())
    bench.attempt("TDH.VP.ENTER", "of the blocked TD", rcx=bench.victim.tdvpr)


@attack(FAMILY, "program a key that the attacker knows")
def PCONFIG_outside_SEAM(bench: Bench) -> None:
    """PCONFIG of the victim's KeyID by the hypervisor."""
    lp = bench.machine.processors[0]
    buffer = bench.page()
    structure = MKTME_KEY_PROGRAM.new()
    MKTME_KEY_PROGRAM.keyid.set(structure, bench.hkid)
    MKTME_KEY_PROGRAM.keyid_ctrl.set(structure, 1 << 8)
    bench.platform.host.memory.write(buffer, structure)

    def program() -> str | None:
        kept = lp.gpr[:]
        lp.gpr[RAX], lp.gpr[RBX] = 0, buffer
        try:
            lp.pconfig()
            result = ProgramResult(lp.gpr[RAX])
            return None if result is ProgramResult.SUCCESS else f"fails: {result.name}"
        finally:
            lp.gpr[:] = kept

    bench.attempt_instruction("PCONFIG(MKTME_KEY_PROGRAM) of the victim's HKID", program)
