"""Random reads, writes, mappings, flushes, key changes, attacks and snapshots against the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swtdx.machine.memory import (
    HOST,
    SEAM,
    TD,
    Command,
    Integrity,
    MachineCheck,
    PhysicalMemory,
    Requestor,
)
from swtdx.machine.memory.dram import Dram, DramLine
from swtdx.machine.memory.saving import load, save
from swtdx.machine.memory.xts import UNIT
from swtdx.machine.snapshot import Snapshot, SnapshotWriter

from .conftest import SEED
from .model import ANY, LINES, ZEROS, Cached, Contents, KeyState, Model, ModelMachineCheck, Sealed

# Many rounds of what other tests do once.
pytestmark = pytest.mark.no_cover

#: Where the test's pages lie: the first two are neighbours across a data unit of XTS.
FRAMES = (UNIT - 4096, UNIT, 3 * UNIT + 4096)
SHARED, INTEGRAL, UNPROGRAMMED, TD_A, TD_B = 1, 2, 3, 32, 33
KEYIDS = (0, SHARED, INTEGRAL, UNPROGRAMMED, TD_A, TD_B)

pages = st.integers(0, len(FRAMES) - 1)
#: Few lines, so that accesses meet; both ends of the page.
lines = st.sampled_from((0, 1, 2, 62, 63))
keyids = st.sampled_from(KEYIDS)
fill = st.integers(0, 255)

R = TypeVar("R")
M = TypeVar("M")


class MemoryMachine(RuleBasedStateMachine):
    """Every rule does one thing to the memory and to the model, and compares what both say."""

    integrity: Integrity

    def __init__(self) -> None:
        super().__init__()
        self.memory = PhysicalMemory([(0, 4 * UNIT)], SEED, integrity=self.integrity)
        self.dram = Dram(self.memory)
        self.generation = 0
        tme = KeyState("tme", None, False)
        self.keys = {0: tme, UNPROGRAMMED: tme}
        self.model = Model(len(FRAMES), self.keys)
        for keyid in (SHARED, INTEGRAL, TD_A, TD_B):
            self.program(keyid, Command.SET_KEY_RANDOM)
        self.captured: list[tuple[Sealed, DramLine]] = []
        self.views: dict[int, tuple[int, memoryview]] = {}
        self.directory = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self.memory.close()
        self.directory.cleanup()

    @initialize()
    def look_everywhere(self) -> None:
        """So that no page is pristine: reads of pristine memory do not enter the cache."""
        for frame in FRAMES:
            self.dram.read_line(frame)

    # -- helpers

    def address(self, page: int, offset: int, keyid: int) -> int:
        return self.memory.addresses.join(FRAMES[page] + offset, keyid)

    def requestor(self, keyid: int) -> Requestor:
        return TD if keyid >= TD_A else HOST

    def agree(self, got: bytes, wanted: Contents) -> None:
        assert len(got) == len(wanted)
        pairs = list(zip(got, wanted, strict=True))
        wrong = [i for i, (a, b) in enumerate(pairs) if b not in (None, ANY) and a != b]
        assert not wrong, f"bytes {wrong}: {got.hex()} instead of {wanted}"
        unknown = [a for a, b in pairs if b is None]
        if len(unknown) >= 16:  # noise must not be the plaintext's zeros or a simple pattern
            assert len(set(unknown)) > 4

    def both(self, real: Callable[[], R], model: Callable[[], M]) -> tuple[R, M] | None:
        """Run both; either both raise the same machine check, or both return."""
        refusal: ModelMachineCheck | None = None
        try:
            expected = model()
        except ModelMachineCheck as check:
            refusal = check
        if refusal is None:
            return real(), expected
        hpa = FRAMES[refusal.line // LINES] + refusal.line % LINES * 64
        with pytest.raises(MachineCheck) as poison:
            real()
        assert (poison.value.hpa, poison.value.kind) == (hpa, refusal.kind)
        return None

    # -- software

    @rule(page=pages, line=lines, skew=st.integers(0, 63), size=st.integers(1, 64), keyid=keyids)
    def read(self, page: int, line: int, skew: int, size: int, keyid: int) -> None:
        offset = min(64 * line + skew, 4096 - size)
        results = self.both(
            lambda: self.memory.read(self.address(page, offset, keyid), size, self.requestor(keyid)),
            lambda: self.model.read(page, offset, size, keyid),
        )
        if results is not None:
            self.agree(*results)

    @rule(page=pages, line=lines, word=st.integers(0, 7), value=st.integers(0, 2**64 - 1), keyid=keyids)
    def write_word(self, page: int, line: int, word: int, value: int, keyid: int) -> None:
        offset = 64 * line + 8 * word
        self.both(
            lambda: self.memory.write_u64(self.address(page, offset, keyid), value, self.requestor(keyid)),
            lambda: self.model.write(page, offset, value.to_bytes(8, "little"), keyid),
        )

    @rule(page=pages, line=lines, skew=st.integers(0, 63), size=st.integers(1, 130), byte=fill, keyid=keyids)
    def write(self, page: int, line: int, skew: int, size: int, byte: int, keyid: int) -> None:
        offset = min(64 * line + skew, 4096 - size)
        data = bytes((byte + i) % 256 for i in range(size))
        self.both(
            lambda: self.memory.write(self.address(page, offset, keyid), data, self.requestor(keyid)),
            lambda: self.model.write(page, offset, data, keyid),
        )

    @rule(page=pages, line=lines, count=st.integers(1, 2), byte=fill, keyid=keyids)
    def direct_store(self, page: int, line: int, count: int, byte: int, keyid: int) -> None:
        count = min(count, LINES - line)
        data = bytes((byte + i) % 256 for i in range(64 * count))
        self.memory.direct_store(self.address(page, 64 * line, keyid), data, self.requestor(keyid))
        self.model.direct_store(page, line, data, keyid)

    @rule(page=pages, keyid=keyids)
    def direct_zero(self, page: int, keyid: int) -> None:
        self.memory.direct_zero(self.address(page, 0, keyid), 4096, self.requestor(keyid))
        self.model.direct_store(page, 0, bytes(4096), keyid)
        if keyid == 0:
            self.dram.read_line(FRAMES[page])  # see look_everywhere

    @rule(page=pages, keyid=keyids, engine=st.booleans(), look=st.booleans(), data=st.data())
    def map_and_write(self, page: int, keyid: int, engine: bool, look: bool, data: st.DataObject) -> None:
        """A view or an engine mapping, and stores through it that nobody hears of."""
        if look:
            self.dram.read_line(FRAMES[page])

        def take() -> memoryview:
            if engine:
                self.memory.acquire(FRAMES[page], 4096, keyid, SEAM)
                return self.memory.frames[FRAMES[page] : FRAMES[page] + 4096]
            return self.memory.map_page(FRAMES[page], keyid)

        results = self.both(take, lambda: self.model.take(page, keyid))
        if results is None:
            return
        view = results[0]
        assert isinstance(view, memoryview)
        self.views[page] = (self.memory.epoch, view)
        state = self.model.pages[page]
        for line in data.draw(st.sets(lines, max_size=3)):
            byte = data.draw(st.integers(1, 255))
            view[64 * line + 5] = byte
            cached = state.cached[line]
            contents = (*cached.contents[:5], byte, *cached.contents[6:])
            state.cached[line] = Cached(contents, True)
        if not look:
            # Which version is in DRAM now depends on when the cache chose to write back.
            for line, cached in state.cached.items():
                if cached.dirty:
                    self.model.dram[page * LINES + line] = None

    # -- cache control

    @rule(keep=st.booleans())
    def write_back_all(self, keep: bool) -> None:
        if keep:
            self.memory.wbnoinvd()
        else:
            self.memory.wbinvd()
        for page in range(len(FRAMES)):
            self.model.evict(page, keep=keep)

    @rule(page=pages, line=lines, keyid=keyids, keep=st.booleans())
    def flush_line(self, page: int, line: int, keyid: int, keep: bool) -> None:
        flush = self.memory.clwb if keep else self.memory.clflush
        flush(self.address(page, 64 * line, keyid), 64, SEAM)
        state = self.model.pages[page]
        if state.cached and state.tag == keyid:
            self.model.evict(page, {line}, keep=keep)

    # -- keys

    def program(self, keyid: int, command: Command) -> None:
        private = keyid >= TD_A
        integral = keyid == INTEGRAL or private
        if self.integrity is Integrity.LOGICAL:
            integral = False
        algorithm = 2 if integral else 1
        assert self.memory.keys.program(keyid, command, algorithm, seam=private) == 0
        self.generation += 1
        fresh = f"key {self.generation}"
        if command is Command.CLEAR_KEY:
            state = KeyState("tme", None, private)
        elif command is Command.NO_ENCRYPT:
            state = KeyState(None, None, private)
        else:
            state = KeyState(fresh, fresh if integral else None, private)
        self.keys[keyid] = state

    @rule(
        keyid=st.sampled_from((SHARED, INTEGRAL, TD_A, TD_B)),
        command=st.sampled_from((Command.SET_KEY_RANDOM, Command.CLEAR_KEY, Command.NO_ENCRYPT)),
    )
    def change_key(self, keyid: int, command: Command) -> None:
        self.program(keyid, command)

    # -- the attacker on the bus

    def known(self, number: int) -> bool:
        return self.model.dram[number] is not None

    @rule(page=pages, line=lines)
    def capture(self, page: int, line: int) -> None:
        number = page * LINES + line
        raw = self.dram.read_line(FRAMES[page] + 64 * line)
        sealed = self.model.dram[number]
        if sealed is None:
            return
        assert raw.owner == sealed.owner
        self.check_ciphertext(raw.ciphertext, sealed)
        self.captured.append((sealed, raw))

    def check_ciphertext(self, ciphertext: bytes, sealed: Sealed) -> None:
        """What OpenSSL makes of the contents, if they and the key are known."""
        keyid = next((k for k, state in self.keys.items() if state.cipher == sealed.cipher), None)
        if keyid is None or None in sealed.contents or ANY in sealed.contents:
            return
        plain = bytes(byte for byte in sealed.contents if byte is not None)
        key = self.memory.keys.key(keyid)
        if sealed.cipher is not None:
            home = FRAMES[sealed.home // LINES] + sealed.home % LINES * 64
            sector = (home // UNIT).to_bytes(16, "little")
            cipher = Cipher(algorithms.AES(key.data_key + key.tweak_key), modes.XTS(sector))
            plain = cipher.encryptor().update(bytes(home % UNIT) + plain)[-64:]
        wanted = bytearray(plain)
        for bit in sealed.flips:
            wanted[bit // 8] ^= 1 << bit % 8
        assert ciphertext == wanted

    @precondition(lambda self: self.captured)
    @rule(data=st.data(), move=st.booleans(), page=pages, line=lines)
    def put_back(self, data: st.DataObject, move: bool, page: int, line: int) -> None:
        """Replay where it was, or move elsewhere."""
        sealed, raw = data.draw(st.sampled_from(self.captured), label="captured line")
        number = page * LINES + line if move else self.last_place(sealed, page, line)
        self.dram.write_line(FRAMES[number // LINES] + number % LINES * 64, raw)
        if self.overwrites(number):
            self.model.dram[number] = sealed

    def last_place(self, sealed: Sealed, page: int, line: int) -> int:
        return sealed.home

    def overwrites(self, number: int) -> bool:
        """Where DRAM is out of date anyway, the write-back to come replaces what the attacker did."""
        return self.known(number)

    @rule(page=pages, line=lines, bit=st.integers(0, 511))
    def flip(self, page: int, line: int, bit: int) -> None:
        self.dram.flip(FRAMES[page] + 64 * line + bit // 8, bit % 8)
        if self.known(page * LINES + line):
            self.model.flip(page * LINES + line, bit)

    @rule(page=pages, line=lines, bit=st.integers(0, 27))
    def flip_mac(self, page: int, line: int, bit: int) -> None:
        hpa = FRAMES[page] + 64 * line
        raw = self.dram.read_line(hpa)
        self.dram.write_line(hpa, replace(raw, mac=raw.mac ^ 1 << bit))
        if self.known(page * LINES + line):
            self.model.flip_mac(page * LINES + line, bit)

    @rule(page=pages, line=lines, owner=st.booleans())
    def set_owner(self, page: int, line: int, owner: bool) -> None:
        hpa = FRAMES[page] + 64 * line
        self.dram.write_line(hpa, replace(self.dram.read_line(hpa), owner=owner))
        if self.known(page * LINES + line):
            self.model.set_owner(page * LINES + line, owner)

    @rule(a=pages, b=pages, first=lines, second=lines)
    def swap(self, a: int, b: int, first: int, second: int) -> None:
        one, other = a * LINES + first, b * LINES + second
        if not self.known(one) or not self.known(other):
            return
        self.dram.swap(FRAMES[a] + 64 * first, FRAMES[b] + 64 * second)
        dram = self.model.dram
        dram[one], dram[other] = dram[other], dram[one]

    # -- snapshots

    @rule()
    def save_and_load(self) -> None:
        path = Path(self.directory.name) / "snapshot"
        with SnapshotWriter(path) as snapshot:
            save(self.memory, snapshot)
        with Snapshot(path) as snapshot:
            copy = load(snapshot)
        self.memory.close()
        self.memory, self.dram = copy, Dram(copy)
        self.views.clear()

    # -- always

    @invariant()
    def live_views_show_the_cache(self) -> None:
        for page, (epoch, view) in list(self.views.items()):
            if epoch != self.memory.epoch:
                del self.views[page]
                continue
            cached = self.model.pages[page].cached
            assert len(cached) == LINES
            for line in (0, 1, 2, 62, 63):
                self.agree(bytes(view[64 * line : 64 * line + 64]), cached[line].contents)


class LogicalMachine(MemoryMachine):
    integrity = Integrity.LOGICAL


class CryptographicMachine(MemoryMachine):
    integrity = Integrity.CRYPTOGRAPHIC


_settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLogical = pytest.mark.filterwarnings("ignore")(LogicalMachine.TestCase)
TestCryptographic = pytest.mark.filterwarnings("ignore")(CryptographicMachine.TestCase)
TestLogical.settings = _settings
TestCryptographic.settings = _settings

assert ZEROS == (0,) * 64
