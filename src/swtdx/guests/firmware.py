"""``swtdx guest firmware``: OVMF with TDX support, from package sources of any release, into the cache."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.guests.apt import Apt, Package
from swtdx.guests.cache import Cache
from swtdx.guests.deb import read_deb
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import download, one_package, open_apt, with_lists
from swtdx.guests.progress import Quiet, Reporter

KIND: Final = "firmware"
#: Packages with a TDVF image, the usual one first.
PACKAGES: Final = ("ovmf", "ovmf-inteltdx")
_IMAGE: Final = "OVMF.fd"
#: Since 2026 Debian's package ovmf only depends on others, of which this one has the image.
_GENERIC: Final = "ovmf-generic"
_SUITE: Final = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Firmware:
    """An OVMF image: one file with code and variables, and the package version it came from."""

    image: Path
    version: str


def fetch_firmware(
    suite: str | None = None,
    package: str = PACKAGES[0],
    *,
    progress: Reporter | None = None,
    cache: Cache | None = None,
    again: bool = False,
) -> Firmware:
    """OVMF with TDX support, from the cache or from package sources.

    Args:
        suite: a release of the distribution ("trixie", "sid"); the system's own by default.
        package: one of :data:`PACKAGES`.
        progress: told what happens.
        cache: by default the user's.
        again: fetch even if the cache has it.

    Raises:
        FetchError: there is no apt here, no such package, or no way to reach the sources.
        CacheError: the cache cannot be written.
    """
    if suite is not None and not _SUITE.fullmatch(suite):
        raise FetchError(f"{suite!r} is not the name of a release, such as trixie")
    cache = cache or Cache()
    progress = progress or Quiet()
    name = package if suite is None else f"{package}-{suite}"
    if not again and (firmware := _cached(cache, name)):
        return firmware
    with cache.lock(progress), tempfile.TemporaryDirectory(prefix="swtdx-fetch-") as scratch:
        if not again and (firmware := _cached(cache, name)):
            return firmware
        apt = open_apt(cache, suite)
        if suite is not None:
            apt.use_private_lists(progress)
        found = with_lists(apt, progress, lambda: one_package(apt, package))
        files = _unpack(apt, found, Path(scratch), progress)
        if _image(files) is None and package == PACKAGES[0]:
            found = one_package(apt, _GENERIC)
            files = _unpack(apt, found, Path(scratch), progress)
        image = _image(files)
        if image is None:
            raise FetchError(f"package {found.name} {found.version} holds no OVMF image")
        copyright_ = next((data for file, data in files.items() if file.endswith("/copyright")), b"")
        contents = {_IMAGE: image, "copyright": copyright_}
        entry = cache.store(KIND, name, contents, {"version": found.version})
        return Firmware(entry.path(_IMAGE), found.version)


def _unpack(apt: Apt, package: Package, scratch: Path, progress: Reporter) -> dict[str, bytes]:
    path = download(apt, package, scratch, progress)
    progress.step(f"unpacking {package.name}")
    return read_deb(path, lambda name: name.endswith((".fd", "/copyright")))


def _image(files: dict[str, bytes]) -> bytes | None:
    """The image with code and variables in one: OVMF.fd, or that of a special build (OVMF.inteltdx.ms.fd)."""
    names = sorted(name for name in files if re.search(r"/ovmf/OVMF\.(\w+\.)*fd$", name))
    return files[names[0]] if names else None


def _cached(cache: Cache, name: str) -> Firmware | None:
    try:
        entry = cache.open(KIND, name)
        return Firmware(entry.path(_IMAGE), str(entry.details["version"]))
    except (CacheError, KeyError):
        return None
