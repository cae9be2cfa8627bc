"""Two boots compared: which events differ, and in words, what is different about them.

A verifier that sees another RTMR than it expected has two logs, or one of its own and one of `swtdx measure`.
Events of the same kind and about the same thing (a variable's name, an image's path) are paired, register by
register, in order; a pair with two digests is a change, what has no partner is in one log only.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import changes, efi
from .format import Event
from .replay import RTMRS

#: Kinds that are about a variable, about an image, and about a tag.
_VARIABLES: Final = frozenset({0x80000001, 0x80000002, 0x8000000C, 0x800000E0})
_IMAGES: Final = frozenset({0x80000003, 0x80000004, 0x80000005})
_IPL, _TAG, _GPT = 0x0000000D, 0x00000006, 0x80000006
#: Bytes of a digest that are shown.
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    Args:
        register: of which register: ``RTMR0`` to ``RTMR3``, or ``MRTD`` for events that extend none.
        first, second: the event in each log; None where it has none.
        words: what differs, in a sentence.
        details: more of it, a line each.
    """

    register: str
    first: Event | None
    second: Event | None
    words: str
    details: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "register": self.register,
            "first": None if self.first is None else self.first.index,
            "second": None if self.second is None else self.second.index,
            "type": (self.first or self.second or _NOTHING).kind_name,
            "words": self.words,
            "details": list(self.details),
        }


_NOTHING: Final = Event(0, 0, 0, b"", b"")


def differences(first: Sequence[Event], second: Sequence[Event]) -> list[Difference]:
    """Where two logs differ in what was measured, in the order of the registers and of the first log.

    Descriptions that are not measured (the address at which an image was loaded) may differ.
    """
    found: list[Difference] = []
    for register in range(1, RTMRS + 1):
        mine = [event for event in first if event.register == register and event.rtmr is not None]
        theirs = [event for event in second if event.register == register and event.rtmr is not None]
        found += _of_register(f"RTMR{register - 1}", mine, theirs)
    return found


def _of_register(name: str, mine: list[Event], theirs: list[Event]) -> list[Difference]:
    changed, only_first, only_second = _pairs(mine, theirs)
    found = [(one.index, _changed(name, one, other)) for one, other in changed if one.digest != other.digest]
    found += [
        (one.index, _forged(name, one, other))
        for one, other in changed
        if one.digest == other.digest
        and one.data != other.data
        and False in (one.data_matches, other.data_matches)
    ]
    # What both have, at another place, has moved.
    for one in list(only_first):
        other = next((each for each in only_second if _same(one, each)), None)
        if other is not None:
            only_first.remove(one)
            only_second.remove(other)
            words = f"{_about(one)} is at another place: event {one.index} in A, event {other.index} in B"
            found.append((one.index, Difference(name, one, other, words)))
    found += [(one.index, _alone(name, one, first=True)) for one in only_first]
    found += [(other.index, _alone(name, other, first=False)) for other in only_second]
    return [difference for _, difference in sorted(found, key=lambda each: each[0])]


def _same(one: Event, other: Event) -> bool:
    return (one.kind, one.digest) == (other.kind, other.digest)


def _pairs(
    mine: list[Event], theirs: list[Event]
) -> tuple[list[tuple[Event, Event]], list[Event], list[Event]]:
    """Events that belong together, and those of each log without a partner."""
    pairs: list[tuple[Event, Event]] = []
    only_first: list[Event] = []
    only_second: list[Event] = []
    exact = difflib.SequenceMatcher(
        None,
        [(event.kind, event.digest) for event in mine],
        [(event.kind, event.digest) for event in theirs],
        autojunk=False,
    )
    for tag, a, b, c, d in exact.get_opcodes():
        if tag == "equal":
            pairs += zip(mine[a:b], theirs[c:d], strict=True)
            continue
        left, right = mine[a:b], theirs[c:d]
        # First those that are about the same thing, then those of the same kind.
        for same in (lambda event: (event.kind, _subject(event)), lambda event: event.kind):
            for one in list(left):
                other = next((each for each in right if same(each) == same(one)), None)
                if other is not None and not any(_same(one, each) for each in right):
                    pairs.append((one, other))
                    left.remove(one)
                    right.remove(other)
        only_first += left
        only_second += right
    return pairs, only_first, only_second


def _subject(event: Event) -> str:
    """What an event is about, so that it is the same event in two boots although its digest is not."""
    if event.kind in _VARIABLES and (variable := efi.variable(event.data)):
        return f"{variable[0]} {variable[1]}"
    if event.kind in _IMAGES:
        return efi.image_path(event.data) or ""
    if event.kind == _TAG and len(event.data) >= 4:
        return event.data[:4].hex()
    if event.kind == _IPL:
        # Grub: "kernel_cmdline: ...", "grub_cmd: ...".
        return event.text().partition(":")[0]
    if event.kind == _GPT:
        return ""
    return event.content_name or event.text()


def _about(event: Event) -> str:
    """An event in words, to begin a sentence."""
    what = event.text()
    if event.content_name and event.content_name not in what:
        what = f"{what} ({event.content_name})"
    return f"{event.kind_name} {what}"


def _digest(event: Event) -> str:
    return f"{event.digest[:_SHOWN].hex()}..."


def _alone(register: str, event: Event, *, first: bool) -> Difference:
    words = f"only {'A' if first else 'B'} has {_about(event)}, digest {_digest(event)}"
    return Difference(register, event if first else None, None if first else event, words)


def _forged(register: str, one: Event, other: Event) -> Difference:
    """The same digest, and data that it is not the hash of."""
    which = "B" if one.data_matches else "A"
    words = f"{_about(one)} has the same digest in both, which is not the hash of its data in {which}"
    return Difference(register, one, other, words, (f"A: {one.text()}", f"B: {other.text()}"))


def _changed(register: str, one: Event, other: Event) -> Difference:
    """Two events about the same thing with two digests."""
    details = [f"digest {_digest(one)} in A, {_digest(other)} in B"]
    if one.kind in _VARIABLES:
        words, more = changes.variable(one, other)
    elif one.kind in _IMAGES:
        words, more = changes.image(one, other)
    elif one.kind == _GPT:
        words, more = changes.partitions(one, other)
    elif one.measured is not None and other.measured is not None:
        name = one.content_name or other.content_name or one.text()
        words, more = changes.contents(name, one.measured, other.measured)
    elif one.text() != other.text():
        words, more = changes.texts(one.kind_name, one.text(), other.text())
    else:
        words, more = changes.unknown(one, other)
    for event, which in ((one, "A"), (other, "B")):
        if event.data_matches is False:
            details.append(f"in {which} the digest is not the hash of the data")
    return Difference(register, one, other, words, (*more, *details))
