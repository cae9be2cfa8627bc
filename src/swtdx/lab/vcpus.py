"""Attacks on the vCPU: run it twice, run what is none, add one."""

from __future__ import annotations

from typing import Final

from swtdx.arch import ghci
from swtdx.arch.metadata import Context
from swtdx.arch.regs import R8, R10
from swtdx.lab.attack import attack
from swtdx.lab.bench import Bench
from swtdx.vmm.processor import NOTIFICATION_VECTOR
from swtdx.vmm.td import Td
from swtdx.vmm.td_params import TdConfig

FAMILY: Final = "vCPUs"


@attack(FAMILY, "run the victim's vCPU on two processors, so that its state splits in two")
def run_a_vCPU_twice(bench: Bench) -> None:
    """TDH.VP.ENTER on the second processor while the first holds the vCPU."""
    bench.attempt("TDH.VP.ENTER", "on another processor", bench.other, rcx=bench.victim.tdvpr)


@attack(FAMILY, "get at the vCPU from another processor while it is in the guest")
def run_a_vCPU_that_is_running(bench: Bench) -> None:
    """TDH.VP.ENTER, TDH.VP.RD and TDH.VP.FLUSH on the second processor, and the end of the TD."""
    vcpu, other = bench.victim.tdvpr, bench.other

    def meanwhile() -> None:
        bench.attempt("TDH.VP.ENTER", "of a running vCPU", other, rcx=vcpu)
        field = bench.field(Context.VP, "VCPU_INDEX")
        bench.attempt("TDH.VP.RD", "of a running vCPU", other, rcx=vcpu, rdx=field)
        bench.attempt("TDH.VP.FLUSH", "of a running vCPU", other, rcx=vcpu)
        bench.attempt("TDH.MNG.VPFLUSHDONE", "of a running TD", other, rcx=bench.tdr)

    bench.while_it_runs(meanwhile)


@attack(FAMILY, "run a page of the attacker's making as a vCPU")
def run_a_forged_vCPU(bench: Bench) -> None:
    """TDH.VP.ENTER of a page that looks like a TDVPR and is none."""
    forged = bench.page()
    bench.platform.host.memory.write(forged, bytes(range(256)) * 16)
    bench.attempt("TDH.VP.ENTER", "of a forged TDVPR", rcx=forged)
    bench.attempt("TDH.VP.ENTER", "of the TDR", rcx=bench.tdr)
    bench.attempt("TDH.VP.ENTER", "of a private page", rcx=bench.victim.hpa())


@attack(FAMILY, "start the vCPU over, with the attacker's value in its registers")
def initialise_again(bench: Bench) -> None:
    """TDH.VP.INIT and TDH.VP.ADDCX of a vCPU that runs."""
    bench.attempt("TDH.VP.INIT", "again", rcx=bench.victim.tdvpr, rdx=0xBAD)
    bench.attempt("TDH.VP.ADDCX", "again", rcx=bench.page(), rdx=bench.victim.tdvpr)


@attack(FAMILY, "add a vCPU that was not there when the TD was measured")
def add_a_vCPU_after_FINALIZE(bench: Bench) -> None:
    """TDH.VP.CREATE in a TD that is runnable."""
    bench.attempt("TDH.VP.CREATE", "after FINALIZE", rcx=bench.page(), rdx=bench.tdr)


@attack(FAMILY, "have the victim's exception handlers run (#VE, #MC), by posting their vectors as interrupts")
def post_exceptions(bench: Bench) -> None:
    """Vectors 0 to 30 in the posted-interrupt descriptor, and the notification; vector 31 to compare."""
    vcpu = bench.victim.td.vcpus[0]
    for what, vectors, harmless in (("0 to 30", (1 << 31) - 1, True), ("31", 1 << 31, False)):
        bench.platform.host.memory.write(vcpu.pid, vectors.to_bytes(32, "little") + b"\1")
        bench.cpu.host.interrupt(NOTIFICATION_VECTOR)
        bench.victim.enter()
        bench.cpu.gpr[R10] = ghci.SUCCESS
        bench.must("TDH.VP.RD", rcx=vcpu.tdvpr, rdx=bench.field(Context.VP, "VCPU_STATE_DETAILS"))
        waits = bool(bench.answer[R8] & 1)
        bench.note(f"vectors {what} posted", "waits" if waits else "dropped", waits is not harmless)


@attack(FAMILY, "flush the vCPU from a processor that does not hold it")
def flush_from_elsewhere(bench: Bench) -> None:
    """TDH.VP.FLUSH on the second processor."""
    bench.attempt("TDH.VP.FLUSH", "on another processor", bench.other, rcx=bench.victim.tdvpr)


@attack(FAMILY, "run a vCPU before the TD is measured")
def enter_before_FINALIZE(bench: Bench) -> None:
    """A TD is built as far as its vCPU, and entered."""
    td = Td(bench.hypervisor, TdConfig(), "unfinished", bench.cpu)
    kept = bench.cpu.gpr[:]
    td.create()
    td.add_vcpus(0, [bench.cpu])
    bench.cpu.gpr[:] = kept
    bench.attempt("TDH.VP.ENTER", "before FINALIZE", rcx=td.vcpus[0].tdvpr)
