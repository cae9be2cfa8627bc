"""What ``swtdx run`` boots: a kernel, an initrd and a command line, out of what the user gave or has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.guests.added import Addition, entries
from swtdx.guests.cpio import Entry
from swtdx.guests.errors import CacheError, FetchError, GuestError
from swtdx.guests.files import read_file
from swtdx.guests.guest import Guest, default_guest, default_version
from swtdx.guests.initramfs import WRAPPED_INIT, Exec, Job, Serve, default_cmdline, wrapped_initrd
from swtdx.guests.kernel import KernelImage, load_kernel
from swtdx.guests.modules import PERIPHERALS
from swtdx.guests.peripherals import peripheral_files
from swtdx.guests.tdx_support import config_beside, require_tdx_support

#: For an initrd of the user's own: the virtio console, and no spinning after a panic.
OWN_INITRD_CMDLINE = "console=hvc0 panic=-1 reboot=acpi"


@dataclass(frozen=True, slots=True)
class Boot:
    """What to boot.  ``kernel`` is None for the tiny guest that swtdx carries with it."""

    kernel: KernelImage | None
    initrd: bytes
    cmdline: str
    label: str


TINY = Boot(None, b"", "", "swtdx's tiny guest")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user said about the kernel.

    Args:
        kernel: a bzImage of the user's own.
        initrd: an initrd of the user's own, for ``kernel``.
        version: of a fetched kernel, or the beginning of it.
        cmdline: replaces the command line.
        append: is added to it.
        force: takes a kernel that seems to have no TDX guest support.
        added: files of the user's own for the guest.
        peripherals: what the guest has besides its console, by the names of
            :data:`swtdx.guests.modules.PERIPHERALS`: an initramfs of ours loads their drivers.
        shares: tags of shared folders: an initramfs of ours mounts them at /mnt/TAG.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    version: str | None = None
    cmdline: str | None = None
    append: str = ""
    force: bool = False
    added: tuple[Addition, ...] = ()
    peripherals: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules for the peripherals."""
        return tuple(name for kind in self.peripherals for name in PERIPHERALS[kind])


def choose(wishes: Wishes, job: Job, term: str, say: Callable[[str], None]) -> Boot:
    """Decide what to boot, and refuse what cannot be a TD, before anything starts.

    Args:
        wishes: see :class:`Wishes`.
        job: what the guest is to do.
        term: the terminal's type, for a shell.
        say: told what is not as the user might expect.

    Raises:
        GuestError: a file is unusable, the kernel cannot be a TD, or no kernel is to be had that could run
            the command of an exec job.
    """
    extra = [*entries(wishes.added), *peripheral_files(wishes.peripherals, wishes.shares)]
    if wishes.kernel is not None:
        return _own_kernel(wishes, wishes.kernel, job, term, extra)
    try:
        guest = _fetched(wishes.version, say, more=bool(wishes.modules))
    except (FetchError, CacheError) as error:
        if wishes.version is not None or isinstance(job, Exec | Serve):
            raise
        say(f"{error}\nSo this is only the tiny guest that swtdx carries with it.")
        return TINY
    return Boot(
        guest.kernel_image(),
        guest.initramfs(job, extra, wishes.modules),
        _cmdline(wishes, default_cmdline(job, term)),
        guest.version,
    )


def _fetched(version: str | None, say: Callable[[str], None], *, more: bool = False) -> Guest:
    """From the cache if it has one, with ``more`` modules if it needs them; else by the package tool."""
    guest = None
    if version is None:
        try:
            guest = default_guest()
        except CacheError as error:
            version = default_version()
            say(f"{error}\nFetching {version} again.")
    if guest is None:
        from swtdx.guests.fetch import fetch_guest
        from swtdx.guests.progress import Bar

        with Bar() as bar:
            guest = fetch_guest(version, progress=bar)
    if more and guest.more is None:
        from swtdx.guests.fetch import fetch_guest
        from swtdx.guests.progress import Bar

        # It was fetched by a swtdx that kept no modules for peripherals.
        with Bar() as bar:
            guest = fetch_guest(guest.version, progress=bar, again=True)
    return guest


def _own_kernel(wishes: Wishes, path: Path, job: Job, term: str, extra: list[Entry]) -> Boot:
    kernel = load_kernel(path)
    require_tdx_support(kernel, config_beside(path, kernel.release), force=wishes.force)
    label = kernel.release or path.name
    if wishes.initrd is None:
        from swtdx.guests.host import initramfs_for

        initrd = initramfs_for(kernel, job, extra, wanted=wishes.modules)
        return Boot(kernel, initrd, _cmdline(wishes, default_cmdline(job, term)), label)
    initrd = _read(wishes.initrd)
    if not isinstance(job, Exec | Serve):
        return Boot(kernel, initrd, _cmdline(wishes, OWN_INITRD_CMDLINE), label)
    from swtdx.guests.host import find_busybox, modules_for

    cmdline = _cmdline(wishes, default_cmdline(job, term))
    # The user's init is started by ours, which the last rdinit= on the command line names.
    own_init = next((w[7:] for w in reversed(cmdline.split()) if w.startswith("rdinit=")), "/init")
    wrapped = wrapped_initrd(
        initrd, find_busybox(), modules_for(kernel), job, entries(wishes.added), own_init
    )
    return Boot(kernel, wrapped, f"{cmdline} {WRAPPED_INIT}", label)


def _cmdline(wishes: Wishes, default: str) -> str:
    base = default if wishes.cmdline is None else wishes.cmdline
    return f"{base} {wishes.append}".strip()


#: Bytes of an initrd at most: more than memory of a TD here.
_LARGEST_INITRD: Final = 4 << 30


def _read(path: Path) -> bytes:
    try:
        return read_file(path, "an initrd", _LARGEST_INITRD)
    except OSError as error:
        raise GuestError(f"the initrd {path} cannot be read: {error.strerror}") from error
