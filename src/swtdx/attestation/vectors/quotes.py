"""Vectors with malformed quotes: every header field, every length, every signature, every claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from swtdx.arch.layout import Field
from swtdx.attestation.keys import P256_ORDER

from ..keys import SigningKey
from ..quote import HEADER, SGX_REPORT, signature_data
from .model import Sound, Vector

_BAD_QUOTE: Final = "ISV enclave report signature is invalid"
_BAD_QE: Final = "Signature is invalid for qe_report in quote"
_UNREADABLE: Final = "Failed to decode quote"


def header_fields(sound: Sound) -> Iterator[Vector]:
    """Values that a TD quote's header cannot have, and changes of those that it can."""

    def with_field(field: Field, value: int) -> bytes:
        changed = bytearray(sound.quote)
        field.set(changed, value)
        return bytes(changed)

    for name, field, value, reason in (
        ("version-3", HEADER.version, 3, _UNREADABLE),
        ("version-6", HEADER.version, 6, _UNREADABLE),
        ("key-type-p384", HEADER.attestation_key_type, 3, "Unsupported DCAP attestation key type"),
        ("key-type-0", HEADER.attestation_key_type, 0, "Unsupported DCAP attestation key type"),
        ("reserved-1", HEADER.reserved1, 1, _BAD_QUOTE),
        ("reserved-2", HEADER.reserved2, 1, _BAD_QUOTE),
        (
            "tee-type-unknown",
            HEADER.tee_type,
            0x82,
            _UNREADABLE if sound.version == 4 else "Unsupported TEE type",
        ),
    ):
        yield sound.vector(
            "header",
            f"{name}-{sound.label}",
            f"The header's {field.name.split('.')[1]} is {value:#x}.",
            reason,
            quote=with_field(field, value),
        )
    yield sound.vector(
        "header",
        f"qe-vendor-{sound.label}",
        "The QE vendor is not Intel's number.",
        "Unknown QE vendor ID",
        quote=sound.flip(HEADER.qe_vendor_id.offset),
    )
    yield sound.vector(
        "header",
        f"user-data-{sound.label}",
        "A bit of the header's user data (the QE-ID) is flipped; the quote signature covers it.",
        _BAD_QUOTE,
        quote=sound.flip(HEADER.user_data.offset),
    )


def lengths(sound: Sound) -> Iterator[Vector]:
    """Every length field, wrong by one either way, zero, and as large as it can be."""
    fields = [
        ("signature data length", "signature-data"),
        ("certification data size", "certification-data"),
        ("QE authentication data size", "qe-auth-data"),
        ("inner certification data size", "pck-chain"),
    ]
    if sound.version == 5:
        fields.append(("body size", "body"))
    for name, short in fields:
        part = sound.part(name)
        true = int.from_bytes(sound.quote[part.start : part.end], "little")
        largest = (1 << (8 * part.size)) - 1
        for label, value in (("minus-1", true - 1), ("plus-1", true + 1), ("0", 0), ("max", largest)):
            lenient = (short, label) == ("pck-chain", "minus-1")
            reason = "" if lenient else _length_reason(short, label)
            why = f"The {name} is {value} instead of {true}."
            if lenient:
                why += " Only the newline after the last certificate is lost, which PEM can do without."
            yield sound.vector(
                "length",
                f"{short}-{label}-{sound.label}",
                why,
                reason,
                quote=sound.splice(name, value.to_bytes(part.size, "little")),
                lenient=lenient,
            )
    for part in sound.parsed.parts:
        yield sound.vector(
            "truncated",
            f"before-{part.name.replace(' ', '-').lower()}-{sound.label}",
            f"The quote ends before its {part.name}, at byte {part.start}.",
            _UNREADABLE,
            quote=sound.quote[: part.start],
        )
    yield sound.vector(
        "truncated",
        f"last-byte-{sound.label}",
        "The last byte of the quote is missing.",
        _UNREADABLE,
        quote=sound.quote[:-1],
    )
    yield sound.vector(
        "truncated",
        f"padded-{sound.label}",
        "Zeros follow the quote, as some providers pad; the lengths say where it ends.",
        "",
        quote=sound.quote + bytes(64),
        lenient=True,
    )


def _length_reason(short: str, label: str) -> str:
    # With a shorter chain the last certificate is cut or gone; what is read of the QE authentication
    # data decides what the bytes after it mean.
    if (short, label) == ("pck-chain", "0"):
        return "Certificate chain is too short in quote"
    return _UNREADABLE


def signatures(sound: Sound) -> Iterator[Vector]:
    """The two signatures in a quote, changed in every way that has fooled a verifier."""
    for name, short, reason in (
        ("quote signature", "quote", _BAD_QUOTE),
        ("QE report signature", "qe-report", _BAD_QE),
    ):
        part = sound.part(name)
        r, s = sound.quote[part.start : part.start + 32], sound.quote[part.start + 32 : part.end]
        number = int.from_bytes(s, "big")
        flipped_r = bytes((r[0] ^ 0x80,)) + r[1:]
        flipped_s = s[:-1] + bytes((s[-1] ^ 1,))
        order = P256_ORDER.to_bytes(32, "big")
        for label, value, why in (
            ("r-flipped", flipped_r + s, "the first bit of r is flipped"),
            ("s-flipped", r + flipped_s, "the last bit of s is flipped"),
            ("zero", bytes(64), "r and s are 0"),
            ("r-zero", bytes(32) + s, "r is 0"),
            ("s-zero", r + bytes(32), "s is 0"),
            ("r-order", order + s, "r is the order of the group"),
            ("s-order", r + order, "s is the order of the group"),
            ("swapped", s + r, "r and s are swapped"),
            ("little-endian", r[::-1] + s[::-1], "r and s are little-endian"),
        ):
            yield sound.vector(
                "signature",
                f"{short}-{label}-{sound.label}",
                f"In the {name}, {why}.",
                reason,
                quote=sound.splice(name, value),
            )
        yield sound.vector(
            "signature",
            f"{short}-negated-{sound.label}",
            f"In the {name}, s is replaced by the order minus s: an equally valid ECDSA signature that "
            "anybody can make of the first.",
            "",
            quote=sound.splice(name, r + (P256_ORDER - number).to_bytes(32, "big")),
            lenient=True,
        )
    other = SigningKey.derived(sound.world.seed, "somebody else's attestation key")
    signed = sound.quote[: sound.parsed.signed_size]
    yield sound.vector(
        "signature",
        f"foreign-attestation-key-{sound.label}",
        "The quote is well signed, with an attestation key that the QE report does not bind.",
        "QE report hash mismatch",
        quote=signed
        + signature_data(
            other.sign(signed),
            other.public_raw,
            sound.parsed.bytes_of("QE report"),
            sound.parsed.bytes_of("QE report signature"),
            sound.parsed.bytes_of("QE authentication data"),
            sound.parsed.bytes_of("PCK certificate chain"),
        ),
    )
    yield sound.vector(
        "signature",
        f"attestation-key-off-curve-{sound.label}",
        "The attestation key is a point that is not on the curve.",
        "QE report hash mismatch",
        quote=sound.flip(sound.part("attestation key").start),
    )
    yield sound.vector(
        "signature",
        f"qe-auth-data-{sound.label}",
        "A bit of the QE authentication data is flipped; the QE report binds it.",
        "QE report hash mismatch",
        quote=sound.flip(sound.part("QE authentication data").start),
    )


def claims(sound: Sound) -> Iterator[Vector]:
    """Every field of the body and of the QE report with a bit flipped."""
    for name, member in sound.parsed.body_layout.fields.items():
        yield sound.vector(
            "claim",
            f"{name}-{sound.label}",
            f"A bit of the TD's {name.upper()} is flipped; the quote signature covers it.",
            _BAD_QUOTE,
            quote=sound.flip(sound.parsed.body_start + member.offset),
        )
    start = sound.part("QE report").start
    for name, member in SGX_REPORT.fields.items():
        yield sound.vector(
            "claim",
            f"qe-{name}-{sound.label}",
            f"A bit of the QE report's {name.upper()} is flipped; the PCK's signature covers it.",
            _BAD_QE,
            quote=sound.flip(start + member.offset),
        )


def malformed_quotes(sound: Sound) -> Iterator[Vector]:
    """All of the above."""
    yield from header_fields(sound)
    yield from lengths(sound)
    yield from signatures(sound)
    yield from claims(sound)
