"""From a machine's own TDREPORT to an accepted quote, with the enclave on the machine or elsewhere."""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from swtdx.arch.report_structs import TDINFO
from swtdx.arch.seam_structs import SEAMEXTEND
from swtdx.attestation.errors import QgsError
from swtdx.attestation.qgs import messages
from swtdx.attestation.qgs.address import UnixAddress
from swtdx.attestation.qgs.server import QgsServer
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.verify import Verifier
from swtdx.attestation.world import World
from swtdx.machine import seamops
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.quoting import Quoting, quoting_enclave, world_of

NOW = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)
SEPT_VE_DISABLE = 1 << 28
#: SEAMEXTEND.VALID: the first nine fields of eight bytes are there.
VALID = 0x1FF


def booted(seed: bytes = b"a machine") -> Platform:
    return Platform.boot(PlatformConfig(machine=MachineConfig(seed=seed), load_module=False))


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """A machine whose SEAMEXTEND says that a module of SVN 1.5 runs."""
    with booted() as platform:
        extend = bytearray(platform.machine.seam.extend)
        SEAMEXTEND.valid.set(extend, VALID)
        SEAMEXTEND.tee_tcb_svn.set(extend, bytes((5, 1)) + bytes(14))
        SEAMEXTEND.mrseam.set(extend, hashlib.sha384(b"module").digest())
        platform.machine.seam.write_seamextend(bytes(extend))
        yield platform


def report(platform: Platform, reportdata: bytes = bytes(64)) -> bytes:
    """What TDG.MR.REPORT gives a TD: SEAMREPORT's part and TDINFO."""
    info = TDINFO.new()
    TDINFO.attributes.set(info, SEPT_VE_DISABLE)
    TDINFO.mrtd.set(info, hashlib.sha384(b"the TD").digest())
    head = seamops.seamreport(platform.machine.seam, 0x81, reportdata, hashlib.sha384(info).digest())
    return head + bytes(info)


@pytest.mark.parametrize("version", [4, 5])
def test_the_seed_alone_gives_root_and_collateral(platform: Platform, version: int) -> None:
    # What the relying party has: the seed, hence `swtdx pcs root` and `swtdx pcs serve`.
    world = World(seed=b"a machine", now=NOW)
    quote = quoting_enclave(platform).quote(report(platform, b"n" * 64), version=version)
    verdict = Verifier(world.pki.root.der, accept_simulated=True).verify(quote, world.collateral(), NOW)
    assert (verdict.accepted, verdict.status, verdict.reason) == (True, "UpToDate", "")
    body = ParsedQuote(quote).body()
    assert body["reportdata"] == b"n" * 64
    assert body["mrtd"] == hashlib.sha384(b"the TD").digest()
    assert body["mrseam"] == hashlib.sha384(b"module").digest()


def test_a_machine_without_a_seed_of_its_own_is_the_default_world() -> None:
    assert MachineConfig().seed == World().seed
    with booted(MachineConfig().seed) as platform:
        assert world_of(platform) == World()


def test_another_module_and_processor_are_rated_as_what_they_are(platform: Platform) -> None:
    seam = platform.machine.seam
    before, cpusvn = seam.extend, seam.cpusvn
    try:
        extend = bytearray(before)
        SEAMEXTEND.tee_tcb_svn.set(extend, bytes((9, 3)) + bytes(14))
        SEAMEXTEND.mrsigner.set(extend, b"s" * 48)
        seam.write_seamextend(bytes(extend))
        seam.cpusvn = bytes(range(16))
        mine = replace(world_of(platform), now=NOW)
        quote = quoting_enclave(platform).quote(report(platform), version=5)
    finally:
        seam.write_seamextend(before)
        seam.cpusvn = cpusvn
    verifier = Verifier(mine.pki.root.der, accept_simulated=True)
    assert verifier.verify(quote, mine.collateral(), NOW).accepted
    default = World(seed=b"a machine", now=NOW)
    assert not verifier.verify(quote, default.collateral(), NOW).accepted


def test_a_report_of_another_machine_gets_no_quote(platform: Platform) -> None:
    foreign = booted(b"another one")
    with foreign, pytest.raises(QgsError, match="UNEXPECTED"):
        Quoting(foreign)(report(platform))


def test_the_machines_own_enclave_needs_no_socket(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a thread or a folder: nothing that other processes of this computer could reach, or that stays."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("for the machine's own enclave")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    service = Quoting(platform)
    quote = service(report(platform))
    assert service(report(platform)) == quote == quoting_enclave(platform).quote(report(platform))
    message = messages.quote_request(report(platform))
    framed = service(len(message).to_bytes(4, "big") + message)
    assert framed[4:] == messages.quote_response(quote)
    assert int.from_bytes(framed[:4], "big") == len(framed) - 4
    with pytest.raises(QgsError, match="neither a TDREPORT"):
        service(b"noise")


def test_over_somebody_elses_socket(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "qgs.socket"
    service = Quoting(platform, f"unix:{path}")
    with pytest.raises(ConnectionError, match="cannot reach"):
        service(report(platform))
    with QgsServer(quoting_enclave(platform), UnixAddress(path)):
        assert service(report(platform)) == quoting_enclave(platform).quote(report(platform))
        assert path.is_socket()
    with pytest.raises(QgsError, match="vsock:CID"):
        Quoting(platform, "vsock:here")
