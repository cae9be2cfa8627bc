"""A whole machine to a snapshot and back, bit for bit: processors, MSRs, SEAM state, memory.

What of an object is saved, it says itself (:class:`swtdx.machine.saved.Saved`); here is the order.

Sections (all with a version of their own, see :mod:`swtdx.machine.snapshot`): ``machine`` (what it is
built of), ``memory``, ``processors``, ``seam``, ``vmcs``.  Code that SEAMCALL enters is not in the file:
the firmware puts the loader and the module back (``swtdx.platform``), out of what it finds in the SEAM
range, and only if they are still what was signed.

A VMCS that is active on a processor is written back to its region before memory is saved, and activated
again after loading; registers of the vCPU that no VMCS field holds go into the section ``vmcs``.  No
processor may run while a machine is saved.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from swtdx.machine.machine import Machine, MachineConfig
from swtdx.machine.memory import MachineCheck, MemoryFault, saving
from swtdx.machine.saved import Saved
from swtdx.machine.snapshot import SectionReader, SectionWriter, Snapshot, SnapshotError, SnapshotWriter

if TYPE_CHECKING:
    from swtdx.machine.memory import PhysicalMemory

VERSION: Final = 2
#: Of the section ``machine``; 4: the random source may have gone a way of its own.
_MACHINE_VERSION: Final = 4
#: What Python raises on values that no machine has saved.
_NONSENSE: Final = (ValueError, KeyError, IndexError, TypeError, OverflowError)


def save(machine: Machine, snapshot: SnapshotWriter, *, as_image: bool = False) -> None:
    """Write ``machine`` into ``snapshot``.

    ``as_image``: its frames become the file's image, which a machine can go on from without reading it.

    Raises:
        SnapshotError: a processor executes SEAM code or a guest.
    """
    for lp in machine.processors:
        lp.check_saveable()
        for vmcs in lp.vmx.active.values():
            lp.vmx.write_back(vmcs)
    with snapshot.section("machine", _MACHINE_VERSION) as out:
        _save_machine(machine, out)
    (saving.save_image if as_image else saving.save)(machine.memory, snapshot)
    with snapshot.section("processors", VERSION) as out:
        _save_processors(machine, out)
    with snapshot.section("seam", VERSION) as out:
        _save(machine.seam, out)
    with snapshot.section("vmcs", VERSION) as out:
        _save_vmcss(machine, out)


def load(snapshot: Snapshot, resumed: tuple[int, float] | None = None) -> Machine:
    """The machine that :func:`save` saved, without code in SEAM.

    ``resumed``: the value of its time-stamp counter, and that counter's nominal frequency in Hz, if both
    go on.

    Raises:
        SnapshotError: a section is missing, of another version, or makes no sense; nothing is left
            of the attempt.
        EngineError: active VMCSs need an engine, and it does not start.
    """
    section = snapshot.section("machine", _MACHINE_VERSION)
    config, settings = _load_config(section)
    as_image = saving.IMAGE_SECTION in snapshot.sections
    memory = (saving.load_image if as_image else saving.load)(snapshot)
    machine: Machine | None = None
    try:
        machine = _build(section, config, memory)
        machine.resumed = resumed
        if resumed is not None:
            # It comes up while the rest is read.
            machine.start_engine()
        _load_settings(section, machine, settings)
        for name, restore in (
            ("processors", _load_processors), ("seam", _load_seam), ("vmcs", _load_vmcss)
        ):  # fmt: skip
            part = snapshot.section(name, VERSION)
            try:
                restore(part, machine)
            except SnapshotError:
                raise
            except (*_NONSENSE, MemoryFault) as error:
                raise part.fail(f"its contents make no sense: {error}") from None
    except BaseException:
        (machine or memory).close()
        raise
    return machine


# ---------------------------------------------------------------------- what it is built of
def _save_machine(machine: Machine, out: SectionWriter) -> None:
    config = machine.config
    content = {
        "engine": config.engine,
        "memory_bytes": config.memory_bytes,
        "options": config.options,
        "packages": config.packages,
        "processors_per_package": config.processors_per_package,
        "usable": machine.usable,
        "machine_checks": [
            (index, error.hpa, error.keyid, error.kind)
            for index, error in machine.machine_checks
            if isinstance(error, MachineCheck)
        ],
    }
    try:
        text = json.dumps(content, sort_keys=True)
    except TypeError as error:
        raise SnapshotError(f"the machine has an option that cannot be saved: {error}") from None
    out.text(text)
    out.blob(config.seed)
    _save(machine.random, out)


def _load_config(section: SectionReader) -> tuple[MachineConfig, dict[str, Any]]:
    try:
        settings = json.loads(section.text())
        config = MachineConfig(
            packages=int(settings["packages"]),
            processors_per_package=int(settings["processors_per_package"]),
            memory_bytes=int(settings["memory_bytes"]),
            seed=section.blob(),
            engine=str(settings["engine"]),
            options=dict(settings["options"]),
        )
    except _NONSENSE as error:
        if isinstance(error, SnapshotError):
            raise
        raise section.fail(f"the machine's description makes no sense: {error!r}") from None
    return config, settings


def _build(section: SectionReader, config: MachineConfig, memory: PhysicalMemory) -> Machine:
    try:
        return Machine(config, memory)
    except ValueError as error:
        raise section.fail(str(error)) from None


def _load_settings(section: SectionReader, machine: Machine, settings: dict[str, Any]) -> None:
    _load(machine.random, section)
    section.end()
    try:
        machine.usable = [(int(base), int(size)) for base, size in settings["usable"]]
        for index, hpa, keyid, kind in settings["machine_checks"]:
            machine.machine_checks.append((int(index), MachineCheck(int(hpa), int(keyid), str(kind))))
    except _NONSENSE as error:
        raise section.fail(f"the machine's description makes no sense: {error!r}") from None


def _save(owner: Saved, out: SectionWriter) -> None:
    owner.save_state(out)


def _load(owner: Saved, section: SectionReader) -> None:
    owner.load_state(section)


# ---------------------------------------------------------------------- processors
def _save_processors(machine: Machine, out: SectionWriter) -> None:
    out.u32(len(machine.processors))
    for lp in machine.processors:
        _save(lp, out)
        _save(lp.msrs, out)
    for number in range(machine.config.packages):
        _save(machine.packages[number], out)


def _load_processors(section: SectionReader, machine: Machine) -> None:
    count = section.u32()
    if count != len(machine.processors):
        raise section.fail(f"{count} processors, and the machine has {len(machine.processors)}")
    for lp in machine.processors:
        _load(lp, section)
        _load(lp.msrs, section)
    for number in range(machine.config.packages):
        _load(machine.packages[number], section)
    section.end()


# ---------------------------------------------------------------------- SEAM
def _load_seam(section: SectionReader, machine: Machine) -> None:
    _load(machine.seam, section)
    if machine.seam.enabled is not (machine.memory.seamrr is not None):
        raise section.fail("SEAM is enabled without a SEAM range, or the reverse")
    section.end()


# ---------------------------------------------------------------------- active VMCSs
def _save_vmcss(machine: Machine, out: SectionWriter) -> None:
    for lp in machine.processors:
        out.u32(len(lp.vmx.active))
        for pa, vmcs in lp.vmx.active.items():
            machine.engine.attend(lp.index, vmcs.context)
            out.u64(pa)
            out.u8(vmcs is lp.vmx.current)
            _save(vmcs, out)


def _load_vmcss(section: SectionReader, machine: Machine) -> None:
    for lp in machine.processors:
        current = None
        for _ in range(section.u32()):
            pa, is_current = section.u64(), section.u8()
            vmcs = lp.vmx.load(pa)
            _load(vmcs, section)
            current = vmcs if is_current else current
        lp.vmx.current = current
    section.end()
