"""The walls hold: each forbidden import, planted in a copy of the source, is named by the linter."""

from __future__ import annotations

import re

import pytest

from tests.house.linter import SOURCE, House, Report

#: (module that the import is planted in, the import, the module that the linter must name)
PLANTED = [
    # These passed the lists of forbidden pairs that stood here before.
    ("vmm.planted_1", "from swtdx.platform import Platform", "platform"),
    ("vmm.planted_2", "from swtdx.machine.machine import Machine", "machine.machine"),
    ("vmm.planted_3", "from swtdx.machine.memory import PhysicalMemory", "machine.memory"),
    ("vmm.planted_4", "from swtdx.cli import main", "cli.main"),
    ("devices.planted_5", "from swtdx.machine.memory import Requestor", "machine.memory"),
    ("devices.planted_6", "from swtdx.vmm import td", "vmm.td"),
    ("guests.planted_7", "from swtdx.machine.machine import Machine", "machine.machine"),
    # The trust boundary, and each way to write an import.
    ("vmm.planted_8", "from swtdx.module.entry import TdxModule", "module.entry"),
    ("vmm.planted_9", "if TYPE_CHECKING:\n    from swtdx.module.entry import TdxModule", "module.entry"),
    ("vmm.planted_10", "def f():\n    from swtdx.module.globals import SYS", "module.globals"),
    ("vmm.planted_11", "from ..platform import Platform", "platform"),
    ("vmm.planted_12", "from ..machine import seam", "machine.seam"),
    ("vmm.planted_13", "from swtdx.machine import *", "machine"),
    ("vmm.planted_14", "import swtdx.machine.processor as processor", "machine.processor"),
    (
        "vmm.planted_15",
        "try:\n    from swtdx.firmware import bios\nexcept ImportError:\n    pass",
        "firmware.bios",
    ),
    ("vmm.planted_16", "from swtdx import __version__", ""),
    ("vmm.planted_17", "from swtdx.attestation import keys", "attestation.keys"),
    ("vmm.planted_18", "from swtdx.lab import bench", "lab.bench"),
    ("vmm.planted_19", "from swtdx.trace import probe", "trace.probe"),
    # A file of the machine that the contracts do not know.
    ("vmm.planted_20", "from swtdx.machine import planted_20", "machine.planted_20"),
    ("devices.pci.planted_21", "from swtdx.machine.host import Host", "machine.host"),
    ("guests.planted_22", "from swtdx.machine.host import Host", "machine.host"),
    ("lab.planted_23", "from swtdx.machine.seam import Seam", "machine.seam"),
    ("lab.planted_24", "from swtdx.machine import seamops", "machine.seamops"),
    ("lab.planted_25", "from swtdx.module.entry import TdxModule", "module.entry"),
    ("trace.planted_26", "from swtdx.module.entry import TdxModule", "module.entry"),
    ("trace.planted_27", "from swtdx.vmm.td import Td", "vmm.td"),
    ("machine.planted_28", "from swtdx.module.entry import TdxModule", "module.entry"),
    ("machine.vmx.planted_29", "from swtdx.vmm.td import Td", "vmm.td"),
    ("module.planted_30", "from swtdx.vmm.td import Td", "vmm.td"),
    ("module.planted_31", "from swtdx.firmware import bios", "firmware.bios"),
    ("module.planted_32", "from swtdx.explaining import find", "explaining.find"),
    ("module.host.planted_33", "from swtdx.measure import mrtd", "measure.mrtd"),
    ("firmware.planted_34", "from swtdx.module.entry import TdxModule", "module.entry"),
    ("attestation.planted_35", "from swtdx.machine.host import Host", "machine.host"),
    ("attestation.qgs.planted_36", "from swtdx.quoting import *", "quoting"),
    ("measure.planted_37", "from swtdx.module import sha384", "module.sha384"),
    ("measure.planted_38", "from swtdx.guests import bzimage", "guests"),
    ("explaining.planted_39", "from swtdx.module.exits import dispatch", "module.exits.dispatch"),
    ("arch.planted_40", "from swtdx.machine.host import Host", "machine.host"),
    ("proof.planted_41", "from swtdx.scenes import stage", "scenes.stage"),
    ("proof.planted_42", "from swtdx.vmm.td import Td", "vmm.td"),
    ("scenes.planted_43", "from swtdx.cli import main", "cli.main"),
    ("scenes.planted_44", "from swtdx.module.globals import SYS", "module.globals"),
    ("scenes.planted_45", "from swtdx.proof.invariants import check", "proof.invariants"),
    ("proof.conformance.planted_46", "from swtdx.module.globals import SYS", "module.globals"),
    # Names in strings, of which one is enough for a lazy command.
    ("vmm.planted_60", 'X = Lazy("swtdx.platform:build", "A platform.")', "platform"),
    ("vmm.planted_61", 'import_module("swtdx.module.entry.TdxModule")', "module.entry"),
    ("devices.planted_62", "X = __import__('swtdx.machine.memory')", "machine.memory"),
    ("lab.planted_63", 'X = {"swtdx.module": 1}', "module"),
    ("measure.planted_64", 'X: "swtdx.module.sha384"', "module.sha384"),
    # What binds the package, and with it all that was imported.
    ("vmm.planted_65", "import swtdx.machine.host\nswtdx.machine.machine", "machine.host"),
]

#: (module, its text, what the linter must say of it): imports at run time, which name nothing.
HIDDEN = [
    ("vmm.planted_80", "import importlib", "imports importlib"),
    ("vmm.planted_81", "from importlib import import_module as load", "imports importlib.import_module"),
    ("vmm.planted_82", "import importlib.util", "imports importlib.util"),
    ("vmm.planted_83", "import importlib.resources", "imports importlib.resources"),
    ("vmm.planted_84", "X = __import__(name)", "uses __import__"),
    ("vmm.planted_85", "import sys\nX = sys.modules[name]", "uses sys.modules"),
    ("vmm.planted_86", "from sys import modules as m", "imports sys.modules"),
    ("vmm.planted_87", "import sys as system", "imports sys under another name"),
    ("vmm.planted_88", "exec(text)", "uses exec"),
    ("vmm.planted_89", "X = [eval][0](text)", "uses eval"),
    ("vmm.planted_90", "X = __builtins__['__import__']", "uses __builtins__"),
    ("vmm.planted_91", "import pkgutil", "imports pkgutil"),
    ("vmm.planted_92", "from runpy import run_module", "imports runpy.run_module"),
    ("vmm.planted_93", "X = f.__globals__", "uses __globals__"),
    ("vmm.planted_94", "X = f'swtdx.{room}'", "puts the name of a module together"),
    ("vmm.planted_95", "X = 'swtdx.' + room", "puts the name of a module together"),
    ("cli.planted_96", "from builtins import __import__", "imports builtins.__import__"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    house = House(tmp_path_factory.mktemp("house"))
    house.plant("swtdx.machine.planted_20", "")
    for module, text, _ in PLANTED + HIDDEN:
        house.plant("swtdx." + module, text)
    return house.lint()


@pytest.mark.parametrize(("module", "text", "imported"), PLANTED, ids=[module for module, *_ in PLANTED])
def test_a_forbidden_import_is_named(report: Report, module: str, text: str, imported: str) -> None:
    assert report.status == 1
    assert ("swtdx." + module, f"swtdx.{imported}".rstrip(".")) in report.edges


@pytest.mark.parametrize(("module", "text", "words"), HIDDEN, ids=[module for module, *_ in HIDDEN])
def test_an_import_at_run_time_is_named(report: Report, module: str, text: str, words: str) -> None:
    lines = [line for line in report.text.splitlines() if f"- swtdx.{module} (l." in line]
    assert any(words in line for line in lines), lines


def test_nothing_else_is_named(report: Report) -> None:
    """What the linter says is about what was planted, so the tree itself keeps the contracts."""
    assert {importer for importer, _ in report.edges if ".planted_" not in importer} == set()


@pytest.mark.parametrize("room", ["swtdx.attic", "swtdx.attic.box"])
def test_a_new_room_must_be_placed(tmp_path_factory: pytest.TempPathFactory, room: str) -> None:
    house = House(tmp_path_factory.mktemp("house"))
    house.plant(room, "from swtdx.arch import regs")
    if room.count(".") > 1:
        house.plant("swtdx.attic.__init__", "")
    report = house.lint()
    assert report.status == 1
    assert "swtdx.attic" in report.text


def test_an_exception_that_is_not_needed_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    house = House(tmp_path_factory.mktemp("house"))
    (house.source / "cli" / "lazy.py").write_text("")
    report = house.lint()
    assert report.status == 1
    assert "swtdx.cli.lazy is allowed by the contract, and does not happen" in report.text


def test_the_loaded_module_is_handed_to_none_but_the_probe() -> None:
    """``Seam.module`` is the module itself: past an import, an attribute would lead into it."""
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"seam\.(module|_loaded)\b", path.read_text(encoding="utf-8"))
    }
    assert users == {"proof/probe.py"}
