"""What the hypervisor finds when it looks at a TD that is not running, and what is really there."""

from __future__ import annotations

from typing import Final

from swtdx.arch.control_structs import TDVPS
from swtdx.arch.metadata import Context, by_name
from swtdx.arch.regs import RAX, RBX, RCX, RSP
from swtdx.machine.memory import MemoryFault, Requestor
from swtdx.machine.memory.dram import Dram
from swtdx.scenes.model import Rows
from swtdx.scenes.stage import Stage
from swtdx.trace.names import REGISTERS, status_text
from swtdx.trace.record import Kind
from swtdx.vmm.td import Td

_COLUMNS: Final = ("it looks at", "how", "it gets", "what is there")


def look(stage: Stage, td: Td, gpa: int) -> Rows:
    """Every way into the registers of the vCPU and the private page at ``gpa``, and what is really there.

    The processor's registers, which belong to the vCPU's next entry, are left as they are.
    """
    vcpu, root, hpa = td.vcpus[0], td.root, td.private.small[gpa]
    hkid = td.hkid
    assert hkid is not None
    memory = stage.machine.memory
    keyed = memory.addresses.join(hpa, hkid)
    last = next(r for r in reversed(stage.recorder.records) if r.kind is Kind.EXIT)
    rip, rbx = f"{last.rip:#x}", f"{last.gpr[RBX]:#x}"
    inside = _word(memory.read(keyed, 8, Requestor.TD))
    kept = memory.read(
        memory.addresses.join(vcpu.tdvpr + TDVPS.gpr.offset + 8 * RBX, hkid), 8, Requestor.SEAM
    )
    saved = f"RBX {_word(kept)}"
    rows = (
        ("RIP", "TDH.VP.RD", _call(stage, "TDH.VP.RD", rcx=vcpu.tdvpr, rdx=_field("GUEST_RIP")), rip),
        ("RBX", "TDH.VP.RD", _call(stage, "TDH.VP.RD", rcx=vcpu.tdvpr, rdx=_field("RBX")), rbx),
        ("TDVPS", f"load from {vcpu.tdvpr:#x}", _load(stage, vcpu.tdvpr + TDVPS.gpr.offset), saved),
        ("private page", f"load from {hpa:#x}", _load(stage, hpa), inside),
        ("private page", f"load with HKID {hkid}", _load(stage, keyed), inside),
        ("private page", "TDH.MEM.RD", _call(stage, "TDH.MEM.RD", rcx=gpa, rdx=root), inside),
        ("private page", "a probe on the bus", _word(Dram(memory).read(hpa, 8)), inside),
    )
    return Rows("What the hypervisor cannot see", _COLUMNS, rows)


def registers(guest: tuple[int, ...], hypervisor: tuple[int, ...]) -> Rows:
    """The guest's registers beside the hypervisor's, after a TD exit; only those that hold something."""
    shown = [n for n in range(16) if n not in (RAX, RCX, RSP) and (guest[n] or hypervisor[n])]
    rows = [(REGISTERS[n], f"{guest[n]:#018x}", f"{hypervisor[n]:#018x}") for n in shown]
    return Rows("Registers", ("register", "in the guest", "in the hypervisor"), tuple(rows))


def _field(name: str) -> int:
    return by_name(Context.VP, name).id


def _call(stage: Stage, leaf: str, **operands: int) -> str:
    status, _ = stage.cpu.aside(leaf, **operands)
    return status_text(status)


def _load(stage: Stage, pa: int) -> str:
    try:
        data = stage.hypervisor.host.memory.read(pa, 8)
    except MemoryFault as fault:
        return str(fault).split(":")[0]
    return _word(data) if any(data) else "zeros"


def _word(data: bytes) -> str:
    return f"{int.from_bytes(data, 'little'):#x}"
