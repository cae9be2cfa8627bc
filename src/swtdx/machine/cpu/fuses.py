"""What is fused into one machine: root secrets from which the processor derives its keys.

Everything comes from the machine's seed, so the same seed is the same machine.  A report key exists for
one boot only, as on hardware: reports of another boot do not verify.
"""

from __future__ import annotations

from dataclasses import dataclass

from swtdx.machine.random import derive


@dataclass(frozen=True, slots=True)
class Fuses:
    """The fused secrets of the machine with this ``seed``, in boot number ``boot``."""

    seed: bytes
    boot: int = 0

    @property
    def report_key(self) -> bytes:
        """Key (32 bytes) of the MAC in REPORTMACSTRUCT; never leaves the processor on hardware."""
        return derive(self.seed, f"report key, boot {self.boot}", 32)

    @property
    def database_nonce(self) -> bytes:
        """Root (32 bytes) of the nonces of SEAMDB entries."""
        return derive(self.seed, f"SEAMDB nonce, boot {self.boot}", 32)
