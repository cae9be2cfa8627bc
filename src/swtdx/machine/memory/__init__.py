"""Physical memory that protects itself: frames (cache), DRAM, keys, and who may see what."""

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import ALL_LINES, LINE, AddressError, AddressMap
from swtdx.machine.memory.faults import BusAbort, MachineCheck, MemoryFault, Requestor, ReservedBitFault
from swtdx.machine.memory.keys import (
    MKTME_KEY_PROGRAM,
    Algorithm,
    Command,
    Integrity,
    KeyProgramFormatError,
    KeyTable,
    ProgramResult,
)
from swtdx.machine.memory.physical import DEVICE, HOST, SEAM, TD, PhysicalMemory

__all__ = [
    "ALL_LINES",
    "DEVICE",
    "HOST",
    "LINE",
    "MKTME_KEY_PROGRAM",
    "PAGE",
    "SEAM",
    "TD",
    "AddressError",
    "AddressMap",
    "Algorithm",
    "BusAbort",
    "Command",
    "Integrity",
    "KeyProgramFormatError",
    "KeyTable",
    "MachineCheck",
    "MemoryFault",
    "PhysicalMemory",
    "ProgramResult",
    "Requestor",
    "ReservedBitFault",
]
