"""The 28-bit MAC of a line, in a form that numpy computes for thousands of lines at once.

For a line with plaintext P and ciphertext C, each four 16-byte blocks (P = D(C) at that address), and
64-bit halves 63:0 of blocks:

    X   = Y0 ^ Y1 ^ Y2 ^ Y3    with    Yn = Pn[63:0] ^ Cn[63:0]
    MAC = (X * k)[59:32]       k: 64 secret bits, odd; product modulo 2^64

It is a keyed function of (ciphertext, address), because key, ciphertext and address determine the
plaintext. How strong: changing any ciphertext block, or using it at another address or under another
key, makes its plaintext block and so its Y an unpredictable value; a forgery passes once in 2^28 tries,
as with any 28-bit MAC. Blocks of older versions of the *same* line may be recombined only if the Ys of
the mixture happen to give the same X: they are feed-forwards of a block cipher, as good as random to
whoever has no key, and the product keeps MACs that he has seen from adding up to another's. (That last
step is an integer hash, not a cipher: it resists the experiments of this house, and no more is claimed.)
A replay of a whole line passes, as on hardware. The MAC's value is not architectural.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
import numpy.typing as npt

#: The bits of a MAC.
MAC_MASK: Final = (1 << 28) - 1

#: Lines that are worked on at a time: plaintext, ciphertext and scratch stay in the (real) caches.
TILE_LINES: Final = 1 << 14

Words = npt.NDArray[np.uint64]
Tags = npt.NDArray[np.uint32]


class _Scratch(threading.local):
    """Buffers of each thread; fresh ones for every call would cost more in page faults than the MACs."""

    def __init__(self) -> None:
        self.feed = np.empty(TILE_LINES * 4, np.uint64)
        self.sums = np.empty(TILE_LINES, np.uint64)


_scratch: Final = _Scratch()


class LineMac:
    """MACs under one ``key`` of at least 8 bytes.  Objects may be used from several threads at once."""

    def __init__(self, key: bytes) -> None:
        self._factor = np.uint64(int.from_bytes(key[:8], "little") | 1)

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
        feed, sums = _scratch.feed[: lines * 4], _scratch.sums[:lines]
        # The Ys first, side by side: what is then added up lies in half as many (real) cache lines.
        np.bitwise_xor(plain.reshape(-1)[::2], cipher.reshape(-1)[::2], out=feed)
        np.bitwise_xor(feed[0::4], feed[1::4], out=sums)
        np.bitwise_xor(sums, feed[2::4], out=sums)
        np.bitwise_xor(sums, feed[3::4], out=sums)
        np.multiply(sums, self._factor, out=sums)
        high = sums.view(np.uint32)[1::2]
        if top:
            np.bitwise_or(high, top, out=out)
        else:
            np.bitwise_and(high, MAC_MASK, out=out)
