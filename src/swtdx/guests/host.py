"""Kernels of the user's own: those in /boot, and an initramfs for any kernel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from swtdx.guests.cache import Cache
from swtdx.guests.cpio import Entry
from swtdx.guests.debversion import version_key
from swtdx.guests.errors import GuestError
from swtdx.guests.guest import cached_guests
from swtdx.guests.initramfs import Job, build_initramfs
from swtdx.guests.kernel import KernelImage, load_kernel
from swtdx.guests.modules import CONSOLE, WANTED, Module, load_order, module_name
from swtdx.guests.tdx_support import Answer, config_beside, tdx_support

BOOT = Path("/boot")
MODULES = Path("/lib/modules")


def own_kernels(boot: Path = BOOT) -> Iterator[KernelImage]:
    """The readable kernels in ``boot`` that can be a TD, the newest first."""
    paths = sorted(boot.glob("vmlinuz-*"), key=lambda path: version_key(path.name), reverse=True)
    if boot == BOOT:
        # Where newer packages have only these.
        inside = MODULES.glob("*/vmlinuz")
        paths += sorted(inside, key=lambda path: version_key(path.parent.name), reverse=True)
    for path in paths:
        try:
            kernel = load_kernel(path)
        except GuestError:
            continue
        if tdx_support(kernel, config_beside(path, kernel.release)).answer is Answer.YES:
            yield kernel


def own_kernel_advice(boot: Path = BOOT) -> str:
    """A sentence on what to do where nothing can be fetched."""
    own = next(own_kernels(boot), None)
    if own is not None:
        return f"Your own kernel can be a TD, too: swtdx run --kernel {own.name}"
    if any(not os.access(path, os.R_OK) for path in boot.glob("vmlinuz-*")):
        return (
            f"The kernels in {boot} are not readable by you; copy one as root, chown it, and give it: "
            "swtdx run --kernel FILE"
        )
    return (
        "Give a kernel of your own that has CONFIG_INTEL_TDX_GUEST=y (swtdx run --kernel FILE), "
        "or copy ~/.cache/swtdx/guests from a machine that has apt."
    )


def own_modules(release: str, root: Path = MODULES, wanted: Iterable[str] = ()) -> tuple[Module, ...]:
    """The modules that a TD wants, and ``wanted``, from ``root``/``release``, in load order.

    None if they are not there.

    Raises:
        GuestError: a module file is damaged.
    """
    # The release comes out of a file: it must not lead elsewhere.
    base = root / release
    if not release or "/" in release or not base.is_dir():
        return ()
    files: dict[str, Callable[[], bytes]] = {
        str(path): path.read_bytes for path in base.rglob("*.ko*") if module_name(path.name)
    }
    builtin = base / "modules.builtin"
    lines = builtin.read_text("utf-8", "replace").splitlines() if builtin.is_file() else []
    modules, _ = load_order(files, lines, (*CONSOLE, *WANTED, *wanted))
    return modules


def find_busybox(cache: Cache | None = None) -> bytes:
    """A static busybox: from the newest cached guest, else the system's.

    Raises:
        GuestError: there is none; the message says how to get one.
    """
    guest = next(iter(cached_guests(cache)), None)
    if guest is not None:
        return guest.busybox.read_bytes()
    for name in ("busybox", "busybox-static", "busybox.static"):
        found = shutil.which(name)
        if found:
            data = Path(found).read_bytes()
            try:
                build_initramfs(data)
            except GuestError:
                continue
            return data
    raise GuestError(
        "there is no static busybox here to build an initramfs from; run `swtdx guest fetch`, install "
        "busybox-static, or give an initrd of your own (--initrd)"
    )


def modules_for(kernel: KernelImage, root: Path = MODULES, wanted: Iterable[str] = ()) -> tuple[Module, ...]:
    """The modules that a TD wants, and ``wanted``, from the folders around ``kernel``, else from ``root``.

    Packages keep a kernel in ``boot`` or, newer ones, in ``lib/modules/RELEASE`` itself; unpacked, or on a
    mounted disk, the modules are beside it all the same.

    Raises:
        GuestError: a module file is damaged.
    """
    names = tuple(wanted)
    folder = Path(kernel.name).parent
    around = [folder.parent] if folder.name == kernel.release else []
    around += [folder.parent / "lib/modules", folder.parent / "usr/lib/modules", root]
    return next((found for place in around if (found := own_modules(kernel.release, place, names))), ())


def initramfs_for(
    kernel: KernelImage,
    job: Job | None = None,
    extra: Iterable[Entry] = (),
    *,
    cache: Cache | None = None,
    modules: Path = MODULES,
    wanted: Iterable[str] = (),
) -> bytes:
    """An initrd for any kernel: its modules if this system has them, and a busybox found somewhere.

    Raises:
        GuestError: no busybox, or a damaged module.
    """
    return build_initramfs(find_busybox(cache), modules_for(kernel, modules, wanted), job, extra)
