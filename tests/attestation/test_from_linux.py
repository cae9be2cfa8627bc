"""End to end: an unmodified kernel in a TD asks for a quote, and strangers verify it."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import dcap_qvl
import pytest

from swtdx.attestation.eventlog.format import parse
from swtdx.attestation.pcs.catalogue import Catalogue
from swtdx.attestation.pcs.fetch import fetch_collateral
from swtdx.attestation.pcs.serve import serving
from swtdx.attestation.qgs.address import UnixAddress
from swtdx.attestation.qgs.server import QgsServer
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.world import World
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import Guest, default_guest
from swtdx.guests.initramfs import Exec, default_cmdline
from swtdx.guests.quote_job import command
from tests.attestation.javascript import Judge
from tests.fetching import cannot_fetch

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

NONCE = b"a nonce of the relying party's"
SEED = "a machine for this test"


def swtdx(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swtdx.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.fixture(scope="module")
def guest() -> Guest:
    """Any kernel that can be fetched."""
    try:
        return default_guest() or fetch_guest()
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


class Obtained(NamedTuple):
    """What `swtdx quote` wrote."""

    folder: Path
    quote: bytes
    now: int


@pytest.fixture(scope="module")
def obtained(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Obtained:
    folder = tmp_path_factory.mktemp("quote")
    result = swtdx(
        folder, "quote", "--guest", guest.version, "--seed", SEED, "--nonce", NONCE.hex(),
        "-o", "quote.bin", "--collateral", "collateral.json", "--root", "root.pem", "--eventlog", "log.bin",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Verify it:" in result.stderr
    return Obtained(folder, (folder / "quote.bin").read_bytes(), int(dt.datetime.now(dt.UTC).timestamp()))


def measured(guest: Guest, folder: Path) -> dict[str, Any]:
    """What `swtdx measure` computes from the files alone."""
    job = Exec(command(NONCE.ljust(64, b"\0")))
    (folder / "initrd").write_bytes(guest.initramfs(job))
    result = swtdx(
        folder, "measure", "--kernel", str(guest.kernel), "--initrd", "initrd",
        "--cmdline", default_cmdline(job), "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_dcap_qvl_accepts_it_under_our_root(obtained: Obtained) -> None:
    # The relying party has the seed (for root and collateral) and the quote.
    world = World(seed=SEED.encode())
    with serving(Catalogue(world, lambda: dt.datetime.now(dt.UTC))) as url:
        collateral = fetch_collateral(url, obtained.quote)
    report = dcap_qvl.verify_with_root_ca(obtained.quote, collateral, world.pki.root.der, obtained.now)
    assert (report.status, report.advisory_ids) == ("UpToDate", [])
    with pytest.raises(ValueError, match="root CA"):
        dcap_qvl.verify(obtained.quote, collateral, obtained.now)


def test_it_carries_the_nonce_and_the_measurements(obtained: Obtained, guest: Guest) -> None:
    body = ParsedQuote(obtained.quote).body()
    assert body["reportdata"] == NONCE.ljust(64, b"\0")
    expected = measured(guest, obtained.folder)
    for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"):
        assert body[name].hex() == expected[name], name


def test_swtdx_verify_accepts_it_and_no_other_nonce(obtained: Obtained) -> None:
    arguments = (
        "verify", "quote.bin", "--collateral", "collateral.json", "--root", "root.pem", "--accept-simulated"
    )  # fmt: skip
    accepted = swtdx(obtained.folder, *arguments, "--nonce", NONCE.hex())
    assert (accepted.returncode, accepted.stdout[:8]) == (0, "ACCEPTED"), accepted.stdout
    assert swtdx(obtained.folder, *arguments, "--nonce", "00" * 30).returncode == 1
    assert swtdx(obtained.folder, *arguments[:-1], "--nonce", NONCE.hex()).returncode == 1


def test_javascript_accepts_it(obtained: Obtained, javascript: Judge, tmp_path: Path) -> None:
    root = tmp_path / "root.der"
    root.write_bytes(World(seed=SEED.encode()).pki.root.der)
    case = (
        "linux", obtained.folder / "quote.bin", obtained.folder / "collateral.json", obtained.now
    )  # fmt: skip
    assert javascript.verify(root, [case], tmp_path) == {"linux": ["accepted", "UpToDate", []]}


def in_docs(language: str) -> str:
    """The program in docs/attestation.md that is written in ``language``."""
    text = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text()
    return text.split(f"```{language}\n", 1)[1].split("```", 1)[0]


def test_the_documented_programs_accept_it(obtained: Obtained, javascript: Judge) -> None:
    for command_line, program in (
        ([sys.executable, "-c"], in_docs("python")),
        (["node", "-e"], in_docs("js")),
    ):
        output = subprocess.run(
            [*command_line, program],
            cwd=obtained.folder,
            env=os.environ | {"NODE_PATH": str(javascript.folder / "node_modules")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        assert output.split() == ["UpToDate", "[]"]


def test_the_event_log_explains_the_rtmrs(obtained: Obtained) -> None:
    result = swtdx(obtained.folder, "eventlog", "log.bin", "--quote", "quote.bin")
    assert (result.returncode, result.stdout.count("matches the quote")) == (0, 4), result.stdout
    # One bit of a digest in the log: the register differs, and the good log says where.
    log = bytearray((obtained.folder / "log.bin").read_bytes())
    event = next(event for event in parse(bytes(log)) if b"quiet" in event.data)
    log[log.index(event.digest, event.offset)] ^= 1
    (obtained.folder / "changed.bin").write_bytes(log)
    result = swtdx(
        obtained.folder, "eventlog", "changed.bin", "--quote", "quote.bin", "--reference", "log.bin"
    )  # fmt: skip
    assert result.returncode == 1
    assert f"RTMR{event.rtmr} DIFFERS" in result.stdout
    assert f"RTMR{event.rtmr} differs from the reference log at event {event.index}" in result.stdout


def test_a_quote_generation_service_of_another_machine_refuses(guest: Guest, tmp_path: Path) -> None:
    # The hypervisor asks whom it is told to; that service sees a report that is not of its machine.
    other = World(seed=b"another machine")
    with QgsServer(other.enclave(other.report_key), UnixAddress(tmp_path / "qgs")):
        result = swtdx(tmp_path, "quote", "--guest", guest.version, "--qgs", f"unix:{tmp_path / 'qgs'}")
    assert result.returncode == 1
    assert "the quote service refused, or there is none" in result.stderr
    assert not (tmp_path / "quote.bin").exists()
