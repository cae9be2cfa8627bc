"""Physical memory as everybody on the machine uses it.

Rules (design §3, structures.md §10), per 64-byte line:

==================================  ===========================================================
HOST or DEVICE, private KeyID       :class:`ReservedBitFault` (HOST), bus abort (DEVICE)
not SEAM, inside SEAMRR             bus abort
no memory there                     bus abort
shared KeyID reads a TD's line      zeros, whether the line is cached or in DRAM
shared KeyID writes a TD's line     the line becomes the writer's, TD-owner bit 0
private KeyID reads owner bit 0     :class:`MachineCheck`
MAC wrong, KeyID with integrity     :class:`MachineCheck`
another key, no MAC to tell         what decryption gives: garbage
==================================  ===========================================================

A bus abort reads as all ones; writes are dropped. A device that would consume poison gets an abort.

**Threads.** Calls may come from several threads. Each call is atomic with respect to all others for
each page that it touches, 8-byte accesses wholly; ``lock`` (re-entrant) may be held over several calls.
:meth:`PhysicalMemory.map_page` takes no lock when the page is mapped already. Subscribers are called
with the lock held and must not wait for a thread that may be waiting for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import ALL_LINES, LINE, PAGE_SHIFT, AddressError, AddressMap, line_mask
from swtdx.machine.memory.bus import Bus
from swtdx.machine.memory.cache import Cache, Subscriber
from swtdx.machine.memory.faults import BusAbort, MachineCheck, Requestor
from swtdx.machine.memory.image import MemoryImage
from swtdx.machine.memory.keys import Algorithm, Integrity, KeyTable
from swtdx.machine.memory.lines import LineAccess
from swtdx.machine.memory.pages import ALL, EXECUTED, MAPPED, STALE, VIEWED, PageTable, runs
from swtdx.machine.memory.sparse import SparseFile
from swtdx.machine.memory.store import DramStore

HOST: Final = Requestor.HOST
SEAM: Final = Requestor.SEAM
TD: Final = Requestor.TD
DEVICE: Final = Requestor.DEVICE

_ALGORITHMS: Final = Algorithm.AES_XTS_128 | Algorithm.AES_XTS_128_INTEGRITY
_WINDOW: Final = 2 << 20

T = TypeVar("T")


class PhysicalMemory:
    """The memory of one machine: populated ranges, caches, DRAM and keys.

    ``populated`` lists ``(base, size)`` of the DRAM ranges in bytes, page-aligned, ascending and apart.
    ``seed`` is the machine's root secret, at least 16 bytes. Physical addresses (``pa``) carry the KeyID
    above ``addresses.hpa_bits``; ``hpa`` and ``keyid`` arguments are taken apart.

    ``frames`` is a writable view of all frames indexed by HPA and ``frames_fd`` the file behind it, for
    the engine; a frame's bytes mean something only while its page is acquired.

    Raises:
        AddressError: ranges that overlap, are unaligned, or do not fit the address map.
    """

    def __init__(
        self,
        populated: Sequence[tuple[int, int]],
        seed: bytes,
        addresses: AddressMap | None = None,
        integrity: Integrity = Integrity.CRYPTOGRAPHIC,
        algorithms: Algorithm = _ALGORITHMS,
    ) -> None:
        addresses = AddressMap() if addresses is None else addresses
        self.lock = threading.RLock()
        self.bus = Bus(populated, addresses)
        self.size = self.bus.end
        self._file = SparseFile("swtdx-frames", self.size)
        self.frames = self._file.view
        self.frames_fd = self._file.fd
        self._count = self.size >> PAGE_SHIFT
        #: What of it is still in a snapshot's file.
        self.image: MemoryImage | None = None
        self._build(seed, integrity, algorithms, addresses)

    def _build(self, seed: bytes, integrity: Integrity, algorithms: Algorithm, addresses: AddressMap) -> None:
        self.addresses = addresses
        self._bits = addresses.hpa_bits
        self._mask = (1 << self._bits) - 1
        self._first_private = addresses.first_private
        self.keys = KeyTable(seed, addresses, integrity, algorithms, self.lock)
        self.pages = PageTable(self._count)
        self.store = DramStore(self.size, self.keys, self.pages)
        self.cache = Cache(addresses, self._file, self.pages, self.store, self.keys)
        self.keys.before_change = self.cache.before_key_change
        self._views = self.cache.views
        self._lines = LineAccess(self.cache)

    def close(self) -> None:
        """Give the frames file back; the object must not be used afterwards."""
        if self.image is not None:
            self.image.close()
        self._file.close()

    # -- set-up by the firmware -----------------------------------------------------------------------

    def activate(
        self,
        addresses: AddressMap,
        integrity: Integrity = Integrity.CRYPTOGRAPHIC,
        algorithms: Algorithm = _ALGORITHMS,
    ) -> None:
        """What IA32_TME_ACTIVATE and IA32_MKTME_KEYID_PARTITIONING do when the BIOS writes them.

        Allowed once, on a machine made with ``AddressMap.without_tme()``. The BIOS clears memory after
        that, so all contents are lost.

        Raises:
            AddressError: TME is active already, or the ranges do not fit the new address map.
        """
        with self.lock:
            if self.addresses.keyid_bits:
                raise AddressError("TME is active already; its MSRs are locked until reset")
            bus = Bus(self.bus.populated, addresses)
            bus.seam_base, bus.seam_end = self.bus.seam_base, self.bus.seam_end
            self.bus = bus
            self.cache.release(0, self._count)
            subscribers, epoch = self.cache.subscribers, self.cache.epoch
            self._file.punch(0, self.size)
            self._build(self.keys.seed, integrity, algorithms, addresses)
            self.cache.subscribers, self.cache.epoch = subscribers, epoch + 1

    def set_seamrr(self, base: int, size: int) -> None:
        """Reserve the SEAM range (IA32_SEAMRR_PHYS_BASE and _MASK, once locked; bytes).

        Raises:
            AddressError: the range is set already, is unaligned, or has no memory behind it.
        """
        with self.lock:
            self.recall(base, size)
            self.bus.reserve_seam(base, size)
            self.cache.release(base >> PAGE_SHIFT, base + size >> PAGE_SHIFT)

    @property
    def frame_file(self) -> SparseFile:
        """The file of frames."""
        return self._file

    @property
    def seamrr(self) -> tuple[int, int] | None:
        """``(base, size)`` of the SEAM range in bytes, None before it is set."""
        base, end = self.bus.seam_base, self.bus.seam_end
        return (base, end - base) if end else None

    @property
    def integrity(self) -> Integrity:
        """How private lines are protected on this machine."""
        return self.keys.integrity

    @property
    def populated(self) -> tuple[tuple[int, int], ...]:
        """``(base, size)`` in bytes of the ranges that have memory."""
        return self.bus.populated

    # -- plain accesses -------------------------------------------------------------------------------

    def _hits(self, state: memoryview, hpa: int, keyid: int, size: int, requestor: Requestor) -> bool:
        """Whether the frame answers at once: lines of one page in ``state`` under ``keyid``, permitted."""
        page, offset = hpa >> PAGE_SHIFT, hpa & PAGE - 1
        if page >= self._count or not 0 < size <= PAGE - offset or self.pages.tag[page] != keyid:
            return False
        lines = state[page]
        if lines != ALL_LINES and line_mask(offset, size) & ~lines:
            return False
        return requestor is SEAM or (
            (keyid < self._first_private or requestor is TD)
            and not self.bus.seam_base <= hpa < self.bus.seam_end
        )

    def read(self, pa: int, size: int, requestor: Requestor = HOST) -> bytes:
        """``size`` bytes at ``pa``.

        Raises:
            ReservedBitFault: the address has bits that ``requestor`` must not use (not for devices).
            MachineCheck: a line is poisoned (not for devices).
            AddressError: a negative size.
        """
        hpa = pa & self._mask
        keyid = pa >> self._bits
        with self.lock:
            if self._hits(self.pages.valid, hpa, keyid, size, requestor):
                return self._file.map[hpa : hpa + size]
            if size < 0:
                raise AddressError(f"cannot read {size} bytes")
            return self._read(hpa, keyid, size, requestor)

    def write(self, pa: int, data: bytes | bytearray | memoryview, requestor: Requestor = HOST) -> None:
        """Store ``data`` at ``pa``. Partial lines are read first, as caches do.

        Raises:
            ReservedBitFault, MachineCheck: as for :meth:`read`; pages before the faulting one are done.
        """
        hpa = pa & self._mask
        keyid = pa >> self._bits
        size = len(data)
        with self.lock:
            if self._hits(self.pages.dirty, hpa, keyid, size, requestor):
                self.pages.changed(hpa >> PAGE_SHIFT, (hpa >> PAGE_SHIFT) + 1)
                self._file.map[hpa : hpa + size] = data
                return
            self._write(hpa, keyid, memoryview(data).cast("B"), requestor)

    def read_u64(self, pa: int, requestor: Requestor = HOST) -> int:
        """The little-endian 64-bit integer at ``pa``, which must be aligned to 8 bytes; atomic.

        Raises:
            AddressError: ``pa`` is not aligned.
            ReservedBitFault, MachineCheck: as for :meth:`read`.
        """
        if pa & 7:
            raise AddressError(f"an atomic 8-byte access must be aligned, and {pa:#x} is not")
        hpa = pa & self._mask
        keyid = pa >> self._bits
        with self.lock:
            if self._hits(self.pages.valid, hpa, keyid, 8, requestor):
                return self._file.words[hpa >> 3]
            return int.from_bytes(self._read(hpa, keyid, 8, requestor), "little")

    def write_u64(self, pa: int, value: int, requestor: Requestor = HOST) -> None:
        """Store a 64-bit integer, little-endian, at ``pa``, aligned to 8 bytes; atomic.

        Raises:
            AddressError: ``pa`` is not aligned, or the value does not fit.
            ReservedBitFault, MachineCheck: as for :meth:`read`.
        """
        if pa & 7 or not 0 <= value < 1 << 64:
            raise AddressError(f"an atomic 8-byte store of {value:#x} to {pa:#x}: unaligned or too large")
        self.write(pa, value.to_bytes(8, "little"), requestor)

    # -- MOVDIR64B ------------------------------------------------------------------------------------

    def direct_store(
        self, pa: int, data: bytes | bytearray | memoryview, requestor: Requestor = SEAM
    ) -> None:
        """MOVDIR64B of whole lines: store without reading, past the cache.

        It cures poison, and the TD-owner bit becomes that of the KeyID.

        Raises:
            AddressError: ``pa`` or the length is not a multiple of 64.
            ReservedBitFault: as for :meth:`read`.
        """
        source = memoryview(data).cast("B")
        if pa % LINE or len(source) % LINE:
            raise AddressError(f"MOVDIR64B moves whole 64-byte lines, not {len(source)} bytes to {pa:#x}")
        keyid, hpa = self.addresses.split(pa)
        with self.lock:
            self.recall(hpa, len(source))
            for at, size, usable in self.bus.pieces(hpa, len(source), keyid, requestor):
                if usable:
                    start = at - hpa
                    key = self.keys.key(keyid)
                    mask = line_mask(at & PAGE - 1, size)
                    self.cache.store_lines(at >> PAGE_SHIFT, mask, source[start : start + size], key)

    def direct_zero(self, pa: int, size: int, requestor: Requestor = SEAM) -> None:
        """:meth:`direct_store` of ``size`` zero bytes; frames that were never used stay untouched.

        Raises:
            AddressError, ReservedBitFault: as for :meth:`direct_store`.
        """
        if pa % LINE or size % LINE or size < 0:
            raise AddressError(f"MOVDIR64B moves whole 64-byte lines, not {size} bytes to {pa:#x}")
        keyid, hpa = self.addresses.split(pa)
        with self.lock:
            self.recall(hpa, size)
            first, end = -(-hpa // PAGE), (hpa + size) // PAGE
            whole = first < end
            if whole and self.bus.admits(first * PAGE, (end - first) * PAGE, keyid, requestor):
                self.cache.zero_pages(first, end, self.keys.key(keyid))
                rest = ((hpa, first * PAGE - hpa), (end * PAGE, hpa + size - end * PAGE))
            else:
                rest = ((hpa, size), (0, 0))
            for at, length in rest:
                if length:
                    start = at | keyid << self._bits
                    for done in range(0, length, 1 << 20):
                        self.direct_store(start + done, bytes(min(1 << 20, length - done)), requestor)

    # -- mappings -------------------------------------------------------------------------------------

    def map_page(self, hpa: int, keyid: int) -> memoryview:
        """A writable view of a page's 4096 bytes under ``keyid``, for software in SEAM root mode.

        The page becomes resident and counts as dirty. The view is good until ``epoch`` changes.

        Raises:
            MachineCheck: a line of the page is poisoned.
            BusAbort: there is no memory at ``hpa``.
            AddressError: ``hpa`` is not page-aligned, or there is no such KeyID.
        """
        view = self._views.get(hpa | keyid << self._bits)
        if view is not None:
            return view
        with self.lock:
            page = self._mappable(hpa, PAGE, keyid, SEAM)
            self.recall(hpa, PAGE)
            self.cache.take_page(page, keyid)
            if not self.pages.flag[page] & MAPPED:
                # Else the guest goes on running on it: who writes says so (executed, written).
                self.pages.changed(page, page + 1)
            self.pages.flag[page] |= VIEWED
            view = self.frames[hpa : hpa + PAGE]
            self._views[hpa | keyid << self._bits] = view
            return view

    @property
    def epoch(self) -> int:
        """Grows whenever a view or mapping that was given out has become stale."""
        return self.cache.epoch

    def acquire(self, hpa: int, size: int, keyid: int, requestor: Requestor = TD) -> None:
        """Make ``size`` bytes (pages) resident and dirty under ``keyid``, for the engine to map.

        Subscribers hear before any of it is taken away. To map without a gap hold ``lock`` over this
        call and the mapping.

        Raises:
            MachineCheck: a line of the range is poisoned; ``hpa`` of the fault says which. A smaller
                range without it may succeed.
            BusAbort: no memory, or the SEAM range.
            ReservedBitFault: ``requestor`` must not use ``keyid``.
            AddressError: unaligned.
        """
        with self.lock:
            page = self._mappable(hpa, size, keyid, requestor)
            self.recall(hpa, size)
            pages = self.pages
            if size == PAGE:
                if not (pages.flag[page] & MAPPED and pages.tag[page] == keyid):
                    self.cache.take_page(page, keyid)
                    pages.flag[page] |= MAPPED
                return
            end = page + (size >> PAGE_SHIFT)
            mapped = (pages.flags[page:end] & MAPPED) != 0
            mapped &= pages.tags[page:end] == keyid
            if not mapped.all():
                self.cache.take(page, end, keyid)
                pages.flags[page:end] |= MAPPED

    def transfer(
        self,
        ranges: Sequence[tuple[int, int]],
        move: Callable[[list[memoryview]], T],
        requestor: Requestor = HOST,
    ) -> T:
        """Call ``move`` with writable views of (``pa``, bytes) ranges, and ``lock`` held; its result.

        The frames' lines become dirty under the KeyID of the address, as if all of them were stored to.

        Raises:
            MachineCheck, BusAbort, ReservedBitFault: as for :meth:`acquire`; ``move`` was not called.
        """
        pages = self.pages
        views = []
        with self.lock:
            for pa, size in ranges:
                hpa, keyid = pa & self._mask, pa >> self._bits
                first, end = hpa >> PAGE_SHIFT, hpa + size + PAGE - 1 >> PAGE_SHIFT
                self._mappable(first << PAGE_SHIFT, end - first << PAGE_SHIFT, keyid, requestor)
                window = slice(first, end)
                if not ((pages.tags[window] == keyid).all() and (pages.dirties[window] == ALL).all()):
                    self.cache.take(first, end, keyid)
                pages.changed(first, end)
                views.append(self.frames[hpa : hpa + size])
            return move(views)

    def executed(self, hpa: int, size: int) -> list[tuple[int, int]]:
        """An engine is about to execute code out of acquired frames.

        Returns the ``(hpa, size)`` of those that were changed behind its back since it did that last, all
        of which it has to look at anew.
        """
        first, end = hpa >> PAGE_SHIFT, hpa + size >> PAGE_SHIFT
        pages = self.pages
        if size == PAGE:
            flag = pages.flag[first]
            pages.flag[first] = (flag | EXECUTED) & ~STALE
            return [(hpa, PAGE)] if flag & STALE else []
        flags = pages.flags[first:end]
        stale = runs((flags & STALE) != 0) if (flags & STALE).any() else []
        flags |= EXECUTED
        flags &= 0xFF ^ STALE
        return [(hpa + start * PAGE, (stop - start) * PAGE) for start, stop in stale]

    def written(self, hpa: int, size: int) -> bool:
        """Whether ``size`` bytes at ``hpa`` that SEAM has just stored lie where a guest may be executing.

        If so, the engine has to look at them anew at once.
        """
        pages = self.pages
        first, end = hpa >> PAGE_SHIFT, hpa + size - 1 >> PAGE_SHIFT
        running = False
        for page in range(first, end + 1):
            if pages.flag[page] & (MAPPED | EXECUTED) == MAPPED | EXECUTED:
                running = True
                pages.flag[page] &= ~STALE
        return running

    def subscribe(self, callback: Subscriber) -> None:
        """Have ``callback(hpa, size)`` called before acquired frames leave the cache or change KeyID.

        It is called with the lock held, possibly from any thread that uses memory; after it returns the
        engine must not touch those frames.
        """
        self.cache.subscribers.append(callback)

    def unsubscribe(self, callback: Subscriber) -> None:
        """Take a subscription back.

        Raises:
            ValueError: ``callback`` is not subscribed.
        """
        self.cache.subscribers.remove(callback)

    def frames_are_zero(self, hpa: int, size: int) -> bool:
        """Whether these frames hold only zeros; costs nothing where they were never touched."""
        with self.lock:
            self.recall(hpa, size)
        if not self._file.has_data(hpa, size):
            return True
        zeros = bytes(1 << 20)
        steps = range(hpa, hpa + size, 1 << 20)
        return all(zeros.startswith(self._file.read(at, min(1 << 20, hpa + size - at))) for at in steps)

    # -- cache control --------------------------------------------------------------------------------

    def wbinvd(self) -> None:
        """Write all dirty lines back and invalidate the cache."""
        with self.lock:
            self.recall(0, self.size)
            for first, end in self.pages.touched():
                self.cache.evict(first, end)

    def wbnoinvd(self) -> None:
        """Write all dirty lines back; the cache keeps them, clean."""
        with self.lock:
            self.recall(0, self.size)
            for first, end in self.pages.touched():
                self.cache.clean(first, end)

    def clflush(self, pa: int, size: int = LINE, requestor: Requestor = HOST) -> None:
        """CLFLUSH of every line that ``size`` bytes at ``pa`` touch: write back and invalidate.

        Only lines cached under the KeyID of ``pa`` are concerned.

        Raises:
            ReservedBitFault: as for :meth:`read`.
        """
        self._flush(pa, size, requestor, False)

    def clwb(self, pa: int, size: int = LINE, requestor: Requestor = HOST) -> None:
        """CLWB: as :meth:`clflush`, but the cache keeps the lines, clean."""
        self._flush(pa, size, requestor, True)

    def _flush(self, pa: int, size: int, requestor: Requestor, keep: bool) -> None:
        keyid, hpa = self.addresses.split(pa)
        with self.lock:
            self.recall(hpa, size)
            for at, length, usable in self.bus.pieces(hpa, size, keyid, requestor):
                page = at >> PAGE_SHIFT
                if usable and self.pages.valid[page] and self.pages.tag[page] == keyid:
                    self.cache.flush_lines(page, line_mask(at & PAGE - 1, length), keep)

    # -- slow paths -----------------------------------------------------------------------------------

    def recall(self, hpa: int, size: int) -> None:
        """Bring in what of a range is still in a snapshot's file (image.py)."""
        if self.image is not None and size > 0:
            self.image.recall(hpa >> PAGE_SHIFT, -(-(hpa + size) // PAGE))

    def before_key_change(self, keyid: int) -> None:
        """A KeyID gets another key: pages in a snapshot's file that this concerns come in first."""
        if self.image is not None:
            self.image.recall_under(keyid)
        self.cache.before_key_change(keyid)

    def here(self) -> None:
        """Bring in everything that is still in a snapshot's file: for those who look into the page table."""
        with self.lock:
            self.recall(0, self.size)

    def _mappable(self, hpa: int, size: int, keyid: int, requestor: Requestor) -> int:
        """The first page of a range to be mapped."""
        if hpa % PAGE or size % PAGE or size <= 0 or hpa < 0:
            raise AddressError(f"cannot map {size:#x} bytes at HPA {hpa:#x}: not whole pages")
        if not self.bus.admits(hpa, size, keyid, requestor):
            raise BusAbort(hpa, keyid, f"no memory for {requestor.value} in {size:#x} bytes")
        return hpa >> PAGE_SHIFT

    def _read(self, hpa: int, keyid: int, size: int, requestor: Requestor) -> bytes:
        self.recall(hpa, size)
        if size <= PAGE:
            return self._read_pages(hpa, keyid, size, requestor)
        # A long read is cut into windows in which memory is likely to be all alike.
        parts: list[bytes] = []
        at, end = hpa, hpa + size
        while at < end:
            step = min(end - at, _WINDOW - at % _WINDOW)
            bulk = None
            if self.bus.admits(at, step, keyid, requestor):
                bulk = self._lines.read_alike(at, step, keyid)
            parts.append(self._read_pages(at, keyid, step, requestor) if bulk is None else bulk)
            at += step
        return b"".join(parts)

    def _read_pages(self, hpa: int, keyid: int, size: int, requestor: Requestor) -> bytes:
        parts: list[bytes] = []
        for at, length, usable in self.bus.pieces(hpa, size, keyid, requestor):
            if not usable:
                parts.append(b"\xff" * length)
                continue
            try:
                parts.append(self._lines.read(at >> PAGE_SHIFT, at & PAGE - 1, length, keyid))
            except MachineCheck:
                if requestor is not DEVICE:
                    raise
                parts.append(b"\xff" * length)
        return b"".join(parts)

    def _write(self, hpa: int, keyid: int, data: memoryview, requestor: Requestor) -> None:
        self.recall(hpa, len(data))
        first, end = hpa + PAGE - 1 >> PAGE_SHIFT, hpa + len(data) >> PAGE_SHIFT
        if end - first > 1 and self._overwrite(first, end, keyid, data, hpa, requestor):
            head, tail = (first << PAGE_SHIFT) - hpa, (end << PAGE_SHIFT) - hpa
            self._write_pages(hpa, keyid, data[:head], requestor)
            self._write_pages(end << PAGE_SHIFT, keyid, data[tail:], requestor)
            return
        self._write_pages(hpa, keyid, data, requestor)

    def _overwrite(
        self, first: int, end: int, keyid: int, data: memoryview, hpa: int, requestor: Requestor
    ) -> bool:
        """Write the whole pages of ``data`` at once, where memory is fresh."""
        at, size = first << PAGE_SHIFT, end - first << PAGE_SHIFT
        if not self.bus.admits(at, size, keyid, requestor):
            return False
        key = self.keys.key(keyid)
        if key.owner or key.mac is not None:
            return False
        return self.cache.overwrite(first, end, data[at - hpa : at - hpa + size], key)

    def _write_pages(self, hpa: int, keyid: int, data: memoryview, requestor: Requestor) -> None:
        for at, length, usable in self.bus.pieces(hpa, len(data), keyid, requestor):
            if not usable:
                continue
            try:
                self._lines.write(at >> PAGE_SHIFT, at & PAGE - 1, data[at - hpa : at - hpa + length], keyid)
            except MachineCheck:
                if requestor is not DEVICE:
                    raise
