"""The verifier around dcap-qvl: roots, policies, reports and tokens."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import dcap_qvl
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.errors import AttestationError, PolicyError
from swtdx.attestation.policy import Policy, parse_policy
from swtdx.attestation.report import attribute_names, render
from swtdx.attestation.scenario import builtin
from swtdx.attestation.token import ear_claims, sign_token, tier
from swtdx.attestation.verify import Verdict, Verifier, to_dcap
from swtdx.attestation.world import World


def verdict_of(name: str, policy: Policy | None = None) -> Verdict:
    scenario = builtin(name)
    verifier = Verifier(scenario.world.pki.root.der, policy, accept_simulated=True)
    return verifier.verify(scenario.quote(), scenario.collateral(), scenario.world.now)


# -- roots --------------------------------------------------------------------------------------


def test_the_simulated_root_is_refused_unless_accepted(
    world: World, collateral: Collateral, root: bytes, now: int
) -> None:
    refused = Verifier(root).verify(world.quote(), collateral, now)
    assert (refused.accepted, refused.authentic, refused.check) == (False, False, "root of trust")
    assert "--accept-simulated" in refused.reason
    accepted = Verifier(root, accept_simulated=True).verify(world.quote(), collateral, now)
    assert accepted.accepted
    assert accepted.simulated


def test_intels_root_names_the_simulated_quote(world: World, collateral: Collateral, now: int) -> None:
    verdict = Verifier().verify(world.quote(), collateral, now)
    assert not verdict.accepted
    assert "made by swtdx" in verdict.reason


def test_another_machines_root_does_not_accept(world: World, collateral: Collateral, now: int) -> None:
    other = World(seed=b"another machine").pki.root.der
    verdict = Verifier(other, accept_simulated=True).verify(world.quote(), collateral, now)
    assert not verdict.accepted


def test_roots_in_pem_and_der_and_neither(world: World, collateral: Collateral, now: int) -> None:
    pem = world.pki.root.pem.encode()
    assert Verifier(pem, accept_simulated=True).verify(world.quote(), collateral, now).accepted
    for junk in (b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(AttestationError, match="neither PEM nor DER"):
            Verifier(junk)


def test_collateral_survives_json_both_ways(collateral: Collateral) -> None:
    assert Collateral.from_json(collateral.to_json()) == collateral
    native = dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json())
    assert native.to_json() == to_dcap(collateral).to_json()
    assert Collateral.from_json(native.to_json()) == collateral
    for text, complaint in (
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no text member"),
        (
            collateral.to_json().replace('"root_ca_crl": "30', '"root_ca_crl": "3x'),
            "'root_ca_crl' is not hex",
        ),
    ):
        with pytest.raises(AttestationError, match=complaint):
            Collateral.from_json(text)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=6000))
def test_garbage_is_rejected_never_an_exception(data: bytes) -> None:
    world = World()
    verifier = Verifier(world.pki.root.der, accept_simulated=True)
    verdict = verifier.verify(data, world.collateral(), world.now)
    assert not verdict.accepted
    assert verdict.reason
    assert "REJECTED" in render(verdict)
    json.dumps(verdict.document())


# -- policy -------------------------------------------------------------------------------------


def test_statuses_are_the_policys_business() -> None:
    lax = parse_policy('[tcb]\naccept = ["UpToDate", "SWHardeningNeeded"]\n')
    assert verdict_of("platform-sw-hardening-needed", lax).accepted
    strict = verdict_of("platform-sw-hardening-needed")
    assert (strict.accepted, strict.authentic, strict.check) == (False, True, "policy: TCB")
    assert strict.status == "SWHardeningNeeded"
    picky = parse_policy(
        '[tcb]\naccept = ["UpToDate", "SWHardeningNeeded"]\nreject_advisories = ["INTEL-SA-00837"]\n'
    )
    assert "INTEL-SA-00837" in verdict_of("platform-sw-hardening-needed", picky).reason
    relaunch = parse_policy('[tcb]\naccept = ["UpToDate", "TDRelaunchAdvised"]\n')
    assert verdict_of("td-relaunch-advised", relaunch).accepted


def test_grace_periods_and_editions() -> None:
    # The scenario's level was last good 395 days before its instant.
    for days, accepted in ((394, False), (396, True)):
        text = f'[tcb]\naccept = ["UpToDate", "OutOfDate"]\nplatform_grace_days = {days}\n'
        assert verdict_of("platform-out-of-date", parse_policy(text)).accepted == accepted
    for number, accepted in ((17, True), (18, False)):
        policy = parse_policy(f"[tcb]\nminimum_evaluation_number = {number}\n")
        assert verdict_of("up-to-date", policy).accepted == accepted


def test_platform_flags(world: World, root: bytes, now: int) -> None:
    platform = replace(world.platform_identity, smt_enabled=True)

    class Smt(World):
        @property
        def platform_identity(self) -> object:  # type: ignore[override]
            return platform

    smt = Smt()
    for policy, accepted in ((Policy(), False), (parse_policy("[platform]\nallow_smt = true\n"), True)):
        verdict = Verifier(root, policy, accept_simulated=True).verify(smt.quote(), smt.collateral(), now)
        assert verdict.accepted == accepted
    types = parse_policy("[platform]\nsgx_types = [2]\n")
    verdict = Verifier(root, types, accept_simulated=True).verify(world.quote(), world.collateral(), now)
    assert "SGX type" in verdict.reason


@pytest.mark.parametrize(
    "name", ["mrtd", "rtmr0", "rtmr3", "mrseam", "mrsignerseam", "mrconfigid", "mrowner", "reportdata"]
)
def test_every_measurement_can_be_pinned(
    world: World, collateral: Collateral, root: bytes, now: int, name: str
) -> None:
    quote = world.quote()
    layout = Verifier(root, accept_simulated=True).verify(quote, collateral, now).parsed
    assert layout is not None
    value = layout.body()[name]
    other = bytes((value[0] ^ 1,)) + value[1:]
    for accepted_values, accepted in (([value], True), ([other, value], True), ([other], False)):
        listed = json.dumps([each.hex() for each in accepted_values])
        policy = parse_policy(f"[td]\n{name} = {listed}\n")
        verdict = Verifier(root, policy, accept_simulated=True).verify(quote, collateral, now)
        assert verdict.accepted == accepted
        if not accepted:
            assert verdict.check == "policy: claims"
            assert name in verdict.reason
            assert other.hex() in verdict.reason


def test_masks_versions_and_nonces(world: World, collateral: Collateral, root: bytes, now: int) -> None:
    quote = world.quote(replace(world.report_fields(), reportdata=b"nonce".ljust(64, b"\0")))

    def judge(policy: Policy) -> bool:
        return Verifier(root, policy, accept_simulated=True).verify(quote, collateral, now).accepted

    assert judge(parse_policy("[td]\nattributes_required = 0x10000000\n"))
    assert not judge(parse_policy("[td]\nattributes_required = 0x50000000\n"))
    assert not judge(parse_policy("[td]\nattributes_forbidden = 0x10000000\n"))
    assert not judge(parse_policy("[td]\nxfam_forbidden = 0x4\n"))
    assert judge(parse_policy("[quote]\nversions = [4]\n"))
    assert not judge(parse_policy("[quote]\nversions = [5]\n"))
    assert judge(Policy().with_reportdata(b"nonce"))
    assert not judge(Policy().with_reportdata(b"nonces"))
    assert not judge(parse_policy(f'[td]\nmrservicetd = "{"00" * 48}"\n'))
    with pytest.raises(PolicyError, match="65 do not fit"):
        Policy().with_reportdata(bytes(65))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[td", "is not TOML"),
        ("[tdd]\n", "did you mean 'td'"),
        ('[td]\nmrtdd = "00"\n', "did you mean 'mrtd'"),
        ('[td]\nmrtd = "00"\n', "has 48 bytes"),
        ('[td]\nmrtd = "xyz"\n', "is not hex"),
        ("[td]\nmrtd = 5\n", "must be str"),
        ("[td]\nmrtd = []\n", "the list is empty"),
        ("[td]\nattributes_required = 0x10000000000000000\n", "has 64 bits"),
        ('[tcb]\naccept = ["Revoked", "UpToDate"]\n', "rejected whatever"),
        ('[tcb]\naccept = ["OutOfDate"]\n', "must contain 'UpToDate'"),
        ('[tcb]\naccept = ["Uptodate"]\n', "did you mean 'UpToDate'"),
        ("[tcb]\nplatform_grace_days = -1\n", "cannot be negative"),
        ("[platform]\nallow_smt = 1\n", "must be bool"),
        ("[quote]\nversions = 4\n", "must be list"),
        ("td = 3\n", "must be dict"),
    ],
)
def test_unusable_policies_are_named(text: str, complaint: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(text)
    assert complaint in str(error.value)


# -- reports ------------------------------------------------------------------------------------


def test_the_report_says_what_counts(world: World) -> None:
    text = render(verdict_of("platform-out-of-date"))
    assert text.startswith("REJECTED by the check of the policy: TCB")
    for words in ("SIMULATED", "OutOfDate", "INTEL-SA-00837", "SEPT_VE_DISABLE", "007377746478"):
        assert words in text
    mrtd = world.quote()[184:232].hex()
    assert mrtd[:8] in text
    assert mrtd[-8:] in text
    forged = render(verdict_of("qe-identity-wrong-key"))
    assert "UNVERIFIED" in forged
    assert "status" not in forged


def test_attribute_names() -> None:
    assert attribute_names(1 << 28 | 1 | 1 << 40) == "DEBUG SEPT_VE_DISABLE bit40"
    assert attribute_names(0) == "none"


def test_a_late_json_document(world: World) -> None:
    document = verdict_of("td-relaunch-advised").document()
    assert document["tcb"]["status"] == "TDRelaunchAdvised"
    assert document["tcb"]["platform_status"] == "OutOfDate"
    assert document["tcb"]["current_status"] == "UpToDate"
    assert document["td"]["mrtd"] == world.quote()[184:232].hex()
    assert document["root"]["simulated"] is True
    rejected = verdict_of("pck-revoked").document()
    assert "tcb" not in rejected
    assert rejected["failed_check"] == "certificate chain"


# -- tokens -------------------------------------------------------------------------------------


def key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_the_token_is_a_jws_that_anybody_can_check() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    token = sign_token(ear_claims(verdict_of("up-to-date"), nonce=b"12345678"), key_pem(key))
    # RFC 7515 and RFC 7518 section 3.4 by hand: ES256 signs "header.payload", signature r and s.
    head, payload, signature = token.split(".")

    def decode(part: str) -> bytes:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    assert json.loads(decode(head))["alg"] == "ES256"
    raw = decode(signature)
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    key.public_key().verify(
        encode_dss_signature(r, s), f"{head}.{payload}".encode(), ec.ECDSA(hashes.SHA256())
    )
    claims = json.loads(decode(payload))
    assert claims["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert decode(claims["eat_nonce"]) == b"12345678"
    assert set(claims["ear.verifier-id"]) == {"developer", "build"}
    (submodule,) = claims["submods"].values()
    assert submodule["ear.status"] == "affirming"
    assert submodule["swtdx.simulated"] is True
    body = submodule["ear.veraison.annotated-evidence"]["tdx"]["body"]
    assert body["reportdata"] == "00" * 64


@pytest.mark.parametrize(
    ("scenario", "policy", "status", "dimension", "value"),
    [
        ("platform-out-of-date", "", "contraindicated", "hardware", 96),
        (
            "platform-configuration-needed",
            '[tcb]\naccept = ["UpToDate", "ConfigurationNeeded"]\n',
            "warning",
            "hardware",
            32,
        ),
        ("up-to-date", f'[td]\nmrtd = "{"00" * 48}"\n', "contraindicated", "executables", 96),
        ("up-to-date", f'[td]\nrtmr3 = "{"00" * 48}"\n', "affirming", "executables", 2),
        ("up-to-date", f'[td]\nmrowner = "{"01" * 48}"\n', "contraindicated", "configuration", 96),
        ("td-debug", "", "contraindicated", "configuration", 96),
        ("platform-revoked", "", "contraindicated", "hardware", 96),
        ("tcb-info-wrong-key", "", "contraindicated", "instance-identity", 99),
    ],
)
def test_trust_vectors(scenario: str, policy: str, status: str, dimension: str, value: int) -> None:
    claims = ear_claims(verdict_of(scenario, parse_policy(policy)))
    submodule = claims["submods"]["td"]
    assert submodule["ear.status"] == status
    assert submodule["ear.trustworthiness-vector"][dimension] == value


def test_no_statement_without_a_look(world: World, collateral: Collateral, root: bytes, now: int) -> None:
    verdict = Verifier(root).verify(world.quote(), collateral, now)
    assert ear_claims(verdict)["submods"]["td"]["ear.status"] == "none"
    assert tier({}) == "none"


def test_unusable_token_keys_and_nonces() -> None:
    verdict = verdict_of("up-to-date")
    with pytest.raises(AttestationError, match="8 to 64 bytes"):
        ear_claims(verdict, nonce=b"short")
    with pytest.raises(AttestationError, match="private key in PEM"):
        sign_token({}, b"junk")
    with pytest.raises(AttestationError, match="P-256"):
        sign_token({}, key_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(AttestationError, match="P-256"):
        sign_token({}, key_pem(rsa.generate_private_key(65537, 2048)))
