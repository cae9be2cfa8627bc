"""The initramfs of swtdx's own hosts: busybox, modules, more files, and ``init.sh`` with a command for it."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Final

from swtdx.guests import cpio
from swtdx.guests.exec_protocol import default_token
from swtdx.host.errors import HostError

_DIRECTORIES: Final = (
    "bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "swtdx", "sys", "tmp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostModule:
    """A kernel module and its parameters, as insmod takes them."""

    name: str
    data: bytes
    parameters: str = ""


def host_archive(
    busybox: bytes,
    modules: Iterable[HostModule] = (),
    command: str | None = None,
    extra: Iterable[cpio.Entry] = (),
) -> bytes:
    """The initrd: ``command`` is run and the host switched off; without one there is a shell.

    Args:
        busybox: a static x86-64 busybox.
        modules: in load order.
        command: for ``sh -c``.
        extra: more files, and the folders that they need.

    Raises:
        HostError: one of them would take the place of one of ours.
    """
    loaded = list(modules)
    entries = [cpio.directory(path) for path in _DIRECTORIES]
    order = "".join(f"{module.name} {module.parameters}".rstrip() + "\n" for module in loaded)
    entries += [
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.regular("init", resources.files("swtdx.host").joinpath("init.sh").read_bytes(), 0o755),
        cpio.regular("bin/busybox", busybox, 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.regular("lib/modules/order", order.encode()),
    ]
    entries += [cpio.regular(f"lib/modules/{module.name}.ko", module.data) for module in loaded]
    if command is not None:
        entries += [
            cpio.regular("swtdx/command", command.encode("utf-8", "surrogateescape"), 0o600),
            cpio.regular("swtdx/token", default_token(command).encode() + b"\n", 0o600),
        ]
    ours = {entry.path for entry in entries}
    for entry in extra:
        if entry.path not in ours:
            entries.append(entry)
        elif not stat.S_ISDIR(entry.mode):
            raise HostError(f"/{entry.path} is the host's own: put the file elsewhere")
    return cpio.archive(entries)
