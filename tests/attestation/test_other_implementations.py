"""The same quotes before a verifier in another language, and Intel's own quotes before ours.

Both are fetched through package managers when the test runs, and nothing fetched is kept.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509

from swtdx.arch.published_modules import by_mrseam
from swtdx.attestation.collateral import Collateral
from swtdx.attestation.policy import Policy, parse_policy
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.vectors.factory import write_vectors
from swtdx.attestation.verify import Verifier, quote_is_simulated
from swtdx.attestation.world import World
from tests.attestation.javascript import Judge
from tests.fetching import cannot_fetch

pytestmark = pytest.mark.network

# Vectors about which every verifier must agree.  The others touch rules that @phala/dcap-qvl (0.3)
# does not have: CRL signatures and dates, TDX module identities, relaunch, strict document schemas.
_AGREED = ("status/", "header/", "length/", "truncated/", "signature/", "claim/", "date/")


def test_javascript_agrees(javascript: Judge, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    write_vectors(folder)
    listing = json.loads((folder / "index.json").read_text())["vectors"]
    cases = [
        (entry["name"], place / "quote.bin", place / "collateral.json", entry["now"])
        for entry in listing
        for place in [folder / entry["name"]]
    ]
    judged = javascript.verify(folder / "root.der", cases, tmp_path)
    assert set(judged) == {entry["name"] for entry in listing}
    accepted = rejected = 0
    for entry in listing:
        verdict, status, advisories = judged[entry["name"]]
        if not entry["name"].startswith(_AGREED):
            continue
        assert verdict == entry["verdict"], (entry["name"], status)
        if verdict == "accepted":
            assert (status, advisories) == (entry["status"], entry["advisories"]), entry["name"]
            accepted += 1
        else:
            rejected += 1
    # Versions 4 and 5 with both bodies, in every accepted status; and most of what is malformed.
    assert accepted >= 3 * 6
    assert rejected >= 250


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of published sample quotes in dcap-qvl's source package."""
    folder = tmp_path_factory.mktemp("pip")
    environment = os.environ | {"TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # pip unpacks the source and then asks its build tool, which need not be here, for metadata: the
    # samples are unpacked by then.
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-clean",
            "--no-build-isolation", "--no-cache-dir", "-d", str(folder / "d"),
            f"dcap-qvl=={dcap_qvl.__version__}",
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    found = next(folder.rglob("sample/tdx_quote"), None)
    if found is None:
        cannot_fetch("pip cannot fetch the source of dcap-qvl")
    return found.parent


# Real platforms have these on.
_REAL = parse_policy("[platform]\nallow_smt = true\nallow_cached_keys = true\nallow_dynamic = true\n")


def issue_date(collateral: Collateral) -> int:
    moments = (json.loads(text)["issueDate"] for text in (collateral.tcb_info, collateral.qe_identity))
    return max(int(dt.datetime.fromisoformat(moment).timestamp()) for moment in moments) + 3600


@pytest.mark.parametrize("name", ["tdx_quote", "tdx_quote_outdated", "tdx_quote_td15ex"])
def test_intels_quotes_parse_to_the_documented_fields(samples: Path, name: str) -> None:
    data = (samples / name).read_bytes()
    parsed, theirs = ParsedQuote(data), dcap_qvl.parse_quote(data)
    report, body = theirs.report, parsed.body()
    assert parsed.version == theirs.header.version
    pairs = {
        "tee_tcb_svn": "tee_tcb_svn", "mrseam": "mr_seam", "mrsignerseam": "mr_signer_seam",
        "seamattributes": "seam_attributes", "tdattributes": "td_attributes", "xfam": "xfam",
        "mrtd": "mr_td", "mrconfigid": "mr_config_id", "mrowner": "mr_owner",
        "mrownerconfig": "mr_owner_config", "rtmr0": "rt_mr0", "rtmr1": "rt_mr1", "rtmr2": "rt_mr2",
        "rtmr3": "rt_mr3", "reportdata": "report_data",
    }  # fmt: skip
    if "tee_tcb_svn2" in body:
        pairs |= {"tee_tcb_svn2": "tee_tcb_svn2", "mrservicetd": "mr_service_td"}
    if "td_id" in body:
        pairs |= {
            "td_id": "td_id", "dev_info": "dev_info", "init_servtd_hash": "init_service_td_hash",
            "init_servtd_attributes": "init_service_td_attributes", "init_cpusvn": "init_cpu_svn",
            "init_tee_tcb_svn": "init_tee_tcb_svn", "init_tee_fmspc": "init_tee_fmspc",
            "cur_servtd_hash": "cur_service_td_hash", "cur_servtd_attributes": "cur_service_td_attributes",
        }  # fmt: skip
        assert body.pop("vmid") == bytes((report.vmid,))
    assert set(pairs) == set(body)
    for mine, other in pairs.items():
        assert body[mine] == getattr(report, other), mine
    # What attestation.md says of every quote by Intel's enclave.
    assert parsed.bytes_of("header")[12:28].hex() == "939a7233f79c4ca9940a0db3957f0607"
    assert body["mrsignerseam"] == bytes(48)
    qe_report = parsed.bytes_of("QE report")
    assert int.from_bytes(qe_report[256:258], "little") == 2
    assert parsed.bytes_of("QE authentication data") == bytes(range(32))
    assert parsed.pck_chain().count("BEGIN CERTIFICATE") == 3
    assert not quote_is_simulated(data)


@pytest.mark.parametrize("name", ["tdx_quote", "tdx_quote_td15ex"])
def test_intels_quotes_verify_under_intels_root(samples: Path, name: str) -> None:
    data = (samples / name).read_bytes()
    collateral = Collateral.from_json((samples / f"{name}_collateral.json").read_bytes())
    now = issue_date(collateral)
    verdict = Verifier(policy=_REAL).verify(data, collateral, now)
    assert verdict.authentic, verdict.reason
    assert not verdict.simulated
    assert (
        verdict.status
        == dcap_qvl.verify(data, dcap_qvl.QuoteCollateralV3.from_json(collateral.to_json()), now).status
    )
    assert not Verifier(policy=Policy()).verify(data, collateral, now).accepted


def test_the_simulated_maker_is_like_the_real_one(
    samples: Path, world: World, collateral: Collateral
) -> None:
    """Certificates and documents have the shape of Intel's: same extensions, same members, same order."""
    data = (samples / "tdx_quote").read_bytes()
    theirs = x509.load_pem_x509_certificates(ParsedQuote(data).pck_chain().encode())
    ours = x509.load_pem_x509_certificates(ParsedQuote(world.quote()).pck_chain().encode())
    for real, made in zip(theirs, ours, strict=True):
        assert [(each.oid, each.critical) for each in real.extensions] == [
            (each.oid, each.critical) for each in made.extensions
        ]
        for kind in (x509.KeyUsage, x509.BasicConstraints):
            assert (
                real.extensions.get_extension_for_class(kind).value
                == made.extensions.get_extension_for_class(kind).value
            )
        common_name = x509.NameOID.COMMON_NAME
        assert (
            real.subject.get_attributes_for_oid(common_name)[0].value
            == made.subject.get_attributes_for_oid(common_name)[0].value
        )
    real_collateral = Collateral.from_json((samples / "tdx_quote_collateral.json").read_bytes())
    for member in ("tcb_info", "qe_identity"):
        real_document, made_document = (
            json.loads(getattr(each, member)) for each in (real_collateral, collateral)
        )
        assert list(made_document) == list(real_document)
        assert list(made_document["tcbLevels"][0]) == list(real_document["tcbLevels"][0])
        assert list(made_document["tcbLevels"][0]["tcb"]) == list(real_document["tcbLevels"][0]["tcb"])


@pytest.mark.parametrize("name", ["tdx_quote", "tdx_quote_outdated", "tdx_quote_td15ex"])
def test_intels_modules_are_known_by_their_mrseam(samples: Path, name: str) -> None:
    """Quotes that Intel's keys signed: MRSEAM and the module's SVN are as in the table of modules."""
    body = ParsedQuote((samples / name).read_bytes()).body()
    module = by_mrseam(body["mrseam"].hex())
    assert module is not None
    assert f"(SVN {body['tee_tcb_svn'][0]})" in module.version


def test_an_outdated_platform_is_told_by_its_component(samples: Path) -> None:
    """What took a reading of quote and TCB info by hand (Intel-signed, below every level)."""
    name = "tdx_quote_outdated"
    collateral = Collateral.from_json((samples / f"{name}_collateral.json").read_bytes())
    verdict = Verifier().verify((samples / name).read_bytes(), collateral, issue_date(collateral))
    assert verdict.reason == "No matching TCB level found"
    assert any("SGX component 8: quote 3, lowest level 5" in each for each in verdict.differences)
