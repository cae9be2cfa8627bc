"""The initramfs of swtdx's own guests: busybox, a few modules, ``init.sh``; and what it is to do.

An initrd here is two archives, one after the other, which the kernel unpacks in turn (Linux
``Documentation/driver-api/early-userspace/buffer-format.rst``): the *base*, the same for every run of a
guest, and the *job*, a few hundred bytes in ``/swtdx``.

==================  ===============================================================================
/swtdx/mode         ``shell``, ``exec`` or ``demo``, and a newline
/swtdx/command      exec: the command's bytes, verbatim, for ``sh -c``
/swtdx/token        exec: the token of the markers (:mod:`swtdx.guests.exec_protocol`), and a newline
/swtdx/exec.sh      exec: runs the command and carries its streams (:mod:`swtdx.guests.exec_channels`)
/swtdx/get          exec: files that the user wants afterwards, a path a line; missing if there are none
/swtdx/demo         demo: the script to run
==================  ===============================================================================

A command can run in an initrd of the user's own, too (:func:`wrapped_initrd`): the job is then appended to
that, and has in /swtdx whatever else it needs: an init of ours that starts the command and becomes the
user's, a busybox, modules.

Nothing is compressed: booted under QEMU 7.2 (TCG) with 2.2 MB uncompressed, 1.0 MB zstd and 1.1 MB gzip,
two boots each, userspace began 2.14–2.25, 2.13–2.16 and 2.09–2.11 s after the kernel; the copy and the
hash of 1.2 MB more take the shim 9 ms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Final

from swtdx.guests import cpio
from swtdx.guests.errors import GuestError
from swtdx.guests.exec_protocol import default_token
from swtdx.guests.modules import Module, modinfo

#: Linux refuses a single argument of this size or longer (include/uapi/linux/binfmts.h, MAX_ARG_STRLEN).
LONGEST_COMMAND: Final = 131072 - 1
_TERM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_DIRECTORIES: Final = (
    "bin", "dev", "etc", "lib", "lib/modules", "lib/swtdx", "lib/swtdx/dev", "proc", "root", "sys", "tmp",
)  # fmt: skip
#: What init mounts before all else.
_FSTAB: Final = """\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devtmpfs /dev devtmpfs defaults 0 0
tmpfs /tmp tmpfs defaults 0 0
"""
#: What it mounts when the modules are there, as far as the kernel has it.
_FSTAB_LATE: Final = """\
configfs /sys/kernel/config configfs defaults 0 0
/sys/power /sys/power none bind 0 0
"""
#: Names in /dev that shells and programs expect, and what they are in /proc/self.
_STREAMS: Final = (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))


@dataclass(frozen=True, slots=True)
class Shell:
    """A shell on the console; switches off when it ends."""


@dataclass(frozen=True, slots=True)
class Demo:
    """Shows what a TD is by a few commands, then switches off."""


@dataclass(frozen=True, slots=True)
class Exec:
    """Runs one command by ``sh -c`` and reports its output and status (see ``exec_protocol``).

    An empty ``token`` stands for the command's default token.  ``get`` are paths in the guest of files that
    are wanted when the command has ended, relative to /root where they are not absolute.
    """

    command: str
    token: str = ""
    get: tuple[str, ...] = ()

    @property
    def marker_token(self) -> str:
        """The token that the markers will carry."""
        return self.token or default_token(self.command)


@dataclass(frozen=True, slots=True)
class Serve:
    """Runs one command after another, and carries files, as the hypervisor asks (see ``agent``)."""


Job = Shell | Demo | Exec | Serve


def base_archive(busybox: bytes, modules: Iterable[Module] = (), extra: Iterable[cpio.Entry] = ()) -> bytes:
    """The archive that is the same for every run.

    Args:
        busybox: a statically linked x86-64 busybox.
        modules: kernel modules in load order.
        extra: more files (they may not repeat a path of ours).

    Raises:
        GuestError: ``busybox`` is not a static x86-64 program.
    """
    _check_static(busybox)
    loaded = list(modules)
    entries = [cpio.directory(path) for path in _DIRECTORIES]
    entries += [
        cpio.character_device("dev/console", 5, 1),
        cpio.regular("init", _ours("init.sh"), 0o755),
        cpio.regular("bin/busybox", busybox, 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.regular("bin/tdreport", _ours("tools/tdreport.bin"), 0o755),
        cpio.regular("bin/rtmr-extend", _ours("tools/rtmr-extend.sh"), 0o755),
        cpio.regular("etc/profile", _ours("profile.sh")),
        cpio.regular("lib/swtdx/fstab", _FSTAB.encode()),
        cpio.regular("lib/swtdx/fstab.late", _FSTAB_LATE.encode()),
        *(cpio.symlink(f"lib/swtdx/dev/{name}", f"/proc/self/{to}") for name, to in _STREAMS),
        cpio.regular("lib/modules/order", "".join(f"{module.name}\n" for module in loaded).encode()),
    ]
    entries += [cpio.regular(f"lib/modules/{module.name}.ko", module.data) for module in loaded]
    entries += _for_modprobe(loaded)
    entries += extra
    return cpio.archive(entries)


def _for_modprobe(modules: list[Module]) -> list[cpio.Entry]:
    """What modprobe looks for: a directory with the kernel's name, and who needs whom.

    The kernel's name stands in its modules (``vermagic``); each module may need all that come before it.
    """
    try:
        releases = {modinfo(module).get("vermagic", "").partition(" ")[0] for module in modules}
    except GuestError:
        # Not modules of Linux: insmod will say so.
        return []
    if len(releases) != 1 or "" in releases:
        return []
    lines = [
        f"{module.name}.ko:{''.join(f' {earlier.name}.ko' for earlier in reversed(modules[:number]))}\n"
        for number, module in enumerate(modules)
    ]
    return [
        cpio.regular("lib/modules/modules.dep", "".join(lines).encode()),
        cpio.symlink(f"lib/modules/{releases.pop()}", "."),
    ]


def job_archive(job: Job, extra: Iterable[cpio.Entry] = ()) -> bytes:
    """The archive that says what to do; append it to :func:`base_archive`'s.

    Args:
        job: what to do.
        extra: more files for the guest.

    Raises:
        GuestError: an exec job whose command is empty, too long or holds a NUL, or a malformed token.
    """
    files: dict[str, bytes]
    programs: dict[str, bytes] = {}
    match job:
        case Shell():
            files = {"mode": b"shell\n"}
        case Demo():
            files = {"mode": b"demo\n", "demo": _ours("demo.sh")}
        case Exec():
            files = {"mode": b"exec\n", **_exec_files(job)}
        case Serve():
            files = {"mode": b"serve\n", "exec.sh": _ours("exec.sh"), "serve.sh": _ours("serve.sh")}
            programs = {"renew": _ours("tools/renew.bin")}
    entries = [cpio.directory("swtdx", 0o700)]
    entries += [cpio.regular(f"swtdx/{name}", data, 0o600) for name, data in files.items()]
    entries += [cpio.regular(f"swtdx/{name}", data, 0o700) for name, data in programs.items()]
    entries += extra
    return cpio.archive(entries)


def build_initramfs(
    busybox: bytes,
    modules: Iterable[Module] = (),
    job: Job | None = None,
    extra: Iterable[cpio.Entry] = (),
) -> bytes:
    """Base and job archive in one: an initrd ready to boot (``job`` defaults to a shell).

    Raises:
        GuestError: see :func:`base_archive` and :func:`job_archive`.
    """
    return base_archive(busybox, modules) + job_archive(job or Shell(), extra)


#: The kernel's command line for :func:`wrapped_initrd` needs this word.
WRAPPED_INIT: Final = "rdinit=/swtdx/init"


def wrapped_initrd(
    initrd: bytes,
    busybox: bytes,
    modules: Iterable[Module],
    job: Exec | Serve,
    extra: Iterable[cpio.Entry] = (),
    rdinit: str = "/init",
) -> bytes:
    """An initrd of the user's own that also runs a command, or one after another.

    Args:
        initrd: the user's, in any form that the kernel takes.
        busybox: a statically linked x86-64 busybox.
        modules: kernel modules in load order, without which the console's ports may be missing.
        job: the command, or to wait for commands.
        extra: more files for the guest.
        rdinit: the user's init in there.

    Raises:
        GuestError: see :func:`base_archive` and :func:`job_archive`.
    """
    _check_static(busybox)
    loaded = list(modules)
    entries = [
        # A shell opens it for whatever runs in the background.
        cpio.directory("dev"),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.regular("swtdx/init", _ours("wrap.sh"), 0o755),
        cpio.regular("swtdx/busybox", busybox, 0o755),
        cpio.regular("swtdx/rdinit", f"{rdinit}\n".encode()),
        cpio.directory("swtdx/modules"),
        cpio.regular("swtdx/modules/order", "".join(f"{module.name}\n" for module in loaded).encode()),
        *(cpio.regular(f"swtdx/modules/{module.name}.ko", module.data) for module in loaded),
        *extra,
    ]
    # An uncompressed archive begins at a multiple of four (Linux init/initramfs.c, unpack_to_rootfs).
    return initrd + bytes(-len(initrd) % 4) + job_archive(job, entries)


def default_cmdline(job: Job, term: str = "") -> str:
    """A kernel command line that suits ``job``.

    The virtio console only (each byte over the serial port costs several TD exits), warnings only, and
    a restart at once after a panic, which ends the TD instead of leaving it spinning.  A restart goes by
    ACPI's reset register; left to itself, Linux looks for EFI on a hardware-reduced platform, and ends in
    a triple fault.

    Args:
        job: what the guest is to do.
        term: for a shell: the user's ``$TERM``; names with other characters than letters, digits and
            ``._+-`` are left out.
    """
    words = ["console=hvc0", "quiet", "panic=-1", "reboot=acpi"]
    # The kernel hands words that it does not know to init as environment variables.
    if isinstance(job, Shell) and _TERM.fullmatch(term):
        words.append(f"TERM={term}")
    return " ".join(words)


def _exec_files(job: Exec) -> dict[str, bytes]:
    command = job.command.encode("utf-8", "surrogateescape")
    if not command.strip():
        raise GuestError("there is no command to run in the TD")
    if b"\0" in command:
        raise GuestError("a command cannot hold a NUL byte")
    if len(command) > LONGEST_COMMAND:
        raise GuestError(
            f"a command of {len(command)} bytes is too long for Linux, which takes {LONGEST_COMMAND}; "
            "put it into a file of an initrd of your own"
        )
    if not job.marker_token.isalnum():
        raise GuestError(f"an exec token is made of letters and digits, not {job.marker_token!r}")
    files = {
        "command": command,
        "token": job.marker_token.encode() + b"\n",
        "exec.sh": _ours("exec.sh"),
    }
    if job.get:
        if any("\n" in path or "\0" in path or not path for path in job.get):
            raise GuestError("a path in the guest cannot be empty or hold a line's end or a NUL byte")
        files["get"] = "".join(f"{path}\n" for path in job.get).encode("utf-8", "surrogateescape")
    return files


def _check_static(program: bytes) -> None:
    """Refuse what the guest could not run: no ELF, another processor's, or dynamically linked."""
    if program[:6] != b"\x7fELF\x02\x01" or program[0x12:0x14] != b"\x3e\0":
        raise GuestError("busybox for the guest must be a 64-bit x86 ELF program")
    table = int.from_bytes(program[0x20:0x28], "little")
    size = int.from_bytes(program[0x36:0x38], "little")
    count = int.from_bytes(program[0x38:0x3A], "little")
    kinds = {program[table + i * size : table + i * size + 4] for i in range(count)}
    if b"\x03\0\0\0" in kinds:  # PT_INTERP
        raise GuestError(
            "busybox for the guest must be statically linked (Debian, Ubuntu: package busybox-static)"
        )


def _ours(name: str) -> bytes:
    return resources.files("swtdx.guests").joinpath(name).read_bytes()
