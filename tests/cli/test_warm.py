"""``swtdx run --snapshot-to``, ``--from`` and ``--warm``, as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.cli import saving
from swtdx.cli.main import main
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import default_guest
from swtdx.machine.snapshot import SnapshotWriter
from tests.fetching import cannot_fetch

RUN = [sys.executable, "-m", "swtdx.cli.main", "run"]
boots = [
    pytest.mark.boot,
    pytest.mark.qemu,
    pytest.mark.network,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]


# ---------------------------------------------------------------------- wrong use
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--snapshot-at", "3"], "go with --snapshot-to"),
        (["--snapshot-when", "x"], "go with --snapshot-to"),
        (["--snapshot-to", "f", "--snapshot-at", "3", "--snapshot-when", "x"], "exclude each other"),
        (["--snapshot-to", "f", "--from", "g"], "exclude each other"),
        (["--snapshot-to", "f", "--tiny"], "leave out --tiny"),
        (["--snapshot-to", "f", "--exec", "x", "--get", "a:b"], "--get and --snapshot-to exclude"),
        (["--warm"], "--warm goes with --exec"),
        (["--warm", "--from", "f", "--exec", "x"], "leave out --snapshot-to and --from"),
        (["--from", "f", "--append", "x", "--exec", "x"], "leave out --append"),
        (["--from", "f", "--debug"], "leave out --debug"),
        (["--from", "f", "--disk", "g"], "leave out --disk"),
        (["--from", "f", "--seed", "g"], "leave out --seed"),
    ],
)
def test_combinations_that_mean_nothing(
    words: list[str], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words]) == 2
    assert why in capfd.readouterr().err


def test_what_is_not_a_saved_td(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content, why in ((None, "No such file"), (b"", "not a swtdx snapshot"), (b"SWTDXSNP", "truncated")):
        file = tmp_path / "file"
        if content is not None:
            file.write_bytes(content)
        assert main(["run", "--from", str(file), "--exec", "true"]) == 125
        assert why in capfd.readouterr().err
    with SnapshotWriter(file) as writer, writer.section("clock", 1):
        pass
    assert main(["run", "--from", str(file), "--exec", "true"]) == 125
    assert "not of a running TD" in capfd.readouterr().err


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = [saving.cached(f"{number:02}") for number in range(12)]
    assert files[0].parent.stat().st_mode & 0o777 == 0o700
    for number, file in enumerate(files):
        file.touch()
        os.utime(file, (number, number))
    saving.tidy(files[0])
    left = {file.name for file in files[0].parent.iterdir()}
    assert left == {"00.td", *(f"{number:02}.td" for number in range(5, 12))}


# ---------------------------------------------------------------------- whole runs
def run(
    *arguments: str, data: bytes = b"", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*RUN, *arguments],
        input=data, capture_output=True, timeout=250, env={**os.environ, **(environment or {})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def kernel() -> list[str]:
    try:
        return ["--guest", (default_guest() or fetch_guest()).version, "--memory", "256M"]
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


@pytest.fixture(scope="module")
def saved(kernel: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TD that has loaded something before it was saved."""
    folder = tmp_path_factory.mktemp("saved")
    result = run(*kernel, "--snapshot-to", str(folder / "td"), "--exec", "echo prepared | tee /tmp/state")
    assert (result.returncode, result.stdout) == (0, b"prepared\n"), result.stderr
    return folder / "td"


def marked(*marks: pytest.MarkDecorator) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def mark(test: Callable[..., None]) -> Callable[..., None]:
        for one in marks:
            test = one(test)
        return test

    return mark


@marked(*boots)
def test_a_command_with_its_streams_and_files(saved: Path, tmp_path: Path) -> None:
    command = "cat /tmp/state; cat; echo error >&2; echo file >/tmp/out; exit 7"
    result = run(
        "--from", str(saved), "--get", f"/tmp/out:{tmp_path}/out", "--json", str(tmp_path / "json"),
        "--exec", command, data=b"input\n" * 20000,
    )  # fmt: skip
    assert result.returncode == 7
    assert result.stdout == b"prepared\n" + b"input\n" * 20000
    assert result.stderr == b"error\n"
    assert (tmp_path / "out").read_text() == "file\n"
    summary = json.loads((tmp_path / "json").read_text())
    assert summary["end"]["command_status"] == 7
    assert (summary["snapshot"], summary["memory"]) == (str(saved), 256 << 20)


@marked(*boots)
def test_streams_can_be_merged_and_left_out(saved: Path) -> None:
    result = run(
        "--from", str(saved), "--merge-stderr", "-n", "--exec", "echo a >&2; cat; echo b", data=b"no"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"a\nb\n", b"")


@marked(*boots)
def test_siblings_have_the_time_and_random_numbers_of_their_own(saved: Path) -> None:
    both = [
        subprocess.Popen(
            [*RUN, "--from", str(saved), "-n", "--exec", "date +%s; head -c 32 /dev/urandom | sha256sum"],
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    seen = [process.communicate(timeout=200)[0].decode().split() for process in both]
    assert all(abs(int(words[0]) - time.time()) < 10 for words in seen)
    assert seen[0][1] != seen[1][1]


@marked(*boots)
def test_what_the_saved_td_is_not(saved: Path) -> None:
    for words, why in (
        ([], "waits for a command"),
        (["--exec", "true", "--memory", "1G"], "--memory 256M: leave that out"),
        (["--exec", "true", "--model", "emerald-rapids"], "--model sierra-forest"),
    ):
        result = run("--from", str(saved), *words)
        assert result.returncode == 2
        assert why in result.stderr.decode()


@marked(*boots)
def test_a_preparation_that_fails_leaves_no_file(kernel: list[str], tmp_path: Path) -> None:
    result = run(*kernel, "--snapshot-to", str(tmp_path / "td"), "--exec", "echo why; exit 3")
    assert (result.returncode, result.stdout) == (3, b"why\n")
    assert list(tmp_path.iterdir()) == []


@marked(*boots)
def test_a_guest_in_the_middle_of_its_work(kernel: list[str], tmp_path: Path) -> None:
    """By a marker on its console; it goes on where it was."""
    result = run(*kernel, "--snapshot-to", str(tmp_path / "td"), "--snapshot-when", "TD", "--demo")
    assert result.returncode == 0
    assert b"TD" in result.stdout
    rest = run("--from", str(tmp_path / "td"))
    assert rest.returncode == 0
    assert len(rest.stdout) > 100
    whole = (result.stdout + rest.stdout).decode()
    cold = run(*kernel, "--demo").stdout.decode()
    # Digests, times and the like differ from boot to boot; the lines do not.
    shape = re.compile(r"[0-9a-f.:]+")
    assert [shape.sub("", line) for line in whole.split("\n")] == [
        shape.sub("", line) for line in cold.split("\n")
    ]
    assert b"takes no command" in run("--from", str(tmp_path / "td"), "--exec", "true").stderr


@marked(*boots)
def test_warm_boots_once(kernel: list[str], tmp_path: Path) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swtdx" / "guests"
    (tmp_path / "swtdx").mkdir()
    (tmp_path / "swtdx" / "guests").symlink_to(cache)
    said = []
    for words in (["--warm"], ["--warm"], [], ["--cold"]):
        environment = {"XDG_CACHE_HOME": str(tmp_path)} | ({} if "--warm" in words else {"SWTDX_WARM": "1"})
        result = run(*kernel, "-v", *words, "--exec", "echo done", environment=environment)
        assert (result.returncode, result.stdout) == (0, b"done\n"), result.stderr
        text = result.stderr.decode()
        said.append(("leaves a snapshot" in text, "warm: going on" in text, "booting" in text))
    assert said == [(True, True, True), (False, True, False), (False, True, False), (False, False, True)]
    (file,) = (tmp_path / "swtdx" / "warm").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    # A snapshot that cannot be used any more is replaced.
    file.write_bytes(file.read_bytes()[:-1])
    again = run(*kernel, "--warm", "--exec", "echo done", environment={"XDG_CACHE_HOME": str(tmp_path)})
    assert (again.returncode, again.stdout) == (0, b"done\n")
    assert b"truncated" in again.stderr
