"""AES-XTS on lines: IEEE 1619 with the physical address as tweak.

The exact tweak: the data unit is 1 MiB of physical memory (65,536 AES blocks of 16 bytes). Unit number
``n = HPA >> 20`` (KeyID bits not included), as a 128-bit little-endian integer, is encrypted with the
tweak key to T; block ``j`` of the unit (``j = (HPA & 0xFFFFF) >> 4``) is enciphered with
``T * alpha**j`` in GF(2^128). So every line can be enciphered alone, and a whole unit is one OpenSSL
call. (Hardware's tweak is not published; this one follows the standard, whose limit is 2^20 blocks.)

To start in the middle of a unit, OpenSSL is given the sector number ``D(T * alpha**j)``, which it
encrypts to just the tweak we want.
"""

from __future__ import annotations

import functools
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

#: Bytes of a data unit.
UNIT: Final = 1 << 20
_BLOCK: Final = 16
_MASK: Final = (1 << 128) - 1


def _multiply(a: int, b: int) -> int:
    """The product of two elements of GF(2^128), least significant bit = alpha**0."""
    product = 0
    while b:
        low = b & -b
        product ^= a * low
        b ^= low
    # alpha**128 = alpha**7 + alpha**2 + alpha + 1; folding twice leaves nothing above bit 127.
    while product > _MASK:
        over = product >> 128
        product = product & _MASK ^ over ^ over << 1 ^ over << 2 ^ over << 7
    return product


@functools.lru_cache(maxsize=1 << 14)
def _alpha(power: int) -> int:
    """``alpha**power``."""
    if power < 128:
        return 1 << power
    half = _alpha(power // 2)
    square = _multiply(half, half)
    return _multiply(square, 2) if power & 1 else square


class Xts:
    """One pair of AES keys (16 or 32 bytes each): ``data_key`` enciphers, ``tweak_key`` makes tweaks.

    Objects may be used from several threads at once.
    """

    def __init__(self, data_key: bytes, tweak_key: bytes) -> None:
        self._equal = data_key == tweak_key
        self._data_key = data_key
        self._pair = None if self._equal else algorithms.AES(data_key + tweak_key)
        self._tweak = Cipher(algorithms.AES(tweak_key), modes.ECB())  # one block

    def encrypt(self, source: memoryview, target: memoryview, hpa: int) -> None:
        """Encipher ``source`` (whole lines, the contents of memory at ``hpa``) into ``target``.

        ``target`` is at least as long as ``source``; bytes beyond are not changed.
        """
        self._run(source, target, hpa, True)

    def decrypt(self, source: memoryview, target: memoryview, hpa: int) -> None:
        """The inverse of :meth:`encrypt`."""
        self._run(source, target, hpa, False)

    def _run(self, source: memoryview, target: memoryview, hpa: int, encrypt: bool) -> None:
        size = len(source)
        done = 0
        while done < size:
            step = min(size - done, UNIT - (hpa + done & UNIT - 1))
            self._unit(source[done : done + step], target[done:], hpa + done, encrypt)
            done += step

    def _unit(self, source: memoryview, target: memoryview, hpa: int, encrypt: bool) -> None:
        unit, offset = divmod(hpa, UNIT)
        sector = unit.to_bytes(_BLOCK, "little")
        if self._pair is None:
            self._unit_slowly(source, target, sector, offset, encrypt)
            return
        if offset:
            tweak = self._start(sector, offset)
            sector = self._tweak.decryptor().update(tweak.to_bytes(_BLOCK, "little"))
        cipher = Cipher(self._pair, modes.XTS(sector))
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        # Older bindings demand 15 bytes of room behind the output, though nothing is written there.
        if len(target) >= len(source) + _BLOCK:
            context.update_into(source, target[: len(source) + _BLOCK])
        else:
            target[: len(source)] = context.update(source)

    def _start(self, sector: bytes, offset: int) -> int:
        """The tweak of the block at byte ``offset`` of a unit."""
        first = int.from_bytes(self._tweak.encryptor().update(sector), "little")
        return _multiply(first, _alpha(offset // _BLOCK))

    def _unit_slowly(
        self, source: memoryview, target: memoryview, sector: bytes, offset: int, encrypt: bool
    ) -> None:
        """The same from AES blocks, for two equal keys: legal for PCONFIG, refused by OpenSSL."""
        tweak = self._start(sector, offset)
        tweaks = bytearray()
        for _ in range(len(source) // _BLOCK):
            tweaks += tweak.to_bytes(_BLOCK, "little")
            tweak = _multiply(tweak, 2)
        mask = int.from_bytes(tweaks, "little")
        cipher = Cipher(algorithms.AES(self._data_key), modes.ECB())  # made into XEX here
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        masked = (int.from_bytes(source, "little") ^ mask).to_bytes(len(source), "little")
        result = int.from_bytes(context.update(masked), "little") ^ mask
        target[: len(source)] = result.to_bytes(len(source), "little")
