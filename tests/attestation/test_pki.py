"""The certificates, looked at with tools and rules that are not ours."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from swtdx.attestation import der, names
from swtdx.attestation.errors import AttestationError
from swtdx.attestation.keys import SigningKey, derive
from swtdx.attestation.pki import Issued, Pki, pem_chain
from swtdx.attestation.sgx_platform import PckCa, PlatformIdentity, PlatformTcb
from swtdx.attestation.world import World

SEED = b"a seed of the tests"
SOON = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)
LATER = SOON + dt.timedelta(days=30)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki(SEED)


@pytest.fixture(scope="module")
def tree(pki: Pki) -> dict[str, Issued]:
    platform = PlatformIdentity.from_seed(SEED)
    return {
        "root": pki.root,
        "platform CA": pki.platform_ca,
        "processor CA": pki.processor_ca,
        "TCB signing": pki.tcb_signing,
        "PCK": pki.pck(platform, PlatformTcb()),
    }


def test_rfc_6979_vector() -> None:
    # RFC 6979 appendix A.2.5: P-256, SHA-256, message "sample".
    key = SigningKey(
        ec.derive_private_key(
            0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721, ec.SECP256R1()
        )
    )
    assert key.sign(b"sample").hex() == (
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
        "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    )
    assert key.public_raw.hex().startswith("60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6")


@pytest.mark.filterwarnings("ignore:Attribute.s length")
def test_der_agrees_with_a_parser() -> None:
    # cryptography's parser reads what the writer wrote: an extension value with every kind in it.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 200, _validate=False)])
    utf8 = der.tlv(0x0C, b"x" * 200)
    attribute = der.sequence(der.object_identifier("2.5.4.3"), utf8)
    assert der.sequence(der.tlv(0x31, attribute)) == name.public_bytes()
    # X.690 8.19's own worked example, and the two's complement edge of INTEGER (8.3).
    assert der.object_identifier("2.100.3").hex() == "0603813403"
    assert [der.integer(n).hex() for n in (0, 127, 128, 256)] == ["020100", "02017f", "02020080", "02020100"]


def test_same_seed_same_bytes_other_seed_other_keys(pki: Pki) -> None:
    def everything(other: Pki) -> list[bytes]:
        platform = PlatformIdentity.from_seed(other.seed)
        return [
            *(each.der for each in (other.root, other.platform_ca, other.processor_ca, other.tcb_signing)),
            other.pck(platform, PlatformTcb()).der,
            other.root_crl(SOON, LATER, [other.platform_ca.certificate]),
            other.pck_crl(PckCa.PLATFORM, SOON, LATER),
        ]

    first = everything(pki)
    assert everything(Pki(SEED)) == first
    other = everything(Pki(b"another seed"))
    assert not set(first) & set(other)
    assert len(set(first)) == len(first)
    assert everything(Pki(SEED, label="impostor: "))[0] != first[0]


def test_every_key_and_secret_differs(tree: dict[str, Issued]) -> None:
    points = {issued.key.public_raw for issued in tree.values()}
    assert len(points) == len(tree)
    assert derive(SEED, "a", 32) != derive(SEED, "b", 32)
    with pytest.raises(AttestationError, match="at least one byte"):
        derive(b"", "a", 32)


def test_every_name_says_simulated(tree: dict[str, Issued]) -> None:
    for issued in tree.values():
        for name in (issued.certificate.subject, issued.certificate.issuer):
            assert "swtdx simulated, not Intel" in name.rfc4514_string().replace("\\,", ",")
        assert names.is_simulated(issued.certificate)


def test_no_certificate_points_to_intel(tree: dict[str, Issued]) -> None:
    for issued in tree.values():
        assert b"intel.com" not in issued.der.lower()


def test_a_certificate_of_somebody_else_is_not_simulated() -> None:
    key = SigningKey.derived(SEED, "somebody else")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Intel SGX Root CA")])
    certificate = x509.CertificateBuilder(name, name, key.public, 7, SOON, LATER).sign(
        key.private, hashes.SHA256()
    )
    assert not names.is_simulated(certificate)


# Rules of go-tdx-guest (verify/verify.go, pcs/pcs.go), which has no Python form: exact common names,
# issuer's whole name equal to the parent's subject, six leaf extensions, 18 TCB entries.


def test_go_tdx_guest_name_rules(tree: dict[str, Issued]) -> None:
    def common_name(issued: Issued) -> str:
        return str(issued.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)

    expected = {
        "root": "Intel SGX Root CA",
        "platform CA": "Intel SGX PCK Platform CA",
        "processor CA": "Intel SGX PCK Processor CA",
        "TCB signing": "Intel SGX TCB Signing",
        "PCK": "Intel SGX PCK Certificate",
    }
    assert {label: common_name(issued) for label, issued in tree.items()} == expected
    parents = {"PCK": "platform CA"}
    for label, issued in tree.items():
        parent = tree[parents.get(label, "root")].certificate
        assert issued.certificate.version is x509.Version.v3
        assert issued.certificate.issuer == parent.subject
        issued.certificate.verify_directly_issued_by(parent)
        assert isinstance(issued.certificate.signature_hash_algorithm, hashes.SHA256)
        key = issued.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"


def test_go_tdx_guest_leaf_rules(tree: dict[str, Issued]) -> None:
    extensions = tree["PCK"].certificate.extensions
    assert sorted(each.oid.dotted_string for each in extensions) == sorted(
        ["2.5.29.35", "2.5.29.31", "2.5.29.14", "2.5.29.15", "2.5.29.19", "1.2.840.113741.1.13.1"]
    )


def test_extension_profile(tree: dict[str, Issued]) -> None:
    lengths = {"root": 1, "platform CA": 0, "processor CA": 0, "TCB signing": None, "PCK": None}
    for label, issued in tree.items():
        extensions = issued.certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        authority = lengths[label] is not None
        assert basic.critical
        assert (basic.value.ca, basic.value.path_length) == (authority, lengths[label])
        assert (usage.key_cert_sign, usage.crl_sign) == (authority, authority)
        assert (usage.digital_signature, usage.content_commitment) == (not authority, not authority)


@pytest.mark.parametrize("ca", list(PckCa))
def test_sgx_extension_as_dcap_qvl_reads_it(pki: Pki, ca: PckCa) -> None:
    platform = PlatformIdentity(
        ppid=bytes(range(16)),
        ca=ca,
        fmspc=bytes.fromhex("00906ed50000"),
        pceid=b"\x01\x02",
        sgx_type=2,
        instance_id=bytes(range(16, 32)),
    )
    tcb = PlatformTcb((0, 1, 127, 128, 255, *range(5, 16)), 0x7BCD)
    read = dcap_qvl.parse_pck_extension_from_pem(pki.pck_chain(platform, tcb).encode())
    assert read.ppid == bytes(range(16))
    assert read.fmspc.hex() == "00906ed50000"
    assert read.pce_id == b"\x01\x02"
    assert read.sgx_type == 2
    assert read.pce_svn == 0x7BCD
    assert read.cpu_svn == bytes((0, 1, 127, 128, 255, *range(5, 16)))
    # A component with the high bit set is a two-byte INTEGER, or it would be negative.
    assert read.get_value("1.2.840.113741.1.13.1.2.4") == b"\x00\x80"
    assert read.get_value("1.2.840.113741.1.13.1.2.3") == b"\x7f"
    expected = bytes(range(16, 32)) if ca is PckCa.PLATFORM else None
    assert read.platform_instance_id == expected
    assert (read.get_value("1.2.840.113741.1.13.1.7.3") is None) == (ca is PckCa.PROCESSOR)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")
@pytest.mark.parametrize("revoked", [False, True])
def test_openssl_verifies_the_chain_with_revocation(tmp_path: Path, pki: Pki, revoked: bool) -> None:
    platform = PlatformIdentity.from_seed(SEED)
    pck = pki.pck(platform, PlatformTcb())
    crls = [
        pki.root_crl(SOON, LATER),
        pki.pck_crl(PckCa.PLATFORM, SOON, LATER, [pck.certificate] if revoked else []),
    ]
    (tmp_path / "root.pem").write_text(pki.root.pem)
    (tmp_path / "ca.pem").write_text(pem_chain(pki.platform_ca))
    (tmp_path / "pck.pem").write_text(pck.pem)
    (tmp_path / "crls.pem").write_bytes(
        b"".join(x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM) for crl in crls)
    )
    result = subprocess.run(
        "openssl verify -x509_strict -check_ss_sig -crl_check_all -attime 1748822400 "
        "-CAfile root.pem -CRLfile crls.pem -untrusted ca.pem pck.pem",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if revoked:
        assert result.returncode != 0
        assert "certificate revoked" in result.stderr
    else:
        assert result.stdout == "pck.pem: OK\n"


def test_documents_are_signed_as_the_pcs_signs(world: World) -> None:
    for signed in (world.signed_tcb_info(), world.signed_identity()):
        signer, root = x509.load_pem_x509_certificates(signed.chain.encode())
        key = signer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        r, s = (int.from_bytes(signed.signature[i : i + 32], "big") for i in (0, 32))
        key.verify(encode_dss_signature(r, s), signed.text.encode(), ec.ECDSA(hashes.SHA256()))
        with pytest.raises(InvalidSignature):
            key.verify(encode_dss_signature(r, s), signed.text.encode() + b" ", ec.ECDSA(hashes.SHA256()))
        signer.verify_directly_issued_by(root)
