"""A platform as plain data: what ``swtdx platform`` shows and ``--json`` prints.

Everything is read from where software could read it: CPUID, MSRs, SEAMEXTEND, the SEAM range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swtdx.arch.msrs import IA32_MKTME_KEYID_PARTITIONING, IA32_TME_ACTIVATE
from swtdx.arch.seam_structs import P_SYS_INFO_TABLE, SEAMEXTEND
from swtdx.arch.units import PAGE
from swtdx.firmware.p_seamldr import BUILD_DATE, MAJOR, MINOR, PSeamldr
from swtdx.machine.cpu.activation import TmeActivate
from swtdx.machine.memory import Requestor

if TYPE_CHECKING:
    from swtdx.arch.ranges import Range
    from swtdx.firmware.acm import Acm
    from swtdx.firmware.memory_map import MemoryPlan
    from swtdx.machine.machine import Machine


def _range(where: Range) -> dict[str, int]:
    return {"base": where[0], "size": where[1]}


def describe(machine: Machine, plan: MemoryPlan, acm: Acm) -> dict[str, Any]:
    """The platform in lists, dicts, ints and strings; addresses and sizes are integers in bytes."""
    boot = machine.processors[0]
    tme = TmeActivate.of(boot.rdmsr(IA32_TME_ACTIVATE))
    partitioning = boot.rdmsr(IA32_MKTME_KEYID_PARTITIONING)
    shared, private = partitioning & 0xFFFFFFFF, partitioning >> 32
    return {
        "processor": {
            "model": boot.model.name,
            "brand": boot.model.brand,
            "signature": boot.cpuid(1)[0],
            "microcode": boot.rdmsr(0x8B) >> 32,
            "cpusvn": machine.seam.cpusvn.hex(),
            "maxpa": boot.cpuid(0x80000008)[0] & 0xFF,
        },
        "packages": _packages(machine),
        "memory": {
            "dram": [_range(part) for part in plan.dram],
            "usable": [_range(part) for part in plan.usable],
            "cmrs": _cmrs(machine),
            "smrr": _range(plan.smrr),
            "seamrr": _range(machine.memory.seamrr or (0, 0)),
        },
        "keyids": {
            "bits": tme.keyid_bits,
            "tdx_bits": tme.tdx_bits,
            "lowest_address_bit": machine.memory.addresses.hpa_bits,
            "shared": {"first": 0, "last": shared},
            "private": {"first": shared + 1, "last": shared + private},
            "integrity": machine.memory.integrity.value,
        },
        "np_seamldr": {
            "name": acm.manifest.name,
            "version": acm.manifest.version,
            "measurement": acm.measurement.hex(),
        },
        "p_seamldr": _loader(machine),
        "module": _module(machine),
    }


def _packages(machine: Machine) -> list[dict[str, Any]]:
    packages: dict[int, list[dict[str, Any]]] = {}
    for lp in machine.processors:
        entry = {"index": lp.index, "x2apic_id": lp.cpuid(0x1F)[3], "mode": lp.mode.value}
        packages.setdefault(lp.package, []).append(entry)
    return [{"package": number, "processors": lps} for number, lps in sorted(packages.items())]


def _cmrs(machine: Machine) -> list[dict[str, int]]:
    """The convertible ranges as MCHECK recorded them in P_SYS_INFO_TABLE."""
    seam = machine.memory.seamrr
    if seam is None:
        return []
    table = machine.memory.read(seam[0] + seam[1] - PAGE, PAGE, Requestor.SEAM)
    numbers = P_SYS_INFO_TABLE.cmrs.all(table)
    pairs = zip(numbers[0::2], numbers[1::2], strict=True)
    return [{"base": base, "size": size} for base, size in pairs if size]


def _loader(machine: Machine) -> dict[str, Any] | None:
    loader = machine.seam.p_seamldr_entry
    if not isinstance(loader, PSeamldr):
        return None
    return {
        "version": f"{MAJOR}.{MINOR}",
        "build_date": f"{BUILD_DATE:08x}",
        "acm_x2apic_id": loader.acm_x2apic,
        "module_signers": sorted(key.hex() for key in loader.trusted),
    }


def _module(machine: Machine) -> dict[str, Any] | None:
    extend = machine.seam.extend
    loader = machine.seam.p_seamldr_entry
    if not SEAMEXTEND.seam_ready.get(extend):
        return None
    manifest = loader.installer.manifest if isinstance(loader, PSeamldr) else None
    return {
        "name": manifest.name if manifest else None,
        "version": manifest.version if manifest else None,
        "entry": manifest.entry if manifest else None,
        "files": len(manifest.files) if manifest else None,
        "tee_tcb_svn": SEAMEXTEND.tee_tcb_svn.get(extend).hex(),
        "mrseam": SEAMEXTEND.mrseam.get(extend).hex(),
        "mrsignerseam": SEAMEXTEND.mrsigner.get(extend).hex(),
        "attributes": SEAMEXTEND.attributes.get(extend),
    }
