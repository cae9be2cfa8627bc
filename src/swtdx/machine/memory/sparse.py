"""Sparse storage from the kernel: huge address ranges that cost only what is touched.

Laziness is left to page tables, not done with dictionaries of chunks: one flat array per property
keeps every operation over a range a single vectorised expression, and 1 TiB of it opens for nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import PAGE

# linux/falloc.h
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
# asm-generic/mman.h; the mmap module names it from Python 3.12 on
_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
#: Size of a transparent huge page on x86-64.
HUGE: Final = 2 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


class SparseFile:
    """``size`` bytes of shared memory in a memfd, mapped whole, all zero at first.

    ``fd`` may be mapped by other processes; ``map`` is the mapping (slicing it copies), ``view`` a
    writable memoryview of its bytes, ``words`` the same as little-endian 64-bit integers.

    Raises:
        OSError: the kernel has no memfd, or refuses the mapping.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        # A core dump of a process that maps a terabyte is of no use.
        with contextlib.suppress(OSError, ValueError):
            self.map.madvise(mmap.MADV_DONTDUMP)
        self.view = memoryview(self.map)
        self.words = self.view.cast("Q")
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self.map, np.uint8)

    def punch(self, start: int, size: int) -> None:
        """Give bytes ``start .. start+size-1`` (page-aligned) back to the kernel; they read as zeros."""
        if _libc.fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, start, size) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            raise OSError(code, f"cannot free frames at {start:#x}: {os.strerror(code)}")
        # A kernel or sandbox without hole punching: the same contents, but the memory is kept.
        for at in range(start, start + size, 1 << 20):
            self.bytes[at : min(at + (1 << 20), start + size)] = 0

    def read(self, start: int, size: int) -> bytes:
        """A copy of bytes ``start .. start+size-1`` that leaves holes unallocated.

        A load from a hole through the mapping would allocate a page; ``pread`` does not.
        """
        parts: list[bytes] = []
        while size:
            part = os.pread(self.fd, size, start)
            parts.append(part)
            start += len(part)
            size -= len(part)
        return b"".join(parts)

    def has_data(self, start: int, size: int) -> bool:
        """Whether any page of the range is allocated (a page that was never written is not)."""
        try:
            return os.lseek(self.fd, start, os.SEEK_DATA) < start + size
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end
                return False
            raise

    def close(self) -> None:
        """Close the file; the mapping lives until the last view of it is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SparseArray:
    """``count`` numbers of ``dtype``, all zero, in private memory that reading does not allocate."""

    def __init__(self, count: int, dtype: npt.DTypeLike) -> None:
        itemsize = np.dtype(dtype).itemsize
        # Room for one more page: OpenSSL bindings want an output buffer longer than the output.
        size = -(-count * itemsize // PAGE) * PAGE + PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        self._discard = mmap.MADV_DONTNEED
        try:
            self.map = mmap.mmap(-1, size, flags=flags)
        except OSError:
            # Strict overcommit (vm.overcommit_memory=2) refuses; shared memory is counted by use.
            fd = os.memfd_create("swtdx-array", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, size)
                self.map = mmap.mmap(fd, size)
                self._discard = mmap.MADV_REMOVE
            finally:
                os.close(fd)
        with contextlib.suppress(OSError, ValueError):
            self.map.madvise(mmap.MADV_DONTDUMP)
        self.itemsize = itemsize
        #: For vectors. For single elements ``items`` is several times faster.
        self.array: npt.NDArray[Any] = np.frombuffer(self.map, dtype, count)
        self.items: memoryview = self.array.data
        self.view: memoryview = memoryview(self.map)

    def clear(self, first: int, count: int) -> None:
        """Set elements to zero, giving whole pages back to the kernel."""
        start, end = first * self.itemsize, (first + count) * self.itemsize
        inner, outer = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if outer - inner >= 16 * PAGE:
            self.array[first : inner // self.itemsize] = 0
            self.array[outer // self.itemsize : first + count] = 0
            self.map.madvise(self._discard, inner, outer - inner)
        else:
            self.array[first : first + count] = 0

    def use_huge_pages(self, start: int, end: int) -> None:
        """Advise huge pages for bytes ``start .. end-1``, about to be written in bulk."""
        start, end = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        if end > start:
            with contextlib.suppress(OSError, ValueError):
                self.map.madvise(mmap.MADV_HUGEPAGE, start, end - start)
