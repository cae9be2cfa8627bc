"""``--disk``, ``--net``, ``--vsock``, ``--share`` and ``--rng``: what a TD gets besides its console.

An option's value is a name and then ``key=value`` words, with commas between; a comma that belongs to a name
is written twice, as QEMU has it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from swtdx.vmm.errors import ConfigError

if TYPE_CHECKING:
    from swtdx.vmm.peripherals.config import DiskConfig, Forward, NetConfig, ShareConfig, VsockConfig

_F = TypeVar("_F", bound=Callable[..., Any])
_ON: Final = {"on": True, "off": False, "yes": True, "no": False, "true": True, "false": False}
_SUFFIXES: Final = {
    ".qcow2": "qcow2", ".vmdk": "vmdk", ".vhdx": "vhdx", ".vdi": "vdi", ".vhd": "vpc",
}  # fmt: skip
_FORWARD: Final = re.compile(
    r"(?P<protocol>tcp|udp)?:(?P<address>\[[^]]*\]|[^:\[\]]*):(?P<host>\d+)-[^:]*:(?P<guest>\d+)"
)


def words(text: str) -> list[str]:
    """``text`` at its single commas; doubled ones are one."""
    return [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]


def settings(parts: list[str], known: tuple[str, ...]) -> list[tuple[str, str]]:
    """``key=value`` of each part; a key alone is ``on``.

    Raises:
        ConfigError: a key that is not in ``known``.
    """
    found = []
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in known:
            raise ConfigError(f"{part!r}: there is no such setting; there are {', '.join(known)}")
        found.append((key, value if equals else "on"))
    return found


def switch(key: str, value: str) -> bool:
    """on or off.

    Raises:
        ConfigError: neither.
    """
    if value not in _ON:
        raise ConfigError(f"{key}={value}: give on or off")
    return _ON[value]


def parse_disk(text: str) -> DiskConfig:
    """``FILE[,format=F][,readonly=on][,snapshot=on][,serial=S]``; the format follows from the file's name.

    Raises:
        ConfigError: it is something else.
    """
    from swtdx.vmm.peripherals.config import DiskConfig

    name, *parts = words(text)
    if name.startswith("file="):
        name = name.removeprefix("file=")
    if not name:
        raise ConfigError("a disk needs a file: --disk FILE[,format=qcow2][,snapshot=on]")
    path = Path(name)
    given: dict[str, Any] = {"format": _SUFFIXES.get(path.suffix.lower(), "raw")}
    for key, value in settings(parts, ("format", "readonly", "snapshot", "serial")):
        if key == "readonly":
            given["read_only"] = switch(key, value)
        elif key == "snapshot":
            given[key] = switch(key, value)
        else:
            given[key] = value
    return DiskConfig(path, **given)


def parse_forward(text: str) -> Forward:
    """``[tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT``, as QEMU's hostfwd; the guest has one address.

    Raises:
        ConfigError: it is something else.
    """
    from swtdx.vmm.peripherals.config import Forward

    found = _FORWARD.fullmatch(text)
    if found is None:
        raise ConfigError(f"hostfwd={text}: write tcp:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT")
    address = found["address"].strip("[]")
    return Forward(
        int(found["host"]), int(found["guest"]),
        "udp" if found["protocol"] == "udp" else "tcp",
        address or "127.0.0.1",
    )  # fmt: skip


def parse_net(text: str) -> NetConfig:
    """``user[,hostfwd=...][,mac=M]``, ``null`` or ``loopback``.

    Raises:
        ConfigError: it is something else.
    """
    from swtdx.vmm.peripherals.config import NetConfig

    kind, *parts = words(text)
    forwards = []
    mac = None
    for key, value in settings(parts, ("hostfwd", "mac")):
        if key == "hostfwd":
            forwards.append(parse_forward(value))
        else:
            try:
                mac = bytes.fromhex(value.replace(":", " ").replace("-", " "))
            except ValueError:
                raise ConfigError(f"mac={value}: write six bytes, as 52:54:00:12:34:56") from None
    return NetConfig(kind, tuple(forwards), mac)  # type: ignore[arg-type]


def parse_vsock(text: str) -> VsockConfig:
    """``CID[:PATH]``; the path is ``swtdx-vsock-CID.sock`` here if it is not given.

    Raises:
        ConfigError: it is something else.
    """
    from swtdx.vmm.peripherals.config import VsockConfig

    number, _, path = text.partition(":")
    if not number.isdecimal():
        raise ConfigError(f"{text!r}: give the guest's context id, a number, and perhaps :PATH of a socket")
    return VsockConfig(int(number), Path(path or f"swtdx-vsock-{int(number)}.sock"))


def parse_share(text: str) -> ShareConfig:
    """``DIR[:TAG][,ro][,9p]``; the tag is the folder's name if it is not given.

    Raises:
        ConfigError: it is something else.
    """
    from swtdx.vmm.peripherals.config import ShareConfig

    name, *parts = words(text)
    read_only = False
    nine_p = False
    for key, value in settings(parts, ("ro", "readonly", "9p")):
        if key == "9p":
            nine_p = switch(key, value)
        else:
            read_only = switch(key, value)
    folder, _, tag = name.rpartition(":") if ":" in name else (name, "", "")
    if not folder:
        raise ConfigError("a share needs a folder: --share DIR[:TAG][,ro]")
    path = Path(folder)
    return ShareConfig(path, tag or path.resolve().name or "share", read_only, "9p" if nine_p else "virtiofs")


class _Parsed(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """What one of the functions above makes of a text."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The configuration."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class DiskText(_Parsed):
    """The value of ``--disk``."""

    def __init__(self) -> None:
        super().__init__("file", parse_disk)


def device_options(command: _F) -> _F:
    """Add the options; ``command`` gets them as one argument ``peripherals``."""

    @functools.wraps(command)
    def called(
        *arguments: Any,
        disks: tuple[DiskConfig, ...],
        nets: tuple[NetConfig, ...],
        vsock: VsockConfig | None,
        shares: tuple[ShareConfig, ...],
        rng: bool,
        **others: Any,
    ) -> Any:
        from swtdx.vmm.peripherals.config import Peripherals

        try:
            peripherals = Peripherals(disks, nets, shares, vsock, rng)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
        return command(*arguments, peripherals=peripherals, **others)

    options = (
        click.option("--disk", "disks", type=DiskText(), multiple=True,
                     metavar="FILE[,snapshot=on]...", help="A disk; also format=, readonly=on, serial=."),
        click.option("--net", "nets", type=_Parsed("net", parse_net), multiple=True,
                     metavar="user[,hostfwd=...]",
                     help="A network, hostfwd=tcp::2222-:22; or null, loopback."),
        click.option("--vsock", type=_Parsed("cid", parse_vsock), metavar="CID[:PATH]",
                     help="A socket device (vsock), by a Unix socket at PATH."),
        click.option("--share", "shares", type=_Parsed("dir", parse_share), multiple=True,
                     metavar="DIR[:TAG][,ro]", help="A folder for the guest, by virtiofs, or by 9p (,9p)."),
        click.option("--rng", is_flag=True, help="A source of random numbers."),
    )  # fmt: skip
    for option in reversed(options):
        called = option(called)
    return called  # type: ignore[return-value]
