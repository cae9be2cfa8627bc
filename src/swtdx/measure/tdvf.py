"""TDVF images: finding and checking the TDX metadata that tells a VMM how to build the TD.

Facts: measurement.md §4 (OVMF's reset vector, QEMU's ``hw/i386/tdvf.c``, td-shim's metadata crate).
Integers are little-endian, GUIDs in EFI's mixed-endian form.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from uuid import UUID

from swtdx.arch.units import PAGE
from swtdx.measure.errors import MeasureError
from swtdx.measure.mrtd import GPA_LIMIT, MrtdStream, Order, Region

_FOOTER: Final = UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_OFFSET_ENTRY: Final = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
_DESCRIPTOR: Final = UUID("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae").bytes_le
#: The GUID table ends this far before the image's end; behind it is the reset vector.
_TABLE_END: Final = 0x20
_ENTRY_TAIL: Final = 18  # length (2) and GUID (16) behind an entry's data
_HEADER: Final = struct.Struct("<4sIII")
_SECTION: Final = struct.Struct("<IIQQII")
_MAX_SECTIONS: Final = 1024
#: More than this is a mistake (or a trap), not firmware: all of it is copied and hashed page by page.
_ADDED_LIMIT: Final = 4 << 30

MR_EXTEND: Final = 1 << 0
PAGE_AUG: Final = 1 << 1


class SectionType(IntEnum):
    """What a section is for."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TempMem = 3
    PermMem = 4
    Payload = 5
    PayloadParam = 6
    TD_INFO = 7
    TD_PARAMS = 8


#: Sections that have no bytes in the file.
_WITHOUT_DATA: Final = frozenset({SectionType.TD_HOB, SectionType.TempMem, SectionType.PermMem})
#: Sections that describe the image, and are not loaded when they have no memory.
_INFORMATION: Final = frozenset({SectionType.TD_INFO, SectionType.TD_PARAMS})


@dataclass(frozen=True, slots=True)
class Section:
    """One section: where its bytes are in the file, where they go, and how its pages get there."""

    index: int
    type: SectionType
    data_offset: int
    data_size: int
    gpa: int
    size: int
    attributes: int

    @property
    def added(self) -> bool:
        """Whether its pages are there from the start (TDH.MEM.PAGE.ADD); others come by PAGE.AUG."""
        return not self.attributes & PAGE_AUG

    @property
    def measured(self) -> bool:
        """Whether its contents are extended into MRTD."""
        return self.added and bool(self.attributes & MR_EXTEND)

    def __str__(self) -> str:
        return f"section {self.index} ({self.type.name})"


@dataclass(frozen=True, slots=True)
class TdvfImage:
    """A TDVF image whose metadata makes sense.

    ``style`` is ``"ovmf"`` (found through the GUID table) or ``"td-shim"`` (through the offset before
    the reset vector); ``descriptor`` is the file offset of the descriptor.
    """

    data: bytes
    style: str
    descriptor: int
    sections: tuple[Section, ...]

    def regions(self) -> tuple[Region, ...]:
        """What the VMM adds, in its order: the sections as the metadata lists them.

        The TD HOB list is written by the VMM and differs from one to the other; its section is not
        measured into MRTD (the firmware measures it into RTMR0), so zeros stand for it here.
        """
        view = memoryview(self.data)
        return tuple(
            Region(
                section.gpa,
                section.size,
                view[section.data_offset : section.data_offset + section.data_size],
                section.measured,
            )
            for section in self.sections
            if section.added and section.size
        )

    def measure(self, order: Order = Order.PAGE) -> MrtdStream:
        """The finished MRTD stream of a TD built of this image by a VMM with that order of calls."""
        stream = MrtdStream()
        for region in self.regions():
            stream.add(region, order)
        return stream


def parse_tdvf(data: bytes) -> TdvfImage:
    """Find and check an image's TDX metadata.

    Raises:
        MeasureError: there is none, or it is damaged or breaks a rule; the message says which.
    """
    if len(data) < PAGE:
        raise MeasureError(f"the image has {len(data)} bytes: too few for a TDVF image; is it truncated?")
    style, descriptor = _find_descriptor(data)
    sections = _read_sections(data, descriptor)
    _check(data, sections)
    return TdvfImage(data, style, descriptor, sections)


def _find_descriptor(data: bytes) -> tuple[str, int]:
    """How the descriptor was found, and its offset in the file."""
    end = len(data)
    if data[end - 0x30 : end - _TABLE_END] == _FOOTER:
        back = _ovmf_offset(data)
        if back is None:
            raise MeasureError(
                "the firmware has a GUID table but no TDX metadata in it: it was built without TDX "
                "support (Debian's OVMF.fd, edk2's OvmfPkgX64 and IntelTdxX64 have it)"
            )
        if not _HEADER.size + len(_DESCRIPTOR) <= back <= end:
            raise MeasureError(f"the TDX metadata offset {back:#x} points outside the image ({end:#x} bytes)")
        return "ovmf", end - back
    (offset,) = struct.unpack_from("<I", data, end - 0x20)
    if data[offset : offset + 4] == b"TDVF" and offset + _HEADER.size <= end:
        return "td-shim", offset
    raise MeasureError(
        "no TDX metadata: neither edk2's GUID table nor td-shim's offset is at the image's end; "
        "it is no TDVF image, or it is truncated (OVMF_VARS files have none, OVMF.fd has)"
    )


def _ovmf_offset(data: bytes) -> int | None:
    """The value of the TDX metadata offset entry; None if the table has no such entry."""
    table_end = len(data) - _TABLE_END
    (length,) = struct.unpack_from("<H", data, table_end - _ENTRY_TAIL)
    start = table_end - length
    if length < _ENTRY_TAIL or start < 0:
        raise MeasureError(f"the GUID table at the image's end says that it has {length} bytes; damaged")
    at = table_end - _ENTRY_TAIL
    while at - start >= _ENTRY_TAIL:
        guid = data[at - 16 : at]
        (size,) = struct.unpack_from("<H", data, at - _ENTRY_TAIL)
        if size < _ENTRY_TAIL or at - size < start:
            raise MeasureError(f"entry {UUID(bytes_le=guid)} of the GUID table has a wrong length, {size}")
        if guid == _OFFSET_ENTRY:
            if size != _ENTRY_TAIL + 4:
                raise MeasureError(f"the TDX metadata entry of the GUID table has {size} bytes, not 22")
            value: int = struct.unpack_from("<I", data, at - size)[0]
            return value
        at -= size
    return None


def _read_sections(data: bytes, descriptor: int) -> tuple[Section, ...]:
    if descriptor < len(_DESCRIPTOR) or data[descriptor - len(_DESCRIPTOR) : descriptor] != _DESCRIPTOR:
        raise MeasureError(f"no TDX metadata GUID before the descriptor at {descriptor:#x}; damaged image")
    signature, length, version, count = _HEADER.unpack_from(data, descriptor)
    if signature != b"TDVF":
        raise MeasureError(f"the descriptor at {descriptor:#x} does not begin with TDVF; damaged image")
    if version != 1:
        raise MeasureError(f"TDX metadata version {version} is not known; version 1 is")
    if not 1 <= count <= _MAX_SECTIONS or length != _HEADER.size + count * _SECTION.size:
        raise MeasureError(f"the TDX metadata says {count} sections in {length} bytes, which does not fit")
    if descriptor + length > len(data):
        raise MeasureError(f"the TDX metadata at {descriptor:#x} goes beyond the image's end; truncated?")
    sections = []
    for index in range(count):
        at = descriptor + _HEADER.size + index * _SECTION.size
        data_offset, data_size, gpa, size, kind, attributes = _SECTION.unpack_from(data, at)
        try:
            section_type = SectionType(kind)
        except ValueError:
            raise MeasureError(f"section {index} has the unknown type {kind}") from None
        sections.append(Section(index, section_type, data_offset, data_size, gpa, size, attributes))
    return tuple(sections)


def _check(data: bytes, sections: tuple[Section, ...]) -> None:
    for section in sections:
        _check_section(data, section)
    loaded = sorted((section for section in sections if section.size), key=lambda section: section.gpa)
    for before, after in itertools.pairwise(loaded):
        if after.gpa < before.gpa + before.size:
            raise MeasureError(f"{before} and {after} overlap at GPA {after.gpa:#x}")
    added = sum(section.size for section in sections if section.added)
    if added > _ADDED_LIMIT:
        raise MeasureError(
            f"the sections want {added:#x} bytes added before the TD starts; 4 GiB is the limit"
        )
    if not any(section.type is SectionType.BFV for section in sections):
        raise MeasureError("no BFV section: an image without firmware code cannot start")
    hobs = sum(section.type is SectionType.TD_HOB for section in sections)
    if hobs != 1:
        raise MeasureError(f"{hobs} TD_HOB sections; a TDVF image has exactly one")


def _check_section(data: bytes, section: Section) -> None:
    if section.attributes & ~(MR_EXTEND | PAGE_AUG):
        raise MeasureError(f"{section} has unknown attributes {section.attributes:#x}")
    if section.attributes == MR_EXTEND | PAGE_AUG:
        raise MeasureError(
            f"{section} asks for MR.EXTEND and PAGE.AUG at once; a pending page has no contents"
        )
    if section.size == 0 and section.type in _INFORMATION:
        return
    if section.gpa % PAGE or section.size % PAGE:
        raise MeasureError(
            f"{section} is not made of 4 KiB pages: GPA {section.gpa:#x}, {section.size:#x} bytes"
        )
    if section.size == 0:
        raise MeasureError(f"{section} has no memory")
    if section.gpa > GPA_LIMIT - section.size:
        raise MeasureError(f"{section} at GPA {section.gpa:#x} leaves the 52 bits of a GPA")
    if section.type in _WITHOUT_DATA:
        if section.data_size:
            raise MeasureError(f"{section} must have no bytes in the file, but has {section.data_size:#x}")
    elif section.data_size > section.size:
        raise MeasureError(
            f"{section} has {section.data_size:#x} bytes in the file for {section.size:#x} of memory"
        )
    elif section.data_offset + section.data_size > len(data):
        raise MeasureError(
            f"{section} has its bytes at {section.data_offset:#x}-"
            f"{section.data_offset + section.data_size:#x} of the file, which has only {len(data):#x}: "
            "truncated, or only the code half of an image (use OVMF.fd, not OVMF_CODE.fd)"
        )
    if section.type is SectionType.BFV and not section.data_size:
        raise MeasureError(f"{section} has no firmware code")
