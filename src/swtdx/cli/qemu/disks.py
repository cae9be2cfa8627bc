"""Disks of a line: ``-drive``, ``-blockdev`` and the devices that they are plugged into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.cli.inputs import Unusable
from swtdx.cli.qemu.reading import Given, Line, Note
from swtdx.vmm.peripherals.config import DiskConfig

_FORMATS: Final = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc")
_PROTOCOLS: Final = ("file", "host_device")


@dataclass(frozen=True, slots=True)
class _Image:
    """An image that a device may use."""

    path: Path
    format: str
    read_only: bool = False
    snapshot: bool = False
    serial: str = ""


class Disks:
    """The images of a line, and the disks that use them.

    ``configs`` are the disks; ``order`` has the place in the boot order, and the OpenFirmware path, of those
    with a ``bootindex``.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._snapshot = bool(line.all("snapshot"))
        self._images: dict[str, _Image] = {}
        self._used: set[str] = set()
        self._virtio: list[_Image] = []
        self.configs: list[DiskConfig] = []
        self.order: list[tuple[int, str]] = []
        for given in line.all("drive"):
            self._drive(given)
        self._blockdevs(line.all("blockdev"))

    def _drive(self, given: Given) -> None:
        interface, name = given.take("if", default="ide"), given.take("id")
        path = given.take("file", "filename", "file.filename")
        given.take("file.driver")
        if interface == "pflash":
            raise given.wrong(
                "if=pflash", "a TD's firmware is given by -bios: KVM has no read-only memory for TDs"
            )
        if interface not in ("virtio", "none"):
            default = " (which is also QEMU's default)" if interface == "ide" else ""
            raise given.wrong(
                f"if={interface}{default}", "give if=virtio, or if=none and -device virtio-blk-pci"
            )
        given.take("unit")
        if not path:
            raise given.wrong(given.text, "it needs a file=")
        form = given.take("format", "driver", default=_guessed(path))
        if form not in _FORMATS:
            raise given.wrong(f"format={form}", f"images are {', '.join(_FORMATS)}")
        read_only = given.switch("readonly") | given.switch("read-only")
        image = _Image(Path(path), form, read_only, given.switch("snapshot", default=self._snapshot),
                       given.take("serial"))  # fmt: skip
        if interface == "virtio":
            self._virtio.append(image)
        else:
            self._named(given, name, image)

    def _named(self, given: Given, name: str, image: _Image) -> None:
        if not name:
            raise given.wrong(given.text, "it needs an id, which -device names")
        if name in self._images:
            raise given.wrong(given.text, f"there are two with the id {name}")
        self._images[name] = image

    def _blockdevs(self, nodes: list[Given]) -> None:
        """Nodes: a protocol by itself, or a format over one, named or within."""
        files: dict[str, _Image] = {}
        for given in nodes:
            assert given.kind is not None
            # The kind's first word of several says nothing: it is what the line says.
            driver = given.title.rsplit(" ", 1)[1]
            name, below = given.take("node-name"), given.take("file")
            path = given.take("filename", "file.filename")
            given.take("file.driver")
            read_only = given.switch("read-only") | given.switch("file.read-only")
            if driver in _PROTOCOLS:
                image = _Image(Path(path), "raw", read_only)
            elif below:
                if below not in files:
                    raise given.wrong(f"file={below}", "there is no -blockdev with this node-name before it")
                self._used.add(below)
                image = _Image(files[below].path, driver, read_only or files[below].read_only)
            else:
                image = _Image(Path(path), driver, read_only)
            if not str(image.path) or str(image.path) == ".":
                raise given.wrong(given.text, "it needs a filename")
            if self._snapshot:
                image = _Image(image.path, image.format, image.read_only, True)
            files[name] = image
            self._named(given, name, image)

    def device(self, given: Given, slot: int) -> None:
        """A ``-device virtio-blk-pci``.

        Raises:
            Unusable: there is no such image.
            ConfigError: no disk can be like that.
        """
        name, serial = given.take("drive"), given.take("serial")
        image = self._images.get(name)
        if image is None:
            raise given.wrong(f"drive={name}", "there is no -drive if=none with this id, and no -blockdev")
        self._used.add(name)
        self.configs.append(
            DiskConfig(
                image.path, image.format, image.read_only, image.snapshot, serial or image.serial, slot
            )
        )
        if given.has("bootindex"):
            place = given.number("bootindex", 0)
            self.order.append((place, f"/pci@i0cf8/scsi@{slot:x}/disk@0,0"))

    def drives(self, free: Callable[[], int]) -> None:
        """The disks of ``-drive if=virtio``, in ``free`` slots, and what nothing uses."""
        for image in self._virtio:
            self.configs.append(
                DiskConfig(image.path, image.format, image.read_only, image.snapshot, image.serial, free())
            )
        for name in self._images:
            if name not in self._used:
                self._line.notes.append(Note(f"the image {name}", "no device uses it"))


def _guessed(path: str) -> str:
    """The format of an image whose format the line does not say: QEMU looks into the file, as we do.

    Raises:
        Unusable: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise Unusable(f"-drive file={path}: {error.strerror}") from None
    magics = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdx": "vhdx", b"cone": "vpc"}
    return magics.get(head[:4], "raw")
