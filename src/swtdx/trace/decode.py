"""From a record to events: who said what to whom, by the declarations of leaves, statuses and the GHCI.

A record of one crossing can mean several things: a VM exit by TDCALL is a VM exit and a TDCALL; a return
from TDH.VP.ENTER may hand a TDVMCALL over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swtdx.arch import exits, ghci
from swtdx.arch.exits import ExitReason
from swtdx.arch.guest_leaves import GUEST_LEAVES
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.leaf import Leaf
from swtdx.arch.leaves import BY_NAME, HOST_LEAVES, LOADER_LEAVES, P_SEAMLDR
from swtdx.arch.regs import R8, R9, R10, R11, RAX, RCX, RDX, RSP
from swtdx.arch.status import is_error
from swtdx.trace.event import GUEST, HYPERVISOR, MODULE, Event, Value
from swtdx.trace.names import (
    REGISTERS,
    bits_of,
    event_name,
    inputs,
    mask_text,
    outputs,
    qualification_bits,
    selected,
    status_text,
)
from swtdx.trace.record import ExitInfo, Kind, Record, Registers

_VP_ENTER: Final = HOST_BY_NAME["TDH.VP.ENTER"].number
_VMCALL: Final = BY_NAME["TDG.VP.VMCALL"].number
_TDCALL: Final = int(ExitReason.TDCALL)
#: Registers of a TDVMCALL that are no secret of the guest's.
_OPERANDS: Final = (RAX, RCX)
#: Registers that say something after an asynchronous TD exit, and RSP, which no SEAMCALL touches.
_ASYNCHRONOUS: Final = (RAX, RCX, RDX, RSP, R8, R9)


def decode(record: Record) -> list[Event]:
    """Everything that ``record`` says."""
    return _DECODERS[record.kind](record)


def leaf_of(rax: int) -> Leaf | None:
    """The leaf of a SEAMCALL; None if there is none."""
    return LOADER_LEAVES.get(rax) if rax & P_SEAMLDR else HOST_LEAVES.get(rax & 0xFFFF)


def _event(
    record: Record,
    kind: str,
    way: tuple[str, str],
    title: str,
    *values: Value,
    name: str = "",
    status: str = "",
    **facts: str,
) -> Event:
    return Event(record.number, record.lp, kind, *way, title, values, facts, record.tdvpr, name, status)


_IN: Final = (HYPERVISOR, MODULE)
_OUT: Final = (MODULE, HYPERVISOR)
_DOWN: Final = (MODULE, GUEST)
_UP: Final = (GUEST, MODULE)


# ------------------------------------------------------------------ the hypervisor's side
def _seamcall(record: Record) -> list[Event]:
    gpr, rax = record.gpr, record.gpr[RAX]
    leaf, version = leaf_of(rax), rax >> 16 & 0xFF
    if leaf is None:
        return [_event(record, "SEAMCALL", _IN, f"leaf {rax:#x}, which does not exist")]
    title = leaf.name + (f" version {version}" if version else "")
    if record.tdvpr is None:
        return [_event(record, "SEAMCALL", _IN, title, *inputs(leaf.inputs, gpr, version), name=leaf.name)]
    handle = inputs(leaf.inputs[:1], gpr, version)
    events = [_event(record, "SEAMCALL", _IN, title, *handle, name=leaf.name)]
    if record.mask is not None:
        values = tuple(Value(REGISTERS[n], gpr[n], "for the guest") for n in selected(record.mask))
        events.append(
            _event(record, "TDVMCALL answer", (HYPERVISOR, GUEST), ghci.status_name(gpr[R10]), *values)
        )
    return events


def _seamret(record: Record) -> list[Event]:
    before, gpr = record.before, record.gpr
    assert before is not None
    leaf, version = leaf_of(before[RAX]), before[RAX] >> 16 & 0xFF
    name = leaf.name if leaf is not None else f"leaf {before[RAX]:#x}"
    if not record.answered:
        return [_event(record, "SEAMRET", _OUT, f"{name}: VMfailInvalid, nobody answers", name=name)]
    status = gpr[RAX]
    if record.tdvpr is not None and not status >> 63:
        return _td_exit(record, name, status)
    values = () if leaf is None else outputs(leaf.outputs, gpr, version)
    rax, text = Value("RAX", status, "completion status"), status_text(status)
    return [_event(record, "SEAMRET", _OUT, f"{name}: {text}", rax, *values, name=name, status=text)]


def _td_exit(record: Record, name: str, status: int) -> list[Event]:
    """TDH.VP.ENTER returns because the TD has exited."""
    gpr = record.gpr
    rax = Value("RAX", status, "completion status and exit reason")
    reason = exits.reason_name(status)
    code = status_text(status & ~0xFFFFFFFF)
    title = f"{name}: {code}, TD exit by {reason}"
    if status == _TDCALL:
        mask = gpr[RCX]
        facts = {"passed": mask_text(mask), "reason": reason}
        hidden = hidden_registers(record)
        if hidden:
            facts["hidden"] = ", ".join(REGISTERS[number] for number in hidden)
        ret = _event(
            record,
            "SEAMRET",
            _OUT,
            title,
            rax,
            Value("RCX", mask, "registers passed"),
            name=name,
            status=code,
            **facts,
        )
        return [ret, _tdvmcall(record, gpr)]
    values = (
        rax,
        Value("RCX", gpr[RCX], "exit qualification", qualification_bits(status, gpr[RCX])),
        Value("RDX", gpr[RDX], "extended qualification", bits_of(exits.EXTENDED_BITS, gpr[RDX])),
        Value("R8", gpr[R8], "GPA, no offset in its page"),
        Value("R9", gpr[R9], "interruption information", bits_of(exits.INTERRUPTION_BITS, gpr[R9])),
    )
    zero = [REGISTERS[n] for n in range(16) if n not in _ASYNCHRONOUS and not gpr[n]]
    return [
        _event(
            record,
            "SEAMRET",
            _OUT,
            title,
            *values,
            name=name,
            status=code,
            reason=reason,
            zeroed=", ".join(zero),
        )
    ]


def _tdvmcall(record: Record, gpr: Registers) -> Event:
    call = None if gpr[R10] else ghci.CALLS.get(gpr[R11])
    if call is None:
        title = f"R10 {gpr[R10]:#x}, R11 {gpr[R11]:#x}: not of the GHCI"
        return _event(record, "TDVMCALL", (GUEST, HYPERVISOR), title)
    operands = inputs(call.inputs, gpr, 0)
    values = (Value("R10", gpr[R10], "GHCI"), Value("R11", gpr[R11], "sub-function"), *operands)
    title = f"{call.name}: {call.summary}"
    return _event(record, "TDVMCALL", (GUEST, HYPERVISOR), title, *values, name=call.name)


def hidden_registers(record: Record) -> list[int]:
    """Registers in which the guest had something that the hypervisor does not get (of a TDVMCALL's exit)."""
    guest = record.guest
    if guest is None:
        return []
    passed = set(selected(record.gpr[RCX])) | set(_OPERANDS)
    return [n for n in range(16) if n not in passed and guest[n] and guest[n] != record.gpr[n]]


# ------------------------------------------------------------------ the guest's side
def _entry(record: Record) -> list[Event]:
    last = record.exit
    events = []
    values = tuple(Value(REGISTERS[n], record.gpr[n]) for n in _changed(record.before, record.gpr))
    facts = {}
    title = f"RIP {record.rip:#x}"
    if last is not None and record.before is not None and last.rip != record.rip:
        # The instruction that exited is done.
        if last.reason == _TDCALL:
            events.append(_tdcall_return(record, record.before))
            values = ()
        else:
            facts["done"] = exits.reason_name(last.reason)
    if record.event:
        injected = event_name(record.event)
        title += f", injecting {injected}"
        events.append(_injection(record, injected, last))
    events.append(_event(record, "VM entry", _DOWN, title, *values, **facts))
    return events


def _changed(before: Sequence[int] | None, gpr: Sequence[int]) -> list[int]:
    if before is None:
        return [number for number in range(16) if gpr[number]]
    return [number for number in range(16) if gpr[number] != before[number]]


def _injection(record: Record, name: str, last: ExitInfo | None) -> Event:
    facts = {} if last is None else {"because of": exits.reason_name(last.reason)}
    error = (Value("error code", record.error),) if record.event & exits.INTERRUPTION_ERROR_CODE else ()
    return _event(record, "injection", _DOWN, name, *error, name=name, **facts)


def _tdcall_return(record: Record, before: Registers) -> Event:
    gpr, rax = record.gpr, before[RAX]
    leaf = GUEST_LEAVES.get(rax & 0xFFFF)
    name = leaf.name if leaf is not None else f"leaf {rax:#x}"
    status = Value("RAX", gpr[RAX], "completion status")
    text = status_text(gpr[RAX])
    title = f"{name}: {text}"
    if rax == _VMCALL and not is_error(gpr[RAX]):
        values = [Value(REGISTERS[n], gpr[n], "from the hypervisor") for n in selected(before[RCX])]
        return _event(record, "TDCALL return", _DOWN, title, status, *values, name=name, status=text)
    declared = () if leaf is None else outputs(leaf.outputs, gpr, rax >> 16 & 0xFF)
    return _event(record, "TDCALL return", _DOWN, title, status, *declared, name=name, status=text)


def _exit(record: Record) -> list[Event]:
    out = record.exit
    assert out is not None
    bits = qualification_bits(out.reason, out.qualification)
    values = [Value("exit qualification", out.qualification, "", bits)] if out.qualification else []
    if out.reason in (ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIGURATION):
        values.append(Value("GPA", out.gpa, "guest-physical address"))
    if out.gla is not None:
        values.append(Value("GLA", out.gla, "guest-linear address"))
    if out.intr_info:
        values.append(Value("interruption", out.intr_info, event_name(out.intr_info)))
    if out.length:
        values.append(Value("length", out.length, "bytes of the instruction"))
    reason = exits.reason_name(out.reason)
    title = f"{reason} at RIP {record.rip:#x}"
    facts = {"delivering": event_name(out.idt_info)} if out.idt_info >> 31 & 1 else {}
    events = [_event(record, "VM exit", _UP, title, *values, name=reason, tsc=str(out.tsc), **facts)]
    if out.reason == _TDCALL:
        events.append(_tdcall(record))
    return events


def _tdcall(record: Record) -> Event:
    gpr, rax = record.gpr, record.gpr[RAX]
    leaf, version = GUEST_LEAVES.get(rax & 0xFFFF), rax >> 16 & 0xFF
    if leaf is None:
        return _event(record, "TDCALL", _UP, f"leaf {rax:#x}, which does not exist")
    values = list(inputs(leaf.inputs, gpr, version))
    if leaf.number == _VMCALL:
        values += [Value(REGISTERS[n], gpr[n], "passed") for n in selected(gpr[RCX]) if n not in _OPERANDS]
    return _event(record, "TDCALL", _UP, leaf.name, *values, name=leaf.name)


# ------------------------------------------------------------------ without an exit
def _converted(record: Record) -> list[Event]:
    out = record.exit
    assert out is not None
    bits = qualification_bits(out.reason, out.qualification)
    values = (
        Value("exit qualification", out.qualification, "in the #VE information area", bits),
        Value("GPA", out.gpa, "guest-physical address, in the same place"),
    )
    title = f"#VE at RIP {record.rip:#x} instead of an EPT violation"
    return [_event(record, "injection", ("processor", GUEST), title, *values, name="#VE")]


def _posted(record: Record) -> list[Event]:
    names = ", ".join(hex(vector) for vector in record.vectors) or "none"
    return [_event(record, "posted interrupts", (HYPERVISOR, GUEST), f"vectors {names}, without a VM exit")]


def _delivered(record: Record) -> list[Event]:
    title = f"vector {record.vectors[0]:#x}, out of the virtual APIC"
    return [_event(record, "virtual interrupt", ("processor", GUEST), title)]


_DECODERS: Final = {
    Kind.SEAMCALL: _seamcall,
    Kind.SEAMRET: _seamret,
    Kind.ENTRY: _entry,
    Kind.EXIT: _exit,
    Kind.CONVERTED: _converted,
    Kind.POSTED: _posted,
    Kind.DELIVERED: _delivered,
}
