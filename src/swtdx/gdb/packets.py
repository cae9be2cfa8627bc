"""The framing of GDB's remote serial protocol: ``$payload#checksum``, acknowledgements, and Ctrl-C.

Source: GDB's manual, appendix E.1 (Overview): ``#``, ``$``, ``}`` and, in answers, ``*`` are sent as ``}``
and the byte XOR 0x20; the checksum is the sum of the bytes as sent, modulo 256, in two hexadecimal digits.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

#: Bytes of a packet at most: told to GDB, and more is thrown away.
LARGEST: Final = 1 << 14
_ESCAPED: Final = frozenset(b"#$}*")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_DOLLAR, _HASH, _ESCAPE, _INTERRUPT = b"$#}\x03"


class Signal(enum.Enum):
    """What comes outside of packets."""

    INTERRUPT = "Ctrl-C"
    ACK = "+"
    NACK = "-"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet's payload, unescaped; None if its checksum is wrong."""

    payload: bytes | None


def encode(payload: bytes) -> bytes:
    """``payload`` as a packet."""
    sent = bytearray()
    for byte in payload:
        if byte in _ESCAPED:
            sent += bytes((_ESCAPE, byte ^ 0x20))
        else:
            sent.append(byte)
    return b"$%b#%02x" % (bytes(sent), sum(sent) & 0xFF)


class Decoder:
    """Takes what the debugger sends, in pieces of any size."""

    def __init__(self) -> None:
        self._body: bytearray | None = None
        self._sum = b""
        self._escaped = False
        self._checksum = 0
        self._ended = False

    def feed(self, data: bytes) -> list[Packet | Signal]:
        """The next packets and signals; what is neither is ignored."""
        found: list[Packet | Signal] = []
        for byte in data:
            if self._ended:
                self._sum += bytes((byte,))
                if len(self._sum) == 2:
                    found.append(self._finish())
            elif self._body is not None:
                self._inside(byte)
            elif byte == _DOLLAR:
                self._body, self._sum, self._escaped, self._checksum = bytearray(), b"", False, 0
            elif byte == _INTERRUPT:
                found.append(Signal.INTERRUPT)
            elif byte == ord("+"):
                found.append(Signal.ACK)
            elif byte == ord("-"):
                found.append(Signal.NACK)
        return found

    def _inside(self, byte: int) -> None:
        assert self._body is not None
        if byte == _HASH:
            self._ended = True
            return
        if byte == _DOLLAR:
            # What came before was cut off.
            self._body, self._escaped, self._checksum = bytearray(), False, 0
            return
        self._checksum += byte
        if self._escaped:
            self._escaped = False
            byte ^= 0x20
        elif byte == _ESCAPE:
            self._escaped = True
            return
        if len(self._body) <= LARGEST:
            self._body.append(byte)

    def _finish(self) -> Packet:
        body, given = self._body, self._sum
        self._body, self._ended = None, False
        assert body is not None
        right = all(digit in _HEX for digit in given) and int(given, 16) == self._checksum & 0xFF
        return Packet(bytes(body) if right and len(body) <= LARGEST else None)


def number(text: bytes) -> int:
    """A hexadecimal number, as GDB writes them.

    Raises:
        ValueError: it is none, or has more than 64 bits.
    """
    if not text or len(text) > 16 or not all(byte in _HEX for byte in text):
        raise ValueError(f"{text!r} is not a hexadecimal number")
    return int(text, 16)
