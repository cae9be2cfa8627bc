"""The processor's random number generator, deterministic from the machine's seed."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swtdx.machine.snapshot import SectionReader, SectionWriter


def derive(seed: bytes, purpose: str, length: int = 32) -> bytes:
    """``length`` bytes of key material for ``purpose`` out of the machine's seed (HKDF-SHA384)."""
    return HKDF(algorithm=hashes.SHA384(), length=length, salt=b"swtdx", info=purpose.encode()).derive(seed)


class HardwareRandom:
    """RDRAND/RDSEED: an AES-256-CTR stream keyed from the seed; ``entropy`` counts what was drawn."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._branch = b""
        self.drawn = 0
        self._stream = self._start(0)

    def _start(self, position: int) -> object:
        cipher = Cipher(
            algorithms.AES(derive(self._seed + self._branch, "rdrand")),
            modes.CTR(position.to_bytes(16, "big")),
        )
        return cipher.encryptor()

    def diverge(self, token: bytes) -> None:
        """Go on in a way of one's own: two machines that went on from one snapshot must not draw the same.

        ``token`` is what makes it different, 32 bytes.
        """
        self._branch = token
        self._stream = self._start(self.drawn)

    def bytes(self, count: int) -> bytes:
        """``count`` random bytes, drawn in units of 16."""
        blocks = (count + 15) // 16
        self.drawn += blocks
        data: bytes = self._stream.update(bytes(16 * blocks))  # type: ignore[attr-defined]
        return data[:count]

    def save_state(self, out: SectionWriter) -> None:
        """See :class:`swtdx.machine.saved.Saved`.  The seed is the machine's."""
        out.u64(self.drawn)
        out.blob(self._branch)

    def load_state(self, section: SectionReader) -> None:
        """See :class:`swtdx.machine.saved.Saved`."""
        self.drawn = section.u64()
        self._branch = section.blob()
        self._stream = self._start(self.drawn)
