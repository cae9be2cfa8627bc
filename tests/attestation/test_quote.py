"""Quotes as dcap-qvl reads and verifies them, and the enclave's refusals."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import dcap_qvl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.errors import QuoteFormatError, ReportRejected
from swtdx.attestation.quote import BodyType, ParsedQuote
from swtdx.attestation.tdreport import ReportKey, TdReportFields
from swtdx.attestation.verify import to_dcap
from swtdx.attestation.world import World

KINDS = [(4, BodyType.TD_1_0), (5, BodyType.TD_1_0), (5, BodyType.TD_1_5)]


def distinct() -> TdReportFields:
    """A report in which every field has its own value, so that two swapped fields show."""

    def block(number: int, size: int = 48) -> bytes:
        return bytes((number,)) * size

    return TdReportFields(
        reportdata=bytes(range(64)),
        tee_tcb_svn=bytes((5, 1, 2)) + block(1, 13),
        tee_tcb_svn2=bytes((5, 1, 2)) + block(2, 13),
        mrseam=block(3),
        attributes=1 << 28 | 1 << 30,
        xfam=0x0706050403020100,
        mrtd=block(4),
        mrconfigid=block(5),
        mrowner=block(6),
        mrownerconfig=block(7),
        rtmrs=(block(8), block(9), block(10), block(11)),
    )


@pytest.mark.parametrize(("version", "body"), KINDS)
def test_dcap_qvl_accepts_under_our_root(
    world: World, collateral: Collateral, root: bytes, now: int, version: int, body: BodyType
) -> None:
    quote = world.quote(distinct(), version=version, body=body)
    verdict = dcap_qvl.verify_with_root_ca(quote, to_dcap(collateral), root, now)
    assert verdict.status == "UpToDate"
    assert verdict.advisory_ids == []
    assert verdict.ppid == world.platform_identity.ppid


def test_intel_root_does_not_accept(world: World, collateral: Collateral, now: int) -> None:
    with pytest.raises(ValueError, match="Failed to parse root CA CRL"):
        dcap_qvl.verify(world.quote(), to_dcap(collateral), now)


@pytest.mark.parametrize(("version", "body"), KINDS)
def test_every_field_is_where_dcap_qvl_looks(world: World, version: int, body: BodyType) -> None:
    fields = distinct()
    read = dcap_qvl.parse_quote(world.quote(fields, version=version, body=body))
    assert read.header.version == version
    assert read.header.attestation_key_type == 2
    assert read.header.tee_type == 0x81
    assert read.header.qe_vendor_id.hex() == "939a7233f79c4ca9940a0db3957f0607"
    report = read.report
    assert report.tee_tcb_svn == fields.tee_tcb_svn
    assert report.mr_seam == fields.mrseam
    assert report.mr_signer_seam == bytes(48)
    assert report.seam_attributes == bytes(8)
    assert report.td_attributes == fields.attributes.to_bytes(8, "little")
    assert report.xfam == bytes(range(8))
    assert report.mr_td == fields.mrtd
    assert report.mr_config_id == fields.mrconfigid
    assert report.mr_owner == fields.mrowner
    assert report.mr_owner_config == fields.mrownerconfig
    assert (report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3) == fields.rtmrs
    assert report.report_data == fields.reportdata
    if body is BodyType.TD_1_5:
        assert report.tee_tcb_svn2 == fields.tee_tcb_svn2
        assert report.mr_service_td == bytes(48)
    assert read.fmspc() == "007377746478"
    assert read.ca() == "platform"


@pytest.mark.parametrize(("version", "body"), KINDS)
def test_our_parser_agrees_with_the_reference_offsets(world: World, version: int, body: BodyType) -> None:
    quote = world.quote(distinct(), version=version, body=body)
    parsed = ParsedQuote(quote)
    assert b"".join(quote[part.start : part.end] for part in parsed.parts) == quote
    if version == 4:
        # attestation.md section 2's table of absolute offsets.
        offsets = {
            "signature data length": 632,
            "quote signature": 636,
            "attestation key": 700,
            "certification data type": 764,
            "QE report": 770,
            "QE report signature": 1154,
            "QE authentication data": 1220,
            "inner certification data type": 1252,
        }
        assert {name: parsed.part(name).start for name in offsets} == offsets
    assert parsed.body()["rtmr3"] == bytes((11,)) * 48
    assert parsed.pck_chain().count("BEGIN CERTIFICATE") == 3
    assert ParsedQuote(quote + b"padding").padding == 7


def test_quotes_are_deterministic(world: World) -> None:
    assert world.quote() == World().quote()
    assert world.quote() != World(seed=b"another machine").quote()


def test_qe_report_binds_the_attestation_key(world: World) -> None:
    parsed = ParsedQuote(world.quote())
    auth = parsed.bytes_of("QE authentication data")
    bound = hashlib.sha256(parsed.bytes_of("attestation key") + auth).digest()
    assert parsed.bytes_of("QE report")[320:] == bound + bytes(32)
    assert len(auth) == 32


def test_version_follows_what_must_be_said(world: World) -> None:
    plain = world.report_fields()
    served = replace(plain, servtd_hash=b"s" * 48)
    assert ParsedQuote(world.quote(plain)).version == 4
    parsed = ParsedQuote(world.quote(served))
    assert (parsed.version, parsed.body_type) == (5, BodyType.TD_1_5)
    assert parsed.body()["mrservicetd"] == b"s" * 48
    with pytest.raises(ReportRejected, match="service TD"):
        world.quote(served, version=4)
    with pytest.raises(ReportRejected, match="version 3"):
        world.quote(plain, version=3)
    with pytest.raises(ReportRejected, match="TD_1_5"):
        world.quote(plain, version=4, body=BodyType.TD_1_5)


def test_the_mac_is_hmac_sha256_of_the_first_224_bytes() -> None:
    key = b"k" * 32
    report = TdReportFields().report(ReportKey(key))
    assert len(report) == 1024
    assert hmac.new(key, report[:224], hashlib.sha256).digest() == report[224:256]
    assert hashlib.sha384(report[256:495]).digest() == report[32:80]
    assert hashlib.sha384(report[512:]).digest() == report[80:128]


def test_reports_of_another_boot_are_refused(world: World) -> None:
    report = world.report_fields().report(ReportKey(b"another boot's key"))
    with pytest.raises(ReportRejected, match="not this machine's"):
        world.enclave(world.report_key).quote(report)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 1023), bit=st.integers(0, 7))
def test_the_enclave_refuses_any_changed_report(position: int, bit: int) -> None:
    world = World()
    report = bytearray(world.report_fields().report(world.report_key))
    report[position] ^= 1 << bit
    # Bytes 495..511 lie between the two hashed structures: nothing vouches for them, and nothing
    # of them reaches a quote.
    enclave = world.enclave(world.report_key)
    if 495 <= position < 512:
        assert enclave.quote(bytes(report)) == world.quote()
    else:
        with pytest.raises(ReportRejected):
            enclave.quote(bytes(report))


def test_wrong_sizes_and_types_are_refused_by_name(world: World) -> None:
    enclave = world.enclave(world.report_key)
    with pytest.raises(ReportRejected, match="1024 bytes, not 1023"):
        enclave.quote(bytes(1023))
    with pytest.raises(ReportRejected, match="type 0x0"):
        enclave.quote(bytes(1024))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1400))
def test_garbage_is_a_format_error(data: bytes) -> None:
    with pytest.raises(QuoteFormatError):
        ParsedQuote(data)


def test_every_truncation_is_a_format_error(world: World) -> None:
    quote = world.quote(version=5)
    for size in range(0, len(quote), 7):
        with pytest.raises(QuoteFormatError):
            ParsedQuote(quote[:size])
