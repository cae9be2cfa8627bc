"""Installing what swtdx needs of the system, by the system's own package manager."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Manager:
    """A package manager: how it installs without asking, and what it calls QEMU.

    ``refresh`` brings its lists up to date; it is used only when installing has failed.  ``names`` are its
    packages for programs that some tests compare with.
    """

    tool: str
    install: tuple[str, ...]
    qemu: str
    refresh: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    needs_root: bool = True
    names: dict[str, str] = field(default_factory=dict)


MANAGERS: Final = (
    Manager(
        "apt-get",
        ("install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"),
        "qemu-system-x86",
        refresh=("update", "-o", "DPkg::Lock::Timeout=120"),
        environment=("DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"),
        names={
            "as": "binutils",
            "gdb": "gdb",
            "iasl": "acpica-tools",
            "mcopy": "mtools",
            "mkfs.ext4": "e2fsprogs",
            "mkfs.vfat": "dosfstools",
            "mmdebstrap": "mmdebstrap",
            "passt": "passt",
            "qemu-nbd": "qemu-utils",
            "sfdisk": "fdisk",
            "ssh": "openssh-client",
            "cpio": "cpio",
            "npm": "npm",
            "openssl": "openssl",
        },
    ),
    Manager("dnf", ("install", "--assumeyes"), "qemu-system-x86-core"),
    Manager("zypper", ("--non-interactive", "install"), "qemu-x86"),
    Manager("pacman", ("-S", "--noconfirm", "--needed"), "qemu-system-x86", refresh=("-Sy",)),
    Manager("apk", ("add",), "qemu-system-x86_64", refresh=("update",)),
    Manager("brew", ("install",), "qemu", needs_root=False),
)


class CannotInstall(Exception):
    """It is not installed; the message says why, and what to type."""


def find_manager() -> Manager | None:
    """The package manager of this system, or None."""
    return next((manager for manager in MANAGERS if shutil.which(manager.tool)), None)


def what_to_type(manager: Manager, packages: Sequence[str]) -> str:
    """The command for a person who may do it."""
    words = [manager.tool, *(word for word in manager.install if word not in ("--yes", "--assumeyes"))]
    if manager.tool == "apt-get":
        words = ["apt-get", "install", "--no-install-recommends"]
    return shlex.join([*(["sudo"] if manager.needs_root else []), *words, *packages])


def become_root() -> list[str] | None:
    """Words to put before a command so that root runs it, without a password being asked for; or None."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        done = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
        if done.returncode == 0:
            return ["sudo", "-n"]
    return None


def install(manager: Manager, packages: Sequence[str], show: Callable[[str], None] | None = None) -> None:
    """Install ``packages``.

    Args:
        manager: see :func:`find_manager`.
        packages: its names for them.
        show: gets every line that the package manager prints; by default they are dropped.

    Raises:
        CannotInstall: no right to, or the package manager failed; its own words follow.
    """
    prefix = become_root() if manager.needs_root else []
    if prefix is None:
        raise CannotInstall(
            f"installing {' '.join(packages)} takes root; type: {what_to_type(manager, packages)}"
        )
    prefix = [*prefix, "env", *manager.environment] if manager.environment else prefix
    command = [*prefix, manager.tool, *manager.install, *packages]
    status, words = _run(command, show)
    if status and manager.refresh:
        # No lists yet (a fresh container), or lists so old that the files are gone.  A source that cannot
        # be reached does not matter if another one has the package.
        _run([*prefix, manager.tool, *manager.refresh], show)
        status, words = _run(command, show)
    if status:
        raise CannotInstall(
            f"{manager.tool} could not install {' '.join(packages)}:\n{words.strip()}\n"
            f"When that is mended, type: {what_to_type(manager, packages)}"
        )


def _run(command: Sequence[str], show: Callable[[str], None] | None) -> tuple[int, str]:
    """Exit status, and everything printed."""
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if show is not None:
                show(line)
    return process.returncode, "".join(lines)
