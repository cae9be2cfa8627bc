"""The front door: cheap to open, and whatever goes wrong behind it ends in one line and a status."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import swtdx
from swtdx.cli import failures, main
from swtdx.cli.lazy import Lazy, LazyGroup

HEAVY = ("numpy", "cryptography", "fastapi", "rich", "iced_x86", "swtdx.machine", "swtdx.platform")


def swtdx_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "swtdx.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom swtdx.cli.main import main\nassert main(['--help']) == 0\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert "Commands:" in done.stdout
    assert "platform" in done.stdout


def test_no_threads_that_nothing_is_for() -> None:
    """numpy's library for linear algebra would start one for each core."""
    script = """
import os, sys
import swtdx.cli.main
def threads():
    import numpy
    return len(os.listdir("/proc/self/task"))
swtdx.cli.main.main = threads
swtdx.cli.main.entry()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.split()[-1] == swtdx.__version__


@pytest.mark.parametrize("name", [name for name, lazy in main.COMMANDS.items() if lazy.exists()])
def test_every_listed_command_loads_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.COMMANDS[name].load().name == name
    assert main.main([name, "--help"]) == 0
    assert "Usage: swtdx " + name in capsys.readouterr().out


def test_the_exceptions_known_by_name_exist() -> None:
    for where in failures.EXPECTED:
        module, _, name = where.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        assert failures.is_expected(kind.__new__(kind))


def one_command_that_raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(main, "cli", click.Group("swtdx", {"broken": broken}))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/no/such"), 2, "/no/such: No such file"),
        (click.ClickException("so it is"), 1, "swtdx: so it is"),
        (click.UsageError("not like this"), 2, "not like this"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (ImportError("No module named 'dcap_qvl'"), 70, "incomplete"),
        (KeyError("x"), 70, "SWTDX_TRACEBACK=1"),
    ],
)
def test_failures_end_in_words_and_a_status(
    error: BaseException,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SWTDX_TRACEBACK", raising=False)
    # The report on a broken pipe throws standard output away, which pytest needs.
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    one_command_that_raises(error, monkeypatch)
    assert main.main(["broken"]) == status
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


def test_a_subclass_of_an_expected_error_is_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from swtdx.guests.errors import NotAKernel

    one_command_that_raises(NotAKernel("/dev/null is not a kernel"), monkeypatch)
    assert main.main(["broken"]) == 2
    assert capsys.readouterr().err == "swtdx: /dev/null is not a kernel\n"


def test_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWTDX_TRACEBACK", "1")
    one_command_that_raises(KeyError("x"), monkeypatch)
    with pytest.raises(KeyError):
        main.main(["broken"])


def test_shell_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    done = swtdx_process(_SWTDX_COMPLETE="bash_complete", COMP_WORDS="swtdx pl", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,platform"]


def test_missing_commands_are_left_out_and_broken_ones_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swtdx_broken_command.py").write_text("import no_such_module_of_anybodys\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    table = {
        "absent": Lazy("swtdx.cli.no_such_command:absent", "Not there."),
        "broken": Lazy("swtdx_broken_command:broken", "There, but broken."),
    }
    group = LazyGroup("swtdx", commands_table=table)
    context = click.Context(group)
    assert group.list_commands(context) == ["broken"]
    assert group.get_command(context, "absent") is None
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_anybodys"):
        group.get_command(context, "broken")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """A real pipe: the reader closes it before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "swtdx.cli.main", "pcs", "scenarios"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


def test_ctrl_c_ends_a_command_with_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "swtdx.cli.main", "verify", "-", "--pcs", "http://127.0.0.1:1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # It reads standard input; wait until it does nothing but that.
    wchan = Path(f"/proc/{process.pid}/wchan")
    for _ in range(500):
        if "pipe" in wchan.read_text():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
