"""The collateral service: asked by dcap-qvl's own client, and by a fuzzer of its OpenAPI description."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import dcap_qvl
import httpx
import pytest
import schemathesis
from cryptography import x509
from hypothesis import HealthCheck, settings

from swtdx.attestation.errors import AttestationError
from swtdx.attestation.pcs.app import create_app
from swtdx.attestation.pcs.catalogue import Catalogue
from swtdx.attestation.pcs.fetch import fetch_collateral
from swtdx.attestation.pcs.serve import serving
from swtdx.attestation.scenario import builtin
from swtdx.attestation.world import Fault, World

SGX = "/sgx/certification/v4"
TDX = "/tdx/certification/v4"
FMSPC = "007377746478"

_APP = create_app(Catalogue(World()))
schema = schemathesis.openapi.from_asgi("/openapi.json", _APP)


def get(path: str, world: World | None = None) -> httpx.Response:
    app = _APP if world is None else create_app(Catalogue(world))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pcs") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Catalogue(World())) as base:
        yield base


def fuzzing(operation: str) -> Any:
    """A test of one operation ("GET /path")."""

    @schema.include(name=operation).parametrize()
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def test(case: Any) -> None:
        # All of schemathesis's checks: no 5xx, documented status codes, content types, headers, schemas,
        # wrong values refused.  Only that valid values are accepted cannot be asked: OpenAPI has no words
        # for two parameters that exclude each other.
        case.call_and_validate(
            excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
        )

    return test


# A function for each: schemathesis's own parametrisation gives all of them the same id.
for _path in schema.raw_schema["paths"]:
    _name = "test_malformed_requests_never_break_it" + re.sub(r"\W+", "_", _path)
    globals()[_name] = fuzzing(f"GET {_path}")


@pytest.mark.parametrize("version", [4, 5])
def test_dcap_qvl_fetches_and_accepts(url: str, world: World, root: bytes, now: int, version: int) -> None:
    quote = world.quote(version=version)
    fetched = fetch_collateral(url, quote)
    assert dcap_qvl.verify_with_root_ca(quote, fetched, root, now).status == "UpToDate"
    made = world.collateral()
    assert fetched.tcb_info == made.tcb_info
    assert fetched.qe_identity == made.qe_identity
    assert fetched.root_ca_crl == made.root_ca_crl
    assert fetched.pck_crl == made.pck_crl
    assert fetched.pck_crl_issuer_chain == made.pck_crl_issuer_chain


def test_processor_platforms_are_served_too(now: int) -> None:
    world = builtin("processor-ca").world
    with serving(Catalogue(world)) as base:
        quote = world.quote()
        fetched = fetch_collateral(base, quote)
    assert "Processor" in x509.load_der_x509_crl(fetched.pck_crl).issuer.rfc4514_string()
    assert dcap_qvl.verify_with_root_ca(quote, fetched, world.pki.root.der, now).status == "UpToDate"


def test_an_unreachable_service_is_said(world: World) -> None:
    with pytest.raises(AttestationError, match=r"no collateral from http://127\.0\.0\.1:9"):
        fetch_collateral("http://127.0.0.1:9", world.quote())


def test_a_program_may_end_right_after_fetching() -> None:
    """dcap-qvl's thread must be done by then: now and then it brought Python down at its end."""
    ask = "fetch_collateral('http://127.0.0.1:9', b'')"
    code = f"from swtdx.attestation.pcs.fetch import fetch_collateral\n{ask}"
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "AttestationError: no collateral" in done.stderr


def test_a_port_in_use_is_said(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(AttestationError, match=f"port {port}"), serving(Catalogue(World()), port=port):
        pass


def test_a_running_clock_keeps_collateral_fresh_and_faults_faulty() -> None:
    moment = dt.datetime(2031, 3, 3, 23, 59, 59, tzinfo=dt.UTC)
    sound = Catalogue(World(), lambda: moment)
    broken = Catalogue(World(faults=frozenset({Fault.TCB_INFO_EXPIRED})), lambda: moment)
    info = json.loads(sound.tcb_info("TDX", None).text)
    assert info["issueDate"] < "2031-03-03T23:59:59Z" < info["nextUpdate"]
    assert json.loads(broken.tcb_info("TDX", None).text)["nextUpdate"] < "2031-03-03T23:59:59Z"
    later = Catalogue(World(), lambda: moment.replace(hour=1))
    assert later.tcb_info("TDX", None) == sound.tcb_info("TDX", None)


def test_headers_carry_url_encoded_chains() -> None:
    names = {
        f"{SGX}/pckcrl?ca=platform&encoding=der": "SGX-PCK-CRL-Issuer-Chain",
        f"{TDX}/tcb?fmspc={FMSPC}": "TCB-Info-Issuer-Chain",
        f"{SGX}/tcb?fmspc={FMSPC}": "TCB-Info-Issuer-Chain",
        f"{TDX}/qe/identity": "SGX-Enclave-Identity-Issuer-Chain",
        f"{SGX}/qe/identity?update=early": "SGX-Enclave-Identity-Issuer-Chain",
        f"{SGX}/qve/identity": "SGX-Enclave-Identity-Issuer-Chain",
        f"{TDX}/tcbevaluationdatanumbers": "TCB-Evaluation-Data-Numbers-Issuer-Chain",
    }
    for path, name in names.items():
        response = get(path)
        assert response.status_code == 200, path
        assert "\n" not in response.headers[name]
        signer, root = x509.load_pem_x509_certificates(unquote(response.headers[name]).encode())
        signer.verify_directly_issued_by(root)
        assert response.headers["Request-ID"]


def test_the_root_says_where_its_crl_is() -> None:
    root = x509.load_pem_x509_certificate(get("/swtdx/root.pem").content)
    points = root.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert points[0].full_name is not None
    crl_url = httpx.URL(points[0].full_name[0].value)
    direct = get(crl_url.path)
    assert x509.load_der_x509_crl(direct.content).is_signature_valid(root.public_key())  # type: ignore[arg-type]
    assert bytes.fromhex(get(f"{SGX}/rootcacrl").text) == direct.content
    assert get(f"{SGX}/crl?uri={crl_url}").content == direct.content


def test_pem_and_der_crls_are_the_same() -> None:
    pem = get(f"{SGX}/pckcrl?ca=processor")
    der = get(f"{SGX}/pckcrl?ca=processor&encoding=der")
    assert pem.headers["content-type"] == "application/x-pem-file"
    assert der.headers["content-type"] == "application/pkix-crl"
    assert x509.load_pem_x509_crl(pem.content) == x509.load_der_x509_crl(der.content)


def test_pck_certificate_for_a_tcb(world: World) -> None:
    ppid = "ab" * 384

    def ask(cpusvn: bytes, pcesvn: int, pceid: str = "0000") -> httpx.Response:
        svn = pcesvn.to_bytes(2, "little").hex()
        return get(f"{SGX}/pckcert?encrypted_ppid={ppid}&cpusvn={cpusvn.hex()}&pcesvn={svn}&pceid={pceid}")

    answer = ask(world.tcb.cpusvn, world.tcb.pcesvn)
    assert answer.status_code == 200
    assert answer.text == world.pck.pem
    assert answer.headers["SGX-TCBm"] == (world.tcb.cpusvn + b"\x0d\x00").hex().upper()
    assert answer.headers["SGX-FMSPC"] == FMSPC
    assert answer.headers["SGX-PCK-Certificate-CA-Type"] == "platform"
    newer = bytes((world.tcb.cpusvn[0] + 1,)) + world.tcb.cpusvn[1:]
    assert ask(newer, world.tcb.pcesvn + 1).text == world.pck.pem
    assert ask(bytes(16), world.tcb.pcesvn).status_code == 404
    assert ask(world.tcb.cpusvn, 1).status_code == 404
    assert ask(world.tcb.cpusvn, world.tcb.pcesvn, "0001").status_code == 404
    (entry,) = get(f"{SGX}/pckcerts?encrypted_ppid={ppid}&pceid=0000").json()
    assert unquote(entry["cert"]) == world.pck.pem
    assert entry["tcb"]["sgxtcbcomp08svn"] == world.tcb.components[7]


def test_editions() -> None:
    tcb = f"{TDX}/tcb?fmspc={FMSPC}"
    listed = get(f"{TDX}/tcbevaluationdatanumbers").json()["tcbEvaluationDataNumbers"]["tcbEvalNumbers"]
    assert [entry["tcbEvaluationDataNumber"] for entry in listed] == [17, 16]
    for number in (17, 16):
        info = get(f"{tcb}&tcbEvaluationDataNumber={number}").json()["tcbInfo"]
        identity = get(f"{TDX}/qe/identity?tcbEvaluationDataNumber={number}").json()["enclaveIdentity"]
        assert info["tcbEvaluationDataNumber"] == identity["tcbEvaluationDataNumber"] == number
    assert get(f"{tcb}&tcbEvaluationDataNumber=15").status_code == 410
    assert get(f"{tcb}&tcbEvaluationDataNumber=18").status_code == 404
    assert get(f"{tcb}&tcbEvaluationDataNumber=17&update=early").status_code == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{TDX}/tcb", 400),
        (f"{TDX}/tcb?fmspc=zz", 400),
        (f"{TDX}/tcb?fmspc={FMSPC}%0A", 400),
        (f"{TDX}/tcb?fmspc=000000000000", 404),
        (f"{SGX}/pckcrl?ca=root", 400),
        (f"{SGX}/pckcrl?ca=platform&encoding=text", 400),
        (f"{TDX}/qe/identity?update=never", 400),
        (f"{SGX}/crl?uri=http://localhost/other", 404),
        (f"{SGX}/fmspcs?platform=E7", 400),
        ("/sgx/certification/v3/rootcacrl", 404),
    ],
)
def test_wrong_questions(path: str, status: int) -> None:
    response = get(path)
    assert response.status_code == status
    assert response.headers["Request-ID"]
    if status == 400:
        assert response.headers["Error-Code"] == "InvalidRequestSyntax"


def test_a_scenario_changes_what_is_served() -> None:
    world = builtin("platform-out-of-date").world
    levels = get(f"{TDX}/tcb?fmspc={FMSPC}", world).json()["tcbInfo"]["tcbLevels"]
    assert [level["tcbStatus"] for level in levels] == ["UpToDate", "OutOfDate", "OutOfDate"]
    assert levels[1]["advisoryIDs"] == ["INTEL-SA-00837"]
