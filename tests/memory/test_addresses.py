"""How an address divides: the limits that IA32_TME_CAPABILITY and IA32_TME_ACTIVATE give."""

from __future__ import annotations

import pytest

from swtdx.machine.memory.addresses import AddressError, AddressMap


@pytest.mark.parametrize(("maxpa", "most"), [(52, 15), (48, 15), (47, 15), (46, 14), (40, 8), (36, 4)])
def test_how_many_keyid_bits_fit(maxpa: int, most: int) -> None:
    """4 bits count them, so 15 at most; and addresses keep at least 32 bits."""
    for bits in range(1, most + 1):
        made = AddressMap(maxpa, bits, shared_keyids=0, private_keyids=1)
        assert made.join(0x1000, 1) == 0x1000 | 1 << maxpa - bits
    with pytest.raises(AddressError, match="do not fit"):
        AddressMap(maxpa, most + 1, shared_keyids=0, private_keyids=1)
