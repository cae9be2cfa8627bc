"""Which platform it is: what a PCK certificate says about the processor packages of one machine.

The SGX extension's fields and OIDs: Intel's "SGX PCK Certificate and CRL Profile Specification" as
reflected in go-tdx-guest ``pcs/pcs.go`` and dcap-qvl ``src/oids.rs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from . import der
from .errors import AttestationError
from .keys import derive

#: OID of the SGX extension of a PCK certificate; its fields' OIDs continue it.
SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"

#: Number of SVN components in a CPUSVN, and in TEE_TCB_SVN.
COMPONENTS: Final = 16


class PckCa(StrEnum):
    """Which intermediate CA certifies the platform's PCKs."""

    #: Multi-package platforms, registered with a platform instance id.
    PLATFORM = "platform"
    #: Single-package platforms.
    PROCESSOR = "processor"


def check_components(components: tuple[int, ...], what: str) -> tuple[int, ...]:
    """``components`` itself.

    Raises:
        AttestationError: they are not 16 numbers of 8 bits.
    """
    if len(components) != COMPONENTS or not all(0 <= svn <= 0xFF for svn in components):
        raise AttestationError(f"{what}: 16 numbers from 0 to 255 are needed, not {list(components)}")
    return components


@dataclass(frozen=True)
class PlatformTcb:
    """The TCB of the platform that a PCK certificate is for.

    ``components`` are the 16 SGX TCB component SVNs; CPUSVN, opaque on hardware, is their bytes here.
    ``pcesvn`` is the ISVSVN (16 bits) of the provisioning certification enclave.
    """

    components: tuple[int, ...] = (2, 2, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)
    pcesvn: int = 13

    def __post_init__(self) -> None:
        check_components(self.components, "SGX TCB components")
        if not 0 <= self.pcesvn <= 0xFFFF:
            raise AttestationError(f"PCESVN has 16 bits; {self.pcesvn} does not fit")

    @property
    def cpusvn(self) -> bytes:
        """CPUSVN, 16 bytes."""
        return bytes(self.components)

    @property
    def raw_tcb(self) -> bytes:
        """CPUSVN ‖ PCESVN (u16 little-endian): the 18 bytes of the PCS's SGX-TCBm header."""
        return self.cpusvn + self.pcesvn.to_bytes(2, "little")


@dataclass(frozen=True)
class PlatformIdentity:
    """Names and properties of one platform.

    ``ppid`` 16 bytes, ``fmspc`` 6 bytes, ``pceid`` 2 bytes, ``sgx_type`` 0 standard, 1 scalable,
    2 scalable with integrity.  ``instance_id`` (16 bytes) and the three configuration flags exist only
    on platforms certified by the platform CA.
    """

    ppid: bytes
    ca: PckCa = PckCa.PLATFORM
    # FMSPC is an opaque family code; this one spells "swtdx", so it can meet no real TCB info.
    fmspc: bytes = b"\x00swtdx"
    pceid: bytes = bytes(2)
    sgx_type: int = 1
    instance_id: bytes = bytes(16)
    dynamic_platform: bool = False
    cached_keys: bool = False
    smt_enabled: bool = False

    def __post_init__(self) -> None:
        for name, value, size in (
            ("PPID", self.ppid, 16),
            ("FMSPC", self.fmspc, 6),
            ("PCE-ID", self.pceid, 2),
            ("platform instance id", self.instance_id, 16),
        ):
            if len(value) != size:
                raise AttestationError(f"{name} has {size} bytes, not {len(value)}")
        if self.sgx_type not in (0, 1, 2):
            raise AttestationError(f"SGX type is 0, 1 or 2, not {self.sgx_type}")

    @classmethod
    def from_seed(cls, seed: bytes, ca: PckCa = PckCa.PLATFORM) -> PlatformIdentity:
        """The platform that the machine with this seed is."""
        return cls(
            ppid=derive(seed, "PPID", 16),
            ca=ca,
            instance_id=derive(seed, "platform instance id", 16),
        )

    def sgx_extension(self, tcb: PlatformTcb) -> bytes:
        """DER value of the SGX extension for a PCK at ``tcb``."""

        def field(suffix: str, value: bytes) -> bytes:
            return der.sequence(der.object_identifier(f"{SGX_EXTENSION}.{suffix}"), value)

        levels = [field(f"2.{i}", der.integer(svn)) for i, svn in enumerate(tcb.components, 1)]
        levels.append(field("2.17", der.integer(tcb.pcesvn)))
        levels.append(field("2.18", der.octet_string(tcb.cpusvn)))
        fields = [
            field("1", der.octet_string(self.ppid)),
            field("2", der.sequence(*levels)),
            field("3", der.octet_string(self.pceid)),
            field("4", der.octet_string(self.fmspc)),
            field("5", der.enumerated(self.sgx_type)),
        ]
        if self.ca is PckCa.PLATFORM:
            fields.append(field("6", der.octet_string(self.instance_id)))
            flags = (self.dynamic_platform, self.cached_keys, self.smt_enabled)
            fields.append(
                field("7", der.sequence(*(field(f"7.{i}", der.boolean(on)) for i, on in enumerate(flags, 1))))
            )
        return der.sequence(*fields)
