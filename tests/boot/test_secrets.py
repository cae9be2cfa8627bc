"""Two Linux TDs at once on one machine, each with a secret: what hypervisor, debugger and a thief of DRAM
see of them, and what becomes of a TD whose memory was tampered with.

The steps build on each other; all of them take two boots.
"""

from __future__ import annotations

import hashlib
import secrets
import statistics
from collections.abc import Iterator
from typing import Final

import pytest

from swtdx.arch.td_config import ATTR_DEBUG
from swtdx.firmware.bios import BiosConfig
from swtdx.guests.guest import Guest
from swtdx.machine.machine import MachineConfig
from swtdx.machine.memory import ReservedBitFault
from swtdx.machine.memory.dram import Dram
from swtdx.machine.memory.keys import MKTME_KEY_PROGRAM
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.errors import SeamcallError
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.result import EndReason
from tests.boot.held import Held, at_once

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

MIB: Final = 1 << 20
PAGE: Final = 4096
MEMORY: Final = 192 * MIB
#: The secret is the SHA-256 of a seed, in hexadecimal: the guest makes it for itself, so it never crosses
#: the hypervisor's hands, and the test knows what to search for.  It is kept in the shell's memory, and,
#: over and over, in a file in memory, so that 1024 pages begin with it.
COMMAND: Final = r"""
echo 0 >/proc/sys/kernel/watchdog
secret=$(echo SEED | sha256sum | cut -c1-64)
yes "$secret" | tr -d '\n' | head -c 4194304 >/tmp/secret
good=$(sha256sum </tmp/secret)
echo READY
while [ ! -e /tmp/end ]; do
    [ "$(sha256sum </tmp/secret)" = "$good" ] && echo right || echo WRONG
    LAST
    sleep 0.1
done
exit 7
"""


class Scene:
    """The machine: a TD as TDs are, and a debug TD."""

    def __init__(self, guest: Guest) -> None:
        config = PlatformConfig(
            machine=MachineConfig(memory_bytes=768 * MIB, processors_per_package=2),
            # KeyIDs 0..3 are the hypervisor's, 4..7 the module's.
            bios=BiosConfig(keyid_bits=3, tdx_keyid_bits=1),
            start_engine=True,
        )
        self.platform = Platform.boot(config)
        self.machine = self.platform.machine
        self.hypervisor = Hypervisor(self.platform.host)
        self.host = self.platform.host
        seeds = [secrets.token_hex(20) for _ in range(2)]
        self.seeds = [seed.encode() for seed in seeds]
        self.secrets = [hashlib.sha256(f"{seed}\n".encode()).hexdigest().encode() for seed in seeds]
        one, other = self.hypervisor.processors
        self.td = Held(
            self.hypervisor, guest, COMMAND.replace("SEED", seeds[0]).replace("LAST", ":"), [one], MEMORY
        )
        self.debug = Held(
            self.hypervisor,
            guest,
            COMMAND.replace("SEED", seeds[1]).replace(
                "LAST", "[ -e /tmp/once ] && : >/tmp/end; : >/tmp/once"
            ),
            [other],
            MEMORY,
            attributes=ATTR_DEBUG,
        )
        at_once(lambda: self.td.run_until("READY"), lambda: self.debug.run_until("READY"))
        #: A page of each TD that begins with its secret (HPA).
        self.pages: list[int] = []

    def in_caches(self, needle: bytes) -> list[int]:
        """Where ``needle`` is in plaintext behind everybody's back (HPAs)."""
        found = []
        frames = self.machine.memory.frames
        for at in range(0, len(frames), 2 * MIB):
            block = bytes(frames[at : at + 2 * MIB])
            where = block.find(needle)
            while where >= 0:
                found.append(at + where)
                where = block.find(needle, where + 1)
        return found

    def hypervisor_finds(self, needles: list[bytes], keyid: int) -> list[bytes]:
        """Those of ``needles`` that are somewhere in all that the hypervisor can read under ``keyid``."""
        memory = self.host.memory
        found: set[bytes] = set()
        longest = max(map(len, needles))
        for base, size in self.machine.memory.populated:
            end = b""
            for at in range(base, base + size, 2 * MIB):
                block = end + memory.read(keyid << self.host.keyid_shift | at, min(2 * MIB, base + size - at))
                found.update(needle for needle in needles if needle in block)
                end = block[-longest:]
        return sorted(found)

    def program(self, keyid: int, command: int) -> None:
        """PCONFIG, as the hypervisor may: command 1 is a random key, 3 no encryption; AES-XTS-128."""
        structure = MKTME_KEY_PROGRAM.new()
        MKTME_KEY_PROGRAM.keyid.set(structure, keyid)
        MKTME_KEY_PROGRAM.keyid_ctrl.set(structure, command | 1 << 8)
        assert self.machine.processors[0].program_key(structure) == 0


@pytest.fixture(scope="module")
def scene(guest: Guest) -> Iterator[Scene]:
    made = Scene(guest)
    yield made
    made.platform.close()


def test_the_hypervisor_finds_nothing_under_any_keyid(scene: Scene) -> None:
    scene.program(2, 1)
    scene.program(3, 3)
    for secret in scene.secrets:
        places = scene.in_caches(secret)
        assert len(places) > 4 * MIB // 64, "it is there, in plaintext, in the caches"
        whole = secret * (PAGE // 64)
        frames = scene.machine.memory.frames
        scene.pages.append(next(at for at in places if at % PAGE == 0 and frames[at : at + PAGE] == whole))
    assert scene.host.shared_keyids == 3
    # The search is one that finds: what the hypervisor itself gave the guests, in the initrd.
    assert scene.hypervisor_finds(scene.seeds + scene.secrets, 0) == sorted(scene.seeds)
    for keyid in (1, 2, 3, 0):
        assert not set(scene.hypervisor_finds(scene.seeds + scene.secrets, keyid)) & set(scene.secrets)
    for keyid in range(4, 8):
        with pytest.raises(ReservedBitFault):
            scene.host.memory.read(keyid << scene.host.keyid_shift | scene.pages[0], 64)


def test_looking_disturbs_nobody(scene: Scene) -> None:
    at_once(lambda: scene.td.run_until("right"), lambda: scene.debug.run_until("right"))
    assert "WRONG" not in scene.td.output + scene.debug.output


def test_a_debug_td_shows_its_secret_to_the_same_search(scene: Scene) -> None:
    td, cpu = scene.debug.td, scene.debug.td.cpu
    beginning = int.from_bytes(scene.secrets[1][:8], "little")
    end = int.from_bytes(scene.secrets[1][-8:], "little")
    # Whole pages: the shell's pipes leave pages that only begin with it.
    hits = []
    with cpu.borrowed():
        for base in sorted([*td.private.small, *td.private.large]):
            for gpa in range(base, base + (PAGE if base in td.private.small else 2 * MIB), PAGE):
                status, word = sc.tdh_mem_rd(cpu, gpa, td.root)
                if status == 0 and word == beginning:
                    status, word = sc.tdh_mem_rd(cpu, gpa + PAGE - 8, td.root)
                    if status == 0 and word == end:
                        hits.append(gpa)
    assert len(hits) >= 1024
    for gpa in (hits[0], hits[-1]):
        assert td.debug_read(gpa, PAGE) == scene.secrets[1] * 64


def test_another_td_does_not(scene: Scene) -> None:
    td = scene.td.td
    gpa = min(td.private.large)
    with pytest.raises(SeamcallError, match="TD_NON_DEBUG"):
        td.debug_read(gpa, 64)


def test_after_a_flush_dram_holds_no_secret(scene: Scene) -> None:
    scene.machine.memory.wbinvd()
    dram = Dram(scene.machine.memory)
    for needle in scene.secrets + scene.seeds:
        assert dram.find(needle) == []
    # It was written back, by each TD's key: the TD-owner bit says so, and the bytes look random.
    for page in scene.pages:
        assert dram.owners(page, PAGE) == PAGE // 64
        ciphertext = dram.read(page, PAGE)
        assert len({ciphertext[at : at + 64] for at in range(0, PAGE, 64)}) == 64
        assert statistics.mean(ciphertext) == pytest.approx(127.5, abs=5)


def test_a_flipped_bit_is_a_machine_check_and_never_a_wrong_answer(scene: Scene) -> None:
    private = scene.td.td.private
    hpa = scene.pages[0]
    assert any(base <= hpa < base + 2 * MIB for base in private.large.values()) or (
        hpa & -PAGE in private.small.values()
    )
    Dram(scene.machine.memory).flip(hpa, 3)
    before = len(scene.machine.machine_checks)
    result = scene.td.run()
    assert result.reason is EndReason.MACHINE_CHECK, result
    assert "WRONG" not in scene.td.output
    assert len(scene.machine.machine_checks) == before + 1
    # Dead is dead: it cannot be entered again, and its memory can be taken back.
    assert not scene.td.run().orderly
    assert scene.td.finish(result).exit_status is None
    assert scene.td.td.tdr is None


def test_the_other_td_goes_on_to_its_end(scene: Scene) -> None:
    result = scene.debug.run()
    assert result.reason is EndReason.POWER_OFF, result
    assert "right" in scene.debug.output
    assert "WRONG" not in scene.debug.output
    assert scene.debug.finish(result).exit_status == 7
    assert scene.hypervisor.allocator.used == 0
