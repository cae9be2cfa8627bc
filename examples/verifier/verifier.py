"""A relying party's verifier, as small as one can be: dcap-qvl for the signatures, and rules of its own.

It trusts the root that it is given, accepts the TCB statuses that it is told, and only TDs that it knows.
"""

from dataclasses import dataclass, field

import dcap_qvl

DEBUG = 1  # bit 0 of TD ATTRIBUTES


class Rejected(Exception):
    """The quote does not prove what we want to know."""


@dataclass(frozen=True)
class Verifier:
    """``root``: DER; ``mrtds``: the MRTDs that are known, empty for any; ``accept``: TCB statuses."""

    root: bytes
    mrtds: frozenset[bytes] = frozenset()
    accept: frozenset[str] = field(default_factory=lambda: frozenset({"UpToDate"}))

    def check(self, quote: bytes, collateral: str, now: int, nonce: bytes | None = None) -> str:
        """The TCB status of a quote that is accepted.

        Raises:
            Rejected: it is not; says why.
        """
        try:
            known = dcap_qvl.QuoteCollateralV3.from_json(collateral)
            status = dcap_qvl.verify_with_root_ca(quote, known, self.root, now).status
            parsed = dcap_qvl.Quote.parse(quote)
        except ValueError as error:
            raise Rejected(str(error)) from error
        if status not in self.accept:
            raise Rejected(f"the platform's TCB is {status}")
        if not parsed.is_tdx():
            raise Rejected("not a TD's quote")
        td = parsed.report
        if int.from_bytes(td.td_attributes, "little") & DEBUG:
            raise Rejected("a debug TD, into which its host can look")
        if self.mrtds and bytes(td.mr_td) not in self.mrtds:
            raise Rejected("a TD that we do not know")
        if nonce is not None and bytes(td.report_data) != nonce.ljust(64, b"\0"):
            raise Rejected("made for somebody else: the nonce is another one")
        return status
