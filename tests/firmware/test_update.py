"""SEAMLDR.INSTALL with SCENARIO = update: SVNs, handoff data, and SEAMDB."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtdx.firmware.errors import LoaderError
from swtdx.firmware.image import SignedImage
from swtdx.firmware.signing import ModuleProperties, sign_module
from swtdx.machine import seamops
from swtdx.platform import Platform

from .conftest import Boot
from .support import EBADHANDOFF, EBADPARAM, EBADSIG, EUNSPECERR, MIB, PAGE, SEAM

BASE = 192 * MIB
#: The data region: behind SYS_INFO_TABLE and the VMCSs of 2 addressable processors.
DATA = BASE + 3 * PAGE
RUNNING = ModuleProperties(svn=0x0105, module_hv=5, min_update_hv=3)


@pytest.fixture
def platform(boot: Boot, pages: bytes) -> Platform:
    return boot(module=sign_module(pages, properties=RUNNING))


def leave(platform: Platform, version: int = 5, size: int = 16, valid: int = 1) -> None:
    """What TDH.SYS.SHUTDOWN leaves: a header (valid u8, reserved u8, version u16, size u32), then data."""
    header = bytes((valid, 0)) + version.to_bytes(2, "little") + size.to_bytes(4, "little")
    platform.machine.memory.write(DATA, header + b"handoff data 16.", SEAM)


def update(platform: Platform, image: SignedImage) -> None:
    platform.install(image, scenario=1)


def refused(platform: Platform, image: SignedImage) -> LoaderError:
    extend = platform.machine.seam.extend
    with pytest.raises(LoaderError) as refusal:
        update(platform, image)
    assert refusal.value.recoverable
    assert platform.machine.seam.extend == extend
    assert platform.machine.seam.module_entry(0) is not None
    return refusal.value


def test_a_newer_module_finds_the_data_and_enters_seamdb(platform: Platform, pages: bytes) -> None:
    leave(platform)
    before = platform.machine.seam.database.entries[:]
    update(platform, sign_module(pages, properties=replace(RUNNING, svn=0x0206, module_hv=6)))
    data = platform.machine.memory.read(DATA, 24, SEAM)
    assert data[8:] == b"handoff data 16."
    assert platform.machine.seam.extend[8:11] == bytes((6, 2, 2))
    entries = platform.machine.seam.database.entries
    assert entries[:-1] == before
    assert len(entries) == 2
    assert entries[-1][0] != entries[0][0]


def test_the_same_svn_may_follow(platform: Platform, pages: bytes) -> None:
    leave(platform)
    update(platform, sign_module(pages, properties=RUNNING))


def test_an_older_svn_is_refused(platform: Platform, pages: bytes) -> None:
    leave(platform)
    failure = refused(platform, sign_module(pages, properties=replace(RUNNING, svn=0x0104)))
    assert failure.status == EBADSIG
    assert "SEAMSVN 0x104 is older than the loaded module's 0x105" in str(failure)


def test_an_older_svn_may_be_loaded_afresh(platform: Platform, pages: bytes) -> None:
    """SCENARIO load does not compare (seamldr_install.c), and forgets the modules before."""
    platform.install(sign_module(pages, properties=replace(RUNNING, svn=0x0104)))
    assert platform.machine.seam.extend[8:10] == bytes((4, 1))
    assert len(platform.machine.seam.database.entries) == 1


def test_there_must_be_a_module(boot: Boot, image: SignedImage) -> None:
    platform = boot(load=False)
    with pytest.raises(LoaderError) as refusal:
        update(platform, image)
    assert refusal.value.status == EBADPARAM
    assert "no module is loaded" in str(refusal.value)


@pytest.mark.parametrize(
    ("handoff", "change", "words"),
    [
        ({"valid": 0}, {}, "left no handoff data; call TDH.SYS.SHUTDOWN first"),
        ({"version": 6}, {}, "version 6; the new module takes 3 to 5"),
        ({"version": 2}, {}, "version 2; the new module takes 3 to 5"),
        ({"size": 65536}, {}, "has room for"),
        ({}, {"num_handoff_pages": 0, "module_hv": 4}, "version 5; the new module takes 3 to 4"),
    ],
)
def test_handoff_data_that_does_not_fit(
    platform: Platform, pages: bytes, handoff: dict[str, int], change: dict[str, int], words: str
) -> None:
    leave(platform, **handoff)
    failure = refused(platform, sign_module(pages, properties=replace(RUNNING, **change)))  # type: ignore[arg-type]
    assert failure.status == EBADHANDOFF
    assert words in str(failure)


def test_no_downgrade(boot: Boot, pages: bytes) -> None:
    """A module that forbids it is not followed by one of a lower handoff version."""
    stubborn = replace(RUNNING, no_downgrade=1)
    platform = boot(module=sign_module(pages, properties=stubborn))
    leave(platform, version=4)
    older = replace(RUNNING, module_hv=4)
    failure = refused(platform, sign_module(pages, properties=older))
    assert failure.status == EBADHANDOFF
    assert "no downgrade" in str(failure)
    update(platform, sign_module(pages, properties=stubborn))


def test_seamdb_is_finite(platform: Platform, pages: bytes) -> None:
    seam = platform.machine.seam
    while len(seam.database.entries) < seamops.DATABASE_SIZE:
        seamops.insert(seam)
    leave(platform)
    failure = refused(platform, sign_module(pages, properties=RUNNING))
    assert failure.status == EUNSPECERR
    assert "SEAMDB holds 256 modules" in str(failure)
    platform.install(sign_module(pages, properties=RUNNING))
    assert len(seam.database.entries) == 1
