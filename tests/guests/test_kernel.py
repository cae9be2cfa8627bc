"""bzImages: the fields of the header, refusals in clear words, and whether a kernel can be a TD."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from swtdx.guests.errors import NotAKernel, NoTdxSupport
from swtdx.guests.kernel import load_kernel, parse_kernel
from swtdx.guests.payload import CannotUnpack, unpack_payload
from swtdx.guests.tdx_support import Answer, config_beside, require_tdx_support, tdx_support
from tests.guests.bzimage import make_bzimage

YES = b"junk" * 100 + b"\x016tdx: Guest detected\n\0"
NO = b"junk" * 100


def test_fields() -> None:
    kernel = parse_kernel(make_bzimage(b"\x7fELFpayload", setup_sects=39, init_size=0x37DD000))
    assert kernel.setup_bytes == 40 * 512
    assert kernel.version.endswith("#1 SMP")
    assert kernel.release == "6.12.0-test"
    assert (kernel.protocol, kernel.xloadflags) == (0x20F, 0x7F)
    assert (kernel.init_size, kernel.pref_address) == (0x37DD000, 0x1000000)
    assert (kernel.kernel_alignment, kernel.relocatable) == (0x200000, True)
    assert (kernel.initrd_addr_max, kernel.cmdline_size) == (0x7FFFFFFF, 2047)
    assert kernel.payload == b"\x7fELFpayload"


def test_zero_setup_sects_means_four() -> None:
    image = bytearray(make_bzimage(setup_sects=4))
    image[0x1F1] = 0
    assert parse_kernel(bytes(image)).setup_bytes == 5 * 512


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\x7fELF" + bytes(5000), "vmlinux"),
        (b"\x1f\x8b" + bytes(5000), "gzip"),
        (b"MZ" + bytes(5000), "unified image"),
        (b"!<arch>\n" + bytes(5000), "package"),
        (bytes(5000), "HdrS"),
        (make_bzimage(protocol=0x020B), "2.11"),
        (make_bzimage(xloadflags=0x7E), "32-bit kernel"),
        (make_bzimage(init_size=0), "damaged header"),
        (make_bzimage(bytes(1000))[:-1], "cut short"),
        (make_bzimage()[:0x300], "HdrS|bzImage"),
    ],
)
def test_refusals_name_the_file_and_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(NotAKernel, match=words) as caught:
        parse_kernel(data, "/some/file")
    assert "/some/file" in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(NotAKernel, match="cannot be read"):
        load_kernel(tmp_path / "absent")


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def _lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_ALONE)


@pytest.mark.parametrize("compress", [_zstd, gzip.compress, lzma.compress, _lzma_alone, bz2.compress])
def test_payloads_unpack_with_the_size_that_the_build_appends(compress: Callable[[bytes], bytes]) -> None:
    size = len(YES).to_bytes(4, "little")
    assert unpack_payload(compress(YES) + size) == YES
    with pytest.raises(CannotUnpack, match="damaged"):
        unpack_payload(compress(YES)[:6] + b"\xff" * 200)


def test_payloads_that_cannot_be_unpacked_are_named() -> None:
    with pytest.raises(CannotUnpack, match="lz4"):
        unpack_payload(b"\x02\x21\x4c\x18" + bytes(100))
    with pytest.raises(CannotUnpack, match="0102"):
        unpack_payload(b"\x01\x02" + bytes(100))


def test_support_is_read_from_the_unpacked_kernel() -> None:
    assert tdx_support(parse_kernel(make_bzimage(_zstd(YES)))).answer is Answer.YES
    assert tdx_support(parse_kernel(make_bzimage(_zstd(NO)))).answer is Answer.NO


def test_support_is_read_from_the_decompressor_even_if_the_payload_is_opaque() -> None:
    opaque = b"\x02\x21\x4c\x18" + bytes(100)
    code = b"\xf4" * 0x400
    assert tdx_support(parse_kernel(make_bzimage(opaque, code=code))).answer is Answer.UNKNOWN
    assert tdx_support(parse_kernel(make_bzimage(opaque, code=code + b"IntelTDX    "))).answer is Answer.YES


def test_support_is_read_from_the_configuration_beside(tmp_path: Path) -> None:
    opaque = b"\x02\x21\x4c\x18" + bytes(100)
    path = tmp_path / "vmlinuz-6.12.0-test"
    path.write_bytes(make_bzimage(opaque))
    kernel = load_kernel(path)
    assert config_beside(path, kernel.release) is None
    config = tmp_path / "config-6.12.0-test"
    config.write_text("CONFIG_X86_64=y\n# CONFIG_INTEL_TDX_GUEST is not set\n")
    assert config_beside(path, kernel.release) == config
    assert tdx_support(kernel, config).answer is Answer.NO
    config.write_text("CONFIG_X86_64=y\nCONFIG_INTEL_TDX_GUEST=y\n")
    assert tdx_support(kernel, config).answer is Answer.YES
    config.write_text("# something else\n")
    assert tdx_support(kernel, config).answer is Answer.UNKNOWN


def test_a_kernel_without_support_is_refused_by_name_unless_forced() -> None:
    kernel = parse_kernel(make_bzimage(_zstd(NO)), "/boot/vmlinuz-old")
    with pytest.raises(NoTdxSupport, match=r"/boot/vmlinuz-old.*no TDX guest support.*INTEL_TDX_GUEST"):
        require_tdx_support(kernel)
    assert require_tdx_support(kernel, force=True).answer is Answer.NO
    unknown = parse_kernel(make_bzimage(b"\x02\x21\x4c\x18" + bytes(100)), "/boot/vmlinuz-lz4")
    with pytest.raises(NoTdxSupport, match=r"cannot tell.*vmlinuz-lz4.*lz4.*--force"):
        require_tdx_support(unknown)
    assert require_tdx_support(unknown, force=True).answer is Answer.UNKNOWN
