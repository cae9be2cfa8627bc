"""Opening what stands behind a TD's peripherals, and the parts of its board that they become.

``with attach(peripherals) as attached:`` opens files, starts programs and listens on sockets; they stay open
over restarts of the TD, each of which makes a new board of the same ``attached.parts``, and are closed at the
end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from types import TracebackType

from swtdx.devices.part import Part
from swtdx.devices.parts import Virtio
from swtdx.devices.virtio.blk import VirtioBlk
from swtdx.devices.virtio.rng import VirtioRng
from swtdx.vmm.peripherals.config import DiskConfig, Peripherals
from swtdx.vmm.peripherals.overlay import Overlay
from swtdx.vmm.peripherals.qemu_images import QemuImage
from swtdx.vmm.peripherals.raw_image import RawImage


class Attached:
    """Open peripherals: a context manager.

    ``parts`` make the parts of a board, anew for every board.
    """

    def __init__(self) -> None:
        self.parts: tuple[Callable[[], Part], ...] = ()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close everything.  No TD with these peripherals may run any more.  Idempotent."""
        self._open.close()

    def add(self, make: Callable[[], Part]) -> None:
        """Another part for each board."""
        self.parts = (*self.parts, make)

    def add_disk(self, config: DiskConfig) -> None:
        """Open a disk.

        Raises:
            PeripheralError: it cannot be opened.
        """
        image = open_image(config)
        self._open.callback(image.close)
        serial = config.serial.encode()
        self.add(lambda: Virtio(lambda _wires: VirtioBlk(image, serial), config.slot))


def attach(peripherals: Peripherals) -> Attached:
    """Open everything.

    Raises:
        PeripheralError: something cannot be opened; then nothing is.
    """
    attached = Attached()
    try:
        for disk in peripherals.disks:
            attached.add_disk(disk)
        if peripherals.rng:
            attached.add(lambda: Virtio(lambda _wires: VirtioRng(os.urandom)))
    except BaseException:
        attached.close()
        raise
    return attached


def open_image(config: DiskConfig) -> RawImage | QemuImage | Overlay:
    """The image of a disk, open.

    Raises:
        PeripheralError: it cannot be opened.
    """
    read_only = config.read_only or config.snapshot
    image: RawImage | QemuImage
    if config.format == "raw":
        image = RawImage(config.path, read_only=read_only)
    else:
        image = QemuImage(config.path, config.format, read_only=read_only)
    return Overlay(image) if config.snapshot and not config.read_only else image
