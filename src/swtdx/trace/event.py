"""A crossing of the boundary in words: plain data for a terminal or for a program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

HYPERVISOR = "hypervisor"
MODULE = "TDX module"
GUEST = "guest"


class Part(NamedTuple):
    """A bit range of a value: its name, what is in it, and whether it is a single bit."""

    name: str
    value: int
    single: bool


@dataclass(frozen=True, slots=True)
class Value:
    """A register that carries something across: its declared meaning, and the bit ranges that are not 0."""

    register: str
    value: int
    meaning: str = ""
    bits: tuple[Part, ...] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON: numbers as hexadecimal strings, since 64 bits do not fit a JSON number."""
        shown: dict[str, Any] = {"value": hex(self.value)}
        if self.meaning:
            shown["meaning"] = self.meaning
        if self.bits:
            shown["bits"] = {part.name: hex(part.value) for part in self.bits}
        return shown


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``kind`` is one of SEAMCALL, SEAMRET, VM entry, VM exit, TDCALL, TDCALL return, TDVMCALL, TDVMCALL
    answer, injection, posted interrupts, virtual interrupt.  ``source`` and ``target`` are the parties.
    ``facts`` say what no register says by itself.  ``name`` is what it is about, for programs: the leaf, the
    exit reason, the sub-function, the exception; ``status`` the completion status by name, if there is one.
    """

    number: int
    lp: int
    kind: str
    source: str
    target: str
    title: str
    values: tuple[Value, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    vcpu: int | None = None
    name: str = ""
    status: str = ""

    def plain(self) -> dict[str, Any]:
        """The same for JSON."""
        shown: dict[str, Any] = {
            "n": self.number,
            "lp": self.lp,
            "event": self.kind,
            "from": self.source,
            "to": self.target,
            "what": self.title,
        }
        if self.name:
            shown["name"] = self.name
        if self.status:
            shown["status"] = self.status
        if self.vcpu is not None:
            shown["tdvpr"] = hex(self.vcpu)
        if self.values:
            shown["registers"] = {value.register: value.plain() for value in self.values}
        return shown | dict(self.facts)
