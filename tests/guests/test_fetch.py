"""Fetching, against an apt that is played by two small scripts and real packages."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from swtdx.guests.assemble import binutils_missing
from swtdx.guests.cache import Cache
from swtdx.guests.errors import CacheError, FetchError, NoTdxSupport
from swtdx.guests.fetch import available_kernels, fetch_guest
from swtdx.guests.firmware import fetch_firmware
from swtdx.guests.guest import cached_guests, open_guest
from swtdx.guests.initramfs import Exec
from tests.guests.bzimage import make_bzimage
from tests.guests.debs import build_deb, needs_dpkg

pytestmark = [
    needs_dpkg,
    pytest.mark.skipif(binutils_missing() is not None, reason="needs binutils"),
]

NEW, OLD = "6.12.113+deb12-cloud-amd64", "6.12.107+deb12-cloud-amd64"

APT_CACHE = """#!/bin/sh
# A stand-in: lists are the files $APT_TEST/lists/*; with -o Dir::State=… the private ones.
lists=$APT_TEST/lists
for argument; do case $argument in Dir::State::lists=*) lists=${argument#*=};; esac; done
while [ $# -gt 0 ]; do case $1 in -q) shift;; -o) shift 2;; *) break;; esac; done
echo "apt-cache $1" >>"$APT_TEST/log"
case $1 in
pkgnames) for f in "$lists"/"$2"*; do [ -e "$f" ] && basename "$f"; done; exit 0;;
show) shift 2; for n; do cat "$lists/$n" 2>/dev/null && echo; done; exit 0;;
esac
exit 1
"""
APT_GET = """#!/bin/sh
lists= sources=
for argument; do case $argument in
Dir::State::lists=*) lists=${argument#*=};;
Dir::Etc::sourcelist=*) sources=${argument#*=};;
esac; done
while [ $# -gt 0 ]; do case $1 in -q) shift;; -o) shift 2;; *) break;; esac; done
echo "apt-get $*" >>"$APT_TEST/log"
case $1 in
update)
    if [ "$2" = --print-uris ]; then
        for path in debian-security/dists/old-security debian/dists/old debian/dists/old-updates; do
            echo "'http://mirror.example/$path/InRelease' mirror.example_$path 0 "
        done
        exit
    fi
    [ -e "$APT_TEST/offline" ] && { echo "E: Could not resolve 'somewhere'" >&2; exit 100; }
    [ -z "$sources" ] || cp "$sources" "$APT_TEST/sources.list"
    cp "$APT_TEST"/fresh/* "$lists"/
    [ -e "$APT_TEST/partly" ] || exit 0
    : >"$lists/main_Packages.lz4"; echo "E: The repository 'elsewhere' is not signed." >&2; exit 100 ;;
download)
    file=$APT_TEST/pool/$(echo "$2" | sed 's/=/_/; s/:/%3a/')_amd64.deb
    [ -e "$file" ] || { echo "E: Failed to fetch $2  404  Not Found" >&2; exit 100; }
    cp "$file" . ;;
esac
"""


@dataclass
class FakeApt:
    root: Path

    def offer(self, name: str, version: str, files: dict[str, bytes], lists: str = "lists") -> None:
        """A package in the pool, and in the package lists ``lists`` (or "fresh", to be updated to)."""
        deb = build_deb(self.root / "pool", name, version, files)
        self.name(name, lists, version, deb.stat().st_size)

    def name(self, name: str, lists: str, version: str = "", size: int = 0) -> None:
        """A package in the lists only; without a version it is a mere name."""
        stanza = f"Package: {name}\nVersion: {version}\nSize: {size}\nFilename: pool/x.deb\nSHA256: 00\n"
        (self.root / lists / name).write_text(stanza if version else "")

    @property
    def log(self) -> str:
        path = self.root / "log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    root = tmp_path / "apt"
    for part in ("bin", "lists", "fresh", "pool"):
        (root / part).mkdir(parents=True)
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET)):
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("APT_TEST", str(root))
    return FakeApt(root)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def busybox() -> bytes:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    header[0x12] = 0x3E
    return bytes(header)


def module(tmp_path: Path, name: str, depends: str) -> bytes:
    source = f'.section .modinfo,"a"\n.asciz "name={name}"\n.asciz "depends={depends}"\n'
    out = tmp_path / f"{name}.o"
    subprocess.run(["as", "--64", "-o", str(out), "-"], input=source.encode(), check=True)
    return out.read_bytes()


def kernel_files(tmp_path: Path, release: str, tdx: bool = True) -> dict[str, bytes]:
    base = f"lib/modules/{release}/kernel"
    option = "CONFIG_INTEL_TDX_GUEST=y" if tdx else "# CONFIG_INTEL_TDX_GUEST is not set"
    return {
        f"boot/vmlinuz-{release}": make_bzimage(release.encode()),
        f"boot/config-{release}": f"CONFIG_X86_64=y\n{option}\n".encode(),
        f"{base}/drivers/tdx-guest.ko": module(tmp_path, "tdx_guest", "tsm"),
        f"{base}/drivers/tsm.ko": module(tmp_path, "tsm", ""),
        f"{base}/drivers/other.ko": b"not even ELF",
    }


@pytest.fixture
def stocked(apt: FakeApt, tmp_path: Path) -> FakeApt:
    apt.offer(f"linux-image-{OLD}", "6.12.107-1~deb12u1", kernel_files(tmp_path, OLD))
    apt.offer(f"linux-image-{NEW}", "6.12.113-1~deb12u1", kernel_files(tmp_path, NEW))
    apt.offer("busybox-static", "1:1.35.0-4", {"usr/bin/busybox": busybox()})
    for decoy in (f"linux-image-{NEW}-dbg", f"linux-image-{NEW}-unsigned", "linux-image-6.12-cloud-amd64"):
        apt.name(decoy, "lists", "9", 1)
    apt.name("linux-image-6.1.0-56-cloud-amd64", "lists", "6.1.158-1", 1)
    apt.name("linux-image-6.12.999+deb12-cloud-amd64", "lists")  # only ever mentioned by others
    return apt


def test_the_newest_kernel_with_its_modules_and_busybox(stocked: FakeApt, cache: Cache) -> None:
    guest = fetch_guest(cache=cache)
    assert guest.version == NEW
    assert guest.kernel.read_bytes() == make_bzimage(NEW.encode())
    assert [path.name for path in guest.modules] == ["tsm.ko", "tdx_guest.ko"]
    assert guest.busybox.read_bytes() == busybox()
    assert guest.config is not None
    assert guest.initramfs(Exec("true")).count(b"070701") > 10
    before = stocked.log
    assert fetch_guest(cache=cache) == guest == open_guest(NEW, cache)
    assert stocked.log == before, "the cache answers"
    assert "update" not in before


def test_another_version_on_request(stocked: FakeApt, cache: Cache) -> None:
    assert fetch_guest("6.12.107", cache=cache).version == OLD
    assert fetch_guest(NEW, cache=cache).version == NEW
    assert [guest.version for guest in cached_guests(cache)] == [NEW, OLD]
    assert fetch_guest("6.12.107", cache=cache).version == OLD
    assert available_kernels(cache=cache) == [NEW, OLD]


def test_a_version_that_is_not_there(stocked: FakeApt, cache: Cache) -> None:
    # "6.12.1" is no beginning of 6.12.113: versions end between their parts.
    for name in (stocked.root / "lists").iterdir():
        (stocked.root / "fresh" / name.name).write_bytes(name.read_bytes())
    with pytest.raises(FetchError, match=rf"no kernel 6\.12\.1 to be had; there are: .*{OLD[:8]}"):
        fetch_guest("6.12.1", cache=cache)


def test_damage_in_the_cache_is_mended_by_fetching_again(stocked: FakeApt, cache: Cache) -> None:
    guest = fetch_guest(cache=cache)
    guest.kernel.write_bytes(b"damaged")
    with pytest.raises(CacheError, match="vmlinuz is damaged"):
        open_guest(NEW, cache)
    assert cached_guests(cache) == []
    assert fetch_guest(cache=cache).kernel.read_bytes() == make_bzimage(NEW.encode())


def test_without_package_lists_private_ones_are_fetched(stocked: FakeApt, cache: Cache) -> None:
    for name in list((stocked.root / "lists").iterdir()):
        name.rename(stocked.root / "fresh" / name.name)
    assert fetch_guest(cache=cache).version == NEW
    assert stocked.log.count("apt-get update") == 1


def test_a_source_that_fails_beside_one_that_works(stocked: FakeApt, cache: Cache) -> None:
    for name in list((stocked.root / "lists").iterdir()):
        name.rename(stocked.root / "fresh" / name.name)
    (stocked.root / "partly").touch()
    assert fetch_guest(cache=cache).version == NEW


def test_outdated_package_lists(stocked: FakeApt, cache: Cache, tmp_path: Path) -> None:
    """The lists name a version that the mirror has replaced since."""
    for name in (stocked.root / "lists").iterdir():
        (stocked.root / "fresh" / name.name).write_bytes(name.read_bytes())
    stocked.name(f"linux-image-{NEW}", "lists", "6.12.113-0.gone", 7)
    assert fetch_guest(cache=cache).version == NEW
    assert stocked.log.count("apt-get update") == 1


def test_without_network(stocked: FakeApt, cache: Cache) -> None:
    for name in list((stocked.root / "lists").iterdir()):
        name.unlink()
    (stocked.root / "offline").touch()
    with pytest.raises(FetchError, match="Could not resolve 'somewhere'"):
        fetch_guest(cache=cache)


def test_a_kernel_that_cannot_be_a_td_does_not_get_into_the_cache(
    apt: FakeApt, cache: Cache, tmp_path: Path
) -> None:
    apt.offer(f"linux-image-{NEW}", "6.12.113-1", kernel_files(tmp_path, NEW, tdx=False))
    apt.offer("busybox-static", "1:1.35.0-4", {"bin/busybox": busybox()})
    with pytest.raises(NoTdxSupport, match=NEW[:8]):
        fetch_guest(cache=cache)
    assert cached_guests(cache) == []


def test_ubuntu_keeps_modules_in_a_package_of_their_own(apt: FakeApt, cache: Cache, tmp_path: Path) -> None:
    release = "6.8.0-60-generic"
    files = kernel_files(tmp_path, release)
    image = {name: data for name, data in files.items() if "vmlinuz" in name}
    apt.offer(f"linux-image-{release}", "6.8.0-60.63", image)
    apt.offer(f"linux-modules-{release}", "6.8.0-60.63", {k: v for k, v in files.items() if k not in image})
    apt.offer("busybox-static", "1:1.36.1-6", {"usr/bin/busybox": busybox()})
    guest = fetch_guest(cache=cache)
    assert guest.version == release
    assert [path.name for path in guest.modules] == ["tsm.ko", "tdx_guest.ko"]


def test_debian_splits_a_kernel_into_three_packages(apt: FakeApt, cache: Cache, tmp_path: Path) -> None:
    """As from Linux 6.17 on: the image package only depends on the others."""
    release = "7.2.13+deb14-cloud-amd64"
    root = f"usr/lib/modules/{release}"
    files = kernel_files(tmp_path, release)
    image = next(data for name, data in files.items() if "vmlinuz" in name)
    config = next(data for name, data in files.items() if "config" in name)
    modules = {f"usr/{name}": data for name, data in files.items() if name.endswith(".ko")}
    assert modules
    apt.offer(f"linux-image-{release}", "7.2.13-1", {"usr/share/doc/x": b"nothing of use"})
    apt.offer(f"linux-binary-{release}", "7.2.13-1", {f"{root}/vmlinuz": image})
    apt.offer(f"linux-modules-{release}", "7.2.13-1", modules)
    apt.offer(f"linux-base-{release}", "7.2.13-1", {f"{root}/config": config})
    apt.offer("busybox-static", "1:1.38.0-3", {"usr/bin/busybox": busybox()})
    guest = fetch_guest("7.2", cache=cache)
    assert guest.version == release
    assert guest.kernel.read_bytes() == image
    assert [path.name for path in guest.modules] == ["tsm.ko", "tdx_guest.ko"]


def test_ovmf(apt: FakeApt, cache: Cache) -> None:
    files = {"usr/share/ovmf/OVMF.fd": b"firmware", "usr/share/doc/ovmf/copyright": b"BSD"}
    apt.offer("ovmf", "2022.11-6", files)
    firmware = fetch_firmware(cache=cache)
    assert firmware.image.read_bytes() == b"firmware"
    assert firmware.version == "2022.11-6"
    before = apt.log
    assert fetch_firmware(cache=cache) == firmware
    assert apt.log == before


def test_ovmf_of_another_release(apt: FakeApt, cache: Cache) -> None:
    """Beside the system's own; where ovmf only depends on others, the one with the image is fetched."""
    apt.offer("ovmf", "2022.11-6", {"usr/share/ovmf/OVMF.fd": b"old"})
    apt.offer("ovmf", "2026.08-2", {"usr/share/doc/ovmf/copyright": b"BSD"}, lists="fresh")
    files = {"usr/share/ovmf/OVMF.fd": b"new", "usr/share/OVMF/OVMF_CODE_4M.fd": b"half"}
    apt.offer("ovmf-generic", "2026.08-2", files, lists="fresh")
    special = {"usr/share/ovmf/OVMF.inteltdx.ms.fd": b"secure"}
    apt.offer("ovmf-inteltdx", "2026.08-2", special, lists="fresh")
    found = fetch_firmware("newer", cache=cache)
    assert (found.version, found.image.read_bytes()) == ("2026.08-2", b"new")
    source = (apt.root / "sources.list").read_text().split()
    assert source[0] == "deb"
    assert source[-3:] == ["http://mirror.example/debian/", "newer", "main"]
    assert fetch_firmware("newer", "ovmf-inteltdx", cache=cache).image.read_bytes() == b"secure"
    assert fetch_firmware(cache=cache).version == "2022.11-6"
    before = apt.log
    assert fetch_firmware("newer", cache=cache) == found
    assert apt.log == before
    with pytest.raises(FetchError, match="is not the name of a release"):
        fetch_firmware("../etc", cache=cache)


def test_without_apt_the_message_says_what_to_do(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"apt-get not found.*swtdx run --kernel"):
        fetch_guest(cache=cache)


def test_a_full_disk_is_found_before_anything_is_fetched(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.root.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=5 << 20))
    with pytest.raises(CacheError, match="has 5 MiB free, and 129 MiB are needed"):
        fetch_guest(cache=cache)
