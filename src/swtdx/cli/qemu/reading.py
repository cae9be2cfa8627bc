"""A command line of QEMU's, word by word: each option with its settings, judged by the table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from swtdx.cli.inputs import Unusable, read_bytes
from swtdx.cli.qemu.lists import Pairs, pairs, words
from swtdx.cli.qemu.table import BY_NAME, Option, Setting, Verdict

_BINARY: Final = re.compile(r"(.*/)?(qemu-system-[\w-]+|qemu-kvm|kvm|qemu)")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_SECTION: Final = re.compile(r'\[\s*([\w.-]+)(?:\s+"([^"]*)")?\s*\]')
_LINE: Final = re.compile(r'([\w.-]+)\s*=\s*"?([^"]*)"?')
_SEE: Final = "`swtdx qemu --table` lists what there is"


@dataclass(slots=True)
class Given:
    """One option of the line.

    Args:
        option: what the table says of it.
        kind: what the table says of its kind, if it has kinds.
        title: for messages: ``-device virtio-blk-pci``.
        text: its argument as it stands there.
        pairs: its settings that are to be honoured, until they are taken.
    """

    option: Option
    kind: Option | None
    title: str
    text: str
    pairs: Pairs = field(default_factory=list)

    def take(self, *keys: str, default: str = "") -> str:
        """The last value of one of these keys."""
        found = self.take_all(*keys)
        return found[-1] if found else default

    def take_all(self, *keys: str) -> list[str]:
        """All values of these keys."""
        found = [value for key, value in self.pairs if key in keys]
        self.pairs = [pair for pair in self.pairs if pair[0] not in keys]
        return found

    def has(self, key: str) -> bool:
        """Whether the line says anything of ``key`` (that was not taken yet)."""
        return any(each == key for each, _ in self.pairs)

    def switch(self, key: str, *, default: bool = False) -> bool:
        """The value of a switch.

        Raises:
            Unusable: it is neither on nor off.
        """
        value = self.take(key, default="on" if default else "off")
        if value in ("on", "yes", "true", "y", "1"):
            return True
        if value in ("off", "no", "false", "n", "0"):
            return False
        raise self.wrong(f"{key}={value}", "give on or off")

    def number(self, key: str, default: int) -> int:
        """The value of a number, decimal or 0x.

        Raises:
            Unusable: it is none.
        """
        value = self.take(key)
        if not value:
            return default
        try:
            return int(value, 0)
        except ValueError:
            raise self.wrong(f"{key}={value}", "give a number") from None

    def wrong(self, what: str, words_: str) -> Unusable:
        """The error for a setting of it."""
        return Unusable(f"{self.title} {what}: {words_}".rstrip(": "))


@dataclass(frozen=True, slots=True)
class Note:
    """Something of the line that is harmless, and why; for -v."""

    what: str
    words: str

    def __str__(self) -> str:
        return f"{self.what}: {self.words}" if self.words else self.what


@dataclass(slots=True)
class Line:
    """A whole line: its options, and what of it is harmless."""

    options: list[Given] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def all(self, name: str) -> list[Given]:
        """Every option of this name, in order."""
        return [given for given in self.options if given.option.name == name]

    def last(self, name: str) -> Given | None:
        """The last option of this name."""
        found = self.all(name)
        return found[-1] if found else None


def read_line(arguments: Sequence[str]) -> Line:
    """The command line, judged.  A program's name and variables in front of it are skipped.

    Raises:
        Unusable: an option or a setting is refused, not known, or lacks its argument.
    """
    line = Line()
    rest = list(arguments)
    if len(rest) == 1 and any(char.isspace() for char in rest[0]):
        # The whole line as one word, pasted into quotes.
        try:
            rest = shlex.split(rest[0].replace("\\\n", " "))
        except ValueError as error:
            raise Unusable(
                f"the QEMU line cannot be split into words: {error}; close it, or give the words apart"
            ) from None
    while rest and _ASSIGNMENT.fullmatch(rest[0]):
        rest.pop(0)
    if rest and _BINARY.fullmatch(rest[0]):
        rest.pop(0)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            raise Unusable(
                f"{word}: a disk without an option would be an IDE disk; give it as "
                f"-drive file={word},if=virtio"
            )
        name = word.removeprefix("-").removeprefix("-")
        option = BY_NAME.get(name)
        if option is None:
            raise Unusable(f"{word}: swtdx knows no such option of QEMU's; {_SEE}")
        text = ""
        if option.argument:
            if not rest:
                raise Unusable(f"{word} needs an argument")
            text = rest.pop(0)
        _add(line, word, option, text)
    return line


def _add(line: Line, word: str, option: Option, text: str) -> None:
    if option.name == "readconfig":
        for section, identity, values in _sections(text):
            _add_section(line, text, section, identity, values)
        return
    _judge(line, option, f"-{word.lstrip('-')}", text, _pairs(option, f"-{word.lstrip('-')}", text))


def _pairs(option: Option, title: str, text: str) -> Pairs:
    if option.verdict is Verdict.REFUSED and not option.settings:
        return []
    if option.name == "cpu":
        return list(_features(text))
    if option.name == "global":
        found = pairs(title, text)
        keyed = dict(found)
        if {"driver", "property"} <= set(keyed):
            return [(f"{keyed['driver']}.{keyed['property']}", keyed.get("value", ""))]
        return found
    if option.implied is None and not option.kinds and not option.settings:
        return []
    found = pairs(title, text, option.implied or "")
    if option.name == "machine":
        return [(key.replace("_", "-"), value) for key, value in found]
    return found


def _features(text: str) -> Iterator[tuple[str, str]]:
    """``-cpu``: a model, and features as +f, -f, f=on, f=off, or settings with other values."""
    model, *others = words(text)
    yield "model", model
    for word in others:
        key, equals, value = word.partition("=")
        key = key.replace("_", "-") if key[:1] not in "+-" else key
        if equals or key[:1] in "+-":
            yield key, value
        elif key:
            yield key, "on"


def _judge(line: Line, option: Option, title: str, text: str, found: Pairs) -> None:
    if option.verdict is Verdict.REFUSED and not option.settings:
        raise Unusable(f"{title}{f' {text}' if text else ''}: {option.words}")
    kind = None
    if option.kinds:
        name = next((value for key, value in found if key == option.kind), "")
        kind = option.of_kind(name)
        title = f"{title} {name}"
        if kind is None:
            raise Unusable(f"{title}: there is none here; {_SEE}")
        if kind.verdict is Verdict.REFUSED:
            raise Unusable(f"{title}: {kind.words}")
    given = Given(option, kind, title, text)
    shown = f"{title} {text}".strip() if kind is None else title
    if option.verdict is Verdict.HARMLESS:
        line.notes.append(Note(shown, option.words))
    elif kind is not None and kind.verdict is Verdict.HARMLESS:
        line.notes.append(Note(title, kind.words))
    else:
        for key, value in found:
            if option.kinds and key == option.kind:
                continue
            _judge_setting(line, given, key, value)
    line.options.append(given)


def _setting(given: Given, key: str) -> Setting | None:
    if given.option.name == "cpu" and key == "model":
        return Setting("model")
    for where in (given.kind, given.option):
        if where is not None and (found := where.setting(key)) is not None:
            return found
    return None


def _judge_setting(line: Line, given: Given, key: str, value: str) -> None:
    setting = _setting(given, key)
    # f=on and f=off are +f and -f, if nothing else is said of f.
    if setting is None and given.option.name == "cpu" and value in ("on", "off"):
        key = ("+" if value == "on" else "-") + key
        setting = _setting(given, key)
    what = f"{key}={value}" if value or key[:1] not in "+-" else key
    if setting is None:
        raise given.wrong(what, f"there is no such setting here; {_SEE}")
    if setting.values:
        if not any(
            value == each or (each[-1:] == "*" and value.startswith(each[:-1])) for each in setting.values
        ):
            raise given.wrong(what, setting.words or f"give {' or '.join(setting.values)}")
    elif setting.verdict is Verdict.REFUSED:
        raise given.wrong(what, setting.words)
    if setting.verdict is Verdict.HONOURED:
        given.pairs.append((key, value))
    else:
        line.notes.append(Note(f"{given.title} {what}", setting.words))


# ------------------------------------------------------------------ files of settings
def _sections(path: str) -> Iterator[tuple[str, str, Pairs]]:
    """``-readconfig``: sections with a name, perhaps an id, and ``key = "value"`` lines."""
    current: tuple[str, str, Pairs] | None = None
    text = read_bytes(Path(path), "a configuration of QEMU's").decode("utf-8", "replace")
    for number, raw in enumerate(text.splitlines(), 1):
        stripped = raw.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if (section := _SECTION.fullmatch(stripped)) is not None:
            if current is not None:
                yield current
            current = section[1], section[2] or "", []
        elif (setting := _LINE.fullmatch(stripped)) is not None and current is not None:
            current[2].append((setting[1], setting[2]))
        else:
            raise Unusable(f'{path}, line {number}: {stripped!r} is neither [section "id"] nor key = "value"')
    if current is not None:
        yield current


#: Sections whose option has another name, or whose settings are under another key.
_SECTIONS: Final = {"memory": "m", "smp-opts": "smp", "boot-opts": "boot"}


def _add_section(line: Line, path: str, section: str, identity: str, values: Pairs) -> None:
    option = BY_NAME.get(_SECTIONS.get(section, section))
    if option is None or not option.argument:
        raise Unusable(f"{path}: section [{section}]: swtdx knows no such option of QEMU's; {_SEE}")
    found = [("id", identity), *values] if identity else values
    if option.name == "machine":
        found = [(key.replace("_", "-"), value) for key, value in found]
    _judge(line, option, f"{path}: [{section}]", "", found)
