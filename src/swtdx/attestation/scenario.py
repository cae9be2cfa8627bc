"""Scenario files: a world in TOML, with the verdict that a verifier must give written in it.

A scenario says what the platform is, how the maker rates it, what is broken, which quote to make, and
under ``[expect]`` what must come out.  The files that come with swtdx are in ``scenarios/``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

from .collateral import Collateral, TcbStatus
from .errors import AttestationError, ScenarioError
from .oserrors import words
from .quote import BodyType
from .sgx_platform import PckCa
from .tdreport import TdReportFields
from .tomlcheck import Reader
from .world import Fault, Standing, World

_BODIES: Final = {"1.0": BodyType.TD_1_0, "1.5": BodyType.TD_1_5}
_STANDING: Final = ("status", "advisories")
_SECTIONS: Final = {
    "scenario": ("title", "now", "faults"),
    "quote": ("version", "body"),
    "td": ("attributes", "service_td"),
    "platform": ("ca", *_STANDING),
    "module": ("isvsvn", *_STANDING),
    "current_module": ("isvsvn", *_STANDING),
    "qe": _STANDING,
    "expect": ("verdict", "status", "advisories", "reason"),
}
_VERDICTS: Final = ("accepted", "rejected")


@dataclass(frozen=True)
class Expectation:
    """What a verifier must say.

    ``accepted`` means that signatures, dates and the rules of every verifier are satisfied; whether
    the ``status`` is good enough is a policy's decision.  ``reason`` is a part of dcap-qvl's message.
    """

    accepted: bool
    status: str = ""
    advisories: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Scenario:
    """A named world, the quote to make in it, and the expected verdict."""

    name: str
    title: str
    world: World
    version: int
    body: BodyType
    report: TdReportFields
    expect: Expectation

    def quote(self) -> bytes:
        """The scenario's quote."""
        return self.world.quote(self.report, version=self.version, body=self.body)

    def collateral(self) -> Collateral:
        """The scenario's collateral."""
        return self.world.collateral()


def _standing(reader: Reader, section: str) -> Standing:
    table = reader.section(section)
    status = reader.typed(table.get("status", str(TcbStatus.UP_TO_DATE)), str, f"[{section}] status")
    return Standing(
        reader.choice(status, TcbStatus, f"[{section}] status"),
        tuple(reader.strings(table.get("advisories", []), f"[{section}] advisories")),
    )


def _svn(reader: Reader, section: str, default: int) -> int:
    svn = reader.typed(reader.section(section).get("isvsvn", default), int, f"[{section}] isvsvn")
    if svn > 0xFE:
        raise ScenarioError(f"[{section}] isvsvn is at most 254, not {svn}")
    return svn


def _world(reader: Reader, base: World) -> World:
    general = reader.section("scenario")
    faults = reader.strings(general.get("faults", []), "[scenario] faults")
    now = general.get("now", base.now)
    if not isinstance(now, dt.datetime) or now.tzinfo is None:
        raise ScenarioError(
            "[scenario] now must be a TOML date and time with an offset, such as 2025-06-01T00:00:00Z"
        )
    ca = reader.typed(reader.section("platform").get("ca", str(base.ca)), str, "[platform] ca")
    launch = _svn(reader, "module", base.tee_tcb_svn[0])
    current = _svn(reader, "current_module", launch)
    return replace(
        base,
        now=now,
        ca=reader.choice(ca, PckCa, "[platform] ca"),
        tee_tcb_svn=bytes((launch,)) + base.tee_tcb_svn[1:],
        tee_tcb_svn2=bytes((current,)) + base.tee_tcb_svn2[1:],
        platform=_standing(reader, "platform"),
        module=_standing(reader, "module"),
        current_module=_standing(reader, "current_module"),
        qe=_standing(reader, "qe"),
        faults=frozenset(reader.choice(each, Fault, "[scenario] faults") for each in faults),
    )


def _report(reader: Reader, world: World) -> TdReportFields:
    table = reader.section("td")
    report = world.report_fields()
    if "attributes" in table:
        value = reader.typed(table["attributes"], int, "[td] attributes")
        if value >= 1 << 64:
            raise ScenarioError(f"[td] attributes has 64 bits; {value:#x} does not fit")
        report = replace(report, attributes=value)
    if reader.typed(table.get("service_td", False), bool, "[td] service_td"):
        report = replace(report, servtd_hash=bytes(range(1, 49)))
    return report


def parse_scenario(text: str, name: str, base: World | None = None) -> Scenario:
    """A scenario from TOML; what it does not say is as in ``base``.

    Raises:
        ScenarioError: no TOML, an unknown key, or a value that fits nothing; the message names it.
    """
    reader = Reader(text, name, _SECTIONS, ScenarioError)
    world = _world(reader, base or World())
    quote = reader.section("quote")
    version = reader.typed(quote.get("version", 4), int, "[quote] version")
    body = reader.typed(quote.get("body", "1.0" if version == 4 else "1.5"), str, "[quote] body")
    if version not in (4, 5) or body not in _BODIES or (version == 4 and body != "1.0"):
        raise ScenarioError(f"[quote] version {version} with body {body!r}: 4 has 1.0, 5 has 1.0 or 1.5")
    expect = reader.section("expect")
    verdict = reader.typed(expect.get("verdict", ""), str, "[expect] verdict")
    if verdict not in _VERDICTS:
        raise ScenarioError(f"{name}: [expect] verdict must be 'accepted' or 'rejected', not {verdict!r}")
    accepted = verdict == "accepted"
    if accepted == bool(expect.get("reason")) or accepted != bool(expect.get("status")):
        raise ScenarioError(f"{name}: [expect] has a status when accepted, a reason when rejected")
    status = reader.typed(expect.get("status", ""), str, "[expect] status")
    if accepted:
        reader.choice(status, TcbStatus, "[expect] status")
    return Scenario(
        name,
        reader.typed(reader.section("scenario").get("title", name), str, "[scenario] title"),
        world,
        version,
        _BODIES[body],
        _report(reader, world),
        Expectation(
            accepted,
            status,
            tuple(reader.strings(expect.get("advisories", []), "[expect] advisories")),
            reader.typed(expect.get("reason", ""), str, "[expect] reason"),
        ),
    )


def load_scenario(path: Path, base: World | None = None) -> Scenario:
    """The scenario in a file.

    Raises:
        ScenarioError: the file cannot be read or used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot read the scenario {path}: {words(error)}") from None
    return parse_scenario(text, path.stem, base)


def builtin_names() -> list[str]:
    """Names of the scenarios that come with swtdx."""
    folder = resources.files(__package__) / "scenarios"
    return sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))


def builtin(name: str, base: World | None = None) -> Scenario:
    """A scenario that comes with swtdx.

    Raises:
        ScenarioError: there is none of that name.
    """
    file = resources.files(__package__) / "scenarios" / f"{name}.toml"
    if "/" in name or not file.is_file():
        raise ScenarioError(f"there is no scenario {name!r}; there are {', '.join(builtin_names())}")
    return parse_scenario(file.read_text(encoding="utf-8"), name, base)


def builtins(base: World | None = None) -> Iterator[Scenario]:
    """Every scenario that comes with swtdx."""
    for name in builtin_names():
        yield builtin(name, base)


def find(name_or_path: str, base: World | None = None) -> Scenario:
    """A scenario by the path of its file, or by its name if it comes with swtdx.

    Raises:
        AttestationError: neither.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        return load_scenario(path, base)
    try:
        return builtin(name_or_path, base)
    except ScenarioError as error:
        raise AttestationError(str(error)) from None
