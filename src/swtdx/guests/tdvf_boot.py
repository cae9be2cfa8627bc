"""The plan of a TD that starts with firmware: a TDVF image, loaded as QEMU and KVM do it.

Each section of the metadata in turn becomes pages, which are added one by one, each measured right after it
was added where the section says so (KVM_TDX_INIT_MEM_REGION for each section, ``target/i386/kvm/tdx.c`` of
QEMU 10.1).  The TD HOB is written into its section, and its address is what every vCPU gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from swtdx.arch.guest_map import FOUR_GIB, GuestMap
from swtdx.arch.units import PAGE
from swtdx.guests.errors import DoesNotFit, GuestError, NotFirmware
from swtdx.guests.files import read_file
from swtdx.guests.memory_map import Range
from swtdx.guests.plan import GuestPlan, PrivatePage, pages_of
from swtdx.guests.td_hob import encode_td_hob, ram_entries
from swtdx.measure.errors import MeasureError
from swtdx.measure.tdvf import Section, SectionType, parse_tdvf
from swtdx.measure.tdvf import TdvfImage as TdvfImage

#: What can be in RAM; everything else lies above it.
_IN_RAM = frozenset({SectionType.TD_HOB, SectionType.TempMem})


def parse_firmware(data: bytes, name: str = "the firmware") -> TdvfImage:
    """A TDVF image, checked.

    Raises:
        NotFirmware: it has no TDX metadata, or they make no sense; the message begins with ``name``.
    """
    try:
        return parse_tdvf(data)
    except MeasureError as error:
        raise NotFirmware(f"{name}: {error}") from error


#: Bytes of a firmware image at most; OVMF has 2 or 4 million.
_LARGEST: Final = 64 << 20


def load_firmware(path: Path) -> TdvfImage:
    """The TDVF image in a file.

    Raises:
        NotFirmware: see :func:`parse_firmware`; GuestError: the file cannot be read.
    """
    try:
        data = read_file(path, "a firmware image", _LARGEST)
    except OSError as error:
        raise GuestError(f"the firmware {path} cannot be read: {error.strerror}") from error
    return parse_firmware(data, f"the firmware {path}")


#: ``mov ecx, 0xFFEC``, registers that edk2's TdVmCall passed to the hypervisor until 2023, and TDCALL soon
#: after it.  Bit 5 is RBP.
_PASSES_RBP: Final = re.compile(rb"\xb9\xec\xff\0\0.{0,64}?\x66\x0f\x01\xcc", re.DOTALL)


def passes_rbp(image: TdvfImage) -> bool:
    """Whether the firmware passes RBP to the hypervisor, which a TD with CONFIG_FLAGS.NO_RBP_MOD may not.

    OVMF of 2022 does; later edk2 does not (``MdePkg/Library/BaseLib/X64/TdVmcall.nasm``).  Linux's KVM, from
    6.16 on, sets that flag for every TD, and there such an image does not start.
    """
    return _PASSES_RBP.search(image.data) is not None


def q35_ram(memory: int, places: GuestMap) -> tuple[Range, ...]:
    """``memory`` bytes of RAM: from 0 on, and what has no room there from 4 GiB on."""
    low = min(memory, places.low_ram_end)
    high = memory - low
    return (Range(0, low), Range(FOUR_GIB, high)) if high else (Range(0, low),)


def build_tdvf_boot(image: TdvfImage, memory: int, places: GuestMap) -> GuestPlan:
    """Lay out a TD that starts with ``image``.

    Args:
        memory: bytes of RAM, a whole number of pages.
        places: where RAM ends.

    Raises:
        DoesNotFit: a section of the image lies where it cannot.
    """
    if memory < PAGE or memory % PAGE:
        raise DoesNotFit(f"a TD's memory is a whole number of 4 KiB pages, not {memory} bytes")
    ram = q35_ram(memory, places)
    for section in image.sections:
        _check_place(section, ram)
    hob_section = next(section for section in image.sections if section.type is SectionType.TD_HOB)
    hob = td_hob(image, memory, places)
    pages: list[PrivatePage] = []
    for section in image.sections:
        if section.added and section.size:
            pages += _pages(image, section, hob)
    beside = tuple(
        _range(section)
        for section in image.sections
        if not section.added and not any(_inside(section, part) for part in ram)
    )
    return GuestPlan(pages=tuple(pages), ram=ram + beside, vp_init_rdx=hob_section.gpa)


def td_hob(image: TdvfImage, memory: int, places: GuestMap) -> bytes:
    """The TD HOB for ``image``: the memory map of a TD, as :func:`build_tdvf_boot` writes it.

    Raises:
        DoesNotFit: a section of the image lies where it cannot.
    """
    ram = q35_ram(memory, places)
    added = [(str(section), _range(section)) for section in image.sections if _counts_as_added(section, ram)]
    section = next(section for section in image.sections if section.type is SectionType.TD_HOB)
    return encode_td_hob(section.gpa, section.size, ram_entries(ram, added))


def _range(section: Section) -> Range:
    return Range(section.gpa, section.size)


def _inside(section: Section, part: Range) -> bool:
    return part.base <= section.gpa and section.gpa + section.size <= part.end


def _counts_as_added(section: Section, ram: Sequence[Range]) -> bool:
    """Whether the HOB says of its pages that they are there: TD_HOB and TempMem, and what else is in RAM."""
    return (
        section.added
        and section.size > 0
        and (section.type in _IN_RAM or any(_inside(section, part) for part in ram))
    )


def _check_place(section: Section, ram: Sequence[Range]) -> None:
    """A section lies in RAM or beside it."""
    for part in ram:
        start, end = max(part.base, section.gpa), min(part.end, section.gpa + section.size)
        if start < end and not _inside(section, part):
            raise DoesNotFit(
                f"{section} of the firmware, {section.size:#x} bytes at GPA {section.gpa:#x}, lies only in "
                f"part in RAM, which ends at {part.end:#x}"
            )


def _pages(image: TdvfImage, section: Section, hob: bytes) -> Iterator[PrivatePage]:
    if section.type is SectionType.TD_HOB:
        data = hob
    else:
        data = image.data[section.data_offset : section.data_offset + section.data_size]
    return pages_of(section.gpa, data.ljust(section.size, b"\0"), measured=section.measured)
