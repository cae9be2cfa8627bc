"""The machine that a line describes: everything decided, nothing opened but what has to be read."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swtdx.arch.report_structs import HASH_BYTES
from swtdx.arch.td_config import ATTR_DEBUG, ATTR_SEPT_VE_DISABLE, ATTRIBUTES
from swtdx.arch.units import MIB
from swtdx.cli.inputs import Unusable, read_bytes
from swtdx.cli.qemu.channels import NOWHERE, STDIO, Channel, Channels
from swtdx.cli.qemu.disks import Disks
from swtdx.cli.qemu.networks import networks
from swtdx.cli.qemu.reading import Given, Line, Note
from swtdx.cli.sizes import Size
from swtdx.vmm.errors import ConfigError
from swtdx.vmm.peripherals.config import Peripherals, ShareConfig, VsockConfig

if TYPE_CHECKING:
    from swtdx.vmm.firmware_boot import SmbiosConfig

#: QEMU's default for -m.
_MEMORY: Final = 128 * MIB
_PARTS: Final = {
    "host": None, "max": None, "base": None, "SierraForest": None,
    "SapphireRapids": "sapphire-rapids", "EmeraldRapids": "emerald-rapids",
}  # fmt: skip
_QEMU_FIRMWARE: Final = "swtdx guest firmware"
#: Where the console is.
_CONSOLE_SLOT: Final = 1


@dataclass(slots=True)
class Machine:
    """What the line wants.  Names as in :mod:`.table`."""

    name: str = "guest"
    firmware: Path = Path()
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    memory: int = _MEMORY
    vcpus: int = 1
    model: str | None = None
    tsc_hz: float | None = None
    # the TD
    mrconfigid: bytes = bytes(HASH_BYTES)
    mrowner: bytes = bytes(HASH_BYTES)
    mrownerconfig: bytes = bytes(HASH_BYTES)
    attributes: int = 0
    pending_ve: bool = False
    #: Who answers GetQuote (``unix:PATH``, ``vsock:CID:PORT``); None: no one.
    quotes: str | None = None
    # what the user sees
    serial: Channel = NOWHERE
    console: Channel | None = None
    ports: list[tuple[str, Channel]] = field(default_factory=list)
    debug: Channel | None = None
    monitors: list[Channel] = field(default_factory=list)
    qmp: list[Channel] = field(default_factory=list)
    # what it has
    peripherals: Peripherals = field(default_factory=Peripherals)
    files: dict[str, bytes] = field(default_factory=dict)
    smbios: SmbiosConfig | None = None
    # the process
    restart: bool = True
    stay: bool = False
    paused: bool = False
    pidfile: Path | None = None
    daemonize: bool = False
    notes: list[Note] = field(default_factory=list)


def describe(line: Line) -> Machine:
    """What ``line`` wants.

    Raises:
        Unusable: it wants what there is not, or does not fit together.
    """
    machine = Machine(notes=line.notes)
    _td(line, machine)
    _board(line, machine)
    _boot(line, machine)
    channels = Channels(line)
    _lines(line, machine, channels)
    _devices(line, machine)
    _process(line, machine)
    for given in line.options:
        # Every setting that the table calls honoured has been: this is a check of ourselves.
        assert not given.pairs, f"{given.title}: {given.pairs} was not looked at"
    return machine


# ------------------------------------------------------------------ the TD
def _td(line: Line, machine: Machine) -> None:
    objects = {given.take("id"): given for given in line.all("object") if _kind(given) == "tdx-guest"}
    wanted = ""
    for given in line.all("machine"):
        given.take("type")
        wanted = given.take("confidential-guest-support", "memory-encryption") or wanted
        given.take("accel", "memory-backend")
        for pflash in ("pflash0", "pflash1"):
            if given.take(pflash):
                raise given.wrong(
                    pflash, "a TD's firmware is given by -bios: KVM has no read-only memory for TDs"
                )
    if not wanted:
        raise Unusable(
            "this line starts a plain VM; swtdx starts TDs: add -object tdx-guest,id=tdx0 and "
            "-machine q35,confidential-guest-support=tdx0"
        )
    if wanted not in objects:
        raise Unusable(
            f"-machine confidential-guest-support={wanted}: there is no -object tdx-guest,id={wanted}"
        )
    given = objects[wanted]
    for key in ("mrconfigid", "mrowner", "mrownerconfig"):
        if given.has(key):
            setattr(machine, key, _digest(given, key))
    attributes = given.number("attributes", 0)
    known = sum(1 << bit for bit in ATTRIBUTES.flags())
    if attributes & ~known:
        raise given.wrong(f"attributes={attributes:#x}", f"bits {attributes & ~known:#x} are not known")
    machine.pending_ve = not given.switch("sept-ve-disable", default=True)
    machine.attributes = attributes & ~ATTR_SEPT_VE_DISABLE
    if given.switch("debug"):
        machine.attributes |= ATTR_DEBUG
    machine.quotes = _quotes(given)
    for name, other in objects.items():
        if name != wanted:
            raise other.wrong("", f"the machine uses {wanted}; leave the other out")


def _digest(given: Given, key: str) -> bytes:
    text = given.take(key)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise given.wrong(
            f"{key}={text}", f"give {HASH_BYTES} bytes in base64 (64 characters), as QEMU"
        ) from None
    if len(data) != HASH_BYTES:
        raise given.wrong(
            f"{key}={text}", f"these are {len(data)} bytes in base64, and a SHA-384 has {HASH_BYTES}"
        )
    return data


def _quotes(given: Given) -> str | None:
    older = given.take("quote-generation-service")
    kind, path, cid, port = (
        given.take(f"quote-generation-socket.{key}") for key in ("type", "path", "cid", "port")
    )
    if older:
        return older
    if not kind:
        return None
    if kind == "unix" and path:
        return f"unix:{path}"
    if kind == "vsock" and cid and port:
        return f"vsock:{cid}:{port}"
    raise given.wrong(
        f"quote-generation-socket.type={kind}", "give a unix socket (path) or a vsock address (cid, port)"
    )


# ------------------------------------------------------------------ processors and memory
def _board(line: Line, machine: Machine) -> None:
    for given in line.all("name"):
        machine.name = given.take("guest") or machine.name
    for given in line.all("m"):
        text = given.take("size")
        # Without a unit it is MiB.
        machine.memory = _size(given, f"{text}M" if text.isdecimal() else text)
    for given in line.all("smp"):
        machine.vcpus = _vcpus(given, machine)
    for given in line.all("cpu"):
        _cpu(given, machine)
    backends = {}
    for given in line.all("object"):
        if _kind(given).startswith("memory-backend") and given.pairs:
            backends[given.take("id")] = _size(given, given.take("size"))
    nodes = [given for given in line.all("numa") if given.take("type") == "node"]
    for given in line.all("numa"):
        memdev, size = given.take("memdev"), given.take("mem")
        if int(given.take("nodeid", default="0") or 0) != 0 or len(nodes) > 1:
            raise given.wrong("", "a TD has one NUMA node here")
        if memdev and memdev not in backends:
            raise given.wrong(f"memdev={memdev}", "there is no -object memory-backend-* with this id")
        if size and _size(given, size if not size.isdecimal() else f"{size}M") != machine.memory:
            raise given.wrong(f"mem={size}", "it is not what -m says")
    if len(backends) == 1:
        [(name, size_)] = backends.items()
        if size_ != machine.memory:
            raise Unusable(
                f"-object {name}: size is {size_ // MIB} MiB, and -m says {machine.memory // MIB} MiB"
            )
    elif len(backends) > 1:
        raise Unusable(f"-object {', '.join(backends)}: a TD's memory is one piece here")


def _size(given: Given, text: str) -> int:
    if not text:
        raise given.wrong("", "it needs a size")
    try:
        return Size().convert(text, None, None)
    except Exception:
        raise given.wrong(f"size={text}", "write a size as 4G or 2048M") from None


def _vcpus(given: Given, machine: Machine) -> int:
    parts = [("sockets", 0), ("dies", 1), ("clusters", 1), ("modules", 1), ("cores", 0), ("threads", 0),
             ("drawers", 1), ("books", 1)]  # fmt: skip
    counts = [given.number(name, default) for name, default in parts]
    product = 1
    for count in counts:
        product *= count or 1
    cpus = given.number("cpus", product)
    if all(counts) and cpus != product:
        raise given.wrong(f"cpus={cpus}", f"sockets, cores and threads make {product}")
    if cpus < 1:
        raise given.wrong(f"cpus={cpus}", "a TD has at least one vCPU")
    if (counts[0] or 1) * (counts[5] or 1) > 1:
        machine.notes.append(
            Note(f"{given.title} {given.text}", "the guest sees one package, one thread a core")
        )
    return cpus


def _cpu(given: Given, machine: Machine) -> None:
    name = given.take("model")
    model = name.removesuffix("-v1").removesuffix("-v2").removesuffix("-v3").removesuffix("-v4")
    if model not in _PARTS:
        raise given.wrong(name, f"TDs run here on {', '.join(_PARTS)}")
    machine.model = _PARTS[model]
    rate = given.take("tsc-frequency", "tsc-freq")
    if rate:
        try:
            machine.tsc_hz = float(rate)
        except ValueError:
            raise given.wrong(f"tsc-frequency={rate}", "give a number of Hz") from None
    for key, _ in given.pairs:
        _without(given, key, machine)
    given.pairs = []


def _without(given: Given, key: str, machine: Machine) -> None:
    """A feature that the guest shall not have."""
    from swtdx.machine.cpu.features import FEATURES

    name = key.removeprefix("-").replace("-", "").replace("_", "").replace(".", "").upper()
    found = [each for each in FEATURES if each.name.replace("_", "").replace(".", "") == name]
    if any(each.shown for each in found):
        raise given.wrong(key, "no feature that a TD has here can be taken away from it")
    machine.notes.append(Note(f"{given.title} {key}", "a TD does not have it here"))


# ------------------------------------------------------------------ firmware, kernel, fw_cfg
def _boot(line: Line, machine: Machine) -> None:
    bios = line.last("bios")
    if bios is None:
        raise Unusable(
            f"-bios is missing: a TD starts with TDVF firmware; `{_QEMU_FIRMWARE}` fetches OVMF and prints "
            f"its path"
        )
    machine.firmware = Path(bios.text)
    for name in ("kernel", "initrd"):
        given = line.last(name)
        if given is not None:
            setattr(machine, name, Path(given.text))
    append = line.last("append")
    machine.append = "" if append is None else append.text
    if machine.kernel is None and (machine.initrd is not None or machine.append):
        raise Unusable("-initrd and -append go with -kernel")
    for given in line.all("fw_cfg"):
        name, path, text = given.take("name"), given.take("file"), given.take("string")
        if not name or bool(path) == bool(text):
            raise given.wrong(given.text, "give name=opt/..., and file= or string=")
        machine.files[name] = read_bytes(path, "a fw_cfg file") if path else text.encode()
    for given in line.all("boot"):
        menu = given.switch("menu")
        wait = given.number("splash-time", 0)
        if menu:
            machine.files["etc/boot-menu-wait"] = min(wait, 0xFFFF).to_bytes(2, "little")
    _smbios(line, machine)


def _smbios(line: Line, machine: Machine) -> None:
    """There are tables as soon as the line says anything of them."""
    from swtdx.vmm.firmware_boot import SMBIOS_SETTINGS, SmbiosConfig

    settings: dict[int, dict[str, str]] = {}
    strings: list[str] = []
    for given in line.all("uuid"):
        settings.setdefault(1, {})["uuid"] = given.text
    for given in line.all("smbios"):
        kind = given.number("type", -1)
        if kind not in SMBIOS_SETTINGS:
            known = ", ".join(map(str, SMBIOS_SETTINGS))
            raise given.wrong(given.text, f"give one of the types {known}")
        if kind == 11:
            strings += given.take_all("value")
            strings += [read_bytes(path, "an SMBIOS string").decode("utf-8", "replace").rstrip("\n")
                        for path in given.take_all("path")]  # fmt: skip
        for key, value in given.pairs:
            if key not in SMBIOS_SETTINGS[kind]:
                raise given.wrong(f"{key}={value}", f"type {kind} has {', '.join(SMBIOS_SETTINGS[kind])}")
            settings.setdefault(kind, {})[key] = value
        given.pairs = []
    if settings or strings:
        machine.smbios = SmbiosConfig(settings, strings)


# ------------------------------------------------------------------ serial ports, consoles, monitors
def _lines(line: Line, machine: Machine, channels: Channels) -> None:
    bare = bool(line.all("nodefaults"))
    nographic = bool(line.all("nographic"))
    for name in ("display", "vga", "vnc"):
        for given in line.all(name):
            given.take("type")
    serials = [(given, channels.written(given, given.text)) for given in line.all("serial")]
    for given in line.all("device"):
        if _kind(given) == "isa-serial":
            given.take("id")
            serials.append((given, channels.named(given, given.take("chardev"))))
    used = [(given, channel) for given, channel in serials if given.text not in ("none", "null")]
    if len(used) > 1:
        raise Unusable(
            f"{used[1][0].title} {used[1][0].text}: there is one serial port; leave the others out"
        )
    if used:
        machine.serial = used[0][1]
    elif not serials and nographic and not bare:
        machine.serial = STDIO
    elif not serials and not bare:
        # QEMU would show it in its window.
        machine.serial = STDIO
        machine.notes.append(
            Note("(no -nographic)", "there is no window; the serial port is on standard output")
        )
    for given in line.all("parallel"):
        if given.text not in ("none", "null"):
            raise given.wrong(given.text, "there is no parallel port")
    for given in line.all("debugcon"):
        machine.debug = channels.written(given, given.text)
    for given in line.all("global"):
        given.take("isa-debugcon.iobase")
    for given in line.all("device"):
        if _kind(given) == "isa-debugcon":
            given.take("id")
            iobase = given.number("iobase", 0xE9)
            if iobase != 0x402 and not any("isa-debugcon.iobase" in each.text for each in line.all("global")):
                raise given.wrong(f"iobase={iobase:#x}", "firmware prints at 0x402")
            machine.debug = channels.named(given, given.take("chardev"))
    _monitors(line, machine, channels)
    _virtio_serial(line, machine, channels)


def _monitors(line: Line, machine: Machine, channels: Channels) -> None:
    for given in line.all("monitor"):
        channel = channels.written(given, given.text)
        if channel.kind == "stdio":
            raise given.wrong(given.text, "the terminal is the guest's; give a Unix socket or none")
        if channel.kind != "null":
            machine.monitors.append(channel)
    for name in ("qmp", "qmp-pretty"):
        for given in line.all(name):
            channel = channels.written(given, given.text)
            if channel.kind != "socket":
                raise given.wrong(given.text, "give unix:PATH,server=on,wait=off")
            machine.qmp.append(channel)
    for given in line.all("mon"):
        name, mode = given.take("chardev"), given.take("mode", default="readline")
        channel = channels.named(given, name)
        if mode == "control":
            if channel.kind != "socket":
                raise given.wrong(f"chardev={name}", "QMP is spoken on Unix sockets")
            machine.qmp.append(channel)
        elif channel.kind == "socket":
            machine.monitors.append(channel)
        elif channel.kind == "stdio":
            machine.notes.append(
                Note(f"{given.title} {given.text}", "on the terminal Ctrl-A x leaves, and is all")
            )


def _virtio_serial(line: Line, machine: Machine, channels: Channels) -> None:
    cards = [given for given in line.all("device") if _kind(given).startswith("virtio-serial")]
    for given in cards:
        given.take("id", "addr")
    for given in line.all("device"):
        if _kind(given) not in ("virtconsole", "virtserialport"):
            continue
        if not cards:
            raise given.wrong("", "it needs a -device virtio-serial-pci")
        given.take("id")
        channel = channels.named(given, given.take("chardev"))
        if _kind(given) == "virtconsole":
            if machine.console is not None:
                raise given.wrong("", "there is one console; leave the others out")
            machine.console = channel
        else:
            name = given.take("name")
            if not name:
                raise given.wrong("", "a port needs a name=")
            machine.ports.append((name, channel))
    if cards and machine.console is None:
        machine.console = NOWHERE


# ------------------------------------------------------------------ devices
def _devices(line: Line, machine: Machine) -> None:
    slots = Slots(line, console=machine.console is not None)
    disks = Disks(line)
    shares, order = [], []
    vsock, rng = None, False
    folders = {given.take("id"): given for given in line.all("fsdev")}
    used: set[str] = set()
    try:
        for given in line.all("device"):
            kind = _kind(given)
            if kind.startswith("virtio-blk"):
                disks.device(given, slots.of(given))
            elif kind.startswith("virtio-9p"):
                name = given.take("fsdev")
                if name not in folders:
                    raise given.wrong(f"fsdev={name}", "there is no -fsdev with this id")
                used.add(name)
                shares.append(_share(folders[name], given.take("mount_tag"), slots.of(given)))
            elif kind.startswith("vhost-vsock"):
                cid = given.number("guest-cid", 0)
                if vsock is not None:
                    raise given.wrong("", "a TD has one vsock device")
                vsock = VsockConfig(cid, Path(f"swtdx-vsock-{cid}.sock"), slots.of(given))
            elif kind.startswith("virtio-rng"):
                rng = True
                # Its slot is the first one that is left.
                given.take("id", "addr")
        shares += [_share(given, given.take("mount_tag"), slots.free()) for given in line.all("virtfs")]
        disks.drives(slots.free)
        nets, net_order = networks(line, slots.of, slots.free)
        order = [*disks.order, *net_order]
        machine.peripherals = Peripherals(tuple(disks.configs), tuple(nets), tuple(shares), vsock, rng)
    except ConfigError as error:
        raise Unusable(str(error)) from None
    for name, given in folders.items():
        if name not in used:
            given.pairs = []
            machine.notes.append(Note(f"{given.title} {given.text}", "no device uses it"))
    if order:
        machine.files["bootorder"] = b"".join(path.encode() + b"\n" for _, path in sorted(order)) + b"\0"


def _share(given: Given, tag: str, slot: int) -> ShareConfig:
    given.take("fsdriver", "id")
    path = given.take("path")
    if not path or not tag:
        raise given.wrong("", "a shared folder needs path= and mount_tag=")
    return ShareConfig(Path(path), tag, given.switch("readonly"), "9p", slot)


class Slots:
    """PCI device numbers: those that the line names, and the lowest free ones for the other devices."""

    def __init__(self, line: Line, *, console: bool) -> None:
        self._taken: set[int] = {_CONSOLE_SLOT} if console else set()
        for given in line.all("device"):
            if (addr := _addr(given)) is None:
                continue
            if addr in self._taken:
                raise given.wrong(f"addr={addr:#x}", "another device has this slot")
            self._taken.add(addr)

    def of(self, given: Given) -> int:
        """The slot of a device, from now on taken.

        Raises:
            Unusable: all are taken.
        """
        given.take("id")
        addr = _addr(given)
        given.take("addr")
        return self.free() if addr is None else addr

    def free(self) -> int:
        """The lowest that is free, from now on taken.

        Raises:
            Unusable: there is none.
        """
        slot = next((each for each in range(1, 31) if each not in self._taken), None)
        if slot is None:
            raise Unusable("the line has more devices than bus 0 has slots; there are no bridges")
        self._taken.add(slot)
        return slot


def _addr(given: Given) -> int | None:
    """``addr=3``, ``addr=0x3`` or ``addr=0x3.0x0`` on bus 0; behind a bridge the board chooses."""
    text = next((value for key, value in given.pairs if key == "addr"), "")
    if not text or ("bus=" in given.text.replace('"bus":"', "bus=") and "pcie.0" not in given.text):
        return None
    device, _, function = text.partition(".")
    try:
        number = int(device, 16)
        if function and int(function, 16):
            raise given.wrong(f"addr={text}", "every device is function 0 of its slot")
    except ValueError:
        raise given.wrong(f"addr={text}", "give the number of a PCI device, as 0x3") from None
    if not 1 <= number <= 30:
        raise given.wrong(f"addr={text}", "PCI devices 1 to 0x1e are free")
    return number


# ------------------------------------------------------------------ the process
def _process(line: Line, machine: Machine) -> None:
    watched = bool(machine.monitors or machine.qmp)
    for given in line.all("rtc"):
        given.take("base")
    pause = False
    machine.restart = not line.all("no-reboot")
    for given in line.all("action"):
        machine.restart = given.take("reboot", default="reset") == "reset" and machine.restart
        pause = given.take("shutdown") == "pause" or pause
    if (line.all("no-shutdown") or pause) and watched:
        machine.stay = True
    elif line.all("no-shutdown"):
        machine.notes.append(Note("-no-shutdown", "without a monitor nothing could go on; the process ends"))
    if line.all("S"):
        if not watched:
            raise Unusable(
                "-S: nothing could continue the TD; leave it out, or give -qmp unix:PATH,server=on,wait=off"
            )
        machine.paused = True
    if (pidfile := line.last("pidfile")) is not None:
        machine.pidfile = Path(pidfile.text)
    machine.daemonize = bool(line.all("daemonize"))
    if machine.daemonize and STDIO in (machine.serial, machine.console):
        raise Unusable(
            "-daemonize: the serial port would be on standard output; give -serial file:PATH or none"
        )


def _kind(given: Given) -> str:
    return given.kind.name.split()[0] if given.kind is not None else ""
