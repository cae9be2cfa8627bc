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

from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

#: The bits of a MAC.
MAC_MASK: Final = (1 << 28) - 1

Words = npt.NDArray[np.uint64]
Tags = npt.NDArray[np.uint32]


class LineMac:
    """MACs under one 16-byte ``key``. Objects may be used from several threads at once."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # as a PRF

    def tags(self, plain: Words, cipher: Words, out: Tags) -> None:
        """Put the MAC of every line into ``out`` (bits 27:0; bits 31:28 become zero).

        ``plain`` and ``cipher`` have shape (lines, 8): 64-bit little-endian words, so even columns are
        the low halves of the 16-byte blocks. ``out`` has shape (lines,).
        """
        lines = len(plain)
        sums = np.empty((lines, 2), np.uint64)
        for column, words in ((sums[:, 0], plain), (sums[:, 1], cipher)):
            np.bitwise_xor(words[:, 0], words[:, 2], out=column)
            np.bitwise_xor(column, words[:, 4], out=column)
            np.bitwise_xor(column, words[:, 6], out=column)
        sealed = np.empty(lines * 4 + 4, np.uint32)  # 16 bytes more than needed, see Xts._unit
        self._cipher.encryptor().update_into(sums.data.cast("B"), sealed.data.cast("B"))
        np.bitwise_and(sealed[: lines * 4 : 4], MAC_MASK, out=out)
