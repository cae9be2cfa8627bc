"""A tiny reference model of memory, for the property test: one line at a time, nothing deferred.

It knows nothing of masks, frames or ciphertext. A line in DRAM is a symbol: which key sealed which
contents for which address, and what an attacker did to it since. Contents are 64 items: bytes, None where
a cipher made noise of something known, and ANY where it may have made anything (noise under one key that
is sealed under that key and opened under the first is what it was).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

LINES = 64
Contents = tuple[int | None, ...]
NOISE: Contents = (None,) * 64
ANY = -1
ZEROS: Contents = (0,) * 64


class ModelMachineCheck(Exception):
    """The access consumes a poisoned line of this kind."""

    def __init__(self, line: int, kind: str) -> None:
        super().__init__(f"{kind} at line {line}")
        self.line = line
        self.kind = kind


@dataclass(frozen=True)
class KeyState:
    """``cipher`` names what encrypts (equal names, equal keys); ``mac`` what authenticates, if anything."""

    cipher: object
    mac: object | None
    private: bool


@dataclass(frozen=True)
class Sealed:
    """A line in DRAM. ``home`` is the line number it was sealed for."""

    contents: Contents
    cipher: object
    mac: object | None
    owner: bool
    home: int
    flips: frozenset[int] = frozenset()
    mac_flips: frozenset[int] = frozenset()


@dataclass
class Cached:
    """``ghost``: zeros shown in a shared mapping instead of a TD's line, as long as nobody wrote there."""

    contents: Contents
    dirty: bool
    ghost: bool = False


@dataclass
class Page:
    """``tag`` is the KeyID of all cached lines of the page."""

    tag: int = 0
    cached: dict[int, Cached] = field(default_factory=dict)


class Model:
    """Memory of ``pages`` pages. Lines are numbered from 0 over all of them."""

    def __init__(self, pages: int, keys: dict[int, KeyState]) -> None:
        self.keys = keys
        self.pages = [Page() for _ in range(pages)]
        #: None: DRAM holds an old version of a line that is dirty in the cache; which, nobody asks.
        self.dram: list[Sealed | None] = [
            self.sealed(number, ZEROS, self.keys[0]) for number in range(pages * LINES)
        ]

    @staticmethod
    def sealed(number: int, contents: Contents, key: KeyState) -> Sealed:
        return Sealed(contents, key.cipher, key.mac, key.private, number)

    # -- DRAM

    def opened(self, number: int, key: KeyState) -> Contents:
        line = self.dram[number]
        assert line is not None
        if key.private and not line.owner:
            raise ModelMachineCheck(number, "owner")
        if not key.private and line.owner:
            return ZEROS
        if key.mac is not None:
            untouched = line.home == number and not line.flips and not line.mac_flips
            if not untouched or line.mac != key.mac or line.cipher != key.cipher:
                raise ModelMachineCheck(number, "mac")
        if key.cipher != line.cipher or (line.home != number and key.cipher is not None):
            known = all(byte is not None and byte != ANY for byte in line.contents)
            return NOISE if known else (ANY,) * 64
        contents = list(line.contents)
        if key.cipher is None:  # not encrypted: the flips are where they are
            for bit in line.flips:
                byte = contents[bit // 8]
                contents[bit // 8] = byte if byte is None or byte == ANY else byte ^ 1 << bit % 8
            return tuple(contents)
        for block in {bit // 128 for bit in line.flips}:
            contents[16 * block : 16 * block + 16] = [None] * 16
        return tuple(contents)

    # -- cache

    def evict(self, page: int, lines: set[int] | None = None, keep: bool = False) -> None:
        """Write back, and invalidate unless ``keep``."""
        state = self.pages[page]
        for line in sorted(state.cached if lines is None else lines & set(state.cached)):
            cached = state.cached[line]
            if cached.dirty:
                number = page * LINES + line
                self.dram[number] = self.sealed(number, cached.contents, self.keys[state.tag])
                cached.dirty = False
            if not keep:
                del state.cached[line]

    def beside(self, page: int, keyid: int) -> bool:
        """Whether this is a shared access beside a TD's lines, which stay where they are."""
        state = self.pages[page]
        return bool(state.cached) and self.keys[state.tag].private and not self.keys[keyid].private

    def make_room(self, page: int, keyid: int) -> None:
        state = self.pages[page]
        if state.cached and state.tag != keyid:
            self.evict(page)

    def fetch(self, page: int, lines: range, keyid: int) -> dict[int, Contents]:
        """What an access under ``keyid`` finds in these lines; all or nothing."""
        state = self.pages[page]
        found: dict[int, Contents] = {}
        for line in lines:
            if line in state.cached and state.tag == keyid:
                found[line] = state.cached[line].contents
            elif line in state.cached:  # beside a TD's
                found[line] = ZEROS
            else:
                found[line] = self.opened(page * LINES + line, self.keys[keyid])
        return found

    def read(self, page: int, offset: int, size: int, keyid: int) -> Contents:
        lines = range(offset // 64, (offset + size - 1) // 64 + 1)
        beside = self.beside(page, keyid)
        if not beside:
            self.make_room(page, keyid)
        found = self.fetch(page, lines, keyid)
        state = self.pages[page]
        if not beside:
            for line, contents in found.items():
                sealed = self.dram[page * LINES + line]
                hidden = sealed is not None and sealed.owner and not self.keys[keyid].private
                if line not in state.cached and not hidden:
                    state.cached[line] = Cached(contents, False)
                    state.tag = keyid
        joined = sum(found.values(), ())
        return joined[offset % 64 : offset % 64 + size]

    def write(self, page: int, offset: int, data: bytes, keyid: int) -> None:
        lines = range(offset // 64, (offset + len(data) - 1) // 64 + 1)
        beside = self.beside(page, keyid)
        if not beside:
            self.make_room(page, keyid)
        key = self.keys[keyid]
        found = self.fetch(page, lines, keyid)
        joined = list(sum(found.values(), ()))
        joined[offset % 64 : offset % 64 + len(data)] = data
        state = self.pages[page]
        for index, line in enumerate(lines):
            contents = tuple(joined[64 * index : 64 * index + 64])
            if beside:
                state.cached.pop(line, None)
                self.dram[page * LINES + line] = self.sealed(page * LINES + line, contents, key)
            else:
                state.cached[line] = Cached(contents, True)
                state.tag = keyid

    def direct_store(self, page: int, line: int, data: bytes, keyid: int) -> None:
        state = self.pages[page]
        for index in range(len(data) // 64):
            state.cached.pop(line + index, None)
            number = page * LINES + line + index
            self.dram[number] = self.sealed(
                number, tuple(data[64 * index : 64 * index + 64]), self.keys[keyid]
            )
        if state.cached and state.tag != keyid:
            self.evict(page)

    def take(self, page: int, keyid: int) -> None:
        """Map the whole page: all lines cached and dirty, but for zeros shown instead of a TD's lines."""
        self.make_room(page, keyid)
        found = self.fetch(page, range(LINES), keyid)
        state = self.pages[page]
        for line, contents in found.items():
            number = page * LINES + line
            sealed = self.dram[number]
            before = state.cached.get(line)
            if before is not None:
                ghost = before.ghost
            else:
                ghost = sealed is not None and sealed.owner and not self.keys[keyid].private
            state.cached[line] = Cached(contents, not ghost, ghost)
        state.tag = keyid

    # -- attacks

    def flip(self, number: int, bit: int) -> None:
        line = self.dram[number]
        assert line is not None
        self.dram[number] = replace(line, flips=line.flips ^ {bit})

    def flip_mac(self, number: int, bit: int) -> None:
        line = self.dram[number]
        assert line is not None
        self.dram[number] = replace(line, mac_flips=line.mac_flips ^ {bit})

    def set_owner(self, number: int, owner: bool) -> None:
        line = self.dram[number]
        assert line is not None
        self.dram[number] = replace(line, owner=owner)
