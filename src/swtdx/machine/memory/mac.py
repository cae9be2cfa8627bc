"""The 28-bit MAC of a line, in a form that numpy computes for thousands of lines at once.

For a line with plaintext P and ciphertext C (four 16-byte blocks each, P = D(C) at that address):

    X   = (P0 ^ P1 ^ P2 ^ P3)[63:0]  ||  (C0 ^ C1 ^ C2 ^ C3)[63:0]
    MAC = AES(mac_key, X)[27:0]

It is a keyed function of (ciphertext, address), because key, ciphertext and address determine the
plaintext. How strong: changing any ciphertext block, or using it at another address or under another
key, makes its plaintext block an unpredictable value, so a forgery passes once in 2^28 tries, as with
any 28-bit MAC. Blocks of older versions of the *same* line may be recombined only if both 64-bit sums
happen to agree with those of a version seen before; the ciphertext sums are sums of AES outputs, so
that takes about 2^64 luck or 2^21 versions of every block. A replay of a whole line passes, as on
hardware. The MAC's value is not architectural.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

#: The bits of a MAC.
MAC_MASK: Final = (1 << 28) - 1

#: Lines that are worked on at a time: scratch, plaintext and ciphertext then fit in an L2 cache.
TILE_LINES: Final = 1 << 13

Words = npt.NDArray[np.uint64]
Tags = npt.NDArray[np.uint32]


class _Scratch(threading.local):
    """Buffers of each thread; fresh ones for every call would cost more in page faults than the MACs."""

    def __init__(self) -> None:
        self.sums = np.zeros((TILE_LINES, 2), np.uint64)
        # 16 bytes more than needed: older bindings of OpenSSL want room behind the output.
        self.sealed = np.zeros(TILE_LINES * 4 + 4, np.uint32)


_scratch: Final = _Scratch()


class LineMac:
    """MACs under one 16-byte ``key``. One thread at a time may use an object (the memory lock sees to it)."""

    def __init__(self, key: bytes) -> None:
        self._prf = Cipher(algorithms.AES(key), modes.ECB()).encryptor()

    def tags(self, plain: Words, cipher: Words, out: Tags, top: int) -> None:
        """Put the MAC of every line into bits 27:0 of ``out``.

        ``plain`` and ``cipher`` have shape (lines, 8): 64-bit little-endian words, so even columns are
        the low halves of the 16-byte blocks. ``out`` has shape (lines,). ``top`` is what bits 31:28
        become: 0, or all ones (0xF << 28).
        """
        for start in range(0, len(plain), TILE_LINES):
            tile = slice(start, start + TILE_LINES)
            self._tile(plain[tile], cipher[tile], out[tile], top)

    def _tile(self, plain: Words, cipher: Words, out: Tags, top: int) -> None:
        lines = len(plain)
        sums = _scratch.sums[:lines]
        for column, words in ((sums[:, 0], plain), (sums[:, 1], cipher)):
            np.bitwise_xor(words[:, 0], words[:, 2], out=column)
            np.bitwise_xor(column, words[:, 4], out=column)
            np.bitwise_xor(column, words[:, 6], out=column)
        sealed = _scratch.sealed[: lines * 4 + 4]
        self._prf.update_into(sums.data.cast("B"), sealed.data.cast("B"))
        if top:
            np.bitwise_or(sealed[: lines * 4 : 4], top, out=out)
        else:
            np.bitwise_and(sealed[: lines * 4 : 4], MAC_MASK, out=out)
