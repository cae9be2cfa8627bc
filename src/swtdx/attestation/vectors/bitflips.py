"""Every single bit of a quote and of its collateral flipped once, and what a verifier says.

A flip is *rejected* by dcap-qvl (or by swtdx's own reading of the quote), *unreadable* when it makes no
text of what must be text, or *unnoticed*: accepted with exactly the same claims and the same report.  One
that is accepted with anything else would be *harmful*; there must be none.  Unnoticed flips lie where no
signature covers and no claim depends, and :func:`reason` says of a place why that is so.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ..collateral import Collateral
from ..quote import ParsedQuote
from ..report import render
from ..verify import Verifier

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
    """dcap-qvl and swtdx's report on it, and what both say of the unchanged material.

    Raises:
        ValueError: the unchanged material is not accepted.
    """

    def __init__(self, material: Material) -> None:
        import dcap_qvl

        self.dcap = dcap_qvl
        self.material = material
        self.verifier = dcap_qvl.QuoteVerifier(material.root)
        self.swtdx = Verifier(material.root, accept_simulated=True)
        self.policy = self.swtdx.policy.dcap(material.now)
        values = material.fields()
        self.values: dict[str, Any] = {
            name: value.decode() if isinstance(getattr(material.collateral, name, b""), str) else value
            for name, value in values.items()
        }
        self.quote = self.values.pop(QUOTE)
        self.native = dcap_qvl.QuoteCollateralV3(**self.values)
        self.outcome = self._outcome(self.quote, self.native)
        if self.outcome is None:
            raise ValueError("the unchanged quote is refused")

    def _outcome(self, quote: bytes, native: Any) -> tuple[str, str, str] | None:
        """dcap-qvl's claims, swtdx's verdict and its report; None when either refuses."""
        try:
            claims = self.verifier.verify_with_policy(quote, native, self.material.now, self.policy)
        except ValueError:
            return None
        verdict = self.swtdx.conclude(quote, claims, self.material.now)
        if not verdict.accepted:
            return None
        return str(claims.to_json()), json.dumps(verdict.document()), render(verdict)

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
        outcome = self._outcome(quote, native)
        if outcome is None:
            return "rejected"
        return "unnoticed" if outcome == self.outcome else "harmful"


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
    chain = parsed.bytes_of("PCK certificate chain")
    if part.name == "PCK certificate chain":
        return _in_chain(chain, byte - part.start, bit)
    if part.name == "inner certification data size":
        size = len(chain) ^ 1 << (8 * (byte - part.start) + bit)
        if chain.rindex(b"-----BEGIN") <= size < len(chain):
            return _SHORT_CHAIN
    return ""


def flip_all(
    material: Material,
    *,
    workers: int = 2,
    only: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tally]:
    """Flip every bit (of the field ``only``, if given) and tally what dcap-qvl says, by field.

    ``progress`` is told how many pieces of the work are done, and how many there are.

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
        for done, (name, tally) in enumerate(pool.map(_work, tasks), 1):
            tallies.setdefault(name, Tally()).add(tally)
            if progress is not None:
                progress(done, len(tasks))
    return tallies
