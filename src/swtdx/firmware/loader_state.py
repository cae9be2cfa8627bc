"""The firmware's part of a snapshot: what a running P-SEAMLDR knows, and putting code back into SEAM.

The loader's tables and the module's pages are in the SEAM range, which memory's section holds.  Loading
does not trust the disk: the manifests found in the snapshot must still describe the files here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from swtdx.arch.seam_structs import P_SYS_INFO_TABLE, SEAM_SIGSTRUCT, SEAMEXTEND
from swtdx.arch.units import PAGE
from swtdx.firmware import image
from swtdx.firmware.acm import SIGNERS, Acm
from swtdx.firmware.errors import ImageError
from swtdx.firmware.manifest import Manifest, check_sources
from swtdx.firmware.memory_map import MemoryPlan, overlap, show
from swtdx.firmware.p_seamldr import PSeamldr
from swtdx.firmware.seam_layout import SeamLayout
from swtdx.machine.memory import MemoryFault, Requestor
from swtdx.machine.snapshot import SnapshotError

if TYPE_CHECKING:
    from swtdx.machine.machine import Machine
    from swtdx.machine.snapshot import SectionReader, SectionWriter

VERSION: Final = 1


def save(machine: Machine, plan: MemoryPlan, acm: Acm, out: SectionWriter) -> None:
    """Write the section ``firmware``."""
    out.text(json.dumps([plan.dram, plan.smrr, plan.seamrr, plan.cmrs, plan.usable]))
    out.blob(acm.measurement)
    out.blob(acm.manifest.encode())
    out.blob(acm.constants)
    out.u8(acm.debug)
    loader = machine.seam.p_seamldr_entry
    if not isinstance(loader, PSeamldr):
        out.u8(0)
        return
    out.u8(1)
    out.u64(loader.table_pa)
    for processors in (loader.installing, loader.shutting_down):
        out.text(json.dumps(sorted(processors)))
    out.write(loader.snapshot)
    layout = loader.installer.layout
    out.u8(layout is not None)
    if layout is not None:
        out.blob(loader.installer.sigstruct)
        out.u32(layout.processors)
        out.u32(layout.pages)


def load(machine: Machine, section: SectionReader) -> tuple[MemoryPlan, Acm]:
    """Read it, and make the loader and the module reachable again.

    Raises:
        SnapshotError: contents that make no sense, or software that is not here any more.
    """
    try:
        plan, acm = _plan(section.text()), _acm(section)
        _check_plan(machine, section, plan)
        if section.u8():
            _restore_loader(machine, section, acm)
    except ImageError as error:
        raise section.fail(f"the SEAM software is not here any more: {error}") from None
    except SnapshotError:
        raise
    except (ValueError, TypeError, OverflowError, MemoryFault) as error:
        raise section.fail(f"the firmware's state makes no sense: {error!r}") from None
    section.end()
    return plan, acm


def _plan(text: str) -> MemoryPlan:
    def pairs(values: Any) -> tuple[tuple[int, int], ...]:
        return tuple((int(base), int(size)) for base, size in values)

    dram, smrr, seamrr, cmrs, usable = json.loads(text)
    return MemoryPlan(pairs(dram), pairs([smrr])[0], pairs([seamrr])[0], pairs(cmrs), pairs(usable))


def _check_plan(machine: Machine, section: SectionReader, plan: MemoryPlan) -> None:
    """Refuse a memory map that no BIOS could have handed to MCHECK on this machine."""
    memory = machine.memory
    if plan.dram != memory.populated:
        raise section.fail("DRAM ranges that are not those of the machine's memory")
    if plan.seamrr != (memory.seamrr or plan.seamrr):
        raise section.fail(
            f"SEAMRR {show(plan.seamrr)}, and the machine's is {show(memory.seamrr or (0, 0))}"
        )
    for number, where in enumerate(plan.cmrs):
        for name, other in (("SEAMRR", plan.seamrr), ("SMRR", plan.smrr)):
            if overlap(where, other):
                raise section.fail(f"CMR {number} {show(where)} overlaps {name} {show(other)}")
        if where[1] <= 0 or not memory.bus.is_populated(*where):
            raise section.fail(f"CMR {number} {show(where)} is not backed by memory")
    for where in (*plan.usable, *machine.usable):
        if overlap(where, plan.seamrr):
            raise section.fail(f"usable memory {show(where)} overlaps SEAMRR {show(plan.seamrr)}")
    if memory.seamrr is None:
        return
    base, size = memory.seamrr
    table = memory.read(base + size - PAGE, PAGE, Requestor.SEAM)
    numbers = P_SYS_INFO_TABLE.cmrs.all(table)
    recorded = tuple(zip(numbers[0::2], numbers[1::2], strict=True))[: len(plan.cmrs)]
    if recorded != plan.cmrs:
        raise section.fail("CMRs that are not those which MCHECK recorded in P_SYS_INFO_TABLE")


def _acm(section: SectionReader) -> Acm:
    return Acm(section.blob(), Manifest.decode(section.blob()), section.blob(), bool(section.u8()))


def _restore_loader(machine: Machine, section: SectionReader, acm: Acm) -> None:
    check_sources(acm.manifest)
    trusted = frozenset(bytes.fromhex(key) for key in acm.manifest.constant(SIGNERS).split(","))
    table, seam = section.u64(), machine.memory.seamrr
    if seam is None or table != sum(seam) - PAGE:
        raise section.fail(f"P_SYS_INFO_TABLE at {table:#x} is not the last page of the SEAM range")
    loader = PSeamldr(machine, table, trusted, acm)
    loader.installing.update(json.loads(section.text()))
    loader.shutting_down.update(json.loads(section.text()))
    loader.snapshot = section.read(SEAMEXTEND.size)
    extend = machine.seam.extend
    machine.seam.p_seamldr_entry = loader
    if section.u8():
        _restore_module(machine, section, loader)
        # Whether the gate is open is for the saved register to say.
        machine.seam.write_seamextend(extend)


def _restore_module(machine: Machine, section: SectionReader, loader: PSeamldr) -> None:
    signature = section.blob()
    processors, count = section.u32(), section.u32()
    if len(signature) != SEAM_SIGSTRUCT.size:
        raise section.fail(f"a SIGSTRUCT of {len(signature)} bytes")
    seam = machine.memory.seamrr
    if seam is None:
        raise section.fail("a loaded module without a SEAM range")
    layout = SeamLayout.of(signature, seam[0], loader.range_base, processors, count)
    pages = machine.memory.read(layout.code, layout.code_size, Requestor.SEAM)
    manifest = image.unpack(pages)
    try:
        entry = loader.installer.start(manifest, layout)
    except ImageError:
        raise
    except Exception as error:
        # The module's own start failed on what it found in its memory.
        raise section.fail(f"the module does not come up again: {error!r}") from error
    loader.installer.manifest, loader.installer.layout = manifest, layout
    loader.installer.sigstruct = signature
    machine.seam.install_module(entry, len(machine.processors))
