"""MRTD from a list of pages.

The rule (measurement.md §1; ``tdh_mem_page_add.c`` and ``tdh_mr_extend.c`` of the TDX module 1.5.01):
MRTD is SHA-384 over, for every page in the order of the builder's calls, one 128-byte block of
TDH.MEM.PAGE.ADD and, if its contents are measured, sixteen times a 128-byte block of TDH.MR.EXTEND and
the 256 bytes it measures.  A block is a name padded with zeros to 16 bytes, the GPA (little-endian), and
zeros.  Contents are not part of PAGE.ADD's block.  Which call follows which is the VMM's choice, and VMMs
have chosen differently: :class:`Order`.

Nothing here is shared with the TDX Module's own code, so that the two check each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np

from swtdx.arch.units import EXTEND_CHUNK, PAGE
from swtdx.measure.errors import MeasureError

_CHUNKS: Final = PAGE // EXTEND_CHUNK
_BLOCK: Final = 128
#: Bytes that a measured page adds to the stream: its ADD block, and 16 times block and chunk.
MEASURED_PAGE_BYTES: Final = _BLOCK + _CHUNKS * (_BLOCK + EXTEND_CHUNK)
GPA_LIMIT: Final = 1 << 52
#: Pages that are laid out at a time: few enough to stay in the processor's cache while they are hashed.
_BATCH: Final = 32


class Order(Enum):
    """In which order a VMM makes its calls for a region whose contents are measured; MRTD depends on it.

    Sources: Linux ``arch/x86/kvm/vmx/tdx.c`` (KVM_TDX_INIT_MEM_REGION) and QEMU 10.1; the reports
    intel-staging/qemu-tdx#1, Fraunhofer-AISEC/measured-boot-tools#6, virtee/tdx-measure#18.
    """

    #: Each TDH.MEM.PAGE.ADD is followed by its page's TDH.MR.EXTENDs.
    PAGE = "page"
    #: First every TDH.MEM.PAGE.ADD of a section, then every TDH.MR.EXTEND of it.
    SECTION = "section"

    @property
    def who(self) -> str:
        """Which VMMs have it."""
        if self is Order.PAGE:
            return "Linux 6.16 with QEMU 10.1 and later; Intel's QEMU up to 8.1"
        return "Ubuntu 24.04's TDX stack (QEMU 8.2.2) and Intel's QEMU series v5"


@dataclass(frozen=True, slots=True)
class Region:
    """Consecutive pages that are added in ascending order, their contents extended if ``measured``.

    ``gpa`` is where they start; ``data`` is their contents from the start, and zeros follow it up to
    ``size`` bytes.  KVM takes a region in just this way (KVM_TDX_INIT_MEM_REGION).
    """

    gpa: int
    size: int
    data: bytes | memoryview
    measured: bool


def _block(name: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(name.ljust(_BLOCK, b"\0"), np.uint8)


class MrtdStream:
    """An MRTD in the making: :meth:`add` regions in the order of the builder, then :meth:`digest`."""

    def __init__(self) -> None:
        self._sha = hashlib.sha384()
        self.pages = 0
        self.measured_pages = 0
        self._buffer = np.zeros((_BATCH, MEASURED_PAGE_BYTES), np.uint8)
        self._buffer[:, :_BLOCK] = _block(b"MEM.PAGE.ADD")
        chunks = self._buffer[:, _BLOCK:].reshape(_BATCH, _CHUNKS, _BLOCK + EXTEND_CHUNK)
        chunks[:, :, :_BLOCK] = _block(b"MR.EXTEND")
        self._contents = chunks[:, :, _BLOCK:]
        # The GPA fields, seen as integers through strides: bytes 16..23 of every block.
        words = self._buffer.view("<u8")
        self._add_gpas = words[:, 2]
        step = (_BLOCK + EXTEND_CHUNK) // 8
        self._extend_gpas = words[:, _BLOCK // 8 + 2 :: step]
        self._chunk_offsets = np.arange(0, PAGE, EXTEND_CHUNK, dtype="<u8")
        self._page_offsets = np.arange(0, _BATCH * PAGE, PAGE, dtype="<u8")

    def add(self, region: Region, order: Order = Order.PAGE) -> None:
        """Add a region's pages, in one of the orders that VMMs have.

        Raises:
            MeasureError: it is not made of whole pages within 52 bits of GPA, or its contents are longer.
        """
        gpa, size = region.gpa, region.size
        if gpa % PAGE or size % PAGE or size < 0:
            raise MeasureError(f"a region of {size:#x} bytes at GPA {gpa:#x} is not made of 4 KiB pages")
        if not 0 <= gpa <= GPA_LIMIT - size:
            raise MeasureError(f"a region of {size:#x} bytes at GPA {gpa:#x} leaves the 52 bits of a GPA")
        if len(region.data) > size:
            raise MeasureError(
                f"{len(region.data)} bytes of contents do not fit into {size} bytes at GPA {gpa:#x}"
            )
        if not region.measured or order is Order.SECTION:
            self._add_unmeasured(gpa, size)
        if region.measured:
            self._add_measured(gpa, size, region.data, adds=order is Order.PAGE)
        self.pages += size // PAGE

    def _add_measured(self, gpa: int, size: int, data: bytes | memoryview, *, adds: bool) -> None:
        whole = len(data) // PAGE * PAGE
        source = np.frombuffer(data, np.uint8)
        self._hash_pages(gpa, source[:whole], adds)
        if whole < size:
            # The page in which the contents end, and the zeros after it.
            last = np.zeros(PAGE, np.uint8)
            last[: len(data) - whole] = source[whole:]
            self._hash_pages(gpa + whole, last, adds)
            zeros = np.zeros(_BATCH * PAGE, np.uint8)
            for at in range(whole + PAGE, size, _BATCH * PAGE):
                self._hash_pages(gpa + at, zeros[: min(_BATCH * PAGE, size - at)], adds)
        self.measured_pages += size // PAGE

    def _hash_pages(self, gpa: int, source: np.ndarray[Any, np.dtype[np.uint8]], adds: bool) -> None:
        for at in range(0, len(source), _BATCH * PAGE):
            part = source[at : at + _BATCH * PAGE]
            count = len(part) // PAGE
            gpas = self._page_offsets[:count] + np.uint64(gpa + at)
            self._add_gpas[:count] = gpas
            np.add.outer(gpas, self._chunk_offsets, out=self._extend_gpas[:count])
            self._contents[:count] = part.reshape(count, _CHUNKS, EXTEND_CHUNK)
            rows = self._buffer[:count] if adds else np.ascontiguousarray(self._buffer[:count, _BLOCK:])
            self._sha.update(rows.data)

    def _add_unmeasured(self, gpa: int, size: int) -> None:
        for start in range(0, size, _BATCH * PAGE * 64):
            count = min(size - start, _BATCH * PAGE * 64) // PAGE
            blocks = np.tile(_block(b"MEM.PAGE.ADD"), (count, 1))
            blocks.view("<u8")[:, 2] = np.arange(gpa + start, gpa + start + count * PAGE, PAGE, dtype="<u8")
            self._sha.update(blocks.data)

    def digest(self) -> bytes:
        """MRTD (48 bytes) as TDH.MR.FINALIZE would close it now."""
        return self._sha.digest()


def mrtd(regions: Iterable[Region], order: Order = Order.PAGE) -> bytes:
    """MRTD (48 bytes) of a TD that is built of ``regions``, one after the other.

    Raises:
        MeasureError: see :meth:`MrtdStream.add`.
    """
    stream = MrtdStream()
    for region in regions:
        stream.add(region, order)
    return stream.digest()
