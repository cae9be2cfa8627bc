"""A client of a PCS or PCCS behind TLS that only the user vouches for.

dcap-qvl's client (:mod:`.fetch`) trusts the system's certificate authorities and no others; a PCCS mostly
has a certificate of its own making.  This one takes the authority's certificate from the user, or, told to,
no proof at all of who answers: collateral is signed, so that TLS hides it and adds no authenticity.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Final

from cryptography import x509

from ..collateral import Collateral
from ..errors import AttestationError
from ..names import PROCESSOR_CA
from ..pck import chain_of
from ..quote import ParsedQuote

#: Seconds that an answer may take, and bytes that it may have.
_TIMEOUT: Final = 30.0
_LIMIT: Final = 16 << 20


def tls_context(ca: bytes | None, *, insecure: bool) -> ssl.SSLContext:
    """What to trust: the certificates in ``ca`` (PEM), nothing in particular, or the system's.

    Raises:
        AttestationError: ``ca`` has no certificate.
    """
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if ca is not None:
        try:
            context = ssl.create_default_context(cadata=ca.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError, ValueError):
            raise AttestationError("the CA file has no PEM certificate that can be used") from None
    return context


class PcsClient:
    """Asks the service at the base URL ``url`` (with or without ``/sgx/certification/v4``)."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        base = url.rstrip("/")
        for tail in ("/sgx/certification/v4", "/tdx/certification/v4", "/sgx/certification/v3"):
            base = base.removesuffix(tail)
        self.url = base
        self._context = context

    def get(self, path: str) -> tuple[bytes, dict[str, str]]:
        """An answer's body, and its headers by lower-case name.

        Raises:
            AttestationError: nothing answers, TLS fails, or the answer is an error.
        """
        where = self.url + path
        try:
            with urllib.request.urlopen(where, timeout=_TIMEOUT, context=self._context) as answer:
                body = answer.read(_LIMIT + 1)
                headers = {name.lower(): value for name, value in answer.headers.items()}
        except urllib.error.HTTPError as error:
            error.close()  # it is the answer too, with its connection
            raise AttestationError(f"no collateral from {self.url}: {error.code} for {path}") from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            problem = getattr(error, "reason", error)
            hint = ""
            if isinstance(problem, ssl.SSLCertVerificationError):
                hint = " (give its authority's certificate with --pcs-ca FILE, or --insecure)"
                problem = problem.verify_message
            raise AttestationError(f"no collateral from {self.url}: {problem}{hint}") from None
        if len(body) > _LIMIT:
            raise AttestationError(f"no collateral from {self.url}: {path} is larger than {_LIMIT >> 20} MiB")
        return body, headers

    def collateral(self, quote: bytes) -> Collateral:
        """Collateral for the platform of ``quote``.

        Raises:
            AttestationError: the service has none, or the quote names no platform.
        """
        from ..differences import platform_of

        platform = platform_of(ParsedQuote(quote))
        if platform is None:
            raise AttestationError("the quote has no PCK certificate, which says what collateral it needs")
        fmspc = platform.facts.fmspc.hex().upper()
        ca = "processor" if PROCESSOR_CA in platform.issuer else "platform"
        crl, crl_headers = self.get(f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der")
        info, info_headers = self.get(f"/tdx/certification/v4/tcb?fmspc={fmspc}")
        identity, identity_headers = self.get("/tdx/certification/v4/qe/identity")
        chain = self._chain(crl_headers, "sgx-pck-crl-issuer-chain")
        tcb_text, tcb_signature = self._signed(info, "tcbInfo")
        qe_text, qe_signature = self._signed(identity, "enclaveIdentity")
        return Collateral(
            pck_crl_issuer_chain=chain,
            root_ca_crl=self._root_crl(chain),
            pck_crl=crl,
            tcb_info_issuer_chain=self._chain(
                info_headers, "tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"
            ),
            tcb_info=tcb_text,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=self._chain(identity_headers, "sgx-enclave-identity-issuer-chain"),
            qe_identity=qe_text,
            qe_identity_signature=qe_signature,
        )

    def _root_crl(self, chain: str) -> bytes:
        try:
            text, _ = self.get("/sgx/certification/v4/rootcacrl")
        except AttestationError:
            # Intel's PCS has no such path: the root certificate says where its list is.
            return self._distributed(chain)
        try:
            return bytes.fromhex(text.decode("ascii"))
        except ValueError:
            return text

    def _distributed(self, chain: str) -> bytes:
        for certificate in reversed(chain_of(chain)):
            try:
                points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
            except x509.ExtensionNotFound:
                continue
            for point in points:
                for name in point.full_name or ():
                    return PcsClient(str(name.value), self._context).get("")[0]
        raise AttestationError(f"no collateral from {self.url}: no revocation list of the root CA")

    def _chain(self, headers: dict[str, str], *names: str) -> str:
        for name in names:
            if name in headers:
                return urllib.parse.unquote(headers[name])
        raise AttestationError(f"no collateral from {self.url}: an answer has no header {names[0]}")

    def _signed(self, body: bytes, member: str) -> tuple[str, bytes]:
        """The exact text that is signed, and the signature."""
        try:
            text = body.decode("utf-8")
            document = json.loads(text)
            signature = bytes.fromhex(document["signature"])
            start = text.index(":", text.index(f'"{member}"')) + 1
            start += len(text[start:]) - len(text[start:].lstrip())
            _, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, KeyError, TypeError):
            raise AttestationError(f"no collateral from {self.url}: no signed {member}") from None
        return text[start:end], signature
