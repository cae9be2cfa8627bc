"""SHA-384 with a state that is kept: both ways of computing it, against hashlib."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest

from swtdx.module import sha384


@pytest.mark.parametrize("way", [sha384._update_python, sha384._update_openssl])
def test_as_hashlib(way: Callable[[bytes, bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    if way is sha384._update_openssl and sha384._libcrypto is None:
        pytest.skip("there is no libcrypto")
    monkeypatch.setattr(sha384, "_update", way)
    source = random.Random(384)
    for blocks in (0, 1, 2, 5):
        data = source.randbytes(128 * blocks)
        state = sha384.initial()
        cut = 128 * source.randint(0, blocks)
        for part in (data[:cut], data[cut:]):
            state = sha384.update(state, part)
        assert sha384.digest(state) == hashlib.sha384(data).digest()


def test_whole_blocks_only() -> None:
    with pytest.raises(ValueError, match="128-byte blocks"):
        sha384.update(sha384.initial(), bytes(127))
