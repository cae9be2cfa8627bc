"""What a test vector is, and the raw material most of them start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..collateral import Collateral
from ..quote import BodyType, ParsedQuote, Part
from ..scenario import Expectation
from ..world import World
from .latitude import latitude


@dataclass(frozen=True)
class Vector:
    """One vector.

    Args:
        name: path of its folder, ``group/name``.
        why: what is special about it and why the verdict follows, for people.
        quote: the quote.
        collateral: the collateral.
        root: the trusted root, DER.
        now: Unix seconds at which to verify.
        expect: the verdict; its ``reason`` is a part of dcap-qvl's message.
        lenient: the verdict is dcap-qvl's, but the bytes are not as they should be and a stricter
            verifier may reject them.
    """

    name: str
    why: str
    quote: bytes
    collateral: Collateral
    root: bytes
    now: int
    expect: Expectation
    lenient: bool = False

    def document(self) -> dict[str, Any]:
        """The vector without its bytes, as data."""
        return {
            "name": self.name,
            "why": self.why,
            "now": self.now,
            "verdict": "accepted" if self.expect.accepted else "rejected",
            "status": self.expect.status or None,
            "advisories": list(self.expect.advisories),
            "dcap_qvl_says": self.expect.reason or None,
            "lenient": self.lenient,
            "others_may": [each.plain() for each in latitude(self.name)],
        }

    def files(self) -> dict[str, bytes]:
        """The vector's files by name."""
        return {
            "quote.bin": self.quote,
            "collateral.json": self.collateral.to_json().encode(),
            "expected.json": (json.dumps(self.document(), indent=2) + "\n").encode(),
        }


@dataclass(frozen=True)
class Sound:
    """A quote that is accepted, to be changed."""

    world: World
    version: int
    body: BodyType

    @property
    def label(self) -> str:
        """Short name of the kind of quote."""
        return "v4" if self.version == 4 else f"v5-{self.body.label}"

    @cached_property
    def quote(self) -> bytes:
        """The unchanged quote."""
        return self.world.quote(version=self.version, body=self.body)

    @cached_property
    def parsed(self) -> ParsedQuote:
        """The unchanged quote taken apart."""
        return ParsedQuote(self.quote)

    @cached_property
    def collateral(self) -> Collateral:
        """Its collateral."""
        return self.world.collateral()

    def part(self, name: str) -> Part:
        """A part of the quote."""
        return self.parsed.part(name)

    def splice(self, name: str, new: bytes) -> bytes:
        """The quote with one part replaced, everything else left as it is (lengths too)."""
        part = self.part(name)
        return self.quote[: part.start] + new + self.quote[part.end :]

    def flip(self, offset: int, bit: int = 0) -> bytes:
        """The quote with one bit flipped."""
        changed = bytearray(self.quote)
        changed[offset] ^= 1 << bit
        return bytes(changed)

    def vector(
        self,
        group: str,
        name: str,
        why: str,
        reason: str,
        *,
        quote: bytes | None = None,
        collateral: Collateral | None = None,
        now: int | None = None,
        lenient: bool = False,
    ) -> Vector:
        """A vector made of this; an empty ``reason`` means that it is accepted as UpToDate."""
        return Vector(
            f"{group}/{name}",
            why,
            self.quote if quote is None else quote,
            self.collateral if collateral is None else collateral,
            self.world.pki.root.der,
            int(self.world.now.timestamp()) if now is None else now,
            Expectation(False, reason=reason) if reason else Expectation(True, "UpToDate"),
            lenient,
        )


def kinds(world: World) -> list[Sound]:
    """The kinds of TD quotes there are."""
    return [
        Sound(world, 4, BodyType.TD_1_0),
        Sound(world, 5, BodyType.TD_1_0),
        Sound(world, 5, BodyType.TD_1_5),
    ]
