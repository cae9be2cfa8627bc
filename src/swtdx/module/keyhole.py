"""The module's windows into physical memory.

Intel's module maps a page at a time through a "keyhole" window; here a window is a memoryview of the
page's plaintext in the cache.  A view stays valid until some page leaves the cache, which the memory
counts in ``epoch``.
"""

from __future__ import annotations

from swtdx.machine.memory import PhysicalMemory


class Keyhole:
    """Maps pages and remembers the mappings while they are valid."""

    __slots__ = ("_epoch", "_map_page", "_memory", "_views", "shift")

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._map_page = memory.map_page
        self._views: dict[int, memoryview] = {}
        self._epoch = memory.epoch
        #: The lowest physical address bit that holds the KeyID.
        self.shift = memory.addresses.hpa_bits

    @property
    def epoch(self) -> int:
        """Views given out at another value are stale."""
        return self._memory.epoch

    def map(self, hpa: int, hkid: int) -> memoryview:
        """The 4096 bytes of the page at ``hpa`` (page aligned), read and written with ``hkid``.

        Raises:
            MachineCheck: the page's integrity is broken.
        """
        memory = self._memory
        if memory.epoch != self._epoch:
            self._views.clear()
            self._epoch = memory.epoch
        key = hpa | hkid << self.shift
        view = self._views.get(key)
        if view is None:
            view = self._map_page(hpa, hkid)
            # Mapping may itself have pushed another page out of the cache.
            if memory.epoch != self._epoch:
                self._views.clear()
                self._epoch = memory.epoch
            self._views[key] = view
        return view
