"""Vectors for the rating of a TCB: every status in every kind of quote, and every scenario."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..collateral import TcbStatus
from ..scenario import Expectation, builtins
from ..world import Standing, World
from .model import Vector, kinds

# What a platform's rating comes out as when everything else is up to date: itself, unless revoked.
_PLATFORM = (
    TcbStatus.UP_TO_DATE,
    TcbStatus.SW_HARDENING_NEEDED,
    TcbStatus.CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
    TcbStatus.OUT_OF_DATE,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
)


def matrix(world: World) -> Iterator[Vector]:
    """Platform statuses by kinds of quote."""
    for status in (*_PLATFORM, TcbStatus.REVOKED):
        advisories = () if status is TcbStatus.UP_TO_DATE else ("INTEL-SA-00837",)
        rated = replace(world, platform=Standing(status, advisories))
        for sound in kinds(rated):
            revoked = status is TcbStatus.REVOKED
            vector = sound.vector(
                "status",
                f"{status}-{sound.label}",
                f"The platform is rated {status}; the quote is of the kind {sound.label}.",
                "TCB status is invalid: Revoked" if revoked else "",
            )
            if not revoked:
                vector = replace(vector, expect=Expectation(True, str(status), advisories))
            yield vector


def scenarios(world: World) -> Iterator[Vector]:
    """The scenarios that come with swtdx."""
    for scenario in builtins(world):
        yield Vector(
            f"scenario/{scenario.name}",
            scenario.title + ".",
            scenario.quote(),
            scenario.collateral(),
            scenario.world.pki.root.der,
            int(scenario.world.now.timestamp()),
            scenario.expect,
        )
