"""What is different about an event, by kind: a sentence, and lines with the details.

The kinds: UEFI variables, PE images, partition tables, texts (command lines), and contents whose bytes are
known: ACPI tables, the TD HOB, a fw_cfg file.
"""

from __future__ import annotations

import difflib
import struct

from . import acpi, efi
from .format import Event

#: Words and details.
Change = tuple[str, list[str]]


def variable(one: Event, other: Event) -> Change:
    """Two values of a UEFI variable."""
    left, right = efi.variable(one.data), efi.variable(other.data)
    if left is None or right is None:
        return texts(one.kind_name, one.text(), other.text())
    words = f"the variable {left[1]} has another value"
    first, second = efi.signatures(left[2]), efi.signatures(right[2])
    if first is not None and second is not None and (first or second):
        details = [f"only in A: {each}" for each in first if each not in second]
        details += [f"only in B: {each}" for each in second if each not in first]
        if details:
            return words, details
    details = [f"A: {one.text()}", f"B: {other.text()}"]
    # Entries whose texts are the same differ in what is behind them, and so may long values.
    if one.text() == other.text():
        details += byte_ranges(left[2], right[2])
    return words, details


def image(one: Event, other: Event) -> Change:
    """Two hashes of an application or a driver (Authenticode)."""
    path = efi.image_path(one.data) or efi.image_path(other.data) or one.content_name
    what = {0x80000003: "application", 0x80000004: "driver", 0x80000005: "runtime driver"}.get(
        one.kind, "image"
    )
    details = []
    if (size := efi.image_size(one.data)) != (size2 := efi.image_size(other.data)) and size and size2:
        details.append(f"{size} bytes in A, {size2} in B")
    details += [f"A: {one.digest.hex()}", f"B: {other.digest.hex()}"]
    named = {event.content_name for event in (one, other) if event.content_name}
    if named:
        details.append(f"known as: {', '.join(sorted(named))}")
    return f"the {what} {path or '(no path)'} has another hash", details


def partitions(one: Event, other: Event) -> Change:
    """Two partition tables."""
    left, right = efi.partitions(one.data), efi.partitions(other.data)
    if left is None or right is None:
        return texts(one.kind_name, one.text(), other.text())
    details = [f"only in A: {each}" for each in left if each not in right]
    details += [f"only in B: {each}" for each in right if each not in left]
    return "the partition table differs", details or byte_ranges(one.data, other.data)


def texts(what: str, one: str, other: str) -> Change:
    """Two texts, word by word."""
    left, right = one.split(), other.split()
    details = []
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        before, after = " ".join(left[a:b]), " ".join(right[c:d])
        if tag == "replace":
            details.append(f"'{before}' in A is '{after}' in B")
        elif tag == "delete":
            details.append(f"'{before}' is in A only")
        elif tag == "insert":
            details.append(f"'{after}' is in B only")
    if not details:
        details.append(f"only spaces differ: {one!r} and {other!r}")
    return f"{what} differs", details


def contents(name: str, one: bytes, other: bytes) -> Change:
    """Two contents whose bytes are known."""
    if name.endswith("etc/acpi/tables"):
        return "the ACPI tables (fw_cfg's etc/acpi/tables) differ", acpi.compare(one, other)
    if name == "TD HOB":
        left, right = _resources(one), _resources(other)
        if left is not None and right is not None and left != right:
            return "the memory map (TD HOB) differs", [
                *(f"only in A: {each}" for each in left if each not in right),
                *(f"only in B: {each}" for each in right if each not in left),
            ]
    words = efi.words(one, whole=True), efi.words(other, whole=True)
    if all(words) and "acpi" not in name:
        return texts(f"the {name}" if not name.startswith("EV_") else name, *words)
    return f"fw_cfg's {name} differs" if name.startswith("etc/") else f"{name} differs", byte_ranges(
        one, other
    )


def unknown(one: Event, other: Event) -> Change:
    """The logs say the same in words, and the digests differ."""
    name = one.content_name or other.content_name
    details = []
    for event, which in ((one, "A"), (other, "B")):
        if event.content is not None:
            details.append(f"{which} has what was measured: {len(event.content)} bytes of {name}")
    details.append(
        "a log from a guest does not hold what was measured; of `swtdx measure --firmware F --json` does, "
        "and then the bytes are shown"
    )
    what = f"{one.text()} ({name})" if name and name not in one.text() else one.text()
    return f"what {one.kind_name} '{what}' was made of differs", details


def _resources(hob: bytes) -> list[str] | None:
    """The memory ranges of a HOB list."""
    found: list[str] = []
    at = 0
    while at + 8 <= len(hob):
        kind, size = struct.unpack_from("<HH", hob, at)
        if size < 8 or at + size > len(hob):
            return None
        if kind == 3 and size >= 48:
            what, _, base, length = struct.unpack_from("<IIQQ", hob, at + 24)
            name = {0: "memory that is there", 7: "memory to be accepted"}.get(what, f"resource {what}")
            found.append(f"{name}, {base:#x} to {base + length:#x}")
        at += size
    return found


def byte_ranges(one: bytes, other: bytes, name: str = "") -> list[str]:
    """Where two byte strings differ, with the bytes."""
    return acpi.ranges(one, other, name)
