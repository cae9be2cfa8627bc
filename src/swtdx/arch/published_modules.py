"""Published TDX Modules by their MRSEAM, the SHA-384 hash of the module's file as SEAMLDR measures it.

Intel publishes the files (releases of intel/confidential-computing.tdx.tdx-module).  The hashes here are
those that relying parties list with the versions they computed them from, and those in quotes that Intel's
keys signed; ``source`` says which.  TEE_TCB_SVN as in those quotes: bytes 0 and 1 are the module's SVN and
major version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Module:
    """A module: its MRSEAM (96 hex digits), what it is called, where that is from."""

    mrseam: str
    version: str
    source: str


_POLICY: Final = "accepted values of tinfoilsh/verifier (attestation/tdx.go), computed from Intel's releases"

#: The modules, oldest first.
MODULES: Final[tuple[Module, ...]] = (
    Module(
        "2fd279c16164a93dd5bf373d834328d46008c2b693af9ebb865b08b2ced320c9a89b4869a9fab60fbe9d0c5a5363c656",
        "1.0 (SVN 3)",
        "a quote with TEE_TCB_SVN 03 00 05 in confidential-containers/trustee",
    ),
    Module(
        "1cc6a17ab799e9a693fac7536be61c12ee1e0fabada82d0c999e08ccee2aa86de77b0870f558c570e7ffe55d6d47fa04",
        "1.5 (SVN 5)",
        "a quote with TEE_TCB_SVN 05 01 02 in confidential-containers/trustee; edgelesssys/contrast",
    ),
    Module(
        "5b38e33a6487958b72c3c12a938eaa5e3fd4510c51aeeab58c7d5ecee41d7c436489d6c8e4f92f160b7cad34207b00c1",
        "1.5 (SVN 6)",
        "quotes with TEE_TCB_SVN 06 01 02 to 06 01 04 in samples of Phala-Network/dcap-qvl and others",
    ),
    Module(
        "49b66faa451d19ebbdbe89371b8daf2b65aa3984ec90110343e9e2eec116af08850fa20e3b1aa9a874d77a65380ee7e6",
        "1.5.08 (SVN 7)",
        f"{_POLICY}; quotes with TEE_TCB_SVN 07 01 03",
    ),
    Module(
        "ab62561a173acbd18ee50ff37750db44184c6cf5e886df74247cc575e163b04c34b9e18374757c235affa614d4127f6b",
        "1.5 (SVN 15)",
        "a quote with TEE_TCB_SVN 0f 01 04 in the samples of Phala-Network/dcap-qvl",
    ),
    Module(
        "7bf063280e94fb051f5dd7b1fc59ce9aac42bb961df8d44b709c9b0ff87a7b4df648657ba6d1189589feab1d5a3c9a9d",
        "1.5.16",
        _POLICY,
    ),
    Module(
        "685f891ea5c20e8fa27b151bf34bf3b50fbaf7143cc53662727cbdb167c0ad8385f1f6f3571539a91e104a1c96d75e04",
        "2.0.02",
        _POLICY,
    ),
    Module(
        "476a2997c62bccc78370913d0a80b956e3721b24272bc66c4d6307ced4be2865c40e26afac75f12df3425b03eb59ea7c",
        "2.0.08 (SVN 5)",
        f"{_POLICY}; quotes with TEE_TCB_SVN 05 03 04",
    ),
)


def by_mrseam(text: str) -> Module | None:
    """The module whose MRSEAM this is (hex, any case, with or without ``0x`` and blanks)."""
    digits = "".join(text.split()).lower().removeprefix("0x")
    return next((module for module in MODULES if module.mrseam == digits), None)
