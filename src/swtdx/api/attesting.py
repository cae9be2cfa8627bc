"""Quotes, what verifies them, and what a maker publishes: works with no machine at all."""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.quote import ParsedQuote

if TYPE_CHECKING:
    from swtdx.attestation.verify import Verdict
    from swtdx.attestation.world import World

#: Bytes of REPORTDATA.
_REPORTDATA: Final = 64


class Quote:
    """A TD quote, taken apart but not verified.  ``bytes(quote)`` are its bytes.

    Its measurements are attributes: ``mrtd``, ``rtmr0`` to ``rtmr3``, ``reportdata``, ``tdattributes``,
    ``xfam``, ``mrconfigid``, ``mrowner``, ``mrownerconfig``, ``mrseam`` ..., bytes in the quote's own order.

    Raises:
        ValueError: the bytes are no TD quote of version 4 or 5.
    """

    def __init__(self, data: bytes) -> None:
        self._parsed = ParsedQuote(data)
        self._body = self._parsed.body()

    def __bytes__(self) -> bytes:
        return self._parsed.data

    def __getattr__(self, name: str) -> bytes:
        if name.startswith("_") or name not in self._body:
            known = ", ".join(self.__dict__.get("_body", ()))
            raise AttributeError(f"a TD quote has no {name!r}; it has {known}")
        return self._body[name]

    @property
    def version(self) -> int:
        """4 or 5."""
        return self._parsed.version

    @property
    def fields(self) -> dict[str, bytes]:
        """Every field of the body, by name in lower case."""
        return dict(self._body)

    @property
    def pck_chain(self) -> str:
        """The PCK certificate chain that the quote carries, PEM; empty when it carries none."""
        return self._parsed.pck_chain()


def _world(seed: str | bytes) -> World:
    from swtdx.attestation.world import World

    data = seed.encode() if isinstance(seed, str) else seed
    return replace(World(seed=data), now=dt.datetime.now(dt.UTC))


def make_quote(
    report_data: bytes = b"", *, seed: str | bytes = b"swtdx", version: int = 4, **fields: Any
) -> Quote:
    """A quote over a report made without a machine, under the same root as a machine of that seed.

    Args:
        report_data: REPORTDATA, 64 bytes at most; zeros fill it up.
        seed: the machine's.
        version: 4 or 5.
        fields: what else the report says: ``mrtd``, ``rtmrs`` (four), ``mrconfigid``, ``mrowner``,
            ``mrownerconfig`` (48 bytes each), ``attributes``, ``xfam``.

    Raises:
        ValueError: ``report_data`` is too long, or a field has the wrong size.
        TypeError: there is no such field.
    """
    if len(report_data) > _REPORTDATA:
        raise ValueError(f"REPORTDATA has {_REPORTDATA} bytes; these are {len(report_data)}")
    world = _world(seed)
    report = replace(world.report_fields(), reportdata=report_data.ljust(_REPORTDATA, b"\0"), **fields)
    return Quote(world.quote(report, version=version))


def verify(
    quote: Quote | bytes,
    collateral: bytes | str,
    *,
    root: bytes | None = None,
    policy: str | None = None,
    accept_simulated: bool = False,
    now: dt.datetime | None = None,
) -> Verdict:
    """Verify a quote, as ``swtdx verify`` does; a quote that fails is an answer, not an exception.

    Of the verdict ``accepted``, ``authentic``, ``status``, ``advisories``, ``check``, ``reason`` and
    ``document()`` can be used.

    Args:
        quote: the quote.
        collateral: JSON as dcap-qvl's ``QuoteCollateralV3``.
        root: the trusted root, PEM or DER; None for Intel's.
        policy: TOML that says what is accepted, see ``docs/attestation.md``.
        accept_simulated: without it a root that says "simulated" is refused, even if it is handed over.
        now: the instant to verify at; the clock's by default.

    Raises:
        AttestationError: collateral, root or policy cannot be used, or dcap-qvl is not installed (extra
            ``attestation``).
    """
    from swtdx.attestation.policy import parse_policy
    from swtdx.attestation.verify import Verifier

    data = collateral.encode() if isinstance(collateral, str) else collateral
    verifier = Verifier(
        root, None if policy is None else parse_policy(policy), accept_simulated=accept_simulated
    )
    return verifier.verify(bytes(quote), Collateral.from_json(data), now)


class CollateralService:
    """The maker's collateral service, in this process, at ``url``: a context manager.

    Needs the extra ``attestation``.

    Args:
        seed: the machine's whose quotes are to verify.
        scenario: a world in which something is wrong, by name or file (``swtdx pcs scenarios``).
        host, port: where it listens; port 0 picks a free one.

    Raises:
        AttestationError: there is no such scenario, or it cannot listen there.
    """

    def __init__(
        self,
        seed: str | bytes = b"swtdx",
        *,
        scenario: str | Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        from swtdx.attestation.scenario import find

        self._world = _world(seed)
        #: The scenario, or None.
        self.scenario = None
        if scenario is not None:
            self.scenario = find(str(scenario), replace(self._world, now=_world("").now))
            self._world = self.scenario.world
        self._host, self._port = host, port
        self._serving = contextlib.ExitStack()
        self._url = ""

    def __enter__(self) -> Self:
        from swtdx.attestation.pcs.catalogue import Catalogue
        from swtdx.attestation.pcs.serve import serving

        # A scenario plays at its own time.
        clock = None if self.scenario is not None else lambda: dt.datetime.now(dt.UTC)
        self._url = self._serving.enter_context(
            serving(Catalogue(self._world, clock), self._host, self._port)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.close()

    @property
    def now(self) -> dt.datetime:
        """The instant at which its documents hold: now, or a scenario's own time."""
        return self._world.now

    @property
    def url(self) -> str:
        """Its base URL, such as ``http://127.0.0.1:40001``."""
        return self._url

    @property
    def root(self) -> bytes:
        """The simulated root certificate, PEM."""
        return self._world.pki.root.pem.encode()

    def collateral(self) -> bytes:
        """What a verifier would fetch for this machine's quotes, as JSON."""
        return self._world.collateral().to_json().encode()

    def quote(self, report_data: bytes = b"") -> Quote:
        """A quote of this world; of a scenario, the quote that it is about."""
        if self.scenario is not None:
            return Quote(self.scenario.quote())
        report = replace(self._world.report_fields(), reportdata=report_data.ljust(_REPORTDATA, b"\0"))
        return Quote(self._world.quote(report))
