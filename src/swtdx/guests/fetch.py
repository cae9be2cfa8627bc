"""``swtdx guest fetch``: a kernel that can be a TD, its modules and busybox, from the system's package
sources, without root, into the cache.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from swtdx.guests.apt import Apt, Package
from swtdx.guests.cache import Cache
from swtdx.guests.deb import read_deb
from swtdx.guests.debversion import version_key
from swtdx.guests.errors import CacheError, FetchError, GuestError
from swtdx.guests.guest import TESTED, Guest, cached_guests, default_guest, open_guest, store_guest
from swtdx.guests.host import own_kernel_advice
from swtdx.guests.kernel import parse_kernel
from swtdx.guests.modules import CONSOLE, PERIPHERALS, WANTED, load_order
from swtdx.guests.progress import Quiet, Reporter
from swtdx.guests.tdx_support import require_tdx_support

T = TypeVar("T")

_BUSYBOX: Final = "busybox-static"
#: Bytes that fetching takes in the cache: package lists, where the system has none, and what is kept.
_LISTS_AND_FILES: Final = 128 << 20
#: linux-PART-RELEASE, as far as there are such packages.
_PARTS: Final = ("binary", "modules", "base")


@dataclass(frozen=True, slots=True)
class KernelFlavour:
    """How a distribution names kernel packages that suit a TD.

    ``modules`` is the prefix of the package with the modules, where they are not in the same one.
    """

    pattern: re.Pattern[str]
    modules: str = ""


#: In order of preference.  Debian's cloud kernel is small and has virtio and HVC built in.
#: Older kernels than 6.7 have no configfs-tsm.
FLAVOURS: Final = (
    KernelFlavour(re.compile(rf"linux-image-({re.escape(TESTED)}\.\d+\S*-cloud-amd64)")),
    KernelFlavour(re.compile(r"linux-image-((?:6\.(?:[7-9]|[1-9]\d)|[7-9]|\d\d)\.\d+\S*-cloud-amd64)")),
    KernelFlavour(
        re.compile(r"linux-image-((?:6\.(?:[7-9]|[1-9]\d)|[7-9]|\d\d)\.\d+-\d+-generic)"), "linux-modules-"
    ),
)


def fetch_guest(
    version: str | None = None,
    *,
    progress: Reporter | None = None,
    cache: Cache | None = None,
    again: bool = False,
) -> Guest:
    """A guest from the cache, or from the system's package sources.

    Args:
        version: a kernel release ("6.12.107+deb12-cloud-amd64") or its beginning ("6.12.107"); by default
            the newest of the tested series, from the cache if it has any, else the newest.
        progress: told what happens.
        cache: by default the user's.
        again: fetch even if the cache has it.

    Raises:
        FetchError: there is no apt here, no such kernel, or no way to reach the sources.
        CacheError: the cache cannot be written.
        NoTdxSupport: what was fetched cannot be a TD.
    """
    cache = cache or Cache()
    progress = progress or Quiet()
    if not again and (guest := _from_cache(version, cache)):
        return guest
    with cache.lock(progress):
        # Another process may have fetched it while this one waited.
        if not again and (guest := _from_cache(version, cache)):
            return guest
        apt = open_apt(cache)
        kernel, flavour = with_lists(apt, progress, lambda: _choose_kernel(apt, version))
        with tempfile.TemporaryDirectory(prefix="swtdx-fetch-") as scratch:
            return _fetch_kernel(apt, kernel, flavour, Path(scratch), cache, progress)


def available_kernels(*, progress: Reporter | None = None, cache: Cache | None = None) -> list[str]:
    """Releases of the kernels that can be fetched, the preferred first.

    Raises:
        FetchError: there is no apt here, or no list of packages to be had.
    """
    apt = open_apt(cache or Cache())
    return with_lists(apt, progress or Quiet(), lambda: [release for release, _, _ in _kernels(apt)])


def _from_cache(version: str | None, cache: Cache) -> Guest | None:
    """The newest cached guest of that version (or beginning of a version), or the default one."""
    if version is not None:
        try:
            return open_guest(version, cache)
        except CacheError:
            pass
    if version is None:
        try:
            return default_guest(cache)
        except CacheError:
            return None
    return next((guest for guest in cached_guests(cache) if _is_version(guest.version, version)), None)


def open_apt(cache: Cache, suite: str | None = None) -> Apt:
    """The system's apt, for packages of ``suite`` if one is given.

    Raises:
        FetchError: there is none; CacheError: the disk is full.
    """
    if cache.root.is_dir():
        _check_room(cache.root, _LISTS_AND_FILES)
    try:
        return Apt(cache.root / ("apt" if suite is None else f"apt-{suite}"), suite)
    except FetchError as error:
        raise FetchError(
            f"{error}: swtdx fetches guests through apt (Debian, Ubuntu). {own_kernel_advice()}"
        ) from error


def with_lists(apt: Apt, progress: Reporter, ask: Callable[[], T]) -> T:
    """Ask; if the system's package lists do not have it, ask again with fresh private ones."""
    try:
        return ask()
    except FetchError:
        if apt.private:
            raise
    apt.use_private_lists(progress)
    return ask()


def one_package(apt: Apt, name: str) -> Package:
    """The package ``name``.

    Raises:
        FetchError: there is none.
    """
    found = apt.packages([name])
    if not found:
        raise FetchError(f"the system's package sources have no {name}; see /etc/apt/sources.list")
    return found[0]


def _kernels(apt: Apt) -> list[tuple[str, Package, KernelFlavour]]:
    """(release, package, flavour) of everything suitable, the best flavour's newest first."""
    names = apt.names("linux-image-")
    found: list[tuple[str, Package, KernelFlavour]] = []
    taken: set[str] = set()
    for flavour in FLAVOURS:
        matching = [name for name in names if name not in taken and flavour.pattern.fullmatch(name)]
        taken.update(matching)
        packages = sorted(
            apt.packages(matching), key=lambda package: version_key(package.version), reverse=True
        )
        found += [(package.name.removeprefix("linux-image-"), package, flavour) for package in packages]
    if not found:
        raise FetchError(
            "the system's package sources have no kernel that suits a TD; see /etc/apt/sources.list "
            "(on Debian 12 the source bookworm-security has one)"
        )
    return found


def _choose_kernel(apt: Apt, version: str | None) -> tuple[Package, KernelFlavour]:
    kernels = _kernels(apt)
    for release, package, flavour in kernels:
        if version is None or _is_version(release, version):
            return package, flavour
    known = ", ".join(release for release, _, _ in kernels[:8])
    raise FetchError(f"there is no kernel {version} to be had; there are: {known}")


def _is_version(release: str, wanted: str) -> bool:
    """Whether ``wanted`` is ``release`` or a beginning of it that ends between its parts."""
    return release == wanted or (release.startswith(wanted) and not release[len(wanted)].isalnum())


def download(apt: Apt, package: Package, into: Path, progress: Reporter) -> Path:
    """Download; if the system's lists are so old that the file is gone, with fresh private lists."""
    try:
        return apt.download(package, into, progress)
    except FetchError:
        if apt.private:
            raise
    apt.use_private_lists(progress)
    return apt.download(one_package(apt, package.name), into, progress)


def _fetch_kernel(
    apt: Apt, package: Package, flavour: KernelFlavour, scratch: Path, cache: Cache, progress: Reporter
) -> Guest:
    release = package.name.removeprefix("linux-image-")
    # Newer packages of Debian have the kernel, its modules and its configuration in a package each.
    parts = {part.name: part for part in apt.packages(f"linux-{part}-{release}" for part in _PARTS)}
    if flavour.modules and flavour.modules + release not in parts:
        one_package(apt, flavour.modules + release)
    sources = [package, *parts.values(), one_package(apt, _BUSYBOX)]
    _check_room(scratch, sum(source.size for source in sources))
    files: dict[str, bytes] = {}
    for source in sources:
        path = download(apt, source, scratch, progress)
        progress.step(f"unpacking {source.name}")
        files |= read_deb(path, _is_wanted)
        path.unlink()
    # Distributions differ in whether / and /usr are one.
    files = {name.removeprefix("usr/"): data for name, data in files.items()}
    root = f"lib/modules/{release}/"
    kernel = files.get(f"boot/vmlinuz-{release}") or files.get(f"{root}vmlinuz")
    busybox = files.get("bin/busybox")
    if kernel is None or busybox is None:
        missing_file = "kernel" if kernel is None else "busybox"
        raise FetchError(
            f"{', '.join(source.name for source in sources)}: no {missing_file} in these packages"
        )
    config = files.get(f"boot/config-{release}") or files.get(f"{root}config")
    progress.step("checking")
    config_path = scratch / f"config-{release}"
    if config is not None:
        config_path.write_bytes(config)
    require_tdx_support(parse_kernel(kernel, f"vmlinuz-{release}"), config_path if config else None)
    builtin = files.get(f"{root}modules.builtin", b"").decode("utf-8", "replace").splitlines()
    readers = {name: (lambda name=name: files[name]) for name in files if name.startswith(root)}
    console, _ = load_order(readers, builtin, CONSOLE)
    modules, missing = load_order(readers, builtin, (*(module.name for module in console), *WANTED))
    if missing:
        raise GuestError(f"{package.name} has no kernel module {', '.join(missing)}")
    names = {module.name for module in modules}
    peripherals = [name for wanted in PERIPHERALS.values() for name in wanted]
    more = [module for module in load_order(readers, builtin, peripherals)[0] if module.name not in names]
    return store_guest(
        cache,
        version=release,
        kernel=kernel,
        config=config,
        modules=modules,
        busybox=busybox,
        source=f"{package.name} {package.version}, fetched by apt",
        packages={source.name: source.version for source in sources},
        more=more,
    )


def _check_room(folder: Path, wanted: int) -> None:
    """Find out before the download that a disk is full.

    Raises:
        CacheError: ``folder`` has not ``wanted`` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise CacheError(
            f"{folder} has {free >> 20} MiB free, and {(wanted >> 20) + 1} MiB are needed; make room there, "
            "or point XDG_CACHE_HOME and TMPDIR to another disk"
        )


def _is_wanted(name: str) -> bool:
    return (
        name.removeprefix("usr/").startswith(("boot/vmlinuz-", "boot/config-", "lib/modules/"))
        or name.removeprefix("usr/") == "bin/busybox"
    )
