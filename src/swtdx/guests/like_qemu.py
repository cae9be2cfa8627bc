"""What the stock QEMU of this computer tells firmware: fw_cfg's files and ACPI tables for its own arguments.

QEMU is started with no processor running (``-S``) and asked through its test port (``-qtest``), which reads
and writes ports and memory: fw_cfg by DMA, as firmware does it.  ACPI tables QEMU makes when they are fetched
of what firmware has written into configuration space by then; so it is told where firmware has ECAM.

Source: QEMU's ``docs/devel/testing/qtest.rst``, ``docs/specs/fw_cfg.rst``, ``hw/i386/acpi-build.c``.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import struct
import subprocess
import threading
from typing import Any, Final, Self

from swtdx.guests.errors import GuestError

ACPI_FILES: Final = ("etc/acpi/rsdp", "etc/acpi/tables", "etc/table-loader")
#: Item numbers and their sizes.
RAM_SIZE, NO_GRAPHIC, CPU_COUNT, MAX_CPUS, DIRECTORY = 0x03, 0x04, 0x05, 0x0F, 0x19
_FIXED: Final = {RAM_SIZE: 8, NO_GRAPHIC: 2, CPU_COUNT: 2, 0x0E: 2, MAX_CPUS: 2, 0x8002: 4}
#: Sizes of the kernel's parts, and the parts.
_PARTS: Final = ((0x08, 0x11), (0x0B, 0x12), (0x14, 0x15), (0x17, 0x18))
_DMA_PORT: Final = 0x514
_SELECT_AND_READ: Final = 8 | 2
#: Where in the guest's memory requests and answers lie: nothing runs there.
_REQUEST, _ANSWER, _CHUNK = 0x1000, 0x10_0000, 1 << 20
#: Configuration space of the host bridge by mechanism 1: the register of ECAM.
_PCIEXBAR: Final = 0x8000_0060
_PATIENCE: Final = 60.0

#: Options that say how QEMU runs, and not what the guest sees: dropped, with their argument.
_DROPPED: Final = frozenset(
    {
        "D", "accel", "bios", "chroot", "cpu", "d", "display", "incoming", "mon", "monitor", "msg", "pidfile",
        "qmp", "qmp-pretty", "runas", "sandbox", "seed", "serial", "trace", "user", "watchdog-action",
    }
)  # fmt: skip
_DROPPED_BARE: Final = frozenset({"enable-kvm", "daemonize", "S", "nographic", "mem-prealloc", "no-shutdown"})
#: What a TD has where the machine's default is "auto".
_TD_MACHINE: Final = ("smm=off", "pic=off")


class LikeQemuError(GuestError):
    """QEMU does not take the arguments, or does not answer."""


def arguments_for(text: str) -> list[str]:
    """QEMU's arguments without what needs KVM, a TD or the host's devices.

    Raises:
        LikeQemuError: they are none.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise LikeQemuError(f"--like-qemu: {error}") from None
    if words and re.fullmatch(r"(.*/)?(qemu-system-[\w-]+|qemu-kvm|kvm)", words[0]):
        words.pop(0)
    kept: list[str] = []
    machine = list(_TD_MACHINE)
    bare = "-nodefaults" in words or "--nodefaults" in words
    serial = not bare
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name = word.lstrip("-")
        if not word.startswith("-"):
            raise LikeQemuError(f"--like-qemu: {word!r} is no option of QEMU's")
        if name == "nographic":
            machine.append("graphics=off")
        if name in _DROPPED_BARE:
            continue
        if name in _DROPPED:
            argument = rest.pop(0) if rest else ""
            if name == "serial":
                serial = argument != "none"
            continue
        if name in ("machine", "M"):
            machine += _machine(rest.pop(0) if rest else "")
        elif name == "object":
            argument = rest.pop(0) if rest else ""
            if not re.search(r"tdx-guest", argument):
                kept += [word, argument]
        elif name == "netdev":
            kept += [word, _netdev(rest.pop(0) if rest else "")]
        elif name == "device":
            kept += [word, _device(rest.pop(0) if rest else "")]
        else:
            kept.append(word)
            if rest and (name == "append" or not rest[0].startswith("-")):
                kept.append(rest.pop(0))
    machine.sort(key=lambda each: "=" in each)
    unique = {each.partition("=")[0] if "=" in each else "type": each for each in machine}
    return [
        "-machine",
        ",".join(unique.values()),
        "-cpu",
        "max",
        *kept,
        "-serial",
        "null" if serial else "none",
    ]


def _machine(text: str) -> list[str]:
    gone = ("confidential-guest-support", "memory-encryption", "kernel_irqchip", "kernel-irqchip", "accel")
    words = [word for word in text.split(",") if word.partition("=")[0] not in gone]
    return [word.removeprefix("type=") for word in words if word]


def _netdev(text: str) -> str:
    """The same cable without the host's ports: ``user,id=ID``."""
    found = re.search(r'(?:\bid=|"id"\s*:\s*")([\w.-]+)', text)
    return f"user,id={found[1] if found else 'net0'}"


def _device(text: str) -> str:
    """A device that needs the host's kernel becomes one that does not, in the same place."""
    return re.sub(r"vhost-vsock-pci(?:-non-transitional)?", "virtio-rng-pci", _without_vsock(text))


def _without_vsock(text: str) -> str:
    if "vhost-vsock" not in text:
        return text
    return re.sub(r',?\s*"?(?:guest-cid|vhostfd)"?\s*[=:]\s*"?\d+"?', "", text)


class LikeQemu:
    """A QEMU that is asked.  A context manager.

    Args:
        text: its arguments, as in a shell.

    Raises:
        LikeQemuError: it does not take them, or does not answer.
    """

    def __init__(self, text: str) -> None:
        path = shutil.which("qemu-system-x86_64")
        if path is None:
            raise LikeQemuError("--like-qemu needs QEMU (qemu-system-x86_64); `swtdx setup` installs it")
        self._text = text
        self._arguments = arguments_for(text)
        self._making = threading.Lock()
        self._acpi: dict[int, dict[str, bytes]] = {}
        command = [
            path, "-accel", "tcg", "-S", "-display", "none", "-monitor", "none", "-snapshot",
            "-qtest", "stdio", "-qtest-log", "none", *self._arguments,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
        )
        self._timer = threading.Timer(_PATIENCE, self._process.kill)
        self._timer.daemon = True
        self._timer.start()
        self._lock = threading.Lock()
        self._files: dict[str, tuple[int, int]] = {}
        try:
            self._read_directory()
        except BaseException:
            self.close()
            raise
        self._timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU.  Idempotent."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    # ------------------------------------------------------------------ what it says
    @property
    def memory(self) -> int:
        """Bytes of RAM."""
        return int.from_bytes(self._item(RAM_SIZE, 8), "little")

    @property
    def vcpus(self) -> int:
        """Processors."""
        return int.from_bytes(self._item(CPU_COUNT, 2), "little")

    def items(self) -> dict[int, bytes]:
        """The numbered items; those of a kernel, if the arguments have one, as QEMU changed it."""
        found = {key: self._item(key, size) for key, size in _FIXED.items()}
        if int.from_bytes(self._item(0x08, 4), "little"):
            for size_key, data_key in _PARTS:
                raw = self._item(size_key, 4)
                found[size_key] = raw
                found[data_key] = self._item(data_key, int.from_bytes(raw, "little"))
        return found

    def files(self) -> dict[str, bytes]:
        """The files but for ACPI's, by name."""
        return {
            name: self._item(key, size) for name, (key, size) in self._files.items() if name not in ACPI_FILES
        }

    def acpi(self, ecam: int) -> dict[str, bytes]:
        """ACPI's files, where firmware has ECAM at GPA ``ecam`` (0: it is off).

        QEMU makes them once, so each place takes a QEMU of its own.
        """
        with self._making:
            if ecam not in self._acpi:
                with LikeQemu(self._text) as fresh:
                    self._acpi[ecam] = fresh.made_with(ecam)
            return self._acpi[ecam]

    def made_with(self, ecam: int) -> dict[str, bytes]:
        """ACPI's files of this QEMU, of which none was read yet."""
        value = ecam | 1 if ecam else 0
        for offset, half in ((4, value >> 32), (0, value & 0xFFFFFFFF)):
            self._ask(f"outl 0xcf8 {_PCIEXBAR + offset:#x}")
            self._ask(f"outl 0xcfc {half:#x}")
        return {name: self._item(*self._files[name]) for name in ACPI_FILES if name in self._files}

    # ------------------------------------------------------------------ how it is asked
    def _ask(self, line: str) -> str:
        stdin: Any = self._process.stdin
        stdout: Any = self._process.stdout
        with contextlib.suppress(OSError):
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        while said := stdout.readline():
            words: str = said.decode("ascii", "replace").strip()
            if words.startswith("OK"):
                return words[2:].strip()
            if words.startswith(("FAIL", "ERR")):
                raise LikeQemuError(f"QEMU's test port answers {words!r} to {line.split()[0]}")
        assert self._process.stderr is not None
        errors = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        why = "; ".join(each.removeprefix("qemu-system-x86_64: ") for each in errors[-3:]) or "it ended"
        raise LikeQemuError(f"--like-qemu: QEMU does not take {shlex.join(self._arguments)}: {why}")

    def _item(self, key: int, size: int) -> bytes:
        with self._lock:
            data = bytearray()
            control = key << 16 | _SELECT_AND_READ
            while len(data) < size or control >> 16:
                length = min(_CHUNK, size - len(data))
                request = struct.pack(">IIQ", control, length, _ANSWER)
                self._ask(f"write {_REQUEST:#x} {len(request):#x} 0x{request.hex()}")
                self._ask(f"outl {_DMA_PORT:#x} 0x0")
                self._ask(
                    f"outl {_DMA_PORT + 4:#x} {int.from_bytes(struct.pack('>I', _REQUEST), 'little'):#x}"
                )
                if int(self._ask(f"read {_REQUEST:#x} 0x4"), 16):
                    raise LikeQemuError(f"QEMU's fw_cfg refuses to read item {key:#x}")
                if length:
                    data += bytes.fromhex(self._ask(f"read {_ANSWER:#x} {length:#x}").removeprefix("0x"))
                # Then on, where the last request ended.
                control = 2
                if not length:
                    break
            return bytes(data)

    def _read_directory(self) -> None:
        count = int.from_bytes(self._item(DIRECTORY, 4), "big")
        directory = self._item(DIRECTORY, 4 + 64 * count)
        for number in range(count):
            size, key, _, name = struct.unpack_from(">IHH56s", directory, 4 + 64 * number)
            self._files[name.rstrip(b"\0").decode()] = key, size
        if not all(name in self._files for name in ACPI_FILES):
            raise LikeQemuError("--like-qemu: this QEMU's machine has no ACPI tables; give -machine q35")
