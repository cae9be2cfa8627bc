"""Which private HKID belongs to which TD.  The first one is the module's own (the global key)."""

from __future__ import annotations

import threading

from swtdx.devices.saved import In, Out
from swtdx.vmm.errors import NoHkid, VmmError
from swtdx.vmm.saved import get_numbers, put_numbers


class HkidPool:
    """The platform's private HKIDs: ``count`` of them from ``first`` on."""

    def __init__(self, first: int, count: int) -> None:
        if count < 2:
            raise VmmError(
                f"the platform has {count} private HKIDs, and the module needs one for itself and each TD "
                "another: let the BIOS reserve more KeyID bits for TDX"
            )
        #: Encrypts the module's own structures: PAMTs and TDRs.
        self.global_hkid = first
        self._count = count - 1
        self._free = list(range(first + count - 1, first, -1))
        self._lock = threading.Lock()

    def save_state(self, out: Out) -> None:
        """Write down which are free."""
        put_numbers(out, (self.global_hkid, self._count, *self._free))

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote."""
        self.global_hkid, self._count, *self._free = get_numbers(section)

    @property
    def free(self) -> int:
        """How many are left for TDs."""
        return len(self._free)

    def take(self) -> int:
        """An HKID that no TD has.

        Raises:
            NoHkid: all of them are in use.
        """
        with self._lock:
            if not self._free:
                raise NoHkid(f"all {self._count} HKIDs for TDs are in use; tear down a TD first")
            return self._free.pop()

    def give_back(self, hkid: int) -> None:
        """The TD that had ``hkid`` has freed it (TDH.MNG.KEY.FREEID)."""
        with self._lock:
            if hkid in self._free:
                raise VmmError(f"HKID {hkid} is given back and was free")
            self._free.append(hkid)
