"""Vectors about certificates: the chain in the quote, its dates, and what stands around it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace

from ..pki import pem_chain
from ..quote import signature_data
from ..sgx_platform import PckCa, PlatformIdentity
from .model import Sound, Vector

_CHAIN = "Failed to verify certificate chain"


def _with_chain(sound: Sound, chain: bytes) -> bytes:
    """The quote with another certificate chain, all lengths right."""
    parsed = sound.parsed
    return sound.quote[: parsed.signed_size] + signature_data(
        parsed.bytes_of("quote signature"),
        parsed.bytes_of("attestation key"),
        parsed.bytes_of("QE report"),
        parsed.bytes_of("QE report signature"),
        parsed.bytes_of("QE authentication data"),
        chain,
    )


def chains(sound: Sound) -> Iterator[Vector]:
    """The PCK chain in the quote."""
    world = sound.world
    pki = world.pki
    pck, ca, root = world.pck.pem, pki.pck_ca(world.ca).pem, pki.root.pem
    processor = PlatformIdentity.from_seed(world.seed, PckCa.PROCESSOR)
    other_pck = pki.pck(processor, world.tcb)
    impostor = world.impostor
    cases: list[tuple[str, str, str, str, bool]] = [
        ("without-root", "The chain leaves out the root, which every verifier has.", pck + ca, "", True),
        ("without-ca", "The chain leaves out the PCK CA.", pck + root, _CHAIN, False),
        ("leaf-only", "The chain is the PCK certificate alone.", pck, _CHAIN, False),
        ("empty", "There is no certificate.", "", "Certificate chain is too short in quote", False),
        ("ca-first", "The PCK CA comes before the PCK certificate.", ca + pck + root, _CHAIN, False),
        ("root-before-ca", "The root comes before the PCK CA.", pck + root + ca, "", True),
        ("leaf-twice", "The PCK certificate is there twice.", pck + pck + ca + root, "", True),
        ("crlf", "Lines end in CR LF.", (pck + ca + root).replace("\n", "\r\n"), "", True),
        ("nul", "A NUL follows the chain, as Intel's library writes it.", pck + ca + root + "\0", "", False),
        (
            "processor-leaf",
            "The PCK certificate is one of another platform: the QE report is not signed with its key.",
            other_pck.pem + pki.processor_ca.pem + root,
            _CHAIN,
            False,
        ),
        (
            "impostor-root",
            "The chain ends in another root with the same name.",
            pem_chain(
                impostor.pck(world.platform_identity, world.tcb), impostor.pck_ca(world.ca), impostor.root
            ),
            _CHAIN,
            False,
        ),
        (
            "impostor-ca",
            "The PCK CA has the right name and another key.",
            pck + impostor.pck_ca(world.ca).pem + root,
            _CHAIN,
            False,
        ),
        (
            "signing-leaf",
            "The TCB signing certificate stands in for the PCK certificate: good chain, wrong kind.",
            pki.tcb_signing.pem + root,
            "Intel extension not found",
            False,
        ),
        (
            "garbled",
            "The first certificate's base64 is not valid.",
            pck.replace("MII", "M!I", 1) + ca + root,
            "Failed to extract PCK certificates from quote",
            False,
        ),
    ]
    for name, why, chain, reason, lenient in cases:
        yield sound.vector(
            "chain",
            f"{name}-{sound.label}",
            why,
            reason,
            quote=_with_chain(sound, chain.encode()),
            lenient=lenient,
        )
    yield from _types(sound)


def _types(sound: Sound) -> Iterator[Vector]:
    """Certification data types."""
    inner = sound.part("inner certification data type")
    for kind in (1, 2, 3, 4, 6, 7):
        yield sound.vector(
            "chain",
            f"inner-type-{kind}-{sound.label}",
            f"The inner certification data says it is of type {kind}, not a PCK chain (5).",
            "Unsupported DCAP PCK cert format",
            quote=sound.splice(inner.name, kind.to_bytes(2, "little")),
        )
    outer = sound.part("certification data type")
    yield sound.vector(
        "chain",
        f"outer-type-5-{sound.label}",
        "The certification data says it is a PCK chain (5) and not QE report certification data (6). "
        "No signature covers the type; dcap-qvl does not look at it.",
        "",
        quote=sound.splice(outer.name, (5).to_bytes(2, "little")),
        lenient=True,
    )


def dates(sound: Sound) -> Iterator[Vector]:
    """Certificates before and after their time, with collateral that is fresh."""
    for name, year, why in (
        ("pck-expired", 2041, "The PCK and TCB signing certificates have expired."),
        ("ca-expired", 2046, "The PCK CA has expired, and the certificates below it."),
        ("root-expired", 2051, "Everything has expired, the root too."),
        ("not-yet-valid", 2019, "No certificate is valid yet."),
    ):
        now = dt.datetime(year, 6, 1, tzinfo=dt.UTC)
        moved = replace(sound, world=replace(sound.world, now=now))
        yield moved.vector("date", f"{name}-{sound.label}", why, _CHAIN)
    start = int(sound.world.issued.timestamp())
    end = start + 30 * 86400
    for name, moment, why, reason in (
        ("issue-second", start, "Verified in the very second in which the collateral was issued.", ""),
        (
            "before-issue",
            start - 1,
            "Verified one second before the collateral was issued.",
            "issue date is in the future",
        ),
        (
            "after-next-update",
            end + 1,
            "Verified one second after the collateral's nextUpdate.",
            "CrlExpired",
        ),
    ):
        yield sound.vector("date", f"{name}-{sound.label}", why, reason, now=moment)
