"""``swtdx quote`` up to the boot: what it runs inside the TD, what it reads, what it refuses."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from swtdx.cli.quote import quote
from swtdx.guests.quote_job import Answer, command, parse_output

EVERY_BYTE = [bytes(range(first, first + 64)) for first in range(0, 256, 64)]


def run_in(folder: Path, reportdata: bytes, outblob: bytes | None, log: bytes | None) -> bytes:
    """The script's output under a shell, with files in place of the kernel's."""
    report, tables = folder / "report", folder / "tables"
    entry = report / "swtdx"
    tables.mkdir()
    if outblob is not None:
        entry.mkdir(parents=True)
        (entry / "generation").write_text("1\n")
        (entry / "outblob").write_bytes(outblob)
    if log is not None:
        (tables / "CCEL").write_bytes(log)
    script = command(reportdata).replace("/sys/kernel/config/tsm/report", str(report))
    script = script.replace("/sys/firmware/acpi/tables/data", str(tables)).replace("mkdir ", "mkdir -p ")
    script = script.replace("/tmp/quote", str(folder / "quote"))
    return subprocess.run(["sh", "-c", script], capture_output=True, timeout=20).stdout


@pytest.mark.parametrize("reportdata", EVERY_BYTE)
def test_the_script_under_a_shell(tmp_path: Path, reportdata: bytes) -> None:
    blob, log = bytes(range(256)) * 17, b"\xff" * 3000
    output = run_in(tmp_path, reportdata, blob, log)
    assert (tmp_path / "report" / "swtdx" / "inblob").read_bytes() == reportdata
    assert parse_output(output) == Answer(blob, log)
    # As a console may deliver it.
    assert parse_output(output.replace(b"\n", b"\r\n")) == Answer(blob, log)


def test_no_event_log_is_an_empty_one(tmp_path: Path) -> None:
    assert parse_output(run_in(tmp_path, bytes(64), b"q" * 100, None)) == Answer(b"q" * 100, b"")


def test_kernels_and_services_that_give_none(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "alone").mkdir()
    assert "CONFIG_TSM_REPORTS" in str(parse_output(run_in(tmp_path / "old", bytes(64), None, None)))
    output = run_in(tmp_path / "alone", bytes(64), b"", None)
    assert "the quote service refused, or there is none" in str(parse_output(output))


def test_output_that_was_cut() -> None:
    assert parse_output(b"") == "it printed nothing"
    assert parse_output(b"quote:\n" + base64.b64encode(b"q" * 90)) == "its output was cut"
    assert "was cut" in str(parse_output(b"quote:\nQUJ\nevent log:\n"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nonce", "00", "--report-data", "00" * 64], "exclude each other"),
        (["--nonce", "00" * 65], "these are 65"),
        (["--report-data", "00" * 63], "these are 63"),
        (["--nonce", "nonsense"], "is not hex"),
        (["--seed", "0xzz"], "cannot be used"),
        (["--seed", "@missing"], "No such file"),
        (["--qgs", "unix:/q", "--root", "r"], "that service's maker"),
        (["--kernel", "k", "--guest", "6.12"], "exclude each other"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_starts(
    arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(quote, arguments)
    assert result.exit_code == 2
    assert complaint in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_time_covers_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetching(*_: object) -> None:
        time.sleep(60)

    monkeypatch.setattr("swtdx.cli.quote.choose", fetching)
    start = time.monotonic()
    done = CliRunner().invoke(quote, ["--timeout", "0.2", "--nonce", "00"])
    assert done.exit_code == 1
    assert "the time was over (0.2 s) while the kernel was being fetched or read" in done.output
    assert time.monotonic() - start < 30
