"""A guest: a kernel with what it takes to boot it, as files that can be handed around."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swtdx.guests.cache import Cache, CacheEntry
from swtdx.guests.cpio import Entry
from swtdx.guests.debversion import version_key
from swtdx.guests.errors import CacheError
from swtdx.guests.initramfs import Job, build_initramfs
from swtdx.guests.kernel import KernelImage, load_kernel
from swtdx.guests.modules import Module, load_order

KIND: Final = "guests"
#: The series of kernels that swtdx is tested and measured with: the default where there is a choice.
TESTED: Final = "6.12"


@dataclass(frozen=True, slots=True)
class Guest:
    """A kernel, its modules and a busybox.

    ``modules`` are uncompressed, in the order in which they can be loaded; ``version`` is what
    ``uname -r`` will print; ``source`` says in words where all this came from.  ``more`` are modules for
    peripherals, None where they were not kept.
    """

    version: str
    kernel: Path
    modules: tuple[Path, ...]
    busybox: Path
    config: Path | None
    source: str
    more: tuple[Path, ...] | None = None

    def kernel_image(self) -> KernelImage:
        """The parsed kernel.

        Raises:
            NotAKernel: see :func:`swtdx.guests.kernel.load_kernel`.
        """
        return load_kernel(self.kernel)

    def load_modules(self, wanted: Iterable[str] = ()) -> tuple[Module, ...]:
        """The modules' contents, and behind them those of ``wanted`` in ``more``, with what they need.

        Raises:
            GuestError: a module is damaged.
        """
        base = tuple(Module(path.name.removesuffix(".ko"), path.read_bytes()) for path in self.modules)
        files = {str(path): path.read_bytes for path in self.more or ()}
        # What is in neither is part of the kernel.
        more, _ = load_order(files, (f"{module.name}.ko" for module in base), wanted)
        return base + more

    def initramfs(
        self, job: Job | None = None, extra: Iterable[Entry] = (), wanted: Iterable[str] = ()
    ) -> bytes:
        """An initrd that does ``job`` (by default: a shell) and also has the files ``extra``.

        ``wanted`` are names of modules that it loads, beside those that every guest has.
        """
        return build_initramfs(self.busybox.read_bytes(), self.load_modules(wanted), job, extra)


def store_guest(
    cache: Cache,
    *,
    version: str,
    kernel: bytes,
    config: bytes | None,
    modules: Iterable[Module],
    busybox: bytes,
    source: str,
    packages: dict[str, str],
    more: Iterable[Module] = (),
) -> Guest:
    """Put a guest into the cache.  Hold the cache's lock.

    Args:
        cache: where to.
        version: the kernel's release.
        kernel: the bzImage.
        config: its configuration file.
        modules: in load order, uncompressed.
        busybox: a static busybox.
        source: where all this came from, for people.
        packages: package name → version, for the record.
        more: modules for peripherals.

    Raises:
        CacheError: the cache cannot be written.
    """
    loaded = list(modules)
    files = {"vmlinuz": kernel, "busybox": busybox}
    files |= {f"modules/{module.name}.ko": module.data for module in loaded}
    also = list(more)
    files |= {f"more/{module.name}.ko": module.data for module in also}
    if config is not None:
        files["config"] = config
    details = {
        "version": version,
        "modules": [module.name for module in loaded],
        "more": [module.name for module in also],
        "source": source,
        "packages": packages,
    }
    return _guest(cache.store(KIND, _entry_name(version), files, details))


def open_guest(version: str, cache: Cache | None = None) -> Guest:
    """The cached guest with exactly this release, every file checked.

    Raises:
        CacheError: there is none, or it is damaged.
    """
    return _guest((cache or Cache()).open(KIND, _entry_name(version)))


def cached_guests(cache: Cache | None = None) -> list[Guest]:
    """Every undamaged guest in the cache, the newest kernel first."""
    return list(_newest_first(cache or Cache()))


def default_version(cache: Cache | None = None) -> str | None:
    """The release in the cache that runs where none is named; None if the cache is empty.

    The newest of the tested series, else the newest of all: that another kernel was fetched for a try does
    not change what runs, and what is measured, from then on.
    """
    versions = [name.removeprefix("linux-") for name in (cache or Cache()).names(KIND)]
    tested = [version for version in versions if version.startswith(f"{TESTED}.")]
    return max(tested or versions, key=version_key, default=None)


def default_guest(cache: Cache | None = None) -> Guest | None:
    """The guest with the release of :func:`default_version`; None if the cache is empty.

    Raises:
        CacheError: it is damaged: another one in its place would be a surprise.
    """
    version = default_version(cache)
    return None if version is None else open_guest(version, cache)


def _newest_first(cache: Cache) -> Iterator[Guest]:
    for name in sorted(cache.names(KIND), key=version_key, reverse=True):
        try:
            yield _guest(cache.open(KIND, name))
        except CacheError:
            continue


def _entry_name(version: str) -> str:
    return f"linux-{version}"


def _guest(entry: CacheEntry) -> Guest:
    details: Any = entry.details
    try:
        names = [str(name) for name in details["modules"]]
        return Guest(
            version=str(details["version"]),
            kernel=entry.path("vmlinuz"),
            modules=tuple(entry.path(f"modules/{name}.ko") for name in names),
            busybox=entry.path("busybox"),
            config=entry.path("config") if "config" in entry.files else None,
            source=str(details["source"]),
            more=(
                tuple(entry.path(f"more/{name}.ko") for name in details["more"])
                if "more" in details
                else None
            ),
        )
    except (KeyError, TypeError) as error:
        raise CacheError(f"{entry.directory} was not written by swtdx: remove it") from error
