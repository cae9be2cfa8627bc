"""Which board a saved TD has: what of a :class:`~swtdx.devices.board.BoardConfig` a snapshot holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from swtdx.devices.board import BoardConfig
from swtdx.devices.part import Part
from swtdx.devices.saved import In, Out
from swtdx.devices.virtio.ports import PortConfig
from swtdx.vmm.saved import get, pairs, put

#: What can be written down as it is.
_PLAIN: Final = ("pci_window", "console", "serial", "chipset", "rtc_driver", "ecam", "mechanism1", "ioapic")


def _nowhere(_data: bytes) -> None:
    """Takes what a channel says that nobody listens to any more."""


def put_board(out: Out, config: BoardConfig) -> None:
    """Write ``config`` down.  Parts of the user's own are not in it: they come from whoever goes on."""
    put(
        out,
        apic_ids=config.apic_ids,
        console_size=config.console_size,
        channels=[port.name for port in config.channels],
        ram=config.ram,
        more=len(config.more),
        **{name: getattr(config, name) for name in _PLAIN},
    )


def get_board(
    section: In,
    outputs: Mapping[str, Callable[[bytes], None]],
    more: tuple[Callable[[], Part], ...] = (),
) -> BoardConfig:
    """What :func:`put_board` wrote.

    Args:
        outputs: what takes the guest's output on each channel, by name; the others' is dropped.
        more: the parts of the user's own.
    """
    known = get(section)
    if known["more"] != len(more):
        raise section.fail(f"the TD has {known['more']} devices of its own, and here it is given {len(more)}")
    size, ram = known["console_size"], known["ram"]
    return BoardConfig(
        apic_ids=tuple(int(number) for number in known["apic_ids"]),
        console_size=None if size is None else pairs([size])[0],
        channels=tuple(PortConfig(str(name), outputs.get(name, _nowhere)) for name in known["channels"]),
        ram=None if ram is None else pairs([ram])[0],
        more=more,
        **{name: known[name] for name in _PLAIN},
    )
