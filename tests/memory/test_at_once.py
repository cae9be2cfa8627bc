"""What memory does with many pages, or many lines, at once is what it does with them one by one."""

from __future__ import annotations

import pytest

from swtdx.machine.memory import PhysicalMemory

from .conftest import SHARED_1, build, program

PAGE, LINE = 4096, 64
A = 0x3000


def test_lines_written_back_before_a_key_changes_stay_under_the_old_key(memory: PhysicalMemory) -> None:
    """PCONFIG gives a KeyID a new key: what DRAM has under the old one cannot be read any more.

    Of one page a line was written back, and another one is dirty in the cache when the key changes.
    """
    pa = memory.addresses.join(A, SHARED_1)
    memory.write(pa, b"secret" * 10)
    memory.wbinvd()
    memory.write(pa + LINE, b"public" * 10)
    program(memory, SHARED_1)
    memory.wbinvd()
    assert memory.read(pa, 60) != b"secret" * 10
    assert memory.read(pa + LINE, 60) == b"public" * 10


@pytest.mark.parametrize("keyid", [0, SHARED_1])
def test_pages_never_written_are_mapped_with_what_reading_them_gives(
    memory: PhysicalMemory, keyid: int
) -> None:
    """Zeros under KeyID 0; under another one, what decrypting DRAM gives."""
    other = build(memory.integrity)
    expected = [other.read(other.addresses.join(page, keyid), PAGE) for page in range(A, A + 8 * PAGE, PAGE)]
    other.close()
    memory.acquire(A, 8 * PAGE, keyid)
    found = [bytes(memory.frames[page : page + PAGE]) for page in range(A, A + 8 * PAGE, PAGE)]
    assert found == expected
    assert (not any(map(any, found))) == (keyid == 0)
