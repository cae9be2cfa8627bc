"""What a TD gets besides its console, as data; :mod:`swtdx.vmm.peripherals.attach` opens what it names.

Nothing here touches the host: a configuration can be made, compared and printed anywhere.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from swtdx.vmm.errors import ConfigError

#: Formats that a disk image may have; all but raw are read by QEMU's own tools.
DISK_FORMATS: Final = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc")
#: The longest name of a disk (VIRTIO 1.2, 5.2.6.1) and of a share's tag.
SERIAL_BYTES: Final = 20
TAG_BYTES: Final = 31
#: Context ids below are the hypervisor's, and "any" is no address (VIRTIO 1.2, 5.10.4).
FIRST_GUEST_CID: Final = 3
LAST_GUEST_CID: Final = 0xFFFF_FFFE
#: The first of our MAC addresses, locally administered, QEMU's prefix.
_FIRST_MAC: Final = 0x52_54_00_12_34_56


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """A virtio block device.

    Args:
        path: the image, a file or a block device.
        format: one of :data:`DISK_FORMATS`.
        read_only: the guest cannot write.
        snapshot: what the guest writes is kept in a temporary file and forgotten at the end.
        serial: what the guest reads as the disk's serial number, 20 bytes at most.
        slot: PCI device number, 1 to 31; the next free one by default.

    Raises:
        ConfigError: a value that no disk can have.
    """

    path: Path
    format: str = "raw"
    read_only: bool = False
    snapshot: bool = False
    serial: str = ""
    slot: int | None = None

    def __post_init__(self) -> None:
        if self.format not in DISK_FORMATS:
            raise ConfigError(
                f"the disk {self.path} cannot have the format {self.format!r}: choose one of "
                f"{', '.join(DISK_FORMATS)}"
            )
        if len(self.serial.encode()) > SERIAL_BYTES:
            raise ConfigError(f"a disk's serial number has {SERIAL_BYTES} bytes at most: {self.serial!r}")
        _check_slot(self.slot)


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads to a port of the guest.

    Args:
        host_port, guest_port: 1 to 65535.
        protocol: ``tcp`` or ``udp``.
        host_address: where it listens; on the loopback address by default.

    Raises:
        ConfigError: there is no such port, protocol or address.
    """

    host_port: int
    guest_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    host_address: str = "127.0.0.1"

    def __post_init__(self) -> None:
        for port in (self.host_port, self.guest_port):
            if not 0 < port < 65536:
                raise ConfigError(f"a forwarded port is a number from 1 to 65535, not {port}")
        if self.protocol not in ("tcp", "udp"):
            raise ConfigError(f"ports of tcp and udp can be forwarded, not of {self.protocol!r}")
        try:
            ipaddress.ip_address(self.host_address)
        except ValueError as error:
            raise ConfigError(f"{self.host_address!r} is not an IP address to listen on") from error


@dataclass(frozen=True, slots=True)
class NetConfig:
    """A virtio network device.

    Args:
        kind: ``user``: out by ``passt``, as the host's user; ``null``: a cable that leads nowhere;
            ``loopback``: what is sent comes back.
        forwards: with ``user``: ports of the host that lead to the guest.
        mac: the guest's MAC address, 6 bytes; 52:54:00:12:34:56 and up by default, as QEMU's.
        slot: PCI device number, 1 to 31; the next free one by default.

    Raises:
        ConfigError: a value that no network can have.
    """

    kind: Literal["user", "null", "loopback"] = "user"
    forwards: tuple[Forward, ...] = ()
    mac: bytes | None = None
    slot: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("user", "null", "loopback"):
            raise ConfigError(f"a network is user, null or loopback, not {self.kind!r}")
        if self.forwards and self.kind != "user":
            raise ConfigError(f"ports can be forwarded into a user network, not into {self.kind}")
        if self.mac is not None and (len(self.mac) != 6 or self.mac[0] & 1):
            raise ConfigError(f"{self.mac.hex(':')} is not the MAC address of a device")
        _check_slot(self.slot)

    def address(self, number: int) -> bytes:
        """The MAC address, of the TD's network device ``number`` (0 is the first)."""
        return (_FIRST_MAC + number).to_bytes(6, "big") if self.mac is None else self.mac


@dataclass(frozen=True, slots=True)
class VsockConfig:
    """A virtio socket device, with Unix sockets on the host as Firecracker has them.

    Args:
        cid: the guest's context id, 3 or more.
        path: where programs on the host connect and say ``CONNECT PORT``; what the guest connects to is
            looked for at PATH_PORT.
        slot: PCI device number, 1 to 31; the next free one by default.

    Raises:
        ConfigError: no guest can have this context id.
    """

    cid: int
    path: Path
    slot: int | None = None

    def __post_init__(self) -> None:
        if not FIRST_GUEST_CID <= self.cid <= LAST_GUEST_CID:
            raise ConfigError(
                f"a guest's context id is a number from {FIRST_GUEST_CID} to {LAST_GUEST_CID}, not {self.cid}"
            )
        _check_slot(self.slot)


@dataclass(frozen=True, slots=True)
class ShareConfig:
    """A folder of the host for the guest: ``mount -t virtiofs TAG /mnt``, or ``mount -t 9p -o trans=virtio``.

    Args:
        path: the folder.
        tag: what the guest mounts it by, 31 bytes at most.
        read_only: the guest cannot write.
        protocol: ``virtiofs`` or ``9p`` (9P2000.L): what the guest's kernel has.
        slot: PCI device number, 1 to 31; the next free one by default.

    Raises:
        ConfigError: the tag is empty or too long.
    """

    path: Path
    tag: str
    read_only: bool = False
    protocol: Literal["virtiofs", "9p"] = "virtiofs"
    slot: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.tag.encode()) <= TAG_BYTES or "\0" in self.tag:
            raise ConfigError(f"a share's tag has 1 to {TAG_BYTES} bytes: {self.tag!r}")
        if self.protocol not in ("virtiofs", "9p"):
            raise ConfigError(f"folders are shared by virtiofs or 9p, not by {self.protocol!r}")
        _check_slot(self.slot)


@dataclass(frozen=True, slots=True)
class Peripherals:
    """All that a TD gets besides its console.

    Raises:
        ConfigError: two shares have the same tag.
    """

    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    shares: tuple[ShareConfig, ...] = ()
    vsock: VsockConfig | None = None
    rng: bool = False

    def __post_init__(self) -> None:
        tags = [share.tag for share in self.shares]
        for tag in tags:
            if tags.count(tag) > 1:
                raise ConfigError(f"two shared folders have the tag {tag!r}: give one another (DIR:TAG)")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there is, by the names of :data:`swtdx.guests.modules.PERIPHERALS`."""
        there = {
            "disk": self.disks, "net": self.nets, "share": self.shares, "vsock": self.vsock, "rng": self.rng,
        }  # fmt: skip
        return tuple(kind for kind, any_of_it in there.items() if any_of_it)

    def __bool__(self) -> bool:
        return bool(self.kinds)


def _check_slot(slot: int | None) -> None:
    if slot is not None and not 0 < slot < 32:
        raise ConfigError(f"a PCI device number is 1 to 31, not {slot}")
