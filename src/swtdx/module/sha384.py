"""SHA-384 whose state can be kept in memory between calls.

MRTD is hashed over many SEAMCALLs, and its intermediate state lives in the TDCS.  ``hashlib`` does
not give its state out, so the compression runs in OpenSSL's libcrypto through ctypes, on the 216-byte
SHA512_CTX that is its public structure since 1.0 (``openssl/sha.h``); where there is no libcrypto to
load, a compression in Python takes its place, two hundred times slower.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import struct
from typing import Final

from swtdx.arch.units import MASK64

#: Bytes of a saved state: eight 64-bit words, then the number of bytes hashed.
STATE_SIZE: Final = 72
BLOCK: Final = 128

_INITIAL: Final = (
    0xCBBB9D5DC1059ED8, 0x629A292A367CD507, 0x9159015A3070DD17, 0x152FECD8F70E5939,
    0x67332667FFC00B31, 0x8EB44A8768581511, 0xDB0C2E0D64F98FA7, 0x47B5481DBEFA4FA4,
)  # fmt: skip
_STATE: Final = struct.Struct("<9Q")
_CTX_SIZE: Final = 216


def initial() -> bytes:
    """The state before anything was hashed (FIPS 180-4, 5.3.4)."""
    return _STATE.pack(*_INITIAL, 0)


def update(state: bytes | memoryview, data: bytes) -> bytes:
    """The state after hashing ``data``, whose length is a multiple of 128 bytes.

    Raises:
        ValueError: the data is not whole blocks, or the state is not one of ours.
    """
    if len(data) % BLOCK:
        raise ValueError(
            f"SHA-384 state can be kept between 128-byte blocks only, not after {len(data)} bytes"
        )
    return _update(state, data)


def digest(state: bytes | memoryview) -> bytes:
    """The 48-byte hash of all that was hashed."""
    count = _STATE.unpack(state)[8]
    padding = b"\x80" + bytes(111) + (8 * count).to_bytes(16, "big")
    words = _STATE.unpack(_update(state, padding))
    return b"".join(word.to_bytes(8, "big") for word in words[:6])


# ---------------------------------------------------------------- OpenSSL
def _load() -> ctypes.CDLL | None:
    """A libcrypto with SHA384_Update that computes a known hash, or None."""
    for name in ("libcrypto.so.3", "libcrypto.so.1.1", ctypes.util.find_library("crypto")):
        if not name:
            continue
        try:
            library = ctypes.CDLL(name)
            library.SHA384_Update.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
        except (OSError, AttributeError):
            continue
        return library
    return None


_libcrypto = _load()
_context = ctypes.create_string_buffer(_CTX_SIZE)
_context_words = (ctypes.c_uint64 * 8).from_buffer(_context)
_CONTEXT: Final = struct.Struct("<8QQQ128sII")


def _update_openssl(state: bytes | memoryview, data: bytes) -> bytes:
    values = _STATE.unpack(state)
    assert _libcrypto is not None
    _CONTEXT.pack_into(_context, 0, *values[:8], 8 * values[8], 0, b"", 0, 48)
    _libcrypto.SHA384_Update(ctypes.addressof(_context), data, len(data))
    return _STATE.pack(*_context_words, values[8] + len(data))


# ---------------------------------------------------------------- Python
def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root_fraction(number: int) -> int:
    """The first 64 bits of the fractional part of the cube root (FIPS 180-4, 4.2.3)."""
    target = number << 192
    low, high = 0, 1 << 72
    while low < high:
        middle = (low + high + 1) // 2
        if middle**3 <= target:
            low = middle
        else:
            high = middle - 1
    return low & MASK64


_round_constants: list[int] = []


def _rotate(value: int, by: int) -> int:
    return (value >> by | value << 64 - by) & MASK64


def _compress(words: list[int], block: bytes) -> list[int]:
    if not _round_constants:
        _round_constants.extend(_cube_root_fraction(prime) for prime in _primes(80))
    w = list(struct.unpack(">16Q", block))
    for t in range(16, 80):
        s0 = _rotate(w[t - 15], 1) ^ _rotate(w[t - 15], 8) ^ w[t - 15] >> 7
        s1 = _rotate(w[t - 2], 19) ^ _rotate(w[t - 2], 61) ^ w[t - 2] >> 6
        w.append(w[t - 16] + s0 + w[t - 7] + s1 & MASK64)
    a, b, c, d, e, f, g, h = words
    for t in range(80):
        s1 = _rotate(e, 14) ^ _rotate(e, 18) ^ _rotate(e, 41)
        t1 = h + s1 + (e & f ^ ~e & g) + _round_constants[t] + w[t] & MASK64
        s0 = _rotate(a, 28) ^ _rotate(a, 34) ^ _rotate(a, 39)
        t2 = s0 + (a & b ^ a & c ^ b & c) & MASK64
        a, b, c, d, e, f, g, h = t1 + t2 & MASK64, a, b, c, d + t1 & MASK64, e, f, g
    return [x + y & MASK64 for x, y in zip(words, (a, b, c, d, e, f, g, h), strict=True)]


def _update_python(state: bytes | memoryview, data: bytes) -> bytes:
    values = list(_STATE.unpack(state))
    words = values[:8]
    for start in range(0, len(data), BLOCK):
        words = _compress(words, data[start : start + BLOCK])
    return _STATE.pack(*words, values[8] + len(data))


def _choose() -> bool:
    """Whether libcrypto computes what hashlib computes, from a kept state."""
    if _libcrypto is None:
        return False
    data = bytes(range(128)) * 2
    words = _STATE.unpack(_update_openssl(_update_openssl(initial(), data), data))
    expected = hashlib.sha384(data + data).digest()
    padding = b"\x80" + bytes(111) + (8 * 512).to_bytes(16, "big")
    final = _STATE.unpack(_update_openssl(_STATE.pack(*words), padding))
    return b"".join(word.to_bytes(8, "big") for word in final[:6]) == expected


_update = _update_openssl if _choose() else _update_python
