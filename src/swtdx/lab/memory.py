"""Attacks on the victim's memory: by the module's own calls, by loads, by DMA, and on the DRAM modules."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.lab.attack import attack
from swtdx.lab.bench import Bench
from swtdx.lab.victim import RAM, SECOND
from swtdx.machine.memory import MemoryFault, Requestor
from swtdx.trace.names import status_text

FAMILY: Final = "memory"


@attack(FAMILY, "have the module read and write the victim's memory")
def debug_calls(bench: Bench) -> None:
    """TDH.MEM.RD and TDH.MEM.WR, which are for debug TDs."""
    bench.attempt("TDH.MEM.RD", "the secret", rcx=RAM, rdx=bench.tdr)
    bench.attempt("TDH.MEM.WR", "over the secret", rcx=RAM, rdx=bench.tdr, r8=0)


@attack(FAMILY, "load the secret out of physical memory")
def read_without_the_key(bench: Bench) -> None:
    """A load from the page's HPA with KeyID 0, and with every other shared KeyID."""
    bench.attempt_read("load with KeyID 0", bench.victim.hpa())
    last = bench.platform.host.shared_keyids
    found = {bench.read(bench.keyed(bench.victim.hpa(), keyid)) for keyid in range(1, last + 1)}
    zeros = found == {bytes(64)}
    bench.note(
        f"loads with the shared KeyIDs 1 to {last}", "zeros" if zeros else f"{len(found)} answers", zeros
    )


@attack(FAMILY, "load the secret with the victim's own HKID")
def read_with_the_key(bench: Bench) -> None:
    """A load and a store outside SEAM with a private KeyID in the address."""
    pa = bench.keyed(bench.victim.hpa())
    bench.attempt_read("load with the victim's HKID", pa)
    try:
        bench.platform.host.memory.write(pa, b"overwritten")
    except MemoryFault as fault:
        bench.note(f"store with the victim's HKID at {pa:#x}", str(fault).split(":")[0], True)
    else:
        bench.note(f"store with the victim's HKID at {pa:#x}", "done", False)


@attack(FAMILY, "see the vCPU's registers where the module keeps them")
def read_the_control_structures(bench: Bench) -> None:
    """Loads from TDR, TDCS and TDVPS pages."""
    pages = (("TDR", bench.tdr), ("TDCS", bench.victim.td.tdcs[0]), ("TDVPS", bench.victim.tdvpr))
    for name, hpa in pages:
        bench.attempt_read(f"load from the {name}", hpa)
        bench.attempt_read(f"load from the {name} with the victim's HKID", bench.keyed(hpa))


@attack(FAMILY, "let a device fetch the secret")
def DMA(bench: Bench) -> None:
    """DMA to the page's HPA, without and with the HKID."""
    hpa = bench.victim.hpa()
    bench.attempt_read("DMA", hpa, who=Requestor.DEVICE)
    bench.attempt_read("DMA with the victim's HKID", bench.keyed(hpa), b"\xff" * 64, Requestor.DEVICE)


@attack(FAMILY, "find the secret in the DRAM modules")
def cold_boot(bench: Bench) -> None:
    """All caches are written back, and every line of DRAM is searched."""
    bench.machine.memory.wbinvd()
    found = [hit for word in bench.victim.secret for hit in bench.dram.find(word.to_bytes(8, "little"))]
    lines = sum(size for _, size in bench.dram.written()) // 64
    answer = f"found at {found[0]:#x}" if found else f"not in any of {lines} lines"
    bench.note("search of all DRAM ever written, after WBINVD", answer, not found)


def _dies(bench: Bench, what: str) -> None:
    """The victim must not get to use what was tampered with: it dies of a machine check instead."""
    before = len(bench.machine.machine_checks)
    rax = bench.victim.enter()
    checks = bench.machine.machine_checks[before:]
    dead = st.code_of(rax) == st.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE and bool(checks)
    cause = str(checks[0][1]).rsplit(": ", 1)[-1] if checks else "no machine check"
    bench.note(what, f"{status_text(rax)}; {cause}" if dead else f"{status_text(rax)}, {cause}", dead, rax)
    if bench.victim.damage:
        bench.note("the victim's next read", bench.victim.damage[0], False)
    bench.dead = dead


@attack(FAMILY, "overwrite the secret with a plain store")
def write_without_the_key(bench: Bench) -> None:
    """A store with KeyID 0 takes the line away from the TD; the TD must not read it as its own."""
    bench.platform.host.memory.write(bench.victim.hpa(), b"overwritten by the host")
    _dies(bench, "store with KeyID 0, then TDH.VP.ENTER")


@attack(FAMILY, "change what the victim reads by flipping a bit in DRAM")
def flip_a_bit_in_DRAM(bench: Bench) -> None:
    """One bit of ciphertext."""
    bench.machine.memory.wbinvd()
    bench.dram.flip(bench.victim.hpa(), 3)
    _dies(bench, "bit 3 of a ciphertext line flipped, then TDH.VP.ENTER")


@attack(FAMILY, "exchange two lines of the victim's memory")
def swap_two_lines_in_DRAM(bench: Bench) -> None:
    """Both lines are genuine ciphertext under the right key, at the wrong address."""
    bench.machine.memory.wbinvd()
    bench.dram.swap(bench.victim.hpa(RAM), bench.victim.hpa(SECOND))
    _dies(bench, "two of the victim's lines exchanged, then TDH.VP.ENTER")


@attack(
    FAMILY,
    "put an older version of a line back",
    limit="TDX keeps no versions of memory: a physical replay at the same address is not noticed",
)
def replay_an_old_line(bench: Bench) -> None:
    """Ciphertext, MAC and owner bit as they were earlier, in the same place."""
    hpa = bench.victim.td.private.small[0x100000]
    bench.machine.memory.wbinvd()
    old = bench.dram.read_line(hpa)
    key = bench.keyed(hpa)
    bench.machine.memory.write(key, b"a newer version of the victim's", Requestor.TD)
    bench.machine.memory.wbinvd()
    newer = bench.dram.read_line(hpa)
    bench.dram.write_line(hpa, old)
    seen = bench.read(key, 64, Requestor.TD)
    noticed = isinstance(seen, MemoryFault)
    answer = str(seen) if noticed else "the TD reads the old contents"
    bench.note("an earlier version of a line written back to DRAM", answer, noticed or newer == old)
