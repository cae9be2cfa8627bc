"""Who asks for memory, and the ways in which memory refuses."""

from __future__ import annotations

import enum


class Requestor(enum.Enum):
    """Where an access comes from; hardware knows this by mode and by bus, not by what is claimed."""

    #: Software outside SEAM mode: the hypervisor, the BIOS once it has locked SEAMRR.
    HOST = "host"
    #: The TDX Module and P-SEAMLDR (SEAM root): private KeyIDs and the SEAM range are theirs.
    SEAM = "seam"
    #: A TD (SEAM non-root), through the engine; addresses come out of the Secure or shared EPT.
    TD = "td"
    #: A device's DMA.
    DEVICE = "device"


class MemoryFault(Exception):
    """An access that did not happen; ``hpa`` and ``keyid`` say where."""

    def __init__(self, message: str, hpa: int, keyid: int) -> None:
        super().__init__(message)
        self.hpa = hpa
        self.keyid = keyid


class ReservedBitFault(MemoryFault):
    """The physical address has bits that are reserved for this requestor.

    A private KeyID, a KeyID that does not exist, or a bit at or above MAXPA. For software it is a page
    fault with the RSVD bit in its error code (structures.md §10).
    """

    def __init__(self, hpa: int, keyid: int, why: str) -> None:
        super().__init__(f"#PF(RSVD): HPA {hpa:#x}, KeyID {keyid}: {why}", hpa, keyid)


class MachineCheck(MemoryFault):
    """A poisoned line was consumed: #MC.

    ``kind`` says what was wrong with it: ``"owner"`` (the TD-owner bit is not what the KeyID demands)
    or ``"mac"`` (the MAC does not match). ``hpa`` is the address of the 64-byte line.
    """

    def __init__(self, hpa: int, keyid: int, kind: str) -> None:
        why = {"owner": "TD-owner bit mismatch", "mac": "MAC mismatch"}[kind]
        super().__init__(f"#MC: line {hpa:#x} read under KeyID {keyid}: {why}", hpa, keyid)
        self.kind = kind


class BusAbort(MemoryFault):
    """A page was asked for (``map_page``, ``acquire``) where the bus aborts.

    There is no memory, or the SEAM range refuses the requestor. Plain reads and writes do not raise
    this: they give all ones and are dropped, as on hardware; a mapping has no such answer.
    """

    def __init__(self, hpa: int, keyid: int, why: str) -> None:
        super().__init__(f"HPA {hpa:#x}, KeyID {keyid}: {why}", hpa, keyid)
