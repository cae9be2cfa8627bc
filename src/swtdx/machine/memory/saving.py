"""A machine's memory in a snapshot: cache state, frames, DRAM, keys, bit for bit and sparsely.

Lines whose encryption is deferred are saved as they are, with the keys they wait for: a save neither
changes the machine nor makes ciphertext of memory that was only accepted. Views and engine mappings do
not survive; their pages come back resident and dirty. No processor may run while memory is saved.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import PAGE
from swtdx.machine.memory.addresses import LINE, LINES_PER_PAGE, PAGE_SHIFT, AddressError, AddressMap
from swtdx.machine.memory.cache import Cache
from swtdx.machine.memory.image import MemoryImage
from swtdx.machine.memory.keys import Algorithm, Integrity, Key, KeyTable
from swtdx.machine.memory.pages import ALL, CHUNK, FILLED, MAPPED, VIEWED, WRITTEN, PageTable
from swtdx.machine.memory.physical import PhysicalMemory
from swtdx.machine.snapshot import SectionReader, SectionWriter, Snapshot, SnapshotWriter

SECTION: Final = "memory"
VERSION: Final = 1
IMAGE_SECTION: Final = "image"
IMAGE_VERSION: Final = 1

#: The properties of a page in the order of the file.
_COLUMNS: Final = (
    ("tags", "<u2"),
    ("valids", "<u8"),
    ("dirties", "<u8"),
    ("pends", "<u8"),
    ("pkeys", "<u4"),
    ("flags", "<u1"),
)
_STATE: Final = FILLED | WRITTEN
#: Pages whose contents are handled at a time.
_BATCH: Final = 256
_INTEGRITIES: Final = (Integrity.LOGICAL, Integrity.CRYPTOGRAPHIC)

Indices = npt.NDArray[np.int64]


def save(memory: PhysicalMemory, snapshot: SnapshotWriter) -> None:
    """Write ``memory`` as the section "memory" of a snapshot."""
    memory.here()
    with memory.lock, snapshot.section(SECTION, VERSION) as out:
        _save_map(memory, out)
        _save_keys(memory.keys, out)
        _save_pages(memory, out)


def load(snapshot: Snapshot) -> PhysicalMemory:
    """A new memory that is what :func:`save` saved.

    Raises:
        SnapshotError: no such section, another version, or contents that no memory can have.
    """
    section = snapshot.section(SECTION, VERSION)
    memory = _load_map(section)
    try:
        _load_keys(memory.keys, section)
        _load_pages(memory, section)
        section.end()
    except BaseException:
        memory.close()
        raise
    return memory


def save_image(memory: PhysicalMemory, snapshot: SnapshotWriter) -> None:
    """Write ``memory`` as the section "image", and its frames as the snapshot's image, as they are.

    :func:`load_image` then need not read them: it maps the file.
    """
    memory.here()
    with memory.lock, snapshot.section(IMAGE_SECTION, IMAGE_VERSION) as out:
        _save_map(memory, out)
        _save_keys(memory.keys, out)
        pages = memory.pages
        indices = _stateful(pages)
        used = _used(memory, indices)
        columns = [getattr(pages, name)[indices].astype(kind) for name, kind in _COLUMNS]
        columns[-1] = np.where(_live(pages, indices) != 0, columns[-1] & _STATE, columns[-1] & WRITTEN)
        # Most pages are like the one before: what a run of them has is written once.
        changed = np.ones(len(indices), np.bool_)
        if len(indices):
            changed[1:] = np.diff(indices) != 1
            for column in (*columns, used):
                changed[1:] |= column[1:] != column[:-1]
        starts = np.flatnonzero(changed)
        out.u64(len(indices))
        out.u64(len(starts))
        out.write(indices[starts].astype("<u8").tobytes())
        out.write(np.diff(np.append(starts, len(indices))).astype("<u8").tobytes())
        for (_, kind), column in zip(_COLUMNS, columns, strict=True):
            out.write(column[starts].astype(kind).tobytes())
        out.write(used[starts].astype("<u1").tobytes())
        _save_ghosts(memory, out)
        _save_sealed(memory, indices, out)
        snapshot.append_image(memory.size, _parts(memory, indices[used]))


def load_image(snapshot: Snapshot) -> PhysicalMemory:
    """A new memory that is what :func:`save_image` saved, its pages still in the snapshot's file.

    Raises:
        SnapshotError: no such section, another version, or contents that no memory can have.
    """
    section = snapshot.section(IMAGE_SECTION, IMAGE_VERSION)
    memory = _load_map(section)
    try:
        fd, start, size = snapshot.image()
        if size != memory.size:
            os.close(fd)
            raise section.fail(f"frames of {size} bytes for a machine with {memory.size}")
        _load_keys(memory.keys, section)
        count, groups = section.u64(), section.u64()
        if not groups <= count <= memory.pages.count:
            raise section.fail(f"{count} pages have a state, but the machine has only {memory.pages.count}")
        first = np.frombuffer(section.read(8 * groups), "<u8").astype(np.int64)
        lengths = np.frombuffer(section.read(8 * groups), "<u8").astype(np.int64)
        if int(lengths.sum()) != count or (groups and int(lengths.min()) < 1):
            raise section.fail("runs of pages that do not add up")
        indices = np.arange(count) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        columns: dict[str, npt.NDArray[Any]] = {
            name: np.repeat(np.frombuffer(section.read(np.dtype(kind).itemsize * groups), kind), lengths)
            for name, kind in _COLUMNS
        }
        used = np.repeat(np.frombuffer(section.read(groups), "<u1") != 0, lengths)
        _check_pages(memory, section, indices, columns)
        image = MemoryImage(fd, start, memory.pages, memory.frame_file, memory.keys, indices, columns, used)
        memory.image = image
        memory.keys.before_change = memory.before_key_change
        for page, mask in _read_ghosts(section):
            if page >= memory.pages.count:
                raise section.fail(f"page {page:#x}: lines of a TD where none are mapped")
            image.recall(page, page + 1)
            if mask & ~memory.pages.valid[page] or mask & memory.pages.dirty[page]:
                raise section.fail(f"page {page:#x}: lines of a TD where none are mapped")
            memory.cache.ghosts[page] = mask
        sealed = ((columns["flags"] & WRITTEN) != 0) & (columns["pends"] != ALL)
        _load_sealed(memory, indices[sealed], section)
        section.end()
    except BaseException:
        memory.close()
        raise
    return memory


def _used(memory: PhysicalMemory, indices: Indices) -> npt.NDArray[np.bool_]:
    """Which of these pages have a frame that holds anything but zeros."""
    used = np.zeros(len(indices), np.bool_)
    filled = np.flatnonzero((memory.pages.flags[indices] & FILLED) != 0)
    frames = memory.frame_file
    for at in range(0, len(filled), _BATCH):
        places = filled[at : at + _BATCH]
        batch = indices[places]
        low, high = int(batch[0]) << PAGE_SHIFT, int(batch[-1]) + 1 << PAGE_SHIFT
        if not frames.has_data(low, high - low):
            continue
        data = np.frombuffer(bytearray().join(_frames(memory.cache, batch)), np.uint64)
        used[places] = data.reshape(-1, PAGE // 8).any(axis=1)
    return used


def _parts(memory: PhysicalMemory, pages: Indices) -> Iterator[tuple[int, bytes]]:
    """The frames of ``pages`` as ``(offset, bytes)``."""
    for batch in _batches(pages):
        edges = [0, *(np.flatnonzero(np.diff(batch) != 1) + 1).tolist(), len(batch)]
        for a, b in itertools.pairwise(edges):
            at = int(batch[a]) << PAGE_SHIFT
            yield at, memory.frame_file.read(at, b - a << PAGE_SHIFT)


@contextlib.contextmanager
def undisturbed(memory: PhysicalMemory) -> Iterator[None]:
    """Reads inside the block leave no lines in the cache that were not there before.

    For software that comes back to life out of a snapshot: what it looks at must not change what the
    next snapshot says. Pages that it maps stay mapped.
    """
    pages = memory.pages
    with memory.lock:
        before = {
            first: (pages.valids[first:end].copy(), pages.flags[first:end].copy())
            for first, end in pages.touched()
        }
        yield
        for first, end in list(pages.touched()):
            size = end - first
            valids, flags = before.get(first, (np.zeros(size, np.uint64), np.zeros(size, np.uint8)))
            read = (pages.valids[first:end] != valids) & (pages.dirties[first:end] == 0)
            read &= (pages.flags[first:end] & (MAPPED | VIEWED)) == 0
            pages.valids[first:end][read] = valids[read]
            idle = read & (pages.valids[first:end] == 0) & (pages.pends[first:end] == 0)
            memory.cache.free(first + np.flatnonzero(idle & ((flags & FILLED) == 0)))


def _save_map(memory: PhysicalMemory, out: SectionWriter) -> None:
    addresses = memory.addresses
    out.u8(addresses.maxpa)
    out.u8(addresses.keyid_bits)
    out.u16(addresses.shared_keyids)
    out.u16(addresses.private_keyids)
    out.u8(_INTEGRITIES.index(memory.integrity))
    out.u16(memory.keys.algorithms)
    out.blob(memory.keys.seed)
    out.u32(len(memory.populated))
    for base, size in memory.populated:
        out.u64(base)
        out.u64(size)
    out.u64(memory.bus.seam_base)
    out.u64(memory.bus.seam_end)
    out.u64(memory.epoch)


def _load_map(section: SectionReader) -> PhysicalMemory:
    numbers = (section.u8(), section.u8(), section.u16(), section.u16())
    integrity, algorithms = section.u8(), section.u16()
    seed = section.blob()
    populated = [(section.u64(), section.u64()) for _ in range(min(section.u32(), 4096))]
    seam_base, seam_end, epoch = section.u64(), section.u64(), section.u64()
    try:
        addresses = AddressMap(*numbers)
        memory = PhysicalMemory(populated, seed, addresses, _INTEGRITIES[integrity], Algorithm(algorithms))
        if seam_end:
            memory.set_seamrr(seam_base, seam_end - seam_base)
    except (AddressError, ValueError, IndexError) as error:
        raise section.fail(f"an impossible machine: {error}") from error
    memory.cache.epoch = epoch
    return memory


def _save_keys(table: KeyTable, out: SectionWriter) -> None:
    out.u64(table.programmings)
    out.u32(table.entropy_failures)
    out.write(table.current.astype("<u4").tobytes())
    # Unprogrammed KeyIDs follow from the seed.
    keys = [key for key in table.known() if key.serial >= table.addresses.keyids]
    out.u32(len(keys))
    for key in keys:
        out.u32(key.serial)
        out.u16(key.keyid)
        out.u8(key.owner | key.integrity << 1)
        for secret in (key.data_key, key.tweak_key, key.mac_key):
            out.blob(secret)


def _load_keys(table: KeyTable, section: SectionReader) -> None:
    keyids = table.addresses.keyids
    programmings = section.u64()
    entropy_failures = section.u32()
    current = np.frombuffer(section.read(4 * keyids), "<u4").tolist()
    keys: list[Key] = []
    for _ in range(section.u32()):
        serial, keyid, marks = section.u32(), section.u16(), section.u8()
        secrets = [section.blob() for _ in range(3)]
        lengths = tuple(len(secret) for secret in secrets)
        mac = 16 if marks & 2 else lengths[2]
        if lengths[0] not in (0, 16, 32) or lengths != (lengths[0], lengths[0], mac) or keyid >= keyids:
            raise section.fail(f"the key with serial {serial} is malformed")
        keys.append(Key(serial, keyid, bool(marks & 1), bool(marks & 2), *secrets))
    serials = {key.serial for key in keys}
    if any(serial != keyid and serial not in serials for keyid, serial in enumerate(current)):
        raise section.fail("a KeyID's current key is missing")
    table.restore(programmings, current, keys)
    table.entropy_failures = entropy_failures


def _stateful(pages: PageTable) -> Indices:
    """The pages that are not as the BIOS left them."""
    found = [np.empty(0, np.int64)]
    for first, end in pages.touched():
        flags = pages.flags[first:end] & _STATE
        state = (flags != 0) | (pages.valids[first:end] != 0) | (pages.pends[first:end] != 0)
        found.append(first + np.flatnonzero(state))
    return np.concatenate(found)


def _save_pages(memory: PhysicalMemory, out: SectionWriter) -> None:
    pages = memory.pages
    indices = _stateful(pages)
    out.u64(len(indices))
    out.write(indices.astype("<u8").tobytes())
    for name, kind in _COLUMNS:
        column = getattr(pages, name)[indices]
        if name == "flags":
            column = np.where(_live(pages, indices) != 0, column & _STATE, column & WRITTEN)
        out.write(column.astype(kind).tobytes())
    _save_ghosts(memory, out)
    filled = ((pages.flags[indices] & FILLED) != 0) & (_live(pages, indices) != 0)
    for batch in _batches(indices[np.flatnonzero(filled)]):
        data = np.frombuffer(bytearray().join(_frames(memory.cache, batch)), np.uint8).reshape(-1, PAGE)
        lines = np.unpackbits(_live(pages, batch).view(np.uint8), bitorder="little")
        data.reshape(-1, LINE)[lines == 0] = 0  # left over; it cannot be read
        used = data.any(axis=1)
        out.write(np.packbits(used).tobytes())
        out.write(data[used].tobytes())
    _save_sealed(memory, indices, out)


def _save_ghosts(memory: PhysicalMemory, out: SectionWriter) -> None:
    ghosts = memory.cache.ghosts
    out.u32(len(ghosts))
    for page in sorted(ghosts):
        out.u64(page)
        out.u64(ghosts[page])


def _read_ghosts(section: SectionReader) -> list[tuple[int, int]]:
    return [(section.u64(), section.u64()) for _ in range(section.u32())]


def _save_sealed(memory: PhysicalMemory, indices: Indices, out: SectionWriter) -> None:
    store = memory.store
    for page in _sealed(memory.pages, indices).tolist():
        out.write(store.cipher.view[page << PAGE_SHIFT : (page << PAGE_SHIFT) + PAGE])
        first = page * LINES_PER_PAGE
        out.write(store.meta.array[first : first + LINES_PER_PAGE].astype("<u4").tobytes())


def _load_sealed(memory: PhysicalMemory, sealed: Indices, section: SectionReader) -> None:
    store = memory.store
    for page in sealed.tolist():
        store.cipher.view[page << PAGE_SHIFT : (page << PAGE_SHIFT) + PAGE] = section.read(PAGE)
        first = page * LINES_PER_PAGE
        meta = np.frombuffer(section.read(4 * LINES_PER_PAGE), "<u4")
        store.meta.array[first : first + LINES_PER_PAGE] = meta


def _load_pages(memory: PhysicalMemory, section: SectionReader) -> None:
    pages = memory.pages
    count = section.u64()
    if count > pages.count:
        raise section.fail(f"{count} pages have a state, but the machine has only {pages.count}")
    indices = np.frombuffer(section.read(8 * count), "<u8").astype(np.int64)
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.frombuffer(section.read(np.dtype(kind).itemsize * count), kind) for name, kind in _COLUMNS
    }
    _check_pages(memory, section, indices, columns)
    for name, column in columns.items():
        getattr(pages, name)[indices] = column
    for chunk in np.unique(indices // CHUNK).tolist():
        pages.touch(chunk * CHUNK, chunk * CHUNK + 1)
    for page, mask in _read_ghosts(section):
        if page >= pages.count or mask & ~pages.valid[page] or mask & pages.dirty[page]:
            raise section.fail(f"page {page:#x}: lines of a TD where none are mapped")
        memory.cache.ghosts[page] = mask
    for batch in _batches(indices[np.flatnonzero(pages.flags[indices] & FILLED)]):
        used = np.unpackbits(np.frombuffer(section.read(-(-len(batch) // 8)), np.uint8))[: len(batch)]
        for page in batch[used != 0].tolist():
            memory.frames[page << PAGE_SHIFT : (page << PAGE_SHIFT) + PAGE] = section.read(PAGE)
    _load_sealed(memory, _sealed(pages, indices), section)


def _check_pages(
    memory: PhysicalMemory, section: SectionReader, indices: Indices, columns: dict[str, npt.NDArray[Any]]
) -> None:
    """Refuse a state that no run of this memory could have led to."""
    if len(indices) and (np.diff(indices) <= 0).any():
        raise section.fail("pages are out of order")
    edges = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    for a, b in itertools.pairwise(edges):
        if b > a and not memory.bus.is_populated(int(indices[a]) << PAGE_SHIFT, (b - a) << PAGE_SHIFT):
            raise section.fail(f"page {int(indices[a]):#x} and following have a state, but no memory")
    checks = (
        ("a KeyID that does not exist", columns["tags"] >= memory.addresses.keyids),
        ("dirty lines that are not valid", (columns["dirties"] & ~columns["valids"]) != 0),
        ("unknown flags", (columns["flags"] & ~np.uint8(_STATE)) != 0),
    )
    for what, wrong in checks:
        if wrong.any():
            raise section.fail(f"page {int(indices[int(np.argmax(wrong))]):#x}: {what}")
    known = {key.serial for key in memory.keys.known()} | set(range(memory.addresses.keyids))
    pending = columns["pends"] != 0
    for serial in np.unique(columns["pkeys"][pending]).tolist():
        if serial not in known:
            raise section.fail(f"lines wait for the key with serial {serial}, which is missing")


def _live(pages: PageTable, indices: Indices) -> npt.NDArray[np.uint64]:
    """The mask, per page, of lines whose frame bytes mean something."""
    live: npt.NDArray[np.uint64] = pages.valids[indices] | pages.pends[indices]
    return live


def _sealed(pages: PageTable, indices: Indices) -> Indices:
    """The pages whose contents in DRAM still matter: not all of them are about to be replaced."""
    kept = ((pages.flags[indices] & WRITTEN) != 0) & (pages.pends[indices] != ALL)
    return indices[np.flatnonzero(kept)]


def _batches(indices: Indices) -> Iterator[Indices]:
    for start in range(0, len(indices), _BATCH):
        yield indices[start : start + _BATCH]


def _frames(cache: Cache, batch: Indices) -> Iterator[bytes]:
    """The frames of ``batch``, read so that holes stay holes."""
    edges = [0, *(np.flatnonzero(np.diff(batch) != 1) + 1).tolist(), len(batch)]
    for a, b in itertools.pairwise(edges):
        yield cache.frames.read(int(batch[a]) << PAGE_SHIFT, (b - a) << PAGE_SHIFT)
