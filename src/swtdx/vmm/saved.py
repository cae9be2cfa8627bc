"""How the hypervisor's objects write themselves down for a snapshot.

Each object with state has ``save_state`` and a way to be made of what that wrote; what they write to and read
from is what devices do (:mod:`swtdx.devices.saved`).  Nothing that is written is code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from swtdx.devices.saved import In, Out


def put(out: Out, **fields: Any) -> None:
    """Write plain data (numbers, strings, lists, None) by name."""
    out.text(json.dumps(fields, separators=(",", ":")))


def get(section: In) -> dict[str, Any]:
    """What :func:`put` wrote."""
    try:
        fields = json.loads(section.text())
    except ValueError as error:
        raise section.fail(f"a description that makes no sense: {error}") from None
    if not isinstance(fields, dict):
        raise section.fail("a description that is none")
    return fields


def put_numbers(out: Out, numbers: Iterable[int]) -> None:
    """Write unsigned 64-bit numbers, as many as there are."""
    given = list(numbers)
    out.blob(struct.pack(f"<{len(given)}Q", *given))


def get_numbers(section: In) -> list[int]:
    """What :func:`put_numbers` wrote."""
    data = section.blob()
    if len(data) % 8:
        raise section.fail(f"numbers of 8 bytes in {len(data)} bytes")
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


def put_map(out: Out, mapping: Mapping[int, int]) -> None:
    """Write a mapping between unsigned 64-bit numbers, in its order."""
    put_numbers(out, mapping)
    put_numbers(out, mapping.values())


def get_map(section: In) -> dict[int, int]:
    """What :func:`put_map` wrote."""
    keys, values = get_numbers(section), get_numbers(section)
    if len(keys) != len(values):
        raise section.fail(f"{len(keys)} keys with {len(values)} values")
    return dict(zip(keys, values, strict=True))


def pairs(given: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
    """Pairs of numbers, which are lists where they come out of a description."""
    return tuple((int(first), int(second)) for first, second in given)
