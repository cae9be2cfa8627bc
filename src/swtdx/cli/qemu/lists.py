"""The two syntaxes of QEMU's option arguments: ``key=value,key=value`` with ``,,`` for a comma, and JSON.

Both become a list of dotted keys and texts, in the order of the line: a key may come twice (``hostfwd``).
Source: QEMU's ``util/keyval.c`` and ``util/qemu-option.c``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from swtdx.cli.inputs import Unusable

#: Keys and values in the order of the line.
Pairs = list[tuple[str, str]]


def words(text: str) -> list[str]:
    """``text`` at its single commas; a doubled one stands for itself."""
    found = [""]
    at = 0
    while at < len(text):
        if text[at] != ",":
            found[-1] += text[at]
        elif text[at + 1 : at + 2] == ",":
            found[-1] += ","
            at += 1
        else:
            found.append("")
        at += 1
    return found


def pairs(option: str, text: str, implied: str = "") -> Pairs:
    """The settings in an argument.

    Args:
        option: for messages: ``-device``.
        text: the argument.
        implied: the key of a first word without one; "" if the option has none.

    Raises:
        Unusable: it is no such argument.
    """
    if text.lstrip().startswith("{"):
        return _json(option, text)
    found: Pairs = []
    for number, word in enumerate(words(text)):
        key, equals, value = word.partition("=")
        if not word:
            # A comma at the end, as QEMU takes it.
            continue
        if equals:
            found.append((key, value))
        elif number == 0 and implied:
            found.append((implied, word))
        else:
            # A switch by its name alone.
            found.append((word, "on"))
    return found


def _json(option: str, text: str) -> Pairs:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{option} {text[:60]}: this begins as JSON and is none: {error}") from None
    if not isinstance(document, dict):
        raise Unusable(f"{option} {text[:60]}: JSON here is an object, {{...}}")
    return list(_flat(document, ""))


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        # A list of {"str": ...} is how QEMU's JSON has a key that comes several times.
        for number, each in enumerate(value):
            if isinstance(each, dict) and set(each) == {"str"}:
                yield prefix, str(each["str"])
            else:
                yield from _flat(each, f"{prefix}.{number}")
    elif isinstance(value, bool):
        yield prefix, "on" if value else "off"
    else:
        yield prefix, "" if value is None else str(value)
