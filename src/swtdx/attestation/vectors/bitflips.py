"""Every single bit of a quote and of its collateral flipped once, and what a verifier says.

A flip is *rejected* by dcap-qvl, *unreadable* when it makes no text of what must be text, or
*unnoticed*: accepted with exactly the same claims.  One that is accepted with other claims would be
*harmful*; there must be none.  Unnoticed flips lie where no signature covers and no claim depends, and
:func:`reason` says of a place why that is so.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ..collateral import Collateral
from ..quote import ParsedQuote

#: Name of the quote among the fields that are flipped.
QUOTE: Final = "quote"

#: Bytes that one task flips.
_CHUNK: Final = 128


@dataclass(frozen=True)
class Material:
    """What is verified: an accepted quote, its collateral, the trusted root (DER), Unix seconds."""

    quote: bytes
    collateral: Collateral
    root: bytes
    now: int

    def fields(self) -> dict[str, bytes]:
        """Everything whose bits are flipped, by name."""
        out = {QUOTE: self.quote}
        for each in fields(self.collateral):
            value = getattr(self.collateral, each.name)
            out[each.name] = value.encode() if isinstance(value, str) else value
        return out


@dataclass
class Tally:
    """What became of the flips in one field; places are (byte, bit)."""

    tried: int = 0
    rejected: int = 0
    unreadable: int = 0
    unnoticed: list[tuple[int, int]] = field(default_factory=list)
    harmful: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        self.tried += other.tried
        self.rejected += other.rejected
        self.unreadable += other.unreadable
        self.unnoticed += other.unnoticed
        self.harmful += other.harmful


class Judge:
    """dcap-qvl, and the claims of the unchanged material."""

    def __init__(self, material: Material) -> None:
        import dcap_qvl

        self.dcap = dcap_qvl
        self.material = material
        self.verifier = dcap_qvl.QuoteVerifier(material.root)
        self.policy = dcap_qvl.QuotePolicy.claims_only(material.now)
        values = material.fields()
        self.values: dict[str, Any] = {
            name: value.decode() if isinstance(getattr(material.collateral, name, b""), str) else value
            for name, value in values.items()
        }
        self.quote = self.values.pop(QUOTE)
        self.native = dcap_qvl.QuoteCollateralV3(**self.values)
        self.claims = self._claims(self.quote, self.native)

    def _claims(self, quote: bytes, native: Any) -> str:
        claims = self.verifier.verify_with_policy(quote, native, self.material.now, self.policy)
        return str(claims.to_json())

    def flip(self, name: str, value: bytearray) -> str:
        """ "rejected", "unreadable", "unnoticed" or "harmful"."""
        quote, native = self.quote, self.native
        if name == QUOTE:
            quote = bytes(value)
        elif isinstance(self.values[name], str):
            try:
                text = value.decode()
            except UnicodeDecodeError:
                return "unreadable"
            native = self.dcap.QuoteCollateralV3(**(self.values | {name: text}))
        else:
            native = self.dcap.QuoteCollateralV3(**(self.values | {name: bytes(value)}))
        try:
            claims = self._claims(quote, native)
        except ValueError:
            return "rejected"
        return "unnoticed" if claims == self.claims else "harmful"


_judge: Judge | None = None


def _start(material: Material) -> None:
    global _judge
    _judge = Judge(material)


def _work(task: tuple[str, int, int]) -> tuple[str, Tally]:
    assert _judge is not None
    name, start, end = task
    value = bytearray(_judge.material.fields()[name])
    tally = Tally()
    for byte in range(start, end):
        for bit in range(8):
            value[byte] ^= 1 << bit
            outcome = _judge.flip(name, value)
            value[byte] ^= 1 << bit
            tally.tried += 1
            if outcome in ("rejected", "unreadable"):
                setattr(tally, outcome, getattr(tally, outcome) + 1)
            else:
                getattr(tally, outcome).append((byte, bit))
    return name, tally


_ROOT_COPY: Final = "in the chain's copy of the root certificate: the verifier uses the root it was given"
_WHITE_SPACE: Final = "white space around or inside the base64 of a certificate"
_UNUSED: Final = "not read: the signature of the PCK CRL is checked with the CA in the quote's PCK chain"
_OUTER_TYPE: Final = "the type of the outer certification data, which has one layout only; it is not read"
_SHORT_CHAIN: Final = "shortens the PCK chain so that only the copy of the root certificate is cut"


def _in_chain(chain: bytes, byte: int, bit: int) -> str:
    """Why a flip in a PEM chain that ends in the root goes unnoticed."""
    if byte >= chain.rindex(b"-----BEGIN"):
        return _ROOT_COPY
    changed = chain[byte] ^ 1 << bit
    between = chain[:byte].endswith(b"-----END CERTIFICATE-----")
    if chain[byte] == 0x0A and (between or bytes((changed,)).isspace()):
        return _WHITE_SPACE
    return ""


def reason(material: Material, name: str, byte: int, bit: int) -> str:
    """Why nothing depends on this bit, or "" when something should: then a flip must be noticed."""
    if name == "pck_crl_issuer_chain":
        return _UNUSED
    if name.endswith("_issuer_chain"):
        return _in_chain(material.fields()[name], byte, bit)
    if name != QUOTE:
        return ""
    parsed = ParsedQuote(material.quote)
    (part,) = (each for each in parsed.parts if each.start <= byte < each.end)
    if part.name == "certification data type":
        return _OUTER_TYPE
    chain = parsed.bytes_of("PCK certificate chain")
    if part.name == "PCK certificate chain":
        return _in_chain(chain, byte - part.start, bit)
    if part.name == "inner certification data size":
        size = len(chain) ^ 1 << (8 * (byte - part.start) + bit)
        if chain.rindex(b"-----BEGIN") <= size < len(chain):
            return _SHORT_CHAIN
    return ""


def summary(material: Material, tallies: dict[str, Tally]) -> str:
    """The tallies as a table, and the reasons of what went unnoticed with their numbers."""
    lines = [f"{'field':<28}{'tried':>8}{'rejected':>10}{'no text':>9}{'unnoticed':>11}{'harmful':>9}"]
    total = Tally()
    reasons: dict[str, int] = {}
    for name, tally in tallies.items():
        total.add(tally)
        lines.append(_row(name, tally))
        for byte, bit in tally.unnoticed:
            why = reason(material, name, byte, bit) or "FOR NO KNOWN REASON"
            reasons[why] = reasons.get(why, 0) + 1
    lines += [_row("all", total), "", "Unnoticed:"]
    lines += [f"{number:>8}  {why}" for why, number in sorted(reasons.items(), key=lambda each: -each[1])]
    return "\n".join(lines)


def _row(name: str, tally: Tally) -> str:
    return (
        f"{name:<28}{tally.tried:>8}{tally.rejected:>10}{tally.unreadable:>9}"
        f"{len(tally.unnoticed):>11}{len(tally.harmful):>9}"
    )


def flip_all(material: Material, *, workers: int = 2, only: str | None = None) -> dict[str, Tally]:
    """Flip every bit (of the field ``only``, if given) and tally what dcap-qvl says, by field.

    Raises:
        ValueError: the unchanged material is not accepted.
    """
    tasks: list[tuple[str, int, int]] = []
    for name, value in material.fields().items():
        if only in (None, name):
            tasks += [(name, at, min(at + _CHUNK, len(value))) for at in range(0, len(value), _CHUNK)]
    tallies: dict[str, Tally] = {}
    # Spawned processes inherit no threads and no sockets of a test run.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(material,)
    ) as pool:
        for name, tally in pool.map(_work, tasks):
            tallies.setdefault(name, Tally()).add(tally)
    return tallies
