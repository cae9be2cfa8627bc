"""What firmware says on its console when it gives up: then nobody has to wait for it.

OVMF would wait for a key for ever, and then show a menu.  Source: edk2, ``MdeModulePkg/Universal/BdsDxe`` and
``OvmfPkg/Library/PlatformBootManagerLib``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_NOTHING: Final = b"BdsDxe: No bootable option or device was found"
_REFUSED: Final = b"Secure boot image verification failed"
_ALSO_REFUSED: Final = b"Access Denied"
_KEPT: Final = 4096
_HOW_TO_GO_ON: Final = (
    "it has Secure Boot on and does not know the kernel's signature; give an image without Secure Boot, or a "
    "copy in which it is off (`virt-fw-vars --input IMAGE --output COPY --set-false SecureBootEnable`, of "
    "Debian's python3-virt-firmware)"
)


class FirmwareWords:
    """The console of firmware, watched.

    Args:
        output: takes what is printed.
        gave_up: told once, with the reason in words, that the firmware has found nothing to boot.
    """

    def __init__(self, output: Callable[[bytes], None], gave_up: Callable[[str], None]) -> None:
        self._output = output
        self._gave_up = gave_up
        self._seen = bytearray()
        self._over = False

    def write(self, data: bytes) -> None:
        """What the firmware, and later the operating system, prints on the serial port."""
        self._output(data)
        if self._over:
            return
        self._seen += data
        del self._seen[:-_KEPT]
        # The message is looked for when its line is over.
        if b"\n" in data and _NOTHING in self._seen:
            self._over = True
            refused = _REFUSED in self._seen or _ALSO_REFUSED in self._seen
            self._gave_up(_HOW_TO_GO_ON if refused else "it says so on the serial port")
