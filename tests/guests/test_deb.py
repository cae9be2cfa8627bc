"""Reading packages that the real dpkg-deb wrote; comparing versions as the real dpkg does."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from swtdx.guests.deb import read_deb
from swtdx.guests.debversion import version_key
from swtdx.guests.errors import PackageError
from tests.guests.debs import build_deb, needs_dpkg

FILES = {"boot/vmlinuz-1": random.Random(1).randbytes(70_001), "lib/modules/1/a.ko": b"A", "usr/share/x": b""}


@needs_dpkg
@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "none"])
def test_every_compression(tmp_path: Path, compression: str) -> None:
    deb = build_deb(tmp_path, "linux", "1", FILES, compression)
    assert read_deb(deb, lambda name: True) == FILES
    assert list(read_deb(deb, lambda name: name.startswith("boot/"))) == ["boot/vmlinuz-1"]


@needs_dpkg
def test_links_are_not_followed_out_of_the_package(tmp_path: Path) -> None:
    tree = tmp_path / "t"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: t <t@e.org>\nDescription: t\n"
    )
    (tree / "bin").mkdir()
    (tree / "bin/busybox").symlink_to("/etc/passwd")
    (tree / "bin/one").write_bytes(b"data")
    (tree / "bin/two").hardlink_to(tree / "bin/one")
    deb = tmp_path / "x.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(deb)], check=True, capture_output=True)
    assert read_deb(deb, lambda name: True) == {"bin/one": b"data", "bin/two": b"data"}


@needs_dpkg
@pytest.mark.parametrize("cut", [5, 30, 100, 500, 20_000])
def test_cut_short(tmp_path: Path, cut: int) -> None:
    deb = build_deb(tmp_path, "linux", "1", FILES)
    deb.write_bytes(deb.read_bytes()[:cut])
    with pytest.raises(PackageError, match=r"linux_1_amd64\.deb"):
        read_deb(deb, lambda name: True)


def test_not_a_package(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(b"hello")
    with pytest.raises(PackageError, match="not a Debian package"):
        read_deb(path, lambda name: True)
    with pytest.raises(PackageError, match="cannot be read"):
        read_deb(tmp_path / "absent", lambda name: True)


#: In ascending order by the rules and the example of Debian Policy 5.6.12.
ASCENDING = [
    "~~", "~~a", "~", "0", "1.0~rc1-1", "1.0-1", "1.0-1+b1", "1.0-1.1", "1.0a-1", "1.0+dfsg-1", "1.0.1-1",
    "6.12.107-1~deb12u1", "6.12.113-1~bpo12+1", "6.12.113-1~deb12u1", "6.12.113-1", "10-1", "1:0.5", "2:0.1~",
]  # fmt: skip


def test_versions_sort_as_policy_says() -> None:
    shuffled = random.Random(2).sample(ASCENDING, len(ASCENDING))
    assert sorted(shuffled, key=version_key) == ASCENDING


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
def test_versions_compare_as_dpkg_does() -> None:
    draw = random.Random(3)
    alphabet = ["~", "+", ".", "-", "a", "Z", "0", "00", "1", "9", "10", "deb"]
    for _ in range(120):
        one, two = ("1" + "".join(draw.choices(alphabet, k=draw.randrange(5))) for _ in range(2))
        if one.endswith("-") or two.endswith("-"):
            continue
        newer = subprocess.run(["dpkg", "--compare-versions", one, "gt", two], check=False).returncode == 0
        assert (version_key(one) > version_key(two)) == newer, (one, two)
