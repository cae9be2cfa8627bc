"""``swtdx platform``: what it prints, for people and for programs, and what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from swtdx.cli.platform import Cmr, platform
from swtdx.cli.sizes import Size
from swtdx.firmware.image import build_module
from swtdx.machine.memory import Integrity
from swtdx.platform import Platform, PlatformConfig
from tests.memory.test_matrix import COLUMNS, TABLE, expected

MIB, GIB = 1 << 20, 1 << 30


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(platform, list(arguments))


def described(*arguments: str) -> dict[str, Any]:
    result = invoke("--json", *arguments)
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.output)
    return summary


def apart(ranges: list[dict[str, int]]) -> bool:
    spans = sorted((part["base"], part["base"] + part["size"]) for part in ranges)
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_json_of_the_default_machine() -> None:
    summary = described()
    memory, keyids = summary["memory"], summary["keyids"]
    assert sum(part["size"] for part in memory["dram"]) == 4 * GIB
    assert apart([*memory["cmrs"], memory["seamrr"], memory["smrr"]])
    for cmr in memory["cmrs"]:
        assert any(
            part["base"] <= cmr["base"] and cmr["base"] + cmr["size"] <= part["base"] + part["size"]
            for part in memory["dram"]
        )
    assert memory["seamrr"]["base"] % memory["seamrr"]["size"] == 0
    assert (keyids["shared"], keyids["private"]) == ({"first": 0, "last": 31}, {"first": 32, "last": 63})
    assert keyids["lowest_address_bit"] == summary["processor"]["maxpa"] - keyids["bits"] == 46
    assert [len(package["processors"]) for package in summary["packages"]] == [2]
    # The module's identity, by the rule of structures.md §12 and not by ours.
    assert summary["module"]["mrseam"] == hashlib.sha384(build_module()).hexdigest()
    assert summary["module"]["mrsignerseam"] == "00" * 48
    assert len(summary["p_seamldr"]["module_signers"]) == 1
    assert len(bytes.fromhex(summary["np_seamldr"]["measurement"])) == 48


def test_json_of_another_machine() -> None:
    summary = described(
        "--packages", "2", "--cpus", "4", "--memory", "8G", "--keyid-bits", "7", "--tdx-keyid-bits", "3",
        "--integrity", "logical", "--seamrr-size", "64M", "--model", "emerald-rapids", "--cmr", "1M:512M",
        "--cmr", "4G:1G",
    )  # fmt: skip
    assert summary["processor"]["signature"] & ~0xF == 0xC06F0
    ids = [lp["x2apic_id"] for package in summary["packages"] for lp in package["processors"]]
    assert ids == list(range(8))
    assert summary["memory"]["cmrs"] == [{"base": MIB, "size": 512 * MIB}, {"base": 4 * GIB, "size": GIB}]
    assert summary["memory"]["seamrr"]["size"] == 64 * MIB
    assert summary["keyids"]["private"] == {"first": 16, "last": 127}
    assert summary["keyids"]["integrity"] == "logical"


def test_a_seed_is_text_hex_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def boot(config: PlatformConfig) -> Platform:
        seeds.append(config.machine.seed)
        return real(config)

    real = Platform.boot
    monkeypatch.setattr(Platform, "boot", boot)
    (tmp_path / "seed").write_bytes(b"\0\1")
    for given in ("abc", "0x616263", f"@{tmp_path}/seed"):
        described("--seed", given)
    assert seeds == [b"abc", b"abc", b"\0\1"]
    for bad in ("0xyz", "0x", f"@{tmp_path}/none"):
        refused = invoke("--seed", bad)
        assert refused.exit_code == 2
        assert "'--seed'" in refused.output


def test_the_table_says_the_same() -> None:
    summary, text = described(), invoke().output
    lines = [line.split() for line in text.splitlines()]
    assert ["CMRs", "0x000000100000-0x00007bffffff", "1.94", "GiB"] in lines
    assert ["SEAMRR", "0x00007c000000-0x00007dffffff", "32", "MiB"] in lines
    assert "shared 0-31, private 32-63, in address bits 51:46" in text
    for value in (
        summary["processor"]["brand"],
        summary["processor"]["cpusvn"],
        summary["np_seamldr"]["measurement"],
        summary["p_seamldr"]["module_signers"][0],
        summary["module"]["mrseam"],
        summary["module"]["tee_tcb_svn"],
        f"{summary['module']['name']} {summary['module']['version']}",
    ):
        assert value in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cmr", "1M:2G"], "CMR 0: 0x100000-0x800fffff is not wholly backed by memory"),
        (["--cmr", "1M:1984M"], "CMR 0: 0x100000-0x7c0fffff overlaps SEAMRR 0x7c000000-0x7dffffff"),
        (["--cmr", "1M:1M", "--cmr", "1M:1M"], "CMR 1: 0x100000-0x1fffff overlaps the CMR before it"),
        (["--cmr", "1:1M"], "not aligned to 4 KiB"),
        (["--tdx-keyid-bits", "0"], "no KeyIDs for TDX"),
        (["--keyid-bits", "8"], "8 KeyID bits; the part has 7"),
        (["--keyid-bits", "2", "--tdx-keyid-bits", "3"], "3 TDX KeyID bits of 2"),
        (["--keyid-bits", "0", "--tdx-keyid-bits", "0"], "there are no KeyIDs"),
        (["--seamrr-size", "33M"], "power of two"),
        (["--seamrr-size", "16M"], "power of two from 0x2000000 up"),
        (["--seamrr-size", "1G", "--memory", "1G"], "does not fit"),
        (["--memory", "64M"], "give at least 128 MiB"),
        (["--memory", "129M"], "units of 2 MiB"),
        (["--packages", "9"], "1 to 8 packages"),
        (["--cpus", "0"], "processors"),
        (["--memory", "8G", "--seamrr-size", "2G"], "does not fit"),
    ],
)
def test_a_platform_that_its_firmware_refuses(arguments: list[str], words: str) -> None:
    """Exit status 1 and one message that names the thing; never a traceback."""
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith("Error: ")
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "lots"], "'lots' is not a size; write 4G"),
        (["--memory", "-4G"], "is not a size"),
        (["--cmr", "1M"], "'1M' is not a range; write 1M:1G"),
        (["--cmr", "1M:x"], "'x' is not a size"),
        (["--model", "pentium"], "sierra-forest"),
        (["--integrity", "none"], "cryptographic"),
        (["--packages", "two"], "not a valid integer"),
    ],
)
def test_wrong_use(arguments: list[str], words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("text", "value"),
    [("4G", 4 * GIB), ("512M", 512 * MIB), ("0x1000", 4096), ("64k", 65536), ("1TiB", 1 << 40), ("7", 7)],
)
def test_sizes(text: str, value: int) -> None:
    assert Size().convert(text, None, None) == value
    assert Cmr().convert(f"0x100000:{text}", None, None) == (MIB, value)


@pytest.mark.parametrize("integrity", list(Integrity), ids=lambda mode: mode.value)
def test_access_matrix(integrity: Integrity) -> None:
    """Every cell as in the table that was written by hand from the design."""
    wanted = {
        (line, access): expected(cell, integrity)
        for line, row in TABLE.items()
        for access, cell in zip(COLUMNS, row.split(), strict=True)
    }
    result = invoke("--access-matrix", "--json", "--integrity", integrity.value)
    assert result.exit_code == 0
    matrix = json.loads(result.output)
    assert matrix["integrity"] == integrity.value
    assert {(cell["line"], cell["access"]): cell["outcome"] for cell in matrix["cells"]} == wanted
    # The printed one: a block for each kind of line.
    text = invoke("--access-matrix", "--integrity", integrity.value).output
    line = ""
    printed: dict[tuple[str, str], str] = {}
    for row in text.splitlines()[1:]:
        if row.strip() in TABLE:
            line = row.strip()
            continue
        access = max((name for name in COLUMNS if row.strip().startswith(name)), key=len)
        printed[line, access] = row.strip()[len(access) :].strip()
    assert printed == wanted
