"""The collateral service as an ASGI application (FastAPI).

Paths, parameters, status codes and headers: Intel's PCS API version 4 and the PCCS (its
``service/routes`` and ``service/controllers``).  A request that is wrong gets 400 with the PCS's
headers, one for something unknown gets 404, a withdrawn edition 410; nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final
from urllib.parse import quote as url_quote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..collateral import Signed
from ..names import MARKER
from ..pki import ROOT_CRL_PATH
from ..sgx_platform import PckCa
from .catalogue import Catalogue

#: PCS API version.
VERSION: Final = "v4"

_SGX: Final = f"/sgx/certification/{VERSION}"
_TDX: Final = f"/tdx/certification/{VERSION}"
_JSON: Final = "application/json"
_PEM: Final = "application/x-pem-file"
_CRL: Final = "application/pkix-crl"

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "A parameter is missing or wrong", "content": {"text/plain": {}}},
}
_LOOKUP: Final[dict[int | str, dict[str, Any]]] = _ERRORS | {
    404: {"description": "There is none for these parameters", "content": {"text/plain": {}}},
}
_EDITION: Final[dict[int | str, dict[str, Any]]] = _LOOKUP | {
    410: {"description": "That edition is no longer served", "content": {"text/plain": {}}},
}

Fmspc = Annotated[str, Query(pattern="^[0-9a-fA-F]{12}$", description="FMSPC, 6 bytes in hex")]
Update = Annotated[
    str | None,
    Query(pattern="^(early|standard|EARLY|STANDARD)$", description="which edition: early or standard"),
]
Number = Annotated[
    int | None,
    Query(alias="tcbEvaluationDataNumber", ge=0, le=0xFFFFFFFF, description="which edition, by its number"),
]
Cpusvn = Annotated[str, Query(pattern="^[0-9a-fA-F]{32}$", description="CPUSVN, 16 bytes in hex")]
Pcesvn = Annotated[str, Query(pattern="^[0-9a-fA-F]{4}$", description="PCESVN, little-endian, in hex")]
Pceid = Annotated[str, Query(pattern="^[0-9a-fA-F]{4}$", description="PCE-ID, little-endian, in hex")]
# Who cannot decrypt a PPID need not look at it: there is one platform here.
_PPID: Final = "^[0-9a-fA-F]{512}$|^[0-9a-fA-F]{768}$"
Ppid = Annotated[str, Query(pattern=_PPID, description="PPID under RSA-2048 or 3072")]
# A PCCS knows its platforms by QE-ID, and needs no PPID of them.
OptionalPpid = Annotated[str | None, Query(pattern=_PPID, description="PPID under RSA-2048 or 3072")]
#: Hex digits of a platform manifest (QCNL's limit), and how many platforms are kept.
_MANIFEST: Final = 2 * 53_000
_MOST_PLATFORMS: Final = 1000
_HEX: Final = "^([0-9a-fA-F]{2})+$"
QeId = Annotated[str | None, Query(pattern="^[0-9a-fA-F]{1,260}$", description="the PCCS's platform key")]


def _ok(kind: str, description: str, *headers: str) -> dict[int | str, dict[str, Any]]:
    """The 200 response's description for the OpenAPI document."""
    text = {"schema": {"type": "string"}}
    return {
        200: {
            "description": description,
            "content": {kind: {"schema": {"type": "object"}} if kind == _JSON else text},
            "headers": dict.fromkeys((*headers, "Request-ID"), text),
        }
    }


def _chain(pem: str) -> str:
    return url_quote(pem, safe="")


class OneCertificate(BaseModel):
    """Body of POST pckcert."""

    platformManifest: Annotated[str, Field(pattern=_HEX, max_length=_MANIFEST)]
    cpusvn: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")]
    pcesvn: Annotated[str, Field(pattern="^[0-9a-fA-F]{4}$")]
    pceid: Annotated[str, Field(pattern="^[0-9a-fA-F]{4}$")]


class AllCertificates(BaseModel):
    """Body of POST pckcerts."""

    platformManifest: Annotated[str, Field(pattern=_HEX, max_length=_MANIFEST)]
    pceid: Annotated[str, Field(pattern="^[0-9a-fA-F]{4}$")]


class Platform(BaseModel):
    """Body of POST platforms (PCCS)."""

    qe_id: Annotated[str, Field(pattern="^[0-9a-fA-F]{1,260}$")]
    pce_id: Annotated[str, Field(pattern="^[0-9a-fA-F]{4}$")]
    cpu_svn: Annotated[str, Field(pattern="^([0-9a-fA-F]{32})?$")] = ""
    pce_svn: Annotated[str, Field(pattern="^([0-9a-fA-F]{4})?$")] = ""
    enc_ppid: Annotated[str, Field(pattern="^([0-9a-fA-F]{768})?$")] = ""
    platform_manifest: Annotated[str, Field(pattern="^([0-9a-fA-F]{2})*$", max_length=_MANIFEST)] = ""


class _Api:
    """The handlers, around one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def edition(self, update: str | None, number: int | None) -> int | None:
        """The edition that the two parameters ask for, None for the current one."""
        if number is None:
            # One maker with no embargo: the early edition is the current one, too.
            return None
        if update is not None:
            raise HTTPException(400, "update and tcbEvaluationDataNumber exclude each other")
        editions = self.catalogue.editions()
        if number > editions[0]:
            raise HTTPException(404, f"edition {number} is not published; the newest is {editions[0]}")
        if number not in editions:
            raise HTTPException(410, f"edition {number} is withdrawn; the oldest is {editions[-1]}")
        return number

    def signed(self, document: Signed, member: str, header: str) -> Response:
        """The response with a signed document."""
        return Response(document.response(member), media_type=_JSON, headers={header: _chain(document.chain)})

    def tcb(self, kind: str, fmspc: str, update: str | None, number: int | None) -> Response:
        """TCB info."""
        edition = self.edition(update, number)
        if not self.catalogue.knows(bytes.fromhex(fmspc)):
            raise HTTPException(404, f"no TCB info for FMSPC {fmspc}")
        return self.signed(self.catalogue.tcb_info(kind, edition), "tcbInfo", "TCB-Info-Issuer-Chain")

    def identity(self, kind: str, update: str | None, number: int | None) -> Response:
        """Enclave identity."""
        document = self.catalogue.identity(kind, self.edition(update, number))
        return self.signed(document, "enclaveIdentity", "SGX-Enclave-Identity-Issuer-Chain")

    def pckcert(self, cpusvn: str, pcesvn: str, pceid: str) -> Response:
        """A PCK certificate."""
        answer = self.catalogue.pck(
            bytes.fromhex(cpusvn), int.from_bytes(bytes.fromhex(pcesvn), "little"), bytes.fromhex(pceid)
        )
        if answer is None:
            raise HTTPException(404, "no PCK certificate for this PCE-ID and TCB")
        return Response(
            answer.pck.pem,
            media_type=_PEM,
            headers={
                "SGX-PCK-Certificate-Issuer-Chain": _chain(answer.chain),
                "SGX-TCBm": answer.tcbm.hex().upper(),
                "SGX-FMSPC": answer.fmspc.hex().upper(),
                "SGX-PCK-Certificate-CA-Type": str(answer.ca),
            },
        )

    def pckcerts(self, pceid: str) -> Response:
        """All PCK certificates of the platform: the one of its TCB."""
        tcb = self.catalogue.world().tcb
        answer = self.catalogue.pck(tcb.cpusvn, tcb.pcesvn, bytes.fromhex(pceid))
        if answer is None:
            raise HTTPException(404, "no PCK certificate for this PCE-ID")
        svns = {f"sgxtcbcomp{i:02}svn": svn for i, svn in enumerate(tcb.components, 1)}
        entry = {
            "tcb": svns | {"pcesvn": tcb.pcesvn},
            "tcbm": answer.tcbm.hex().upper(),
            "cert": _chain(answer.pck.pem),
        }
        return Response(
            json.dumps([entry]),
            media_type=_JSON,
            headers={
                "SGX-PCK-Certificate-Issuer-Chain": _chain(answer.chain),
                "SGX-FMSPC": answer.fmspc.hex().upper(),
                "SGX-PCK-Certificate-CA-Type": str(answer.ca),
            },
        )


def _sgx_routes(app: FastAPI, api: _Api) -> None:
    catalogue = api.catalogue
    tcb_ok = _ok(_JSON, "TCB info version 3 and its signature", "TCB-Info-Issuer-Chain")
    identity_ok = _ok(
        _JSON, "Enclave identity version 2 and its signature", "SGX-Enclave-Identity-Issuer-Chain"
    )

    @app.get(f"{_SGX}/pckcrl", responses=_ok(_CRL, "CRL", "SGX-PCK-CRL-Issuer-Chain") | _ERRORS)
    def pckcrl(
        ca: Annotated[str, Query(pattern="^(processor|platform|PROCESSOR|PLATFORM)$")],
        encoding: Annotated[str, Query(pattern="^(pem|der|PEM|DER)$")] = "pem",
    ) -> Response:
        """Revocation list of a PCK CA."""
        crl, chain = catalogue.pck_crl(PckCa(ca.lower()))
        headers = {"SGX-PCK-CRL-Issuer-Chain": _chain(chain)}
        if encoding.lower() == "der":
            return Response(crl, media_type=_CRL, headers=headers)
        pem = x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM)
        return Response(pem, media_type=_PEM, headers=headers)

    @app.get(f"{_SGX}/tcb", responses=tcb_ok | _EDITION)
    def sgx_tcb(fmspc: Fmspc, update: Update = None, number: Number = None) -> Response:
        """SGX TCB info."""
        return api.tcb("SGX", fmspc, update, number)

    @app.get(f"{_TDX}/tcb", responses=tcb_ok | _EDITION)
    def tdx_tcb(fmspc: Fmspc, update: Update = None, number: Number = None) -> Response:
        """TDX TCB info."""
        return api.tcb("TDX", fmspc, update, number)

    @app.get(f"{_SGX}/qe/identity", responses=identity_ok | _EDITION)
    def sgx_qe(update: Update = None, number: Number = None) -> Response:
        """Identity of the SGX quoting enclave."""
        return api.identity("QE", update, number)

    @app.get(f"{_TDX}/qe/identity", responses=identity_ok | _EDITION)
    def tdx_qe(update: Update = None, number: Number = None) -> Response:
        """Identity of the TD quoting enclave."""
        return api.identity("TD_QE", update, number)

    @app.get(f"{_SGX}/qve/identity", responses=identity_ok | _EDITION)
    def qve(update: Update = None, number: Number = None) -> Response:
        """Identity of the quote verification enclave."""
        return api.identity("QVE", update, number)

    pck_headers = (
        "SGX-PCK-Certificate-Issuer-Chain",
        "SGX-TCBm",
        "SGX-FMSPC",
        "SGX-PCK-Certificate-CA-Type",
    )

    @app.get(f"{_SGX}/pckcert", responses=_ok(_PEM, "PCK certificate", *pck_headers) | _LOOKUP)
    def pckcert(
        cpusvn: Cpusvn, pcesvn: Pcesvn, pceid: Pceid, encrypted_ppid: OptionalPpid = None, qeid: QeId = None
    ) -> Response:
        """PCK certificate of the platform at a TCB; named by its PPID (PCS) or its QE-ID (PCCS)."""
        if encrypted_ppid is None and qeid is None:
            raise HTTPException(400, "encrypted_ppid (PCS) or qeid (PCCS) is missing")
        return api.pckcert(cpusvn, pcesvn, pceid)

    @app.post(f"{_SGX}/pckcert", responses=_ok(_PEM, "PCK certificate", *pck_headers) | _LOOKUP)
    def post_pckcert(body: OneCertificate) -> Response:
        """PCK certificate of the platform at a TCB, by its platform manifest."""
        return api.pckcert(body.cpusvn, body.pcesvn, body.pceid)

    certs_ok = _ok(_JSON, "PCK certificates", *(name for name in pck_headers if name != "SGX-TCBm"))

    @app.get(f"{_SGX}/pckcerts", responses=certs_ok | _LOOKUP)
    def pckcerts(encrypted_ppid: Ppid, pceid: Pceid) -> Response:
        """PCK certificates of the platform at all TCBs that are known of it."""
        return api.pckcerts(pceid)

    @app.post(f"{_SGX}/pckcerts", responses=certs_ok | _LOOKUP)
    def post_pckcerts(body: AllCertificates) -> Response:
        """PCK certificates of the platform at all TCBs that are known of it, by its platform manifest."""
        return api.pckcerts(body.pceid)

    @app.get(f"{_SGX}/qae/identity", responses=identity_ok | _EDITION)
    def qae(update: Update = None, number: Number = None) -> Response:
        """Identity of the quote appraisal enclave."""
        return api.identity("QAE", update, number)


def _platform_routes(app: FastAPI, api: _Api) -> None:
    """What a PCCS has for its administrator: platforms that were registered with it."""
    registered: list[dict[str, str]] = []

    @app.post("/sgx/certification/v4/platforms", responses=_ok("text/plain", "Registered") | _ERRORS)
    def register(body: Platform) -> Response:
        """Register a platform (PCCS)."""
        entry = body.model_dump()
        if entry not in registered:
            registered.append(entry)
            # A client that keeps registering must not fill this service's memory.
            del registered[:-_MOST_PLATFORMS]
        return Response("Operation successful.", media_type="text/plain")

    @app.get("/sgx/certification/v4/platforms", responses=_ok(_JSON, "Platforms", "platform-count") | _ERRORS)
    def platforms(
        source: Annotated[str, Query(pattern=r"^(reg|reg_na|\[[0-9a-fA-F, ]*\])$")] = "reg",
    ) -> Response:
        """The platforms that were registered since the last time, or those cached, by FMSPC (PCCS)."""
        if source == "reg":
            found, registered[:] = list(registered), []
        elif source == "reg_na":
            found = []
        else:
            wanted = source.strip("[]").upper()
            known = api.catalogue.world().platform_identity.fmspc.hex().upper()
            found = [_cached(api.catalogue)] if not wanted.strip() or known in wanted.split(",") else []
        return Response(json.dumps(found), media_type=_JSON, headers={"platform-count": str(len(found))})


def _cached(catalogue: Catalogue) -> dict[str, str]:
    world = catalogue.world()
    return {
        "qe_id": world.enclave(world.report_key).user_data[:16].hex().upper(),
        "pce_id": world.platform_identity.pceid.hex().upper(),
        "cpu_svn": world.tcb.cpusvn.hex().upper(),
        "pce_svn": world.tcb.pcesvn.to_bytes(2, "little").hex().upper(),
        "enc_ppid": "",
        "platform_manifest": "",
    }


def _other_routes(app: FastAPI, api: _Api) -> None:
    catalogue = api.catalogue

    @app.get(f"{_SGX}/rootcacrl", responses=_ok(_CRL, "CRL in hex, as the PCCS serves it"))
    def rootcacrl() -> Response:
        """Revocation list of the root CA (PCCS)."""
        return Response(catalogue.root_crl().hex(), media_type=_CRL)

    @app.get(f"{_SGX}/crl", responses=_ok(_CRL, "CRL") | _LOOKUP)
    def crl(uri: Annotated[str, Query(max_length=2048)]) -> Response:
        """A CRL by the URL in a certificate's distribution point (PCCS)."""
        if uri.endswith(ROOT_CRL_PATH):
            return Response(catalogue.root_crl(), media_type=_CRL)
        for ca in PckCa:
            if f"pckcrl?ca={ca}" in uri:
                return Response(catalogue.pck_crl(ca)[0], media_type=_CRL)
        raise HTTPException(404, "no CRL at this URL")

    @app.get(ROOT_CRL_PATH, responses=_ok(_CRL, "CRL, DER"))
    def root_crl() -> Response:
        """Revocation list of the root CA, where the root certificate says it is."""
        return Response(catalogue.root_crl(), media_type=_CRL)

    @app.get("/swtdx/root.pem", responses=_ok(_PEM, "The simulated root certificate"))
    def root() -> Response:
        """The root certificate to verify with.  Not a PCS path: Intel's root is pinned by verifiers."""
        return Response(catalogue.root().pem, media_type=_PEM)

    @app.get(f"{_SGX}/fmspcs", responses=_ok(_JSON, "FMSPCs") | _ERRORS)
    def fmspcs(platform: Annotated[str, Query(pattern="^(all|client|E3|E5)$")] = "all") -> Response:
        """The platform families with TCB info."""
        fmspc = catalogue.world().platform_identity.fmspc.hex().upper()
        families = [] if platform in ("client", "E3") else [f'{{"fmspc":"{fmspc}","platform":"E5"}}']
        return Response(f"[{','.join(families)}]", media_type=_JSON)

    numbers_ok = _ok(
        _JSON, "Editions of ratings and their signature", "TCB-Evaluation-Data-Numbers-Issuer-Chain"
    )

    def numbers(kind: str) -> Response:
        return api.signed(
            catalogue.evaluation_numbers(kind),
            "tcbEvaluationDataNumbers",
            "TCB-Evaluation-Data-Numbers-Issuer-Chain",
        )

    @app.get(f"{_SGX}/tcbevaluationdatanumbers", responses=numbers_ok)
    def sgx_numbers() -> Response:
        """The editions of ratings on offer for SGX."""
        return numbers("SGX")

    @app.get(f"{_TDX}/tcbevaluationdatanumbers", responses=numbers_ok)
    def tdx_numbers() -> Response:
        """The editions of ratings on offer for TDX."""
        return numbers("TDX")


def _old_routes(app: FastAPI, api: _Api) -> None:
    """Version 3 of the API: the documents of SGX, TCB info in its version 2; TDX as version 4 has it.

    By the same handlers, which see the path of version 4: see :class:`Paths`.
    """
    ok = _ok(_JSON, "TCB info version 2 and its signature", "SGX-TCB-Info-Issuer-Chain")

    @app.get("/sgx/certification/v3/tcb", responses=ok | _LOOKUP)
    def old_tcb(fmspc: Fmspc) -> Response:
        """SGX TCB info, version 2."""
        if not api.catalogue.knows(bytes.fromhex(fmspc)):
            raise HTTPException(404, f"no TCB info for FMSPC {fmspc}")
        return api.signed(api.catalogue.old_tcb_info(), "tcbInfo", "SGX-TCB-Info-Issuer-Chain")


class Paths:
    """ASGI middleware: version 3 paths of what both versions have, and HEAD for every GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as the GET, or by the path, that it stands for."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        for old, new in (("/sgx/certification/v3/", f"{_SGX}/"), ("/tdx/certification/v3/", f"{_TDX}/")):
            if path.startswith(old) and path != f"{old}tcb":
                scope = {**scope, "path": new + path.removeprefix(old)}
            elif path == "/tdx/certification/v3/tcb":
                scope = {**scope, "path": f"{_TDX}/tcb"}
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, without_body)


def create_app(catalogue: Catalogue) -> FastAPI:
    """The service for the documents of ``catalogue``."""
    app = FastAPI(
        title="swtdx collateral service",
        summary=f"PCS and PCCS API {VERSION}. {MARKER}.",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
    )
    api = _Api(catalogue)
    _sgx_routes(app, api)
    _other_routes(app, api)
    _platform_routes(app, api)
    _old_routes(app, api)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        complaints = (f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        text = "; ".join(complaints).encode("ascii", "backslashreplace").decode()
        headers = {"Error-Code": "InvalidRequestSyntax", "Error-Message": _header(text)}
        return Response(text + "\n", 400, headers, "text/plain")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # Starlette names the methods of one route only; a path has a route for each.
            methods = {
                method
                for route in app.routes
                if isinstance(route, APIRoute) and route.path == request.scope["path"]
                for method in route.methods or ()
            }
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        return Response(f"{error.detail}\n", error.status_code, headers, "text/plain")

    @app.middleware("http")
    async def identify(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        # The PCS numbers its answers; here the same question has the same number.
        label = f"{request.method} {request.url.path}?{request.url.query}"
        response.headers["Request-ID"] = hashlib.sha256(label.encode("utf-8", "replace")).hexdigest()[:32]
        return response

    app.add_middleware(Paths)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _header(text: str) -> str:
    return "".join(each for each in text if 32 <= ord(each) < 127)[:200]


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, without the 422 that never is sent, and with PEM where it can be."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                content = operation["responses"]["200"]["content"]
                if any(kind != _JSON for kind in content):
                    content.pop(_JSON, None)
        crl = schema["paths"][f"{_SGX}/pckcrl"]["get"]["responses"]["200"]["content"]
        crl[_PEM] = crl[_CRL]
        lists = (("fmspcs", "get"), ("pckcerts", "get"), ("pckcerts", "post"), ("platforms", "get"))
        for name, method in lists:
            answer = schema["paths"][f"{_SGX}/{name}"][method]["responses"]["200"]["content"]
            answer[_JSON] = {"schema": {"type": "array", "items": {"type": "object"}}}
        app.openapi_schema = schema
    return app.openapi_schema
