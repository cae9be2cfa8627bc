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

from swtdx.devices.part import Part, Wires
from swtdx.devices.parts import Virtio
from swtdx.devices.virtio.blk import VirtioBlk
from swtdx.devices.virtio.fs import VirtioFs
from swtdx.devices.virtio.net import VirtioNet
from swtdx.devices.virtio.p9 import Virtio9p
from swtdx.devices.virtio.rng import VirtioRng
from swtdx.devices.virtio.vsock import VirtioVsock
from swtdx.vmm.peripherals.config import DiskConfig, NetConfig, Peripherals, ShareConfig, VsockConfig
from swtdx.vmm.peripherals.fuse.server import FuseServer
from swtdx.vmm.peripherals.networks import LoopbackNetwork, NullNetwork
from swtdx.vmm.peripherals.overlay import Overlay
from swtdx.vmm.peripherals.p9.server import FileServer
from swtdx.vmm.peripherals.passt import Passt
from swtdx.vmm.peripherals.qemu_images import QemuImage
from swtdx.vmm.peripherals.raw_image import RawImage
from swtdx.vmm.peripherals.vsock_host import VsockHost


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

    def add_net(self, config: NetConfig, number: int) -> None:
        """Plug a cable in; it is the TD's network device ``number``.

        Raises:
            PeripheralError: passt does not work.
        """
        network = open_network(config)
        self._open.callback(network.close)
        mac = config.address(number)

        def make(wires: Wires) -> VirtioNet:
            network.connect(wires.wake)
            return VirtioNet(network, mac)

        self.add(lambda: Virtio(make, config.slot))

    def add_share(self, config: ShareConfig) -> None:
        """Share a folder.

        Raises:
            PeripheralError: there is none.
        """
        if config.protocol == "9p":
            files = FileServer(config.path, read_only=config.read_only)
            self._open.callback(files.close)
            self.add(lambda: Virtio(lambda _wires: Virtio9p(config.tag, files), config.slot))
        else:
            server = FuseServer(config.path, read_only=config.read_only)
            self._open.callback(server.close)
            self.add(lambda: Virtio(lambda _wires: VirtioFs(config.tag, server), config.slot))

    def add_vsock(self, config: VsockConfig) -> None:
        """Listen for programs of the host.

        Raises:
            PeripheralError: the path cannot be listened at.
        """
        sockets = VsockHost(config)
        self._open.callback(sockets.close)

        def make(wires: Wires) -> VirtioVsock:
            sockets.connect(wires.wake)
            return VirtioVsock(config.cid, sockets)

        self.add(lambda: Virtio(make, config.slot))


def attach(peripherals: Peripherals) -> Attached:
    """Open everything.

    Raises:
        PeripheralError: something cannot be opened; then nothing is.
    """
    attached = Attached()
    try:
        for disk in peripherals.disks:
            attached.add_disk(disk)
        for number, net in enumerate(peripherals.nets):
            attached.add_net(net, number)
        for share in peripherals.shares:
            attached.add_share(share)
        if peripherals.vsock is not None:
            attached.add_vsock(peripherals.vsock)
        if peripherals.rng:
            attached.add(lambda: Virtio(lambda _wires: VirtioRng(os.urandom)))
    except BaseException:
        attached.close()
        raise
    return attached


def open_network(config: NetConfig) -> Passt | LoopbackNetwork | NullNetwork:
    """The other end of a cable.

    Raises:
        PeripheralError: passt does not work.
    """
    if config.kind == "user":
        return Passt(config)
    return LoopbackNetwork() if config.kind == "loopback" else NullNetwork()


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
