"""Random machine code ends in a VM exit of its own guest's, and the guest beside it does not notice.

A hundred thousand programs: ``python -m tests.machine.hostile --programs 100000``.
"""

from __future__ import annotations

import pytest

from tests.machine.hostile import Hostile, soak

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("debug", [False, True])
def test_it_ends_where_it_began(bits: int, debug: bool) -> None:
    hostile = Hostile(7, bits, debug=debug)
    try:
        assert soak(hostile, 0, 150, seconds=30) > 0
    finally:
        hostile.close()
    assert len(hostile.exits) > 3, "the programs do something"
