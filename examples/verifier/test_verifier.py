"""The verifier against swtdx's test vectors, and against quotes made for the purpose."""

import json
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from verifier import Rejected, Verifier

ALL = frozenset(
    {"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
     "OutOfDateConfigurationNeeded", "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"}
)


@pytest.fixture(scope="session")
def vectors(tmp_path_factory) -> list[Path]:
    """The folders of all vectors: quote.bin, collateral.json and expected.json in each."""
    folder = tmp_path_factory.mktemp("vectors")
    subprocess.run(["swtdx", "vectors", "make", folder], check=True, capture_output=True)
    return sorted(path.parent for path in folder.rglob("expected.json"))


@pytest.fixture(scope="session")
def root(vectors) -> bytes:
    """The root that vectors verify under, DER."""
    top = Path(*vectors[0].parts[:-2])
    return ssl.PEM_cert_to_DER_cert((top / "root.pem").read_text())


def test_all_vectors(vectors, root):
    """What must be rejected is rejected, and what is accepted has the right status."""
    verifier = Verifier(root, accept=ALL)
    wrong = []
    for folder in vectors:
        expected = json.loads((folder / "expected.json").read_text())
        quote, collateral = (folder / "quote.bin").read_bytes(), (folder / "collateral.json").read_text()
        try:
            got = verifier.check(quote, collateral, expected["now"])
        except Rejected as rejected:
            got = "rejected: " + str(rejected)
        wanted = expected["status"] if expected["verdict"] == "accepted" else "rejected"
        if not got.startswith(wanted) and not expected["others_may"]:
            wrong.append(f"{folder.name}: {got}, expected {wanted}: {expected['why']}")
    assert len(vectors) > 400
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def check(tdx_collateral):
    """Check a quote now, by a verifier with these rules."""

    def check(quote, nonce=None, **rules) -> str:
        verifier = Verifier(ssl.PEM_cert_to_DER_cert(tdx_collateral.root.decode()), **rules)
        return verifier.check(bytes(quote), tdx_collateral.collateral().decode(), int(time.time()), nonce)

    return check


def test_a_known_td_with_our_nonce(check, tdx_quote):
    quote = tdx_quote(b"nonce", mrtd=bytes(range(48)))
    assert check(quote, b"nonce", mrtds=frozenset({bytes(range(48))})) == "UpToDate"


def test_anothers_nonce_is_a_replay(check, tdx_quote):
    with pytest.raises(Rejected, match="nonce"):
        check(tdx_quote(b"yesterday's"), b"today's")


def test_a_td_that_we_do_not_know(check, tdx_quote):
    with pytest.raises(Rejected, match="do not know"):
        check(tdx_quote(), mrtds=frozenset({bytes(48)}))


def test_a_debug_td(check, tdx_quote):
    with pytest.raises(Rejected, match="(?i)debug"):
        check(tdx_quote(attributes=1 << 28 | 1))


@pytest.mark.parametrize("byte", range(48, 632, 73))
def test_a_quote_that_was_changed(check, tdx_quote, byte):
    changed = bytearray(bytes(tdx_quote()))
    changed[byte] ^= 1
    with pytest.raises(Rejected):
        check(bytes(changed))


@pytest.mark.parametrize("tdx_collateral", ["pck-revoked", "tcb-info-expired", "qe-revoked"], indirect=True)
def test_worlds_in_which_something_is_wrong(tdx_collateral):
    verifier = Verifier(ssl.PEM_cert_to_DER_cert(tdx_collateral.root.decode()))
    with pytest.raises(Rejected):
        verifier.check(
            bytes(tdx_collateral.quote()), tdx_collateral.collateral().decode(),
            int(tdx_collateral.now.timestamp()),
        )


@pytest.mark.tdx_td(memory=256 << 20)
def test_a_quote_that_linux_makes_in_a_td(tdx_linux):
    platform = tdx_linux.platform
    verifier = Verifier(ssl.PEM_cert_to_DER_cert(platform.root.decode()))
    quote = bytes(tdx_linux.quote(b"nonce"))
    assert verifier.check(quote, platform.collateral().decode(), int(time.time()), b"nonce") == "UpToDate"
