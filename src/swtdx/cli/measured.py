"""What a digest was made of: the things of ours that firmware measures, by their hashes.

An event log has a digest and a few words; which bytes the digest is of, only those know who gave them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from swtdx.measure.authenticode import authenticode
from swtdx.measure.errors import MeasureError
from swtdx.measure.tdvf import SectionType

if TYPE_CHECKING:
    from swtdx.vmm.firmware_boot import FirmwareBoot

#: Contents beyond this are named and not shown: a kernel, an initrd, a variable store.
_SHOWN: Final = 256 << 10
#: Bytes of the block that ends a HOB list.
_END_BLOCK: Final = 8


class Known:
    """Contents by their SHA-384.

    Args:
        boot: what the TD was started with.
        files: fw_cfg's files.
    """

    def __init__(self, boot: FirmwareBoot, files: Mapping[str, bytes]) -> None:
        self._names: dict[bytes, str] = {}
        self._bytes: dict[bytes, bytes] = {}
        for name, data in files.items():
            self._add(name, data)
        # OVMF measures the list without the block that ends it.
        self._add("TD HOB", boot.td_hob()[:-_END_BLOCK])
        for section in boot.image.sections:
            if section.type in (SectionType.BFV, SectionType.CFV):
                data = boot.image.data[section.data_offset : section.data_offset + section.data_size]
                self._add(f"{section.type.name} section of the image", data)
        if boot.kernel is not None:
            self._add("initrd", boot.initrd)
            # OVMF adds the initrd's name before or behind; with one NUL at the end or none.
            for text in (boot.cmdline, f"initrd=initrd {boot.cmdline}", f"{boot.cmdline} initrd=initrd"):
                for end in ("\0", ""):
                    self._add("kernel command line", f"{text}{end}".encode("utf-16-le"))
            with contextlib.suppress(MeasureError):
                self._names[authenticode(boot.kernel.data)] = "kernel (Authenticode)"

    def _add(self, name: str, data: bytes) -> None:
        if not data:
            return
        digest = hashlib.sha384(data).digest()
        self._names.setdefault(digest, name)
        if len(data) <= _SHOWN:
            self._bytes.setdefault(digest, data)

    def of(self, digest: bytes) -> dict[str, str]:
        """Members of an event in JSON: ``measured``, its name, and ``measured_bytes`` in hex, if known."""
        if digest not in self._names:
            return {}
        found = {"measured": self._names[digest]}
        if digest in self._bytes:
            found["measured_bytes"] = self._bytes[digest].hex()
        return found
