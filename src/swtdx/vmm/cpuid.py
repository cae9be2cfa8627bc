"""CPUID as the hypervisor answers it by TDVMCALL.

The module answers most leaves itself; what is left for the hypervisor is its own range at 0x40000000 and
the leaves that give #VE: power management (6), caches (0x80000006), and topology (0xB, 0x1F) for guests that
did not ask the module for it.  Linux asks only for the range at 0x40000000; OVMF for all of them.
"""

from __future__ import annotations

import struct
from typing import Final

Registers = tuple[int, int, int, int]

HYPERVISOR: Final = 0x40000000
#: Without this name Linux would not use x2APIC, and would die on a private access to 0xFEE00000.
_SIGNATURE: Final = struct.unpack("<3I", b"KVMKVMKVM\0\0\0")
#: KVM_FEATURE_NOP_IO_DELAY: port 0x80 need not be written after each port access.  Nothing else of KVM's
#: interface is here, so nothing else is offered.
_FEATURES: Final = 1 << 1
_MAX: Final = HYPERVISOR + 1
_NOTHING: Final = (0, 0, 0, 0)
_LEVEL_SMT, _LEVEL_CORE = 1, 2


def answer(leaf: int, subleaf: int, apic_id: int, vcpus: int, l2: int) -> Registers:
    """EAX, EBX, ECX and EDX of a leaf for the vCPU ``apic_id`` of ``vcpus``; ``l2`` is the processor's."""
    if leaf == HYPERVISOR:
        return _MAX, *_SIGNATURE
    if leaf == HYPERVISOR + 1:
        return _FEATURES, 0, 0, 0
    if leaf in (0xB, 0x1F):
        return topology(subleaf, apic_id, vcpus)
    if leaf == 0x80000006:
        return 0, 0, l2, 0
    return _NOTHING


def topology(subleaf: int, apic_id: int, vcpus: int) -> Registers:
    """One package of ``vcpus`` cores with one thread each (Intel SDM, CPUID leaf 0x1F)."""
    if subleaf == 0:
        return 0, 1, _LEVEL_SMT << 8, apic_id
    if subleaf == 1:
        return (vcpus - 1).bit_length(), vcpus, _LEVEL_CORE << 8 | 1, apic_id
    return 0, 0, subleaf & 0xFF, apic_id
