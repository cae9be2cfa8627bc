"""P-SEAMLDR calls: operands, the order of processors, and what the caller is told (seamcall.md §8)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import pytest

from swtdx.firmware.image import SignedImage
from swtdx.machine.memory import Command, ProgramResult
from swtdx.platform import Platform

from .conftest import Boot
from .support import (
    EBADCALL,
    EBADPARAM,
    EUNSPECERR,
    INFO,
    INSTALL,
    MIB,
    MODULE,
    PAGE,
    PARAMS,
    RAX,
    SEAM,
    SEAMINFO,
    SHUTDOWN,
    SIGSTRUCT,
    SUCCESS,
    call,
    enter_root,
    install,
    offer,
    params,
    put,
    seam_state,
    u,
)

BUFFER = 32 * MIB
SEAMRR = 192 * MIB
#: 52 address bits with 6 for the KeyID: 0..31 shared, 32..63 private.
KEYID = 46


@pytest.fixture
def loader(boot: Boot) -> Platform:
    """Two packages of two processors in VMX root mode, P-SEAMLDR loaded, no module."""
    platform = boot(packages=2, load=False)
    enter_root(platform)
    return platform


@pytest.fixture
def loaded(boot: Boot) -> Platform:
    """The same with the stand-in module."""
    platform = boot(packages=2)
    enter_root(platform)
    return platform


def module_answers(platform: Platform) -> bool:
    """Whether a SEAMCALL without bit 63 reaches the stand-in, on every processor."""
    answers = set()
    for lp in platform.machine.processors:
        lp.gpr[RAX] = 41
        lp.seamcall()
        answers.add((lp.cf, lp.gpr[RAX]))
    assert answers in ({(True, 41)}, {(False, 42)})
    return answers == {(False, 42)}


# ---------------------------------------------------------------------- leaves and buffers
@pytest.mark.parametrize("leaf", [4, 0xFF, 1 << 16, 1 << 62, 1 << 32 | 1])
def test_there_are_four_leaves(loader: Platform, leaf: int) -> None:
    assert call(loader, 1 << 63 | leaf) == (EBADPARAM, 0xDEAD)
    assert "no P-SEAMLDR leaf" in loader.loader.reason


@pytest.mark.parametrize(("leaf", "alignment"), [(INFO, 256), (SEAMINFO, 2048)])
@pytest.mark.parametrize(
    ("buffer", "words"),
    [
        (lambda alignment: BUFFER + alignment // 2, "aligned"),
        (lambda _: SEAMRR, "SEAM range"),
        (lambda alignment: SEAMRR + 32 * MIB - alignment, "SEAM range"),
        (lambda _: 5 << KEYID | SEAMRR, "SEAM range"),
        (lambda _: 32 << KEYID | BUFFER, "KeyID 32"),
        (lambda _: 63 << KEYID | BUFFER, "KeyID 63"),
        (lambda _: 1 << 52 | BUFFER, "MAXPA"),
        (lambda _: 1 << 63 | BUFFER, "MAXPA"),
    ],
)
def test_a_buffer_that_is_not_shared_memory(
    loader: Platform, leaf: int, alignment: int, buffer: Callable[[int], int], words: str
) -> None:
    before = seam_state(loader)
    assert call(loader, leaf, buffer(alignment))[0] == EBADPARAM
    assert words in loader.loader.reason
    assert seam_state(loader) == before


@pytest.mark.parametrize("processor", [0, 3])
def test_info(loaded: Platform, image: SignedImage, processor: int) -> None:
    """SEAMLDR_INFO at the offsets of structures.md §12."""
    memory = loaded.machine.memory
    memory.write(BUFFER, b"\xaa" * PAGE)
    assert call(loaded, INFO, BUFFER, processor) == (SUCCESS, 0xDEAD)
    info = memory.read(BUFFER, 256)
    assert memory.read(BUFFER + 256, 256) == b"\xaa" * 256
    assert (u(info, 0, 4), u(info, 4, 4), u(info, 8, 4)) == (0, 0, 0x8086)
    assert 0x20240000 < u(info, 12, 4) < 0x20300000  # BCD date
    assert (u(info, 20, 2), u(info, 18, 2)) == (1, 5)
    assert u(info, 24, 4) == 0  # x2APIC id of the processor that ran the ACM
    extend = info[32:168]
    assert u(extend, 0, 8) == 0x1FF
    assert extend[8:24] == bytes((5, 1, 2)) + bytes(13)  # SVN 0x0105, SE SVN of the microcode
    assert extend[24:72] == hashlib.sha384(image.pages).digest()
    assert extend[72:120] == bytes(48)  # the key that plays Intel's part
    assert u(extend, 120, 8) == 0
    assert tuple(extend[128:136]) == (1, 0, 1, 0, 0, 0, 0, 0)  # ready, not debug, loader ready
    assert not any(info[22:24] + info[28:32] + info[168:])


def test_info_without_a_module(loader: Platform) -> None:
    call(loader, INFO, BUFFER)
    extend = loader.machine.memory.read(BUFFER + 32, 136)
    assert [index for index, byte in enumerate(extend) if byte] == [130]


def test_a_buffer_under_a_shared_keyid(loader: Platform) -> None:
    memory = loader.machine.memory
    assert memory.keys.program(3, Command.SET_KEY_RANDOM, 1) is ProgramResult.SUCCESS
    pa = memory.addresses.join(BUFFER, 3)
    assert call(loader, INFO, pa)[0] == SUCCESS
    assert u(memory.read(pa, 256), 8, 4) == 0x8086
    memory.wbinvd()
    assert u(memory.read(BUFFER, 256), 8, 4) != 0x8086


def test_seaminfo_is_mchecks_half(loader: Platform) -> None:
    memory = loader.machine.memory
    memory.write(BUFFER, b"\xaa" * PAGE)
    assert call(loader, SEAMINFO, BUFFER) == (SUCCESS, 0xDEAD)
    assert memory.read(BUFFER, 2048) == memory.read(SEAMRR + 32 * MIB - PAGE, 2048, SEAM)
    assert memory.read(BUFFER + 2048, 2048) == b"\xaa" * 2048
    assert u(memory.read(BUFFER, 2048), 8, 4) == 4  # processors


# ---------------------------------------------------------------------- SEAMLDR_PARAMS
def changed(offset: int, size: int, value: int, scenario: int = 0) -> Callable[[int], bytearray]:
    def make(count: int) -> bytearray:
        page = params(count, scenario)
        put(page, offset, size, value)
        return page

    return make


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (changed(0, 4, 1), "VERSION is 1"),
        (changed(4, 4, 2), "no SCENARIO 2"),
        (changed(4, 4, 1), "no module is loaded"),
        (changed(16, 1, 1), "reserved"),
        (changed(119, 1, 0x80), "reserved"),
        (changed(120, 8, 0), "NUM_MODULE_PAGES is 0"),
        (changed(120, 8, 497), "NUM_MODULE_PAGES is 497"),
        (changed(120, 8, 1 << 63), "NUM_MODULE_PAGES"),
        (changed(8, 8, SIGSTRUCT + 2048), "SIGSTRUCT at 0x1100800 is not aligned"),
        (changed(8, 8, SEAMRR), "SIGSTRUCT at 0xc000000 lies in the SEAM range"),
        (changed(8, 8, 40 << KEYID | SIGSTRUCT), "KeyID 40"),
        (changed(128, 8, MODULE + 8), "module page 0"),
        (changed(128, 8, SEAMRR + 31 * MIB), "module page 0"),
        (changed(128, 8, 33 << KEYID | MODULE), "KeyID 33"),
        (changed(128, 8, 1 << 52 | MODULE), "MAXPA"),
    ],
)
def test_wrong_parameters(
    loader: Platform, image: SignedImage, page: Callable[[int], bytearray], words: str
) -> None:
    """Refused by the last processor, recoverably; the range is as it was, and INSTALL then works."""
    before = seam_state(loader)
    offer(loader, image, bytes(page(image.page_count)))
    assert install(loader) == (EBADPARAM, 0)
    assert words in loader.loader.reason
    assert seam_state(loader) == before
    offer(loader, image)
    assert install(loader) == (SUCCESS, 0)
    assert module_answers(loader)


@pytest.mark.parametrize("pa", [PARAMS + 256, SEAMRR, 32 << KEYID | PARAMS, 1 << 52 | PARAMS])
def test_parameters_in_a_wrong_place(loader: Platform, image: SignedImage, pa: int) -> None:
    offer(loader, image)
    assert install(loader, pa) == (EBADPARAM, 0)
    assert "SEAMLDR_PARAMS at" in loader.loader.reason


# ---------------------------------------------------------------------- the order of processors
def test_install_needs_every_processor_once(loader: Platform, image: SignedImage) -> None:
    offer(loader, image)
    assert call(loader, INSTALL, PARAMS, 2) == (SUCCESS, 0)
    assert call(loader, INSTALL, PARAMS, 2) == (EBADCALL, 0)
    assert "called twice on the processor with x2APIC id 2" in loader.loader.reason
    assert call(loader, INSTALL, PARAMS, 0) == (SUCCESS, 0)
    assert call(loader, INSTALL, PARAMS, 3) == (SUCCESS, 0)
    assert not module_answers(loader)
    assert call(loader, INSTALL, PARAMS, 1) == (SUCCESS, 0)
    assert module_answers(loader)


def test_only_the_last_processors_operand_counts(loader: Platform, image: SignedImage) -> None:
    offer(loader, image)
    for processor in range(3):
        assert call(loader, INSTALL, SEAMRR + 1, processor) == (SUCCESS, 0)
    assert call(loader, INSTALL, PARAMS, 3) == (SUCCESS, 0)


def test_the_old_module_is_shut_off_while_a_new_one_is_installed(
    loaded: Platform, image: SignedImage
) -> None:
    offer(loaded, image)
    assert module_answers(loaded)
    assert call(loaded, INSTALL, PARAMS, 1) == (SUCCESS, 0)
    assert not module_answers(loaded)
    # INFO may be asked in between, and says so.
    assert call(loaded, INFO, BUFFER, 0)[0] == SUCCESS
    assert loaded.machine.memory.read(BUFFER + 32 + 128, 1) == b"\0"
    for processor in (0, 2, 3):
        assert call(loaded, INSTALL, PARAMS, processor) == (SUCCESS, 0)
    assert module_answers(loaded)


def test_a_refusal_before_memory_changes_keeps_the_old_module(loaded: Platform, image: SignedImage) -> None:
    before = seam_state(loaded)
    offer(loaded, image, bytes(changed(0, 4, 9)(image.page_count)))
    assert install(loaded) == (EBADPARAM, 0)
    assert seam_state(loaded) == before
    assert module_answers(loaded)


def test_a_refusal_after_that_leaves_none(loaded: Platform, image: SignedImage) -> None:
    offer(loaded, SignedImage(image.pages[:-1] + b"\1", image.sigstruct))
    assert install(loaded)[1] == 1
    assert not module_answers(loaded)
    assert [index for index, byte in enumerate(loaded.machine.seam.extend) if byte] == [130]
    offer(loaded, image)
    assert install(loaded) == (SUCCESS, 0)
    assert module_answers(loaded)


# ---------------------------------------------------------------------- SHUTDOWN
def test_shutdown_ends_on_the_processor_that_ran_the_acm(loaded: Platform) -> None:
    assert call(loaded, SHUTDOWN, processor=0) == (SUCCESS, 0xDEAD)
    assert not module_answers(loaded)
    assert call(loaded, SHUTDOWN, processor=1)[0] == SUCCESS
    assert call(loaded, SHUTDOWN, processor=1)[0] == SUCCESS  # twice on one counts once
    assert call(loaded, SHUTDOWN, processor=2)[0] == SUCCESS
    assert call(loaded, SHUTDOWN, processor=3)[0] == EBADCALL
    assert "x2APIC id 0" in loaded.loader.reason
    assert call(loaded, SHUTDOWN, processor=0)[0] == SUCCESS
    assert loaded.machine.seam.extend == bytes(136)
    for lp in loaded.machine.processors:
        for leaf in (INFO, INSTALL, SHUTDOWN, 0):
            lp.gpr[RAX] = leaf
            lp.seamcall()
            assert (lp.cf, lp.gpr[RAX]) == (True, leaf)
    assert loaded.summary()["p_seamldr"] is None
    assert loaded.summary()["module"] is None


def test_install_after_shutdown_began(loaded: Platform, image: SignedImage) -> None:
    offer(loaded, image)
    call(loaded, SHUTDOWN, processor=3)
    assert call(loaded, INSTALL, PARAMS, 0) == (EBADCALL, 0)
    assert "SHUTDOWN has begun" in loaded.loader.reason


# ---------------------------------------------------------------------- one at a time
def test_a_second_processor_gets_vmfailinvalid(loader: Platform) -> None:
    """While one processor is inside the P-SEAMLDR another's SEAMCALL fails without entering it."""
    inside, go = threading.Event(), threading.Event()
    entry = loader.machine.seam.p_seamldr_entry
    assert entry is not None

    def slow(lp: object) -> None:
        inside.set()
        go.wait(10)

    loader.machine.seam.p_seamldr_entry = slow
    first, second = loader.machine.processors[:2]
    first.gpr[RAX] = second.gpr[RAX] = INFO
    thread = threading.Thread(target=first.seamcall)
    thread.start()
    try:
        assert inside.wait(10)
        second.seamcall()
        assert second.cf
        assert second.gpr[RAX] == INFO
    finally:
        go.set()
        thread.join()
    second.seamcall()
    assert not second.cf


# ---------------------------------------------------------------------- modules that do not start
def test_a_module_that_fails_to_start(loader: Platform) -> None:
    from swtdx.firmware.image import build_module
    from swtdx.firmware.signing import sign_module

    broken = sign_module(build_module(("tests.firmware.standin",), "tests.firmware.standin:Broken", "b", "1"))
    offer(loader, broken)
    assert install(loader) == (EUNSPECERR, 1)
    assert "broken on purpose" in loader.loader.reason
    assert not module_answers(loader)


def test_no_reason_reaches_the_caller(loader: Platform, image: SignedImage) -> None:
    """Only RAX and RDX change; the words are for people on this side."""
    offer(loader, image, bytes(changed(0, 4, 9)(image.page_count)))
    last = loader.machine.processors[3]
    last.gpr[:] = [0x1000 + number for number in range(16)]
    before = list(last.gpr)
    install(loader)
    assert last.gpr[3:] == before[3:]
