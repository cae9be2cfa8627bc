"""The table of features against the QEMU that executes guests: what is shown works, and only that."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from swtdx.machine.cpu.features import FEATURES, By
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig

#: QEMU's names, where they are not the SDM's.
NAMES = {"CMPXCHG16B": "cx16", "CLFSH": "clflush", "LZCNT": "abm", "XGETBV_ECX1": "xgetbv1", "SHA": "sha-ni"}
_COMMANDS = (
    {"execute": "qmp_capabilities"},
    {
        "execute": "query-cpu-model-expansion",
        "arguments": {"type": "full", "model": {"name": "max"}},
    },
    {"execute": "quit"},
)


@pytest.fixture(scope="module")
def executed() -> dict[str, bool]:
    """The features of ``-cpu max`` under TCG, as QMP reports them."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("QEMU is not installed")
    command = [qemu, "-M", "none", "-accel", "tcg", "-display", "none", "-nodefaults", "-qmp", "stdio"]
    talk = "\n".join(map(json.dumps, _COMMANDS)) + "\n"
    run = subprocess.run(command, input=talk, capture_output=True, text=True, check=True, timeout=60)
    answers = [json.loads(line).get("return", {}) for line in run.stdout.splitlines()]
    properties = next(answer["model"]["props"] for answer in answers if "model" in answer)
    return {_plain(name): value for name, value in properties.items() if isinstance(value, bool)}


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(".", "")


@pytest.mark.qemu
def test_what_the_engine_is_said_to_execute_it_executes(executed: dict[str, bool]) -> None:
    names = [
        feature.name
        for feature in FEATURES
        if feature.by is By.ENGINE and not feature.name.startswith("XCR0")
    ]
    missing = [name for name in names if not executed.get(_plain(NAMES.get(name, name)))]
    assert missing == []
    assert len(names) > 50


@pytest.mark.qemu
def test_what_tcg_is_said_not_to_execute_it_does_not(executed: dict[str, bool]) -> None:
    """Hidden for no reason otherwise; a newer QEMU may have learnt one, and the table should follow."""
    hidden = [feature.name for feature in FEATURES if "TCG does not execute" in feature.why]
    known = [name for name in hidden if _plain(NAMES.get(name, name)) in executed]
    assert len(known) > 25
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    if " 7.2" not in version.stdout:
        pytest.skip("the table is that of QEMU 7.2")
    assert [name for name in known if executed[_plain(NAMES.get(name, name))]] == []


def test_every_row_is_a_bit_of_its_own() -> None:
    places = [(row.leaf, row.subleaf, row.register, row.bit) for row in FEATURES]
    assert len(set(places)) == len(places)
    assert len({row.name for row in FEATURES}) == len(FEATURES)
    assert all(row.why for row in FEATURES if row.by in (By.ABSENT, By.HOST))


def test_only_the_host_has_movdir64b() -> None:
    """Linux's TDX host support asks for it; the module, and so a guest, does not see what TCG has not."""
    config = PlatformConfig(machine=MachineConfig(processors_per_package=1, memory_bytes=512 << 20))
    with Platform.boot(config) as platform:
        host, seen = platform.host.processors[0].cpuid(7), platform.machine.processors[0].cpuid(7)
    assert [a ^ b for a, b in zip(host, seen, strict=True)] == [0, 0, 1 << 28, 0]
    assert host[2] >> 28 & 1
    assert {(row.leaf, row.subleaf, row.register) for row in FEATURES if row.by is By.HOST} == {(7, 0, "ecx")}
