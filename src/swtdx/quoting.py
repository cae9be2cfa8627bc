"""Quotes for a hypervisor: from the quoting enclave of its own platform, or from a service elsewhere.

The quoting enclave runs beside the hypervisor on the platform's own machine, which alone can check the
MAC of its TDREPORTs.  Hypervisor and enclave talk by the QGS protocol, as QEMU does with a service, so that a
service of somebody else can take the enclave's place: that one is on a socket, the enclave is called with the
same bytes.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from swtdx.arch.seam_structs import SEAMEXTEND
from swtdx.attestation.errors import QgsError
from swtdx.attestation.qgs.address import parse_address
from swtdx.attestation.qgs.connection import Service
from swtdx.machine.seamops import ReportVerifier

if TYPE_CHECKING:
    from swtdx.attestation.enclave import TdQuotingEnclave
    from swtdx.attestation.world import World
    from swtdx.platform import Platform


def world_of(platform: Platform, pcs_url: str | None = None) -> World:
    """The maker's view of ``platform``: its seed's certificates, its CPUSVN, and the module that it runs.

    For a platform as swtdx builds it, this is what ``World(seed)`` is by itself, so that a collateral
    service needs the seed only.  ``pcs_url``: where the certificates say that revocation lists are.

    Raises:
        AttestationError: the machine's seed is empty.
    """
    from swtdx.attestation.world import World

    seam = platform.machine.seam
    world = World(seed=platform.machine.config.seed)
    extend = seam.extend
    if SEAMEXTEND.valid.get(extend):
        svn = SEAMEXTEND.tee_tcb_svn.get(extend)
        world = replace(
            world, tee_tcb_svn=svn, tee_tcb_svn2=svn, mrsignerseam=SEAMEXTEND.mrsigner.get(extend)
        )
    if pcs_url is not None:
        world = replace(world, pcs_url=pcs_url)
    return replace(world, tcb=replace(world.tcb, components=tuple(seam.cpusvn)))


def quoting_enclave(
    platform: Platform, version: int | None = None, pcs_url: str | None = None
) -> TdQuotingEnclave:
    """The TD quoting enclave on ``platform``; ``version`` of its quotes, None for what a report needs."""
    return world_of(platform, pcs_url).enclave(ReportVerifier(platform.machine.seam), version)


def enclave_of_seed(world: World, version: int | None = None) -> TdQuotingEnclave:
    """The quoting enclave of the machine with the world's seed, beside that machine and not in it.

    It checks the MAC with the key that follows from the seed, as it is after the machine's first start,
    and takes reports that are made without a machine (test vectors), too.
    """
    from swtdx.attestation.tdreport import ReportKey
    from swtdx.machine.cpu.fuses import Fuses

    keys = (ReportKey(Fuses(world.seed).report_key), world.report_key)

    class Either:
        """A report of the machine, or one made without it."""

        def verify(self, mac_struct: bytes) -> bool:
            """Whether the MAC is one of the two."""
            return any(key.verify(mac_struct) for key in keys)

    return world.enclave(Either(), version)


class Quoting:
    """A hypervisor's quote service (``swtdx.vmm.quote.QuoteService``).

    The platform's own enclave comes up with the first request: a TD that asks for no quote pays nothing.

    Args:
        platform: the machine that TDs run on.
        qgs: the address of a service elsewhere (``unix:PATH`` or ``vsock:CID[:PORT]``); None for
            the platform's own enclave.
        version: of the quotes of the platform's own enclave; None for what a report needs.
        pcs_url: where its certificates say that revocation lists are; None for the default.

    Raises:
        QgsError: ``qgs`` is no address.
    """

    def __init__(
        self,
        platform: Platform,
        qgs: str | None = None,
        version: int | None = None,
        pcs_url: str | None = None,
    ) -> None:
        self._platform = platform
        self._pcs_url = pcs_url
        self._version = version
        self._service: Service | None = None if qgs is None else parse_address(qgs)
        self._lock = threading.Lock()

    def __call__(self, data: bytes) -> bytes:
        """What the TD gets for the data of its GetQuote request.  On any thread.

        Raises:
            ConnectionError: no service answers.
            QgsError: the service refuses, or the data is no request.
        """
        from swtdx.attestation import getquote
        from swtdx.attestation.qgs.client import QgsClient

        try:
            return getquote.answer(data, QgsClient(self.service).exchange)
        except QgsError as error:
            if error.code:
                raise
            raise ConnectionError(str(error)) from error

    @property
    def service(self) -> Service:
        """Who is asked; the platform's own enclave starts now if it has not yet."""
        with self._lock:
            if self._service is None:
                from swtdx.attestation.qgs.collateral import collateral_source
                from swtdx.attestation.qgs.loopback import Loopback

                enclave = quoting_enclave(self._platform, self._version, self._pcs_url)
                source = collateral_source(world_of(self._platform, self._pcs_url))
                self._service = Loopback(enclave, source)
            return self._service
