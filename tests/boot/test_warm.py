"""Linux in a TD that was saved in a file, and goes on from there: once, again, and side by side."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import dcap_qvl
import pytest

import swtdx
from swtdx.attestation.pcs.catalogue import Catalogue
from swtdx.attestation.pcs.fetch import fetch_collateral
from swtdx.attestation.pcs.serve import serving
from swtdx.attestation.quote import ParsedQuote
from swtdx.attestation.world import World
from swtdx.devices.virtio.ports import PortConfig
from swtdx.guests.agent import Answer, renew_request, run_request
from swtdx.guests.guest import Guest
from swtdx.guests.initramfs import Serve, default_cmdline
from swtdx.machine.snapshot import Snapshot, SnapshotError, SnapshotWriter
from swtdx.platform import Platform, platform_config
from swtdx.quoting import Quoting
from swtdx.vmm.agent import GuestAgent
from swtdx.vmm.launch import Launch, LaunchConfig
from swtdx.vmm.td_params import TdConfig
from swtdx.warm import SavedTd, save
from tests.firmware.test_platform_snapshot import places

pytestmark = [pytest.mark.qemu, pytest.mark.boot]
MEMORY = 256 << 20


class Restored:
    """A TD that goes on, and does what it is asked to."""

    def __init__(self, platform: Platform, launch: Launch, agent: GuestAgent) -> None:
        self.platform = platform
        self.launch = launch
        self._agent = agent

    def ask(self, command: str) -> str:
        answer = self._agent.ask(run_request(command, merge=True), 60)
        assert answer.status == 0, answer
        return answer.parts["OUT"].decode()

    def renew(self, seed: bytes) -> Answer:
        return self._agent.ask(renew_request(time.time(), seed), 60)


Resume = Callable[[], AbstractContextManager[Restored]]


def boot_and_save(guest: Guest, path: Path, vcpus: int) -> str:
    """Boot Linux until it waits for requests, save it, and let it go on; what it says then."""
    agent = GuestAgent()
    with Platform.boot(platform_config(MEMORY, vcpus, None, b"swtdx")) as platform:
        config = LaunchConfig(
            guest.kernel_image(),
            guest.initramfs(Serve()),
            default_cmdline(Serve()),
            MEMORY,
            td=TdConfig(vcpus=vcpus),
            ports=(PortConfig("a channel of another's", lambda _data: None), agent.port),
        )
        launch = Launch(platform.host, config)
        agent.bind(launch)
        agent.wait_ready(120)
        assert (
            agent.ask(run_request("echo before >/tmp/file; date -s @1000000000", merge=True), 60).status == 0
        )
        save(path, platform, launch, label="Linux", cmdline=config.cmdline, memory=MEMORY, waits=True)
        answer = agent.ask(run_request("cat /tmp/file", merge=True), 60)
        return answer.parts["OUT"].decode()


@contextmanager
def resume(path: Path) -> Iterator[Restored]:
    agent = GuestAgent()
    with SavedTd(path) as saved, saved.platform() as platform:
        config = LaunchConfig(None, ports=(agent.port,), quote_service=Quoting(platform), teardown=True)
        launch = saved.launch(platform, config)
        agent.bind(launch, ready=True)
        yield Restored(platform, launch, agent)
        # The module lets go of everything: its books and the hypervisor's are still the same.
        assert launch.close() == ""


@pytest.fixture(scope="module")
def path(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("warm") / "td"
    assert boot_and_save(guest, file, 1) == "before\n", "the TD goes on where it was saved"
    return file


def test_it_goes_on_as_often_as_wanted(path: Path) -> None:
    before = path.read_bytes()
    for _ in range(2):
        with resume(path) as td:
            assert td.ask("cat /tmp/file; echo after >/tmp/file; cat /tmp/file") == "before\nafter\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == before


def test_siblings_at_once_share_what_they_do_not_write(path: Path) -> None:
    with resume(path) as one, resume(path) as other:
        assert one.ask("echo one >/tmp/file; cat /tmp/file") == "one\n"
        assert other.ask("cat /tmp/file") == "before\n"
        assert one.ask("cat /tmp/file") == "one\n"
        for td in (one, other):
            memory = td.platform.machine.memory
            image = memory.image
            assert image is not None
            # Frames of its own, against all that the guest had touched when it was saved.
            own = Path(f"/proc/self/fd/{memory.frames_fd}").stat().st_blocks * 512
            assert own < path.stat().st_blocks * 512 / 3


def test_clock_and_random_numbers(path: Path) -> None:
    numbers = "head -c 16 /dev/urandom | base64; cat /proc/sys/kernel/random/uuid"
    seen = set()
    for seed in (bytes(64), bytes(63) + b"\1"):
        with resume(path) as td:
            started = float(td.ask("cat /proc/uptime").split()[0])
            assert abs(int(td.ask("date +%s")) - 1000000000) < 60, "as wrong as it was when it was saved"
            assert td.renew(seed).failure is None
            assert abs(int(td.ask("date +%s")) - time.time()) < 5
            assert 0 <= float(td.ask("cat /proc/uptime").split()[0]) - started < 60, "it has not been away"
            seen |= set(td.ask(numbers).split())
            seen.add(td.platform.machine.random.bytes(32).hex())
    assert len(seen) == 6, seen


def test_a_wrong_seed_changes_nothing(path: Path) -> None:
    with resume(path) as td:
        for wrong in ("", "00", "g" * 160, "0" * 161, "00 00"):
            done = td.ask(f"/swtdx/renew {wrong}; echo $?; date +%s").split()
            assert "1" in done
            assert abs(int(done[-1]) - 1000000000) < 60


def test_a_valid_quote(path: Path) -> None:
    data = bytes(range(64))
    script = (
        "r=/sys/kernel/config/tsm/report/x; mkdir $r; "
        f"echo {base64.b64encode(data).decode()} | base64 -d >$r/inblob; base64 <$r/outblob"
    )
    with resume(path) as td:
        quote = base64.b64decode(td.ask(script))
    assert ParsedQuote(quote).body()["reportdata"] == data
    world = World(seed=b"swtdx")
    now = dt.datetime.now(dt.UTC)
    with serving(Catalogue(world, lambda: now)) as url:
        collateral = fetch_collateral(url, quote)
    report = dcap_qvl.verify_with_root_ca(quote, collateral, world.pki.root.der, int(now.timestamp()))
    assert report.status == "UpToDate"


def test_several_vcpus(guest: Guest, tmp_path: Path) -> None:
    assert boot_and_save(guest, tmp_path / "td", 2) == "before\n"
    with resume(tmp_path / "td") as td:
        work = "for n in 1 2 3; do (head -c 3000000 /dev/zero | sha256sum) & done; wait; nproc"
        digest, *more = td.ask(work).splitlines()
        assert more == [digest, digest, "2"]


def changed(path: Path, to: Path, old: bytes, new: bytes) -> Path:
    """A copy of a file whose description says something else, as if another swtdx had written it."""
    whole = path.read_bytes()
    with Snapshot(path) as snapshot, SnapshotWriter(to) as writer:
        for name, (version, offset, size) in places(whole).items():
            if name == "image place":
                fd, start, length = snapshot.image()
                os.close(fd)
                writer.append_image(length, [(0, whole[start:])])
                continue
            contents = whole[offset : offset + size]
            with writer.section(name, version) as out:
                if name == "td":
                    assert old in contents
                    out.text(contents[8:].replace(old, new).decode())
                else:
                    out.write(contents)
    return to


def test_what_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    version = json.dumps(swtdx.__version__).encode()
    with pytest.raises(SnapshotError, match=re.escape("saved by swtdx 9.9.9")):
        SavedTd(changed(path, other, version, b'"9.9.9"'))
    saved_elsewhere = r"saved on QEMU 1\d+\.\d+, and here is QEMU"
    with (
        SavedTd(changed(path, other, b'"QEMU ', b'"QEMU 1')) as saved,
        pytest.raises(SnapshotError, match=saved_elsewhere),
    ):
        saved.platform()
    other.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(SnapshotError, match="truncated"):
        SavedTd(other)
    with Platform.boot() as platform:
        platform.save(other)
    with pytest.raises(SnapshotError, match="and not of a running TD"):
        SavedTd(other)
