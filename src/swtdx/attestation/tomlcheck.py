"""Reading TOML strictly: an unknown key is an error, because a typing error in a policy or a
scenario that is silently ignored makes a wrong verdict."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from .errors import AttestationError

T = TypeVar("T")


class Reader:
    """Reads tables of one TOML text; every complaint is ``error`` and names the place.

    Raises:
        AttestationError: (as ``error``) the text is not TOML or has a section that is not in
            ``sections``, or a key that the section does not have.
    """

    def __init__(
        self,
        text: str,
        name: str,
        sections: Mapping[str, Iterable[str]],
        error: type[AttestationError],
    ) -> None:
        self.name = name
        self.error = error
        try:
            self.document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as problem:
            raise error(f"{name} is not TOML: {problem}") from None
        for section, table in self.document.items():
            if section not in sections:
                raise self.unknown(section, sections, name)
            known = set(sections[section])
            for key in self.typed(table, dict, f"[{section}]"):
                if key not in known:
                    raise self.unknown(key, known, f"[{section}]")

    def section(self, name: str) -> dict[str, Any]:
        """The table of that name; empty when the text has none."""
        table: dict[str, Any] = self.document.get(name, {})
        return table

    def unknown(self, key: str, known: Iterable[str], where: str) -> AttestationError:
        """The complaint about an unknown key, with the likeliest one that was meant."""
        names = [str(each) for each in known]
        near = difflib.get_close_matches(key, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it knows {', '.join(sorted(names))}"
        return self.error(f"{where} has no {key!r}{hint}")

    def typed(self, value: object, kind: type[T], where: str) -> T:
        """``value``, if it is of that kind; numbers must not be negative."""
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"{where} must be {kind.__name__}, not {value!r}")
        if isinstance(value, int) and value < 0:
            raise self.error(f"{where} cannot be negative")
        return value

    def strings(self, value: object, where: str) -> list[str]:
        """A string or a list of strings, as a list."""
        items = value if isinstance(value, list) else [value]
        return [self.typed(item, str, where) for item in items]

    def numbers(self, value: object, where: str) -> list[int]:
        """A list of numbers."""
        return [self.typed(item, int, where) for item in self.typed(value, list, where)]

    def choice(self, text: str, kind: type[T], where: str) -> T:
        """The member of the enumeration ``kind`` whose value is ``text``."""
        try:
            return kind(text)  # type: ignore[call-arg]
        except ValueError:
            raise self.unknown(text, [str(each) for each in kind], where) from None  # type: ignore[attr-defined]

    def blob(self, text: str, size: int, where: str) -> bytes:
        """Exactly ``size`` bytes from hex."""
        try:
            data = bytes.fromhex(text.removeprefix("0x"))
        except ValueError:
            raise self.error(f"{where}: {text!r} is not hex") from None
        if len(data) != size:
            raise self.error(f"{where} has {size} bytes; {text!r} has {len(data)}")
        return data
