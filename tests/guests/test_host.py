"""The user's own kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.guests.cache import Cache
from swtdx.guests.errors import GuestError
from swtdx.guests.host import (
    find_busybox,
    initramfs_for,
    modules_for,
    own_kernel_advice,
    own_kernels,
    own_modules,
)
from swtdx.guests.kernel import load_kernel, parse_kernel
from tests.guests.bzimage import make_bzimage

TDX_CODE = b"\xf4" * 0x400 + b"IntelTDX    "


def test_only_kernels_that_can_be_a_td_newest_first(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-6.9.1").write_bytes(make_bzimage(code=TDX_CODE))
    (tmp_path / "vmlinuz-6.12.1").write_bytes(make_bzimage(code=TDX_CODE))
    (tmp_path / "vmlinuz-6.13.1").write_bytes(make_bzimage(b"\x7fELF without"))
    (tmp_path / "vmlinuz-6.14.1").write_bytes(b"junk")
    assert [Path(kernel.name).name for kernel in own_kernels(tmp_path)] == ["vmlinuz-6.12.1", "vmlinuz-6.9.1"]
    assert f"--kernel {tmp_path}/vmlinuz-6.12.1" in own_kernel_advice(tmp_path)
    assert "CONFIG_INTEL_TDX_GUEST" in own_kernel_advice(tmp_path / "absent")


def test_no_busybox_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestError, match="swtdx guest fetch"):
        find_busybox(Cache(tmp_path))


def test_an_initramfs_for_a_kernel_without_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = bytearray(64)
    static[:6] = b"\x7fELF\x02\x01"
    static[0x12] = 0x3E
    (tmp_path / "busybox").write_bytes(bytes(static))
    (tmp_path / "busybox").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    kernel = parse_kernel(make_bzimage())
    assert bytes(static) in initramfs_for(kernel, cache=Cache(tmp_path / "c"), modules=tmp_path)


@pytest.mark.parametrize(
    ("kernel", "modules"),
    [
        ("boot/vmlinuz-6.12", "lib/modules"),
        ("boot/vmlinuz-6.12", "usr/lib/modules"),
        ("usr/lib/modules/6.12/vmlinuz", "usr/lib/modules"),
    ],
)
def test_modules_are_found_around_an_unpacked_kernel(tmp_path: Path, kernel: str, modules: str) -> None:
    folder = tmp_path / modules / "6.12"
    folder.mkdir(parents=True)
    (folder / "tdx-guest.ko").write_bytes(b"not ELF")
    path = tmp_path / kernel
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_bzimage(version=b"6.12"))
    with pytest.raises(GuestError, match="tdx_guest"):  # found, and looked at
        modules_for(load_kernel(path), tmp_path / "absent")


def test_a_release_cannot_lead_out_of_the_modules_directory(tmp_path: Path) -> None:
    for place in ("lib/6.12", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "tdx-guest.ko").write_bytes(b"not ELF")
    with pytest.raises(GuestError, match="tdx_guest"):
        own_modules("6.12", tmp_path / "lib")
    assert own_modules("../elsewhere", tmp_path / "lib") == ()
