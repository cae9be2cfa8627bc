"""What users hand in: quotes in every text form, things that are no quotes, what is told unverified.

The forms are made by the tools that print them (od, xxd, hexdump, base64) where these are installed.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given as examples
from hypothesis import strategies as st

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.differences import differences
from swtdx.attestation.enclave import TdQuotingEnclave
from swtdx.attestation.errors import AttestationError, QuoteFormatError
from swtdx.attestation.kinds import Kind, quote_bytes
from swtdx.attestation.pck import chain_of, pck_facts
from swtdx.attestation.policy import parse_policy
from swtdx.attestation.qgs import messages
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.sgx_platform import PckCa, PlatformIdentity
from swtdx.attestation.show import UNVERIFIED, show
from swtdx.attestation.textforms import looks_like_text
from swtdx.attestation.vectors.factory import all_vectors
from swtdx.attestation.verify import Verifier
from swtdx.attestation.world import Fault, World
from swtdx.cli.main import cli


def tool(*words: str) -> Any:
    """A form that a program on this computer makes of a file."""

    def make(path: Path) -> bytes:
        if shutil.which(words[0]) is None:
            pytest.skip(f"{words[0]} is not installed")
        return subprocess.run([*words, str(path)], capture_output=True, check=True).stdout

    return make


def python(function: Any) -> Any:
    """A form made from the bytes."""
    return lambda path: function(path.read_bytes())


def wrapped(quote: bytes) -> str:
    return base64.b64encode(quote).decode()


def dumped(document: Any) -> bytes:
    return json.dumps(document).encode()


def indented(text: str, width: int) -> str:
    return "".join(f"  {text[at : at + width].strip()}\n" for at in range(0, len(text), width))


def lines(data: bytes, width: int, line: Callable[[int, bytes], str]) -> bytes:
    return "".join(f"{line(at, data[at : at + width])}\n" for at in range(0, len(data), width)).encode()


def tarred(data: bytes) -> bytes:
    packed, member = io.BytesIO(), tarfile.TarInfo("outblob")
    member.size = len(data)
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


FORMS = {
    "binary": python(lambda data: data),
    "hex": python(lambda data: data.hex().encode()),
    "0x": python(lambda data: b"0x" + data.hex().upper().encode() + b"\n"),
    "hex with blanks": python(lambda data: data.hex(" ").encode()),
    "hex in C": python(lambda data: ", ".join(f"{each:02x}" for each in data).encode()),
    "xxd -p": tool("xxd", "-p"),
    "xxd": tool("xxd"),
    "od -An": tool("od", "-An", "-v", "-tx1"),
    "od": tool("od", "-v", "-tx1"),
    "hexdump -C": tool("hexdump", "-v", "-C"),
    "base64": tool("base64"),
    "base64 -w0": tool("base64", "-w0"),
    "base64url": python(lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")),
    "base64url padded": python(base64.urlsafe_b64encode),
    "CRLF": python(lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n")),
    "UTF-16": python(lambda data: ("\ufeff" + data.hex()).encode("utf-16-le")),
    # dstack's and Phala's guest agents; evidence of confidential containers; Azure; Intel Trust Authority
    "dstack": python(lambda data: json.dumps({"event_log": "[]", "quote": data.hex()}).encode()),
    "phala": python(lambda data: json.dumps({"intel_quote": data.hex(), "x": 1}).encode()),
    "coco": python(lambda data: dumped({"cc_eventlog": wrapped(b"x" * 2000), "quote": wrapped(data)})),
    "azure": python(lambda data: dumped({"quote": base64.urlsafe_b64encode(data).decode().rstrip("=")})),
    "nested": python(lambda data: dumped({"tdx": {"evidence": [wrapped(b"{}"), {"q": wrapped(data)}]}})),
    "in base64": python(lambda data: base64.b64encode(json.dumps({"quote": wrapped(data)}).encode())),
    "JSON text": python(lambda data: json.dumps(wrapped(data)).encode()),
    "numbers": python(lambda data: json.dumps({"quote": list(data)}).encode()),
    # what is copied out of programs and their logs
    "array in C": python(lambda data: ("{" + ", ".join(f"0x{each:x}" for each in data) + "};").encode()),
    "escapes": python(lambda data: "".join(f"\\x{each:02x}" for each in data).encode()),
    "Python": python(lambda data: repr(data).encode()),
    "YAML": python(lambda data: f"quote: {wrapped(data)}\nother: 1\n".encode()),
    "a log": python(lambda data: f"12:00:01 INFO quote={data.hex()} done\n".encode()),
    "JSON lines": python(lambda data: dumped({"n": 1}) + b"\n" + dumped({"quote": wrapped(data)}) + b"\n"),
    "armour": python(
        lambda data: b"-----BEGIN QUOTE-----\n" + base64.encodebytes(data) + b"-----END QUOTE-----\n"
    ),
    "token": python(
        lambda data: b"e30.%b." % base64.urlsafe_b64encode(dumped({"quote": wrapped(data)})).rstrip(b"=")
    ),
    "decimals": python(lambda data: f"Quote {{ bytes: {list(data)} }}".encode()),
    "Go": python(lambda data: f"[{' '.join(map(str, data))}]\n".encode()),
    "JavaScript": python(lambda data: dumped({"quote": {str(n): each for n, each in enumerate(data)}})),
    "PostgreSQL": python(lambda data: b"\\x" + data.hex().encode()),
    "YAML block": python(lambda data: f"evidence: |\n{indented(wrapped(data), 64)}next: 1\n".encode()),
    "session": python(lambda data: b"$ base64 outblob\n" + base64.encodebytes(data) + b"$ \n"),
    # what Intel's test_tdx_attest prints; Linux's print_hex_dump; gdb's x/8xb
    "hex among lines": python(
        lambda data: f"TDX quote data:\n{indented(data.hex(' '), 48)}Wrote TD Quote to quote.dat\n".encode()
    ),
    "kernel log": python(
        lambda data: lines(data, 16, lambda at, each: f"[   12.345] quote: {at:08x}: {each.hex(' ')}  ...")
    ),
    "gdb": python(
        lambda data: lines(
            data, 8, lambda at, each: f"0x7ffe{at:08x}:\t" + "\t".join(f"0x{byte:02x}" for byte in each)
        )
    ),
    "gzip": python(gzip.compress),
    # a GetQuote buffer, as old drivers hand it out; a QGS answer, bare and behind its length
    "buffer": python(lambda data: struct.pack("<QQII", 1, 0, 1024, len(data)) + data + bytes(100)),
    "CBOR": python(lambda data: b"\xa1eQuote\x59" + struct.pack(">H", len(data)) + data),
    "tar": python(tarred),
    "QGS": python(messages.quote_response),
    "QGS framed": python(lambda data: struct.pack(">I", len(data) + 24) + messages.quote_response(data)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_quote_in_any_form(form: str, world: World, tmp_path: Path) -> None:
    quote = world.quote()
    (tmp_path / "quote.bin").write_bytes(quote)
    found = quote_bytes(FORMS[form](tmp_path / "quote.bin"))
    padding = bytes(len(found) - len(quote)) if form == "tar" else b""
    assert found == quote + padding


@pytest.mark.parametrize("form", ["xxd -p", "base64url", "dstack"])
def test_verify_takes_it(form: str, world: World, tmp_path: Path) -> None:
    (tmp_path / "quote.bin").write_bytes(world.quote())
    (tmp_path / "quote").write_bytes(FORMS[form](tmp_path / "quote.bin"))
    (tmp_path / "collateral").write_text(world.collateral().to_json())
    (tmp_path / "root").write_text(world.pki.root.pem)
    result = run(
        "verify", tmp_path / "quote", "--collateral", tmp_path / "collateral", "--root", tmp_path / "root",
        "--accept-simulated", "--now", str(int(world.now.timestamp())),
    )  # fmt: skip
    assert result.output.startswith("ACCEPTED")
    result = run("verify", tmp_path / "quote")
    assert result.exit_code == 2
    assert "swtdx show" in result.output


def run(*words: str | Path, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(cli, [str(each) for each in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@examples(data=st.binary(max_size=2000))
def test_noise_comes_back_or_is_told(data: bytes) -> None:
    if looks_like_text(data):
        with pytest.raises(QuoteFormatError, match="no quote is in it"):
            quote_bytes(data)
    else:
        assert quote_bytes(data) == data
    with pytest.raises(AttestationError, match=r"no quote|not a quote"):
        show(data)


def test_a_tdreport_is_told(world: World, tmp_path: Path) -> None:
    report = replace(world.report_fields(), mrtd=b"\xaa" * 48, reportdata=b"\xbb" * 64).report(
        world.report_key
    )
    for name, data in (
        ("binary", report),
        ("base64", base64.encodebytes(report)),
        ("hex", report.hex().encode()),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        result = run("verify", path)
        assert result.exit_code == 2
        assert "TDREPORT" in result.output
        assert "only the machine that made it can check it" in result.output
        shown = run("show", path).output
        assert shown.splitlines()[:2] == ["TDREPORT", UNVERIFIED]
        assert "Only the machine that made a TDREPORT can check it" in shown
        assert "MRTD            aaaaaaaa" in shown
        document = json.loads(run("show", "--json", path).output)
        assert document["td"]["reportdata"] == "bb" * 64
        assert document["cpusvn"] == world.tcb.cpusvn.hex()
        assert document["verified"] is False


def test_show_a_quote(world: World, tmp_path: Path) -> None:
    quote = world.quote(version=5)
    (tmp_path / "quote").write_bytes(base64.b64encode(quote))
    text = run("show", tmp_path / "quote").output
    assert text.splitlines()[:2] == ["TD quote", UNVERIFIED]
    for shown in (
        "written as      base64", "5, 1.5", world.platform_identity.fmspc.hex(), world.tcb.cpusvn.hex(),
        "PCESVN, PCE-ID  13", "Intel SGX PCK Platform CA", "SIMULATED", "valid 2020-01-01 to",
        "SEPT_VE_DISABLE",
    ):  # fmt: skip
        assert shown in text, shown
    document = json.loads(run("show", "--json", "-", stdin=quote).output)
    assert document["td"]["mrtd"] == ParsedQuote(quote).body()["mrtd"].hex()
    assert document["platform"]["pcesvn"] == 13
    assert len(document["certificates"]) == 3


def test_show_other_things(world: World, tmp_path: Path) -> None:
    collateral = world.collateral()
    der = x509.load_pem_x509_certificate(world.pki.root.pem.encode()).public_bytes(Encoding.DER)
    chain = world.pki.pck_chain(world.platform_identity, world.tcb)
    for name, data, kind, shown in (
        ("root.pem", world.pki.root.pem.encode(), Kind.CERTIFICATES, "Intel SGX Root CA"),
        ("root.der", der, Kind.CERTIFICATES, "Intel SGX Root CA"),
        ("chain.pem", chain.encode(), Kind.CERTIFICATES, world.platform_identity.fmspc.hex()),
        ("crl.der", collateral.pck_crl, Kind.CRL, "revoked         nothing"),
        ("crl.hex", collateral.pck_crl.hex().encode(), Kind.CRL, "Platform CA"),
        ("collateral.json", collateral.to_json().encode(), Kind.COLLATERAL, "UpToDate: 2 2 2 2 3 1 0 5"),
        ("tcb.json", collateral.tcb_info.encode(), Kind.TCB_INFO, world.platform_identity.fmspc.hex()),
        ("qe.json", collateral.qe_identity.encode(), Kind.IDENTITY, "TD_QE"),
    ):
        (tmp_path / name).write_bytes(data)
        result = run("show", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert result.output.splitlines()[0] == str(kind), name
        assert UNVERIFIED in result.output
        assert shown in result.output, (name, result.output)
        assert json.loads(run("show", "--json", tmp_path / name).output)["verified"] is False
    result = run("show", tmp_path)
    assert (result.exit_code, "Is a directory" in result.output) == (2, True)
    (tmp_path / "noise").write_bytes(b"\1\2\3")
    result = run("show", tmp_path / "noise")
    assert (result.exit_code, "not a quote, TDREPORT" in result.output) == (2, True)
    assert run("show", "/dev/zero").exit_code == 2


@pytest.mark.parametrize("ca", list(PckCa))
def test_pck_facts_are_those_that_dcap_qvl_reads(world: World, ca: PckCa) -> None:
    identity = replace(
        PlatformIdentity.from_seed(b"x", ca),
        sgx_type=0 if ca is PckCa.PROCESSOR else 2,
        fmspc=b"\x90\xc0\x6f\0\0\0",
    )
    chain = world.pki.pck_chain(identity, world.tcb)
    facts = pck_facts(chain_of(chain)[0])
    theirs = dcap_qvl.parse_pck_extension_from_pem(chain.encode())
    assert facts is not None
    assert facts.fmspc == theirs.fmspc
    assert facts.cpusvn == theirs.cpu_svn
    assert facts.pcesvn == theirs.pce_svn
    assert facts.pceid == theirs.pce_id
    assert facts.ppid == theirs.ppid
    assert facts.sgx_type == theirs.sgx_type
    assert facts.components == world.tcb.components
    assert (facts.smt_enabled is None) == (ca is PckCa.PROCESSOR)
    assert pck_facts(world.pki.root.certificate) is None


def test_a_refusal_names_what_is_behind(world: World, collateral: Collateral, now: int) -> None:
    """Each SVN lowered in turn under the level's: dcap-qvl refuses, and the line names it and both values."""
    info = json.loads(collateral.tcb_info)
    (newest, *_) = info["tcbLevels"]
    verifier = Verifier(world.pki.root.der, accept_simulated=True)
    parsed = ParsedQuote(world.quote())
    svn = parsed.body()["tee_tcb_svn"]
    for place in range(16):
        for member, have, name in (
            ("sgxtcbcomponents", world.tcb.components[place], "SGX"),
            ("tdxtcbcomponents", svn[place], "TDX"),
        ):
            if name == "TDX" and place < 2:
                # Judged by the identity of the module, as TEE_TCB_SVN[1] is not 0.
                continue
            level = json.loads(json.dumps(newest))
            level["tcb"][member][place]["svn"] = have + 3
            line = f"{name} component {place + 1}: quote {have}, lowest level {have + 3} ({member}[{place}]"
            assert_told(world, verifier, info | {"tcbLevels": [level]}, line, now)
    level = json.loads(json.dumps(newest))
    level["tcb"]["pcesvn"] = 14
    assert_told(world, verifier, info | {"tcbLevels": [level]}, "PCESVN: quote 13, lowest level 14", now)


def assert_told(world: World, verifier: Verifier, info: dict[str, Any], line: str, now: int) -> None:
    text = json.dumps(info, separators=(",", ":"))
    key = world.pki.tcb_signing.key
    changed = replace(world.collateral(), tcb_info=text, tcb_info_signature=key.sign(text.encode()))
    verdict = verifier.verify(world.quote(), changed, now)
    assert verdict.reason == "No matching TCB level found"
    assert any(line in each for each in verdict.differences), (line, verdict.differences)
    assert line in "\n".join(verdict.document()["differences"])


def test_a_good_quote_has_no_differences_and_every_vector_is_read(world: World, now: int) -> None:
    assert differences(world.quote(), world.collateral(), now) == []
    for vector in all_vectors(world):
        lines = differences(vector.quote, vector.collateral, vector.now)
        if vector.expect.accepted and vector.expect.status == "UpToDate":
            assert not lines, (vector.name, lines)
        if vector.expect.reason == "CertRevoked":
            assert any("revokes Intel SGX" in each for each in lines), vector.name
        if "No matching TCB level" in vector.expect.reason or "Fmspc mismatch" in vector.expect.reason:
            assert lines, vector.name


def test_a_mismatch_shows_both_fmspcs_and_the_platform(world: World, now: int) -> None:
    info = json.loads(world.collateral().tcb_info) | {"fmspc": "90C06F000000"}
    text = json.dumps(info, separators=(",", ":"))
    changed = replace(
        world.collateral(), tcb_info=text, tcb_info_signature=world.pki.tcb_signing.key.sign(text.encode())
    )
    verdict = Verifier(world.pki.root.der, accept_simulated=True).verify(world.quote(), changed, now)
    assert verdict.differences == (
        f"FMSPC: quote {world.platform_identity.fmspc.hex()}, TCB info 90c06f000000",
    )


def test_dates_are_dates(world: World) -> None:
    late = int(world.now.timestamp()) + 500 * 86400
    verdict = Verifier(world.pki.root.der, accept_simulated=True).verify(
        world.quote(), world.collateral(), late
    )
    assert not verdict.accepted
    assert "UnixTime" not in verdict.reason
    assert any(each.startswith("root CA revocation list: valid until 2025-") for each in verdict.differences)
    assert any(each.startswith("TCB info: valid until 2025-") for each in verdict.differences)


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("dynamic_platform", "[platform] allow_dynamic = true"),
        ("cached_keys", "[platform] allow_cached_keys = true"),
        ("smt_enabled", "[platform] allow_smt = true"),
    ],
)
def test_the_key_of_a_policy_is_named_and_right(flag: str, key: str, world: World, now: int) -> None:

    identity = replace(world.platform_identity, **{flag: True})  # type: ignore[arg-type]
    enclave = TdQuotingEnclave(world.pki, identity, world.tcb, world.report_key)
    quote = enclave.quote(world.report_fields().report(world.report_key))
    root, collateral = world.pki.root.der, world.collateral()
    verdict = Verifier(root, accept_simulated=True).verify(quote, collateral, now)
    assert (verdict.accepted, verdict.policy_key) == (False, key)
    policy = parse_policy(key.replace("] ", "]\n"))
    assert Verifier(root, policy, accept_simulated=True).verify(quote, collateral, now).accepted


def test_all_keys_that_a_platform_needs_are_named_at_once(world: World, now: int) -> None:
    identity = replace(world.platform_identity, dynamic_platform=True, smt_enabled=True)
    enclave = TdQuotingEnclave(world.pki, identity, world.tcb, world.report_key)
    quote = enclave.quote(world.report_fields().report(world.report_key))
    verdict = Verifier(world.pki.root.der, accept_simulated=True).verify(quote, world.collateral(), now)
    assert verdict.policy_key == "[platform] allow_dynamic = true, allow_smt = true"


def test_a_refusal_shows_the_platform_that_the_quote_claims(world: World, tmp_path: Path) -> None:
    collateral = replace(world, faults=frozenset({Fault.TCB_BELOW_ALL_LEVELS})).collateral()
    (tmp_path / "quote").write_bytes(world.quote())
    (tmp_path / "collateral").write_text(collateral.to_json())
    (tmp_path / "root").write_text(world.pki.root.pem)
    result = run(
        "verify", tmp_path / "quote", "--collateral", tmp_path / "collateral", "--root", tmp_path / "root",
        "--accept-simulated", "--now", str(int(world.now.timestamp())),
    )  # fmt: skip
    assert result.exit_code == 1
    head = "\n".join(result.output.splitlines()[:6])
    assert "SGX component 1: quote 2, lowest level 3" in head
    assert "Platform; UNVERIFIED, as the quote claims it" in result.output
    for line in (
        f"FMSPC           {world.platform_identity.fmspc.hex()}",
        f"CPUSVN          {world.tcb.cpusvn.hex()}",
        "PCESVN, PCE-ID  13, 0000",
    ):
        assert line in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--insecure", "--collateral", "c"], "go with --pcs"),
        (["--pcs-ca", "ca"], "go with --pcs"),
        (["--pcs", "http://x", "--collateral", "c"], "exclude each other"),
        (["--token", "t"], "go together"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], said: str, world: World, tmp_path: Path
) -> None:
    (tmp_path / "quote").write_bytes(world.quote())
    result = run("verify", tmp_path / "quote", *options)
    assert (result.exit_code, said in result.output) == (2, True), result.output
