"""What takes more than two seconds says on a terminal how far it is, and nothing of it anywhere else."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "swtdx.cli.main"]


def on_a_terminal(*arguments: str) -> tuple[str, str]:
    """Standard output, and all that was written to a terminal that is standard error."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the last one who had it open is gone
                break
            seen += data
        assert process.stdout is not None
        output = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, seen
    return output.decode(), seen.decode()


def quietly(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["abi", "TDH.MNG.CREATE"], r"\b(\d+) of (\d+) cases$"),
        (["abi", "--order", "TDH.MNG.CREATE"], r"\b(\d+) pairs of checks$"),
        (["vectors", "make", "FOLDER"], r"\b(\d+) vectors$"),
    ],
)
def test_a_line_that_counts_and_is_gone_at_the_end(arguments: list[str], line: str, tmp_path: Path) -> None:
    words = [str(tmp_path / "made") if word == "FOLDER" else word for word in arguments]
    output, shown = on_a_terminal(*words)
    states = [found for part in shown.split("\r\x1b[K") if (found := re.search(line, part))]
    counts = [int(found[1]) for found in states]
    assert len(counts) > 3
    assert counts == sorted(set(counts))
    assert shown.endswith("\x1b[K"), "nothing of it is left"
    assert not re.search(line, output)
    alone = quietly(*words)
    assert (alone.stdout, alone.stderr) == (output, "")


@pytest.mark.boot
@pytest.mark.qemu
@pytest.mark.network
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
def test_a_slow_start_says_how_long_it_has_been() -> None:
    """Until the first byte of what the user asked for."""
    output, shown = on_a_terminal("run", "--memory", "1G", "--vcpus", "2", "--exec", "sleep 1; echo here")
    assert output == "here\n"
    label = r"booting \S+ as a trust domain \.\.\."
    assert re.match(label, shown), shown
    assert [int(second) for second in re.findall(label + r" (\d+) s", shown)][:2] == [1, 2]
    assert shown.endswith("\r\x1b[K")
