"""What a write to IA32_TME_ACTIVATE does: the KeyID split, and memory that is encrypted from then on.

Source: Intel "Architecture Memory Encryption Technologies" specification (336907), IA32_TME_ACTIVATE
and IA32_MKTME_KEYID_PARTITIONING; structures.md §10.  The register locks with every successful write,
whether software sets bit 0 or not.

The memory of the machine is one for all packages, so the first package to activate decides; a package
that then activates otherwise keeps its own value in its own register, and MCHECK refuses the platform.
"""

from __future__ import annotations

from dataclasses import dataclass

from swtdx.arch.msrs import (
    IA32_MKTME_KEYID_PARTITIONING,
    IA32_TME_CAPABILITY,
    TDX_KEYID_BITS_SHIFT,
    TME_ACTIVATE_ENABLE,
    TME_ACTIVATE_LOCK,
    TME_KEYID_BITS_SHIFT,
)
from swtdx.machine.cpu.msr_file import MsrFile
from swtdx.machine.cpu.msr_table import Msr
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.memory import AddressError, AddressMap, Algorithm, Integrity


@dataclass(frozen=True, slots=True)
class TmeActivate:
    """The fields of IA32_TME_ACTIVATE that decide about KeyIDs and keys."""

    enable: bool
    keyid_bits: int
    tdx_bits: int
    algorithms: int

    @classmethod
    def of(cls, value: int) -> TmeActivate:
        """Decode a register value."""
        return cls(bool(value & TME_ACTIVATE_ENABLE), value >> 32 & 0xF, value >> 36 & 0xF, value >> 48 & 0xF)

    def encode(self) -> int:
        """The register value, locked."""
        return (
            TME_ACTIVATE_LOCK | TME_ACTIVATE_ENABLE * self.enable | self.algorithms << 48
            | self.keyid_bits << TME_KEYID_BITS_SHIFT | self.tdx_bits << TDX_KEYID_BITS_SHIFT
        )  # fmt: skip

    @property
    def shared_keyids(self) -> int:
        """KeyIDs for MKTME besides 0: those whose TDX bits are all 0."""
        return (1 << self.keyid_bits - self.tdx_bits) - 1

    @property
    def private_keyids(self) -> int:
        """KeyIDs for TDX: those with a TDX bit set."""
        return (1 << self.keyid_bits) - (1 << self.keyid_bits - self.tdx_bits) if self.tdx_bits else 0

    @property
    def partitioning(self) -> int:
        """IA32_MKTME_KEYID_PARTITIONING."""
        return self.shared_keyids | self.private_keyids << 32

    @property
    def integrity(self) -> Integrity:
        """Cryptographic if an algorithm with a MAC may be used."""
        with_mac = Algorithm.AES_XTS_128_INTEGRITY | Algorithm.AES_XTS_256_INTEGRITY
        return Integrity.CRYPTOGRAPHIC if self.algorithms & with_mac else Integrity.LOGICAL


def activate_tme(file: MsrFile, row: Msr, value: int) -> int:
    """Carry out the write of ``value``; returns what the register holds from then on.

    Raises:
        GeneralProtection: the part does not support what is asked for.
    """
    wanted = TmeActivate.of(value)
    capability = file.read(IA32_TME_CAPABILITY)
    why = None
    if not wanted.enable:
        if wanted.keyid_bits or wanted.tdx_bits:
            why = "KeyID bits need TME enabled (bit 1)"
    elif wanted.keyid_bits > capability >> 32 & 0xF:
        why = f"{wanted.keyid_bits} KeyID bits; the part has {capability >> 32 & 0xF}"
    elif wanted.tdx_bits > wanted.keyid_bits:
        why = f"{wanted.tdx_bits} TDX KeyID bits of {wanted.keyid_bits} KeyID bits"
    elif wanted.algorithms & ~(capability & 0xF):
        why = f"algorithms {wanted.algorithms:#x}; the part has {capability & 0xF:#x}"
    elif not capability >> (value >> 4 & 0xF) & 1:
        why = f"TME policy {value >> 4 & 0xF} is not an algorithm of the part"
    elif wanted.keyid_bits and not wanted.algorithms:
        why = "KeyID bits without an algorithm that PCONFIG could use"
    if why is not None:
        raise GeneralProtection(f"WRMSR {row.name} ({row.address:#x}) = {value:#x}: {why}")
    file.poke(IA32_MKTME_KEYID_PARTITIONING, wanted.partitioning if wanted.enable else 0)
    if wanted.enable:
        _activate_memory(file, wanted)
    return value


def _activate_memory(file: MsrFile, wanted: TmeActivate) -> None:
    """Make the memory controllers encrypt; they do so for the whole machine."""
    machine = file.lp.machine
    memory = machine.memory
    addresses = AddressMap(file.model.maxpa, wanted.keyid_bits, wanted.shared_keyids, wanted.private_keyids)
    if memory.addresses.keyid_bits or not wanted.keyid_bits:
        return
    try:
        memory.activate(addresses, wanted.integrity, Algorithm(wanted.algorithms))
    except AddressError as error:
        raise GeneralProtection(f"IA32_TME_ACTIVATE: {error}") from None
    for agent in machine.agents:
        agent.addresses_changed()
