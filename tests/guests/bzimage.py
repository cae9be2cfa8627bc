"""A bzImage made by hand from the offsets of Linux's boot.rst, for tests that need no real kernel."""

from __future__ import annotations

import struct


def make_bzimage(
    payload: bytes = b"\x7fELF not really",
    *,
    version: bytes = b"6.12.0-test (tester@here) #1 SMP",
    setup_sects: int = 4,
    protocol: int = 0x020F,
    xloadflags: int = 0x7F,
    init_size: int = 0x200000,
    pref_address: int = 0x1000000,
    cmdline_size: int = 2047,
    code: bytes = b"\xf4" * 0x400,
) -> bytes:
    """``code`` is the protected-mode code in front of the payload (its 64-bit entry is at 0x200)."""
    setup = bytearray(512 * (setup_sects + 1))
    setup[0x1F1] = setup_sects
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x6a"  # jump over a header that ends at 0x26C
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x400 - 0x200)
    setup[0x400 : 0x400 + len(version) + 1] = version + b"\0"
    setup[0x211] = 1  # LOADED_HIGH
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<I", setup, 0x230, 0x200000)
    setup[0x234] = 1
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, cmdline_size)
    struct.pack_into("<I", setup, 0x248, len(code))
    struct.pack_into("<I", setup, 0x24C, len(payload))
    struct.pack_into("<Q", setup, 0x258, pref_address)
    struct.pack_into("<I", setup, 0x260, init_size)
    return bytes(setup) + code + payload
