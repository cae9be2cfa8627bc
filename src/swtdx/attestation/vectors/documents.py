"""Vectors with malformed collateral: signed documents, their signatures and chains, and the CRLs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..collateral import Collateral, compact
from ..pki import pem_chain
from .model import Sound, Vector

_CHAIN = "Failed to verify certificate chain"


@dataclass(frozen=True)
class _Kind:
    """One of the two signed documents."""

    name: str
    field: str
    unreadable: str
    bad_signature: str
    short_chain: str


_KINDS = (
    _Kind(
        "tcb-info",
        "tcb_info",
        "Failed to decode TcbInfo",
        "Signature is invalid for tcb_info",
        "Certificate chain is too short for TCB Info",
    ),
    _Kind(
        "qe-identity",
        "qe_identity",
        "Failed to decode QeIdentity",
        "Signature is invalid for qe_identity",
        "Certificate chain is too short for QE Identity",
    ),
)


def _changed(sound: Sound, field: str, value: str | bytes) -> Collateral:
    return replace(sound.collateral, **{field: value})  # type: ignore[arg-type]


def _resigned(sound: Sound, kind: _Kind, text: str) -> Collateral:
    """Collateral with another document, well signed by the maker."""
    signature = sound.world.pki.tcb_signing.key.sign(text.encode())
    return replace(
        sound.collateral,
        **{kind.field: text, f"{kind.field}_signature": signature},  # type: ignore[arg-type]
    )


def _texts(sound: Sound, kind: _Kind) -> Iterator[Vector]:
    """The text changed under an unchanged signature."""
    text: str = getattr(sound.collateral, kind.field)
    document = json.loads(text)
    for name, changed, why, reason in (
        ("space", text.replace(",", ", ", 1), "has a space more", kind.bad_signature),
        ("newline", text + "\n", "has a newline more at its end", kind.bad_signature),
        ("pretty", json.dumps(document, indent=1), "was written anew with line breaks", kind.bad_signature),
        (
            "sorted",
            compact(dict(sorted(document.items()))),
            "was written anew, members sorted",
            kind.bad_signature,
        ),
        (
            "status",
            text.replace("UpToDate", "OutOfDate", 1),
            "has a better or worse status",
            kind.bad_signature,
        ),
        ("cut", text[:-1], "lacks its last brace", kind.unreadable),
        ("empty", "", "is empty", kind.unreadable),
        ("array", "[]", "is an array", kind.unreadable),
    ):
        yield sound.vector(
            "collateral",
            f"{kind.name}-{name}",
            f"The {kind.name} {why}, after it was signed.",
            reason,
            collateral=_changed(sound, kind.field, changed),
        )


def _signatures(sound: Sound, kind: _Kind) -> Iterator[Vector]:
    field = f"{kind.field}_signature"
    signature: bytes = getattr(sound.collateral, field)
    other = "qe_identity" if kind.field == "tcb_info" else "tcb_info"
    for name, changed, why, reason in (
        (
            "flipped",
            signature[:-1] + bytes((signature[-1] ^ 1,)),
            "has its last bit flipped",
            kind.bad_signature,
        ),
        ("zero", bytes(64), "is all zeros", kind.bad_signature),
        ("swapped", signature[32:] + signature[:32], "has r and s swapped", kind.bad_signature),
        (
            "other",
            getattr(sound.collateral, f"{other}_signature"),
            "is the other document's",
            kind.bad_signature,
        ),
        ("short", signature[:31], "has 31 bytes", "Invalid key length"),
        ("empty", b"", "is empty", "Invalid key length"),
    ):
        yield sound.vector(
            "collateral",
            f"{kind.name}-signature-{name}",
            f"The signature of the {kind.name} {why}.",
            reason,
            collateral=_changed(sound, field, changed),
        )


def _chains(sound: Sound, kind: _Kind) -> Iterator[Vector]:
    pki, impostor = sound.world.pki, sound.world.impostor
    signing, root = pki.tcb_signing, pki.root
    for name, chain, why, reason, lenient in (
        ("empty", "", "is empty", kind.short_chain, False),
        ("leaf-only", signing.pem, "leaves out the root", "", True),
        ("root-only", root.pem, "is the root alone", _CHAIN, False),
        ("reversed", pem_chain(root, signing), "has the root first", _CHAIN, False),
        ("pck-ca", pem_chain(pki.platform_ca, root), "starts with a CA certificate", _CHAIN, False),
        ("impostor", pem_chain(impostor.tcb_signing, impostor.root), "is an impostor's", _CHAIN, False),
        ("pck", sound.parsed.pck_chain(), "is the PCK chain", kind.bad_signature, False),
    ):
        yield sound.vector(
            "collateral",
            f"{kind.name}-chain-{name}",
            f"The issuer chain of the {kind.name} {why}.",
            reason,
            collateral=_changed(sound, f"{kind.field}_issuer_chain", chain),
            lenient=lenient,
        )


def _well_signed(sound: Sound, kind: _Kind) -> Iterator[Vector]:
    """Documents that the maker signed and that say something impossible."""

    def edit(change: Callable[[dict[str, Any]], None]) -> Collateral:
        document = json.loads(getattr(sound.collateral, kind.field))
        change(document)
        return _resigned(sound, kind, compact(document))

    def drop(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda document: document.pop(name)

    def put(name: str, value: object) -> Callable[[dict[str, Any]], None]:
        return lambda document: document.update({name: value})

    cases: list[tuple[str, str, Callable[[dict[str, Any]], None], str]] = [
        (f"without-{name}", f"has no {name}", drop(name), kind.unreadable)
        for name in ("id", "version", "issueDate", "nextUpdate", "tcbEvaluationDataNumber", "tcbLevels")
    ]
    cases += [
        ("date-format", "has a date that is none", put("issueDate", "yesterday"), "issue date"),
        (
            "version-1",
            "is of version 1",
            put("version", 1),
            "version" if kind.name == "qe-identity" else "TCB info",
        ),
    ]
    if kind.name == "tcb-info":
        cases += [
            ("no-levels", "has no TCB level", put("tcbLevels", []), "No matching TCB level found"),
            (
                "15-components",
                "has a level with 15 SGX components",
                lambda document: document["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].pop(),
                "SGX component count mismatch",
            ),
            (
                "17-tdx-components",
                "has a level with 17 TDX components",
                lambda document: document["tcbLevels"][0]["tcb"]["tdxtcbcomponents"].append({"svn": 0}),
                "TDX component count mismatch",
            ),
            ("no-module", "has no tdxModule", drop("tdxModule"), "missing tdxModule"),
            ("fmspc-short", "has an FMSPC of 5 bytes", put("fmspc", "0073777464"), "Fmspc mismatch"),
            (
                "unknown-status",
                "has a status that nobody knows",
                lambda document: document["tcbLevels"][0].update(tcbStatus="Splendid"),
                kind.unreadable,
            ),
        ]
    else:
        cases += [
            ("no-levels", "has no TCB level", put("tcbLevels", []), "No TCB levels found in QE Identity"),
            ("mrsigner", "asks for another MRSIGNER", put("mrsigner", "00" * 32), "QE MRSIGNER mismatch"),
            (
                "miscselect",
                "asks for another MISCSELECT",
                put("miscselect", "01000000"),
                "QE MISCSELECT mismatch",
            ),
            (
                "attributes",
                "asks for other ATTRIBUTES",
                put("attributes", "13" + "00" * 15),
                "QE ATTRIBUTES mismatch",
            ),
            ("isvprodid", "asks for another product", put("isvprodid", 3), "QE ISVPRODID mismatch"),
            (
                "sw-hardening",
                "rates the enclave SWHardeningNeeded, which enclaves cannot be",
                lambda document: document["tcbLevels"][0].update(tcbStatus="SWHardeningNeeded"),
                "Unrecognized TCB status",
            ),
        ]
    for name, why, change, reason in cases:
        yield sound.vector(
            "collateral",
            f"{kind.name}-signed-{name}",
            f"The {kind.name}, well signed, {why}.",
            reason,
            collateral=edit(change),
        )


def _crls(sound: Sound) -> Iterator[Vector]:
    root, pck = sound.collateral.root_ca_crl, sound.collateral.pck_crl
    for name, field, changed, why, reason in (
        ("root-crl-empty", "root_ca_crl", b"", "The root CA's CRL is empty.", "Failed to parse root CA CRL"),
        (
            "root-crl-cut",
            "root_ca_crl",
            root[:-1],
            "The root CA's CRL lacks its last byte.",
            "Failed to parse root CA CRL",
        ),
        (
            "root-crl-pck",
            "root_ca_crl",
            pck,
            "The PCK CA's CRL stands in for the root's.",
            "Failed to parse root CA CRL",
        ),
        (
            "root-crl-flipped",
            "root_ca_crl",
            root[:-1] + bytes((root[-1] ^ 1,)),
            "A bit of the root CRL's signature is flipped.",
            "Failed to parse root CA CRL",
        ),
        ("pck-crl-empty", "pck_crl", b"", "The PCK CA's CRL is empty.", "Failed to parse PCK CRL"),
        (
            "pck-crl-cut",
            "pck_crl",
            pck[:-1],
            "The PCK CA's CRL lacks its last byte.",
            "Failed to parse PCK CRL",
        ),
        (
            "pck-crl-root",
            "pck_crl",
            root,
            "The root's CRL stands in for the PCK CA's: nothing says that the PCK is not revoked.",
            "UnknownRevocationStatus",
        ),
        (
            "pck-crl-flipped",
            "pck_crl",
            pck[:-1] + bytes((pck[-1] ^ 1,)),
            "A bit of the PCK CRL's signature is flipped.",
            "InvalidCrlSignatureForPublicKey",
        ),
    ):
        yield sound.vector("collateral", name, why, reason, collateral=_changed(sound, field, changed))


def malformed_collateral(sound: Sound) -> Iterator[Vector]:
    """All of the above."""
    for kind in _KINDS:
        yield from _texts(sound, kind)
        yield from _signatures(sound, kind)
        yield from _chains(sound, kind)
        yield from _well_signed(sound, kind)
    yield from _crls(sound)
