"""What the collateral service can hand out, without HTTP: looked up by the PCS's own parameters.

The world is told the time at every request, so that a service that runs for months keeps serving
collateral that holds; within a day the answers are byte-identical.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from ..collateral import Signed
from ..pki import Issued
from ..sgx_platform import PckCa
from ..world import Fault, World

#: Platform-wide edition of ratings that is offered beside the current one, as Intel keeps some.
EDITIONS: Final = 2


@dataclass(frozen=True)
class PckAnswer:
    """A PCK certificate and what the PCS says in headers about it."""

    pck: Issued
    chain: str
    tcbm: bytes
    fmspc: bytes
    ca: PckCa


class Catalogue:
    """The documents of one world.

    Args:
        world: the world; its ``now`` counts only when ``clock`` is None.
        clock: tells the time, timezone-aware; None freezes the world's.
    """

    def __init__(self, world: World, clock: Callable[[], dt.datetime] | None = None) -> None:
        self._world = world
        self._clock = clock
        self._at = lru_cache(maxsize=4)(self._world_at)

    def _world_at(self, now: dt.datetime, number: int) -> World:
        return replace(self._world, now=now, evaluation_number=number)

    def world(self, number: int | None = None) -> World:
        """The world as it is today, in the edition of ratings ``number``."""
        now = self._world.now
        if self._clock is not None:
            now = self._clock().astimezone(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return self._at(now, self._world.evaluation_number if number is None else number)

    def editions(self) -> list[int]:
        """The editions of ratings on offer, newest first."""
        newest = self._world.evaluation_number
        return [number for number in range(newest, newest - EDITIONS, -1) if number > 0]

    def knows(self, fmspc: bytes) -> bool:
        """Whether there is TCB info for that platform family (6 bytes)."""
        return fmspc == self._world.platform_identity.fmspc

    def tcb_info(self, kind: str, number: int | None) -> Signed:
        """TCB info, "TDX" or "SGX"."""
        return self.world(number).signed_tcb_info(kind)

    def old_tcb_info(self) -> Signed:
        """SGX TCB info in version 2, as API version 3 has it."""
        return self.world().signed_old_tcb_info()

    def identity(self, kind: str, number: int | None) -> Signed:
        """Enclave identity: "TD_QE", "QE", "QVE" or "QAE"."""
        return self.world(number).signed_identity(kind)

    def evaluation_numbers(self, kind: str) -> Signed:
        """The editions on offer, signed: "TDX" or "SGX"."""
        return self.world().signed_evaluation_numbers(kind, self.editions())

    def pck_crl(self, ca: PckCa) -> tuple[bytes, str]:
        """A PCK CA's CRL (DER) and its issuer chain (PEM)."""
        world = self.world()
        return world.pck_crl(ca), world.pck_ca_chain(ca)

    def root_crl(self) -> bytes:
        """The root CA's CRL, DER."""
        return self.world().root_crl()

    def root(self) -> Issued:
        """The root CA."""
        return self._world.pki.root

    def pck(self, cpusvn: bytes, pcesvn: int, pceid: bytes) -> PckAnswer | None:
        """The PCK certificate for a platform TCB, or None if the platform is not this one or too old.

        As the PCS does, a platform with a newer TCB than is known gets the newest known certificate.
        """
        world = self.world()
        tcb, platform = world.tcb, world.platform_identity
        if pceid != platform.pceid or pcesvn < tcb.pcesvn:
            return None
        if any(have < need for have, need in zip(cpusvn, tcb.components, strict=True)):
            return None
        pki = world.impostor if Fault.PCK_WRONG_ISSUER in world.faults else world.pki
        return PckAnswer(
            world.pck,
            pki.pck_ca(world.ca).pem + pki.root.pem,
            tcb.raw_tcb,
            platform.fmspc,
            world.ca,
        )
