"""Network cards of a line: ``-netdev`` with ``-device virtio-net-pci``, and ``-nic``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from swtdx.cli.device_options import parse_forward
from swtdx.cli.qemu.reading import Given, Line, Note
from swtdx.vmm.errors import ConfigError
from swtdx.vmm.peripherals.config import Forward, NetConfig

_MODELS = ("virtio", "virtio-net", "virtio-net-pci", "virtio-net-pci-non-transitional")


def networks(
    line: Line, slot_of: Callable[[Given], int], free: Callable[[], int]
) -> tuple[list[NetConfig], list[tuple[int, str]]]:
    """The cards, and those that have a place in the boot order, with their OpenFirmware paths.

    Raises:
        Unusable: there is no such card, or no back end for it.
        ConfigError: no network can be like that.
    """
    backends: dict[str, tuple[Given, Literal["user", "null"], tuple[Forward, ...]]] = {}
    for given in line.all("netdev"):
        name = given.take("id")
        if not name:
            raise given.wrong(given.text, "it needs an id, which -device names")
        for key in ("mac", "macaddr", "model", "netdev"):
            if given.has(key):
                raise given.wrong(key, "it is the card's: give it with -device virtio-net-pci")
        backends[name] = given, _kind(given), _forwards(given)
    found: list[NetConfig] = []
    order: list[tuple[int, str]] = []
    used: set[str] = set()
    for given in line.all("device"):
        if given.kind is None or not given.kind.name.startswith("virtio-net"):
            continue
        name, mac = given.take("netdev"), given.take("mac")
        if name and name not in backends:
            raise given.wrong(f"netdev={name}", "there is no -netdev with this id")
        used.add(name)
        slot = slot_of(given)
        _, kind, forwards = backends[name] if name else (given, "null", ())
        found.append(NetConfig(kind, forwards, _mac(given, mac), slot))
        if given.has("bootindex"):
            place = given.number("bootindex", 0)
            order.append((place, f"/pci@i0cf8/ethernet@{slot:x}/ethernet-phy@0"))
    for given in line.all("nic"):
        if given.title.endswith(" none"):
            continue
        model, mac = given.take("model"), given.take("mac", "macaddr")
        given.take("id", "netdev")
        if model not in _MODELS:
            raise given.wrong(
                f"model={model}" if model else "", "give model=virtio-net-pci: TDs here have no other card"
            )
        found.append(NetConfig(_kind(given), _forwards(given), _mac(given, mac), free()))
    for name, (given, _, _) in backends.items():
        if name not in used:
            line.notes.append(Note(f"{given.title} {given.text}", "no device uses it"))
    if not found and not any(line.all(name) for name in ("nodefaults", "nic", "net")):
        line.notes.append(
            Note("(no -nodefaults)", "QEMU would add a network card, a screen and a CD drive; there are none")
        )
    return found, order


def _kind(given: Given) -> Literal["user", "null"]:
    return "user" if " user" in given.title else "null"


def _forwards(given: Given) -> tuple[Forward, ...]:
    found = []
    for text in given.take_all("hostfwd"):
        forward = parse_forward(text)
        # QEMU listens on all addresses if the line names none.
        address = forward.host_address if _names_address(text) else "0.0.0.0"
        found.append(Forward(forward.host_port, forward.guest_port, forward.protocol, address))
    return tuple(found)


def _names_address(text: str) -> bool:
    return not text.partition(":")[2].startswith(":")


def _mac(given: Given, text: str) -> bytes | None:
    if not text:
        return None
    try:
        return bytes.fromhex(text.replace(":", " ").replace("-", " "))
    except ValueError:
        raise ConfigError(f"{given.title} mac={text}: write six bytes, as 52:54:00:12:34:56") from None
