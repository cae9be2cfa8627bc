"""The translation cache of a scripted guest, and guest memory as seen through it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from swtdx.arch.units import LARGE_PAGE, PAGE
from swtdx.machine.engine.protocol import Access, EngineError, Event

#: A lock as ``with`` takes it.
Lock = AbstractContextManager[Any]

_READ: Final = int(Access.READ)
_WRITE: Final = int(Access.WRITE)
_FETCH: Final = int(Access.FETCH)


class ScriptedSpace:
    """See :class:`swtdx.machine.engine.protocol.TranslationCache`.

    Like a TLB it keeps what it was given, stale or not, until it is told to forget it.  ``lock`` is the
    lock under which frames leave the cache, so that no access is under way when they do.
    """

    __slots__ = ("_large", "_small", "_units", "lock")

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self._large: dict[int, tuple[int, int]] = {}  # gpa >> 21 -> (HPA, rights)
        self._small: dict[int, tuple[int, int]] = {}  # gpa >> 12 -> (HPA, rights)
        self._units: set[int] = set()  # HPA >> 21 of everything mapped

    def map(self, gpa: int, hpa: int, size: int, access: Access, *, code: bool) -> None:
        """Cache the translation of the page of ``size`` bytes (4 KiB or 2 MiB) at ``gpa`` to ``hpa``."""
        rights = int(access) & (_READ | _WRITE | (_FETCH if code else 0))
        with self.lock:
            self._units.add(hpa >> 21)
            if size == LARGE_PAGE:
                first = gpa >> 12
                for number in range(first, first + 512):
                    self._small.pop(number, None)
                self._large[gpa >> 21] = (hpa, rights)
            else:
                self._large.pop(gpa >> 21, None)
                self._small[gpa >> 12] = (hpa, rights)

    def map_run(self, gpa: int, hpa: int, pages: int, access: Access, *, code: bool) -> None:
        """Cache translations of ``pages`` adjacent pages of 2 MiB."""
        for offset in range(0, pages * LARGE_PAGE, LARGE_PAGE):
            self.map(gpa + offset, hpa + offset, LARGE_PAGE, access, code=code)

    def uncached(self, gpa: int) -> npt.NDArray[np.bool_]:
        """Of which of the 512 regions of 2 MiB in the 1 GiB at ``gpa`` nothing is cached."""
        free = np.ones(512, dtype=np.bool_)
        with self.lock:
            taken = [*self._large, *(page >> 9 for page in self._small)]
        free[[region & 511 for region in taken if region >> 9 == gpa >> 30]] = False
        return free

    def serve(self, context: object) -> None:
        """Nothing: any context can use it."""

    def close(self) -> None:
        """Nothing: a cache is only memory."""

    def _find(self, gpa: int) -> tuple[int, int] | None:
        """(HPA of the byte, rights) or None."""
        found = self._small.get(gpa >> 12)
        if found is not None:
            return found[0] | gpa & PAGE - 1, found[1]
        found = self._large.get(gpa >> 21)
        return None if found is None else (found[0] | gpa & LARGE_PAGE - 1, found[1])

    def entries(self) -> list[tuple[int, int, int]]:
        """Every translation as (GPA, HPA, bytes)."""
        with self.lock:
            small = [(gpa << 12, hpa, PAGE) for gpa, (hpa, _) in self._small.items()]
            return small + [(gpa << 21, hpa, LARGE_PAGE) for gpa, (hpa, _) in self._large.items()]

    def lookup(self, gpa: int) -> int | None:
        """The HPA of byte ``gpa``, or None when it is not cached."""
        found = self._find(gpa)
        return None if found is None else found[0]

    def code_address(self, linear: int, cr3: int, words: memoryview) -> int | None:
        """Scripts have no code in memory."""
        return None

    def reach(self, gpa: int, rights: int) -> int | None:
        """The HPA of byte ``gpa`` if it is cached with these rights (bits of ``Access``), else None."""
        found = self._find(gpa)
        return found[0] if found is not None and found[1] & rights == rights else None

    def flush(self) -> None:
        """Forget every translation."""
        with self.lock:
            self._large.clear()
            self._small.clear()
            self._units.clear()

    def lend(self, gpa: int, hpa: int, pages: npt.NDArray[np.bool_], access: Access, *, code: bool) -> None:
        """There is no file to show: scripts run on frames alone."""
        raise EngineError("the scripted engine shows no snapshot's file")

    def lends(self, hpa: int) -> bool:
        """Nothing."""
        return False

    def unlend(self, hpa: int, size: int) -> None:
        """Nothing was lent."""

    def drop(self, hpa: int, size: int) -> None:
        """Forget whatever maps the frames ``hpa .. hpa+size-1``, and nothing else."""
        with self.lock:
            if not any(unit in self._units for unit in range(hpa >> 21, (hpa + size - 1 >> 21) + 1)):
                return
            for cached, span in ((self._small, PAGE), (self._large, LARGE_PAGE)):
                for number in [n for n, (at, _) in cached.items() if at < hpa + size and hpa < at + span]:
                    del cached[number]


class GuestMemory:
    """The machine's frames, reached as a guest reaches them."""

    def __init__(self, frames: memoryview, lock: Lock) -> None:
        self._frames = frames
        self.lock = lock

    def _pieces(
        self, space: ScriptedSpace, gpa: int, size: int, access: Access, event: Event
    ) -> list[tuple[int, int]] | None:
        """(HPA, bytes) of each page touched; None, and the miss in ``event``, if one is not cached.

        All pages are looked up before the first byte moves, as a processor does.
        """
        pieces = []
        rights = int(access)
        while size:
            part = min(size, PAGE - (gpa & PAGE - 1))
            hpa = space.reach(gpa, rights)
            if hpa is None:
                event.gpa = gpa
                event.access = access
                return None
            pieces.append((hpa, part))
            gpa += part
            size -= part
        return pieces

    def read(
        self, space: ScriptedSpace, gpa: int, size: int, event: Event, access: Access = Access.READ
    ) -> bytes | None:
        """``size`` bytes at ``gpa``, or None and the miss in ``event``."""
        with self.lock:
            pieces = self._pieces(space, gpa, size, access, event)
            if pieces is None:
                return None
            return b"".join(bytes(self._frames[hpa : hpa + part]) for hpa, part in pieces)

    def write(self, space: ScriptedSpace, gpa: int, data: bytes, event: Event) -> bool:
        """Store ``data`` at ``gpa``; False and the miss in ``event``.

        Acquired frames count as dirty already, so nothing else needs to know.
        """
        with self.lock:
            pieces = self._pieces(space, gpa, len(data), Access.WRITE, event)
            if pieces is None:
                return False
            done = 0
            for hpa, part in pieces:
                self._frames[hpa : hpa + part] = data[done : done + part]
                done += part
            return True
