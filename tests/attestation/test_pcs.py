"""The collateral service: asked by dcap-qvl's own client, and by a fuzzer of its OpenAPI description."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import dcap_qvl
import httpx
import pytest
import schemathesis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, settings

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.errors import AttestationError
from swtdx.attestation.pck import chain_of
from swtdx.attestation.pcs.app import create_app
from swtdx.attestation.pcs.catalogue import Catalogue
from swtdx.attestation.pcs.client import PcsClient, tls_context
from swtdx.attestation.pcs.fetch import fetch_collateral
from swtdx.attestation.pcs.serve import Tls, serving
from swtdx.attestation.quote import ParsedQuote
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
    if "post" in schema.raw_schema["paths"][_path]:
        globals()[f"{_name}_by_post"] = fuzzing(f"POST {_path}")


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
        ("/sgx/certification/v2/rootcacrl", 404),
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


def ask(method: str, path: str, body: Any = None, world: World | None = None) -> httpx.Response:
    app = _APP if world is None else create_app(Catalogue(world))

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pcs") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(send())


def test_post_pckcert_and_pckcerts(world: World) -> None:
    """As PCS API version 4 describes them: a platform manifest instead of an encrypted PPID."""
    cpusvn = world.tcb.cpusvn.hex()
    one = {"platformManifest": "00" * 100, "cpusvn": cpusvn, "pcesvn": "0d00", "pceid": "0000"}
    query = f"encrypted_ppid={'0' * 768}&cpusvn={world.tcb.cpusvn.hex()}&pcesvn=0d00&pceid=0000"
    posted, got = ask("POST", f"{SGX}/pckcert", one), get(f"{SGX}/pckcert?{query}")
    assert posted.status_code == 200
    assert posted.content == got.content == world.pck.pem.encode()
    assert posted.headers["SGX-TCBm"] == got.headers["SGX-TCBm"]
    several = ask("POST", f"{SGX}/pckcerts", {"platformManifest": "00", "pceid": "0000"})
    assert unquote(several.json()[0]["cert"]) == world.pck.pem
    assert ask("POST", f"{SGX}/pckcert", one | {"cpusvn": "xx"}).status_code == 400
    assert ask("POST", f"{SGX}/pckcert", {}).status_code == 400
    # A PCCS knows its platforms by their QE-ID.
    qe = f"qeid={world.quote()[28:44].hex()}&cpusvn={world.tcb.cpusvn.hex()}&pcesvn=0d00&pceid=0000"
    assert get(f"{SGX}/pckcert?{qe}").content == world.pck.pem.encode()
    assert get(f"{SGX}/pckcert?cpusvn={world.tcb.cpusvn.hex()}&pcesvn=0d00&pceid=0000").status_code == 400


def test_a_pccs_knows_platforms(world: World) -> None:
    entry = {"qe_id": "ab" * 16, "pce_id": "0000", "cpu_svn": "", "pce_svn": "", "enc_ppid": ""}
    entry["platform_manifest"] = ""
    app_world = World(seed=b"one that nobody registered with")
    app = create_app(Catalogue(app_world))

    async def talk() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pcs") as client:
            where = f"{SGX}/platforms"
            fmspc = app_world.platform_identity.fmspc.hex()
            return [
                await client.post(where, json=entry),
                await client.get(where),
                await client.get(where),
                await client.get(f"{where}?source=reg_na"),
                await client.get(where, params={"source": "[]"}),
                await client.get(where, params={"source": f"[{fmspc}]"}),
                await client.get(where, params={"source": "[0102030405ff]"}),
                await client.get(where, params={"source": "nothing"}),
            ]

    posted, first, second, missing, everything, mine, other, wrong = asyncio.run(talk())
    assert (posted.status_code, posted.text) == (200, "Operation successful.")
    assert (first.json(), first.headers["platform-count"]) == ([entry], "1")
    assert second.json() == missing.json() == other.json() == []
    assert everything.json() == mine.json()
    assert everything.json()[0]["qe_id"].lower() == app_world.quote()[28:44].hex()
    assert wrong.status_code == 400


def test_qae_identity_head_and_the_methods_of_a_path() -> None:
    assert get(f"{SGX}/qae/identity").json()["enclaveIdentity"]["id"] == "QAE"
    for path in (f"{TDX}/tcb?fmspc={FMSPC}", f"{SGX}/rootcacrl", f"{SGX}/qe/identity"):
        head, full = ask("HEAD", path), get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) == len(full.content)
        assert head.headers.keys() == full.headers.keys()
    assert ask("HEAD", f"{TDX}/tcb?fmspc=0102030405ff").status_code == 404
    refused = ask("DELETE", f"{SGX}/pckcert")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD, POST")


def test_version_3() -> None:
    old = "/sgx/certification/v3"
    for name in ("qe/identity", "qve/identity", "rootcacrl", "pckcrl?ca=platform&encoding=der"):
        assert get(f"{old}/{name}").content == get(f"{SGX}/{name}").content
    response = get(f"{old}/tcb?fmspc={FMSPC}")
    info = response.json()["tcbInfo"]
    assert (info["version"], "id" in info) == (2, False)
    assert info["tcbLevels"][0]["tcb"]["sgxtcbcomp08svn"] == 5
    chain = unquote(response.headers["SGX-TCB-Info-Issuer-Chain"])
    signer, _ = x509.load_pem_x509_certificates(chain.encode())
    key = signer.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    raw = bytes.fromhex(response.json()["signature"])
    signature = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    text = response.text[len('{"tcbInfo":') : response.text.rindex(',"signature"')]
    key.verify(signature, text.encode(), ec.ECDSA(hashes.SHA256()))
    assert get(f"/tdx/certification/v3/tcb?fmspc={FMSPC}").content == get(f"{TDX}/tcb?fmspc={FMSPC}").content


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate of an authority of its own for localhost: what a PCCS mostly has."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a PCCS")])
    today = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Tls(str(folder / "cert.pem"), str(folder / "key.pem"))


def test_tls_with_an_authority_of_the_users(tls: Tls, world: World, root: bytes, now: int) -> None:
    authority = Path(tls.certificate).read_bytes()
    quote = world.quote()
    with serving(Catalogue(World()), tls=tls) as url:
        assert url.startswith("https://")
        for context in (tls_context(authority, insecure=False), tls_context(None, insecure=True)):
            fetched = PcsClient(f"{url}/sgx/certification/v4/", context).collateral(quote)
            assert fetched == world.collateral()
        with pytest.raises(AttestationError, match="--pcs-ca FILE, or --insecure"):
            PcsClient(url, tls_context(None, insecure=False)).collateral(quote)
        # dcap-qvl's own client does not trust it either.
        with pytest.raises(AttestationError, match="no collateral from"):
            fetch_collateral(url, quote)
    with pytest.raises(AttestationError, match="no PEM certificate"):
        tls_context(b"nothing", insecure=False)


def test_tls_files_that_do_not_fit_are_told(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_text("nothing")
    for wrong in (Tls(tls.certificate, tls.certificate), Tls(tls.certificate, str(tmp_path / "other.pem"))):
        with pytest.raises(AttestationError, match="fit together"):
            wrong.check()
    with pytest.raises(AttestationError, match="No such file"):
        Tls(str(tmp_path / "none"), tls.key).check()


def test_the_own_client_fetches_what_dcap_qvls_does(url: str, world: World) -> None:
    context = tls_context(None, insecure=False)
    for version in (4, 5):
        quote = world.quote(version=version)
        ours = PcsClient(url, context).collateral(quote)
        assert ours == Collateral.from_json(fetch_collateral(url, quote).to_json())
    with pytest.raises(AttestationError, match="404"):
        PcsClient(f"{url}/nothing", context).collateral(world.quote())


def test_serve_on_the_command_line(tls: Tls, tmp_path: Path, world: World) -> None:
    """It says where it serves when it serves, and with --url its certificates say that place."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    url = f"https://localhost:{free}"
    command = [sys.executable, "-m", "swtdx.cli.main", "pcs", "serve"]
    options = ["--port", str(free), "--url", f"{url}/", "--tls-cert", tls.certificate, "--tls-key", tls.key]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said = re.match(r"Serving collateral at (https://localhost:\d+) ", line)
            if said:
                break
        assert said is not None
        where = said[1]
        assert where == url
        context = tls_context(Path(tls.certificate).read_bytes(), insecure=False)
        pem, _ = PcsClient(where, context).get("/swtdx/root.pem")
        root = x509.load_pem_x509_certificate(pem)
        points = root.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        (name, *_) = points[0].full_name or []
        assert str(name.value).startswith(f"{where}/")
        PcsClient(str(name.value), context).get("")
        (tmp_path / "root").write_bytes(pem)
        quote = replace(world, pcs_url=url).quote()
        # The root is one certificate, wherever it is looked at.
        assert chain_of(ParsedQuote(quote).pck_chain())[-1] == root
        (tmp_path / "quote").write_bytes(quote)
        verify = [
            sys.executable, "-m", "swtdx.cli.main", "verify", str(tmp_path / "quote"), "--pcs", where,
            "--pcs-ca", tls.certificate, "--root", str(tmp_path / "root"), "--accept-simulated",
        ]  # fmt: skip
        done = subprocess.run(verify, capture_output=True, text=True, check=False)
        assert done.stdout.startswith("ACCEPTED"), done
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    done = subprocess.run([*command, "--port", port], capture_output=True, text=True, check=False)
    taken.close()
    assert done.returncode == 2
    assert "Serving" not in done.stderr
    assert f"port {port}" in done.stderr
