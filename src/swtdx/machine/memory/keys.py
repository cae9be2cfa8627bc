"""Encryption keys by KeyID: what PCONFIG's MKTME_KEY_PROGRAM programs.

Structure and result codes: structures.md §10 and intel/tdx-module ``src/common/x86_defs/mktme.h``; the
order of the checks follows the Intel SDM's description of PCONFIG. (Later editions of the SDM turn the
results 1, 3 and 4 into #GP(0); the module still knows them all, so they are results here.)

Every secret comes from the machine's root seed by HKDF-SHA256, with a counter of programmings, so the
same seed and the same history give the same keys.

Modelled: the key tables of all packages are one table. On hardware each package's memory controllers
have their own, which is why TDX runs PCONFIG once per package; here the last programming counts.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swtdx.arch.layout import ReadBuffer
from swtdx.arch.platform_structs import MKTME_KEY_PROGRAM as MKTME_KEY_PROGRAM
from swtdx.machine.memory.addresses import AddressError, AddressMap
from swtdx.machine.memory.mac import LineMac
from swtdx.machine.memory.xts import Xts


class Integrity(enum.Enum):
    """How the platform protects private memory (TDX: Li and Ci)."""

    #: The TD-owner bit of each line only.
    LOGICAL = "logical"
    #: The TD-owner bit, and a 28-bit MAC for KeyIDs whose algorithm has integrity.
    CRYPTOGRAPHIC = "cryptographic"


class Command(enum.IntEnum):
    """KEYID_CTRL bits 7:0."""

    SET_KEY_DIRECT = 0
    SET_KEY_RANDOM = 1
    CLEAR_KEY = 2
    NO_ENCRYPT = 3


class Algorithm(enum.IntFlag):
    """KEYID_CTRL bits 23:8; also IA32_TME_ACTIVATE bits 63:48 and IA32_TME_CAPABILITY bits 3:0."""

    AES_XTS_128 = 1
    AES_XTS_128_INTEGRITY = 2
    AES_XTS_256 = 4
    AES_XTS_256_INTEGRITY = 8


class ProgramResult(enum.IntEnum):
    """What PCONFIG leaves in RAX; every value but SUCCESS comes with ZF = 1."""

    SUCCESS = 0
    INVALID_PROG_CMD = 1
    ENTROPY_ERROR = 2
    INVALID_KEYID = 3
    INVALID_ENC_ALG = 4
    DEVICE_BUSY = 5


class KeyProgramFormatError(ValueError):
    """MKTME_KEY_PROGRAM has the wrong size or sets reserved bits; hardware raises #GP(0)."""


_WITH_INTEGRITY: Final = Algorithm.AES_XTS_128_INTEGRITY | Algorithm.AES_XTS_256_INTEGRITY
_256_BIT: Final = Algorithm.AES_XTS_256 | Algorithm.AES_XTS_256_INTEGRITY


@dataclass(frozen=True, slots=True)
class Key:
    """What one KeyID's lines were encrypted with from one programming to the next.

    ``serial`` is unique over the life of the machine; ``owner`` is the TD-owner bit that writes under
    this KeyID set; ``integrity`` says whether lines carry a MAC. ``xts`` is None where nothing is
    encrypted. Secrets do not appear in the representation.
    """

    serial: int
    keyid: int
    owner: bool
    integrity: bool
    data_key: bytes = field(repr=False)
    tweak_key: bytes = field(repr=False)
    mac_key: bytes = field(repr=False)
    xts: Xts | None = field(init=False, repr=False, compare=False)
    mac: LineMac | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        xts = Xts(self.data_key, self.tweak_key) if self.data_key else None
        object.__setattr__(self, "xts", xts)
        object.__setattr__(self, "mac", LineMac(self.mac_key) if self.integrity else None)


class KeyTable:
    """The key of every KeyID, and of every earlier programming that memory still depends on.

    ``seed`` is the machine's root secret (at least 16 bytes). ``algorithms`` are those activated in
    IA32_TME_ACTIVATE; with logical integrity the algorithms with a MAC are not among them.
    KeyIDs that were never programmed, or were cleared, use the platform's TME key. If the address map
    has no KeyID bits (TME not activated), KeyID 0 is not encrypted at all.

    ``before_change`` is called with the KeyID before a programming takes effect; ``lock`` is held from
    there until it has. ``entropy_failures`` makes that many following SET_KEY_RANDOM fail with
    ENTROPY_ERROR, for tests of callers.

    Raises:
        ValueError: the seed is too short to be a secret.
    """

    def __init__(
        self,
        seed: bytes,
        addresses: AddressMap,
        integrity: Integrity = Integrity.CRYPTOGRAPHIC,
        algorithms: Algorithm = Algorithm.AES_XTS_128 | Algorithm.AES_XTS_128_INTEGRITY,
        lock: AbstractContextManager[bool] | None = None,
    ) -> None:
        if len(seed) < 16:
            raise ValueError(f"a machine's root seed has at least 16 bytes, not {len(seed)}")
        if integrity is Integrity.LOGICAL:
            algorithms &= ~_WITH_INTEGRITY
        self.seed = bytes(seed)
        self.addresses = addresses
        self.integrity = integrity
        self.algorithms = algorithms
        self.programmings = 0
        self.entropy_failures = 0
        self.before_change: Callable[[int], None] = lambda keyid: None
        #: Serial of each KeyID's current key. Serials below the number of KeyIDs mean "never programmed".
        self.current: npt.NDArray[np.uint32] = np.arange(addresses.keyids, dtype=np.uint32)
        self._by_serial: dict[int, Key] = {}
        self._busy = threading.Lock()
        self._lock = threading.RLock() if lock is None else lock
        self._tme = self._derive(b"tme", 32) if addresses.keyid_bits else b""

    def _derive(self, purpose: bytes, size: int) -> bytes:
        info = b"swtdx memory " + purpose
        return HKDF(algorithm=hashes.SHA256(), length=size, salt=None, info=info).derive(self.seed)

    def key(self, keyid: int) -> Key:
        """The key that an access under ``keyid`` uses now.

        Raises:
            AddressError: there is no such KeyID.
        """
        if not 0 <= keyid < self.addresses.keyids:
            raise AddressError(f"there is no KeyID {keyid}; this machine has 0..{self.addresses.keyids - 1}")
        return self.by_serial(int(self.current[keyid]))

    def by_serial(self, serial: int) -> Key:
        """The key of one programming, whether it is still current or not."""
        key = self._by_serial.get(serial)
        if key is None:  # only the unprogrammed state of a KeyID is made on demand
            key = self._by_serial[serial] = self._unprogrammed(serial, serial)
        return key

    def _unprogrammed(self, serial: int, keyid: int) -> Key:
        private = self.addresses.is_private(keyid)
        return Key(serial, keyid, private, False, self._tme[:16], self._tme[16:], b"")

    def program(
        self,
        keyid: int,
        command: int,
        algorithm: int,
        field_1: bytes = bytes(64),
        field_2: bytes = bytes(64),
        *,
        seam: bool = False,
    ) -> ProgramResult:
        """Program one KeyID: MKTME_KEY_PROGRAM with its operands taken apart.

        ``field_1`` and ``field_2`` (64 bytes each) are data and tweak key for SET_KEY_DIRECT, entropy to
        mix in for SET_KEY_RANDOM. ``seam``: executed in SEAM mode, where private KeyIDs may be
        programmed. Cached lines are not touched: dirty ones will be written back under the new key,
        which is why software flushes first.
        """
        if not 0 <= command <= max(Command):
            return ProgramResult.INVALID_PROG_CMD
        private = self.addresses.is_private(keyid)
        if not 0 < keyid < self.addresses.keyids or (private and not seam):
            return ProgramResult.INVALID_KEYID
        if algorithm.bit_count() != 1 or not algorithm & self.algorithms:
            return ProgramResult.INVALID_ENC_ALG
        if not self._busy.acquire(blocking=False):
            return ProgramResult.DEVICE_BUSY
        try:
            if command == Command.SET_KEY_RANDOM and self.entropy_failures:
                self.entropy_failures -= 1
                return ProgramResult.ENTROPY_ERROR
            with self._lock:
                self.before_change(keyid)
                self._install(keyid, Command(command), algorithm, field_1, field_2)
        finally:
            self._busy.release()
        return ProgramResult.SUCCESS

    def _install(self, keyid: int, command: Command, algorithm: int, field_1: bytes, field_2: bytes) -> None:
        serial = self.addresses.keyids + self.programmings
        self.programmings += 1
        private = self.addresses.is_private(keyid)
        integrity = bool(algorithm & _WITH_INTEGRITY)
        size = 32 if algorithm & _256_BIT else 16
        label = keyid.to_bytes(2, "little") + self.programmings.to_bytes(8, "little")
        mac_key = self._derive(b"mac" + label, 16)
        if command is Command.SET_KEY_DIRECT:
            key = Key(serial, keyid, private, integrity, field_1[:size], field_2[:size], mac_key)
        elif command is Command.SET_KEY_RANDOM:
            secret = self._derive(b"random" + label + field_1 + field_2, 64)
            key = Key(serial, keyid, private, integrity, secret[:size], secret[32 : 32 + size], mac_key)
        elif command is Command.CLEAR_KEY:
            key = self._unprogrammed(serial, keyid)
        else:
            key = Key(serial, keyid, private, False, b"", b"", b"")
        self._by_serial[serial] = key
        self.current[keyid] = serial

    def pconfig(self, structure: ReadBuffer, *, seam: bool = False) -> ProgramResult:
        """Execute MKTME_KEY_PROGRAM with its 256-byte operand.

        Raises:
            KeyProgramFormatError: the operand has another size or reserved bits set.
        """
        if len(structure) != MKTME_KEY_PROGRAM.size:
            raise KeyProgramFormatError(f"MKTME_KEY_PROGRAM has 256 bytes, not {len(structure)}")
        control: int = MKTME_KEY_PROGRAM.keyid_ctrl.get(structure)
        if control >> 24:
            raise KeyProgramFormatError("MKTME_KEY_PROGRAM.KEYID_CTRL has reserved bits 31:24 set")
        return self.program(
            MKTME_KEY_PROGRAM.keyid.get(structure),
            control & 0xFF,
            control >> 8 & 0xFFFF,
            MKTME_KEY_PROGRAM.key_field_1.get(structure),
            MKTME_KEY_PROGRAM.key_field_2.get(structure),
            seam=seam,
        )

    def forget(self, needed: set[int]) -> None:
        """Drop the keys of earlier programmings, except those whose serial is in ``needed``."""
        keep = needed | {int(serial) for serial in self.current}
        self._by_serial = {serial: key for serial, key in self._by_serial.items() if serial in keep}

    def known(self) -> list[Key]:
        """Every key that was programmed and not forgotten, by serial (for a snapshot)."""
        return [self._by_serial[serial] for serial in sorted(self._by_serial)]

    def restore(self, programmings: int, current: list[int], keys: list[Key]) -> None:
        """Put back what a snapshot kept."""
        self.programmings = programmings
        self.current[:] = current
        self._by_serial = {key.serial: key for key in keys}
