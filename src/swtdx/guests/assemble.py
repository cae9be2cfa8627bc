"""Assembling swtdx's guest code with GNU binutils, so that the same source gives the same bytes.

The results are committed beside their sources: binutils is needed only to change them.
``python -m swtdx.guests.assemble`` rewrites all of them; a test reassembles and compares.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from swtdx.guests.errors import GuestError


@dataclass(frozen=True, slots=True)
class Program:
    """An assembled program: its name, source, linker script and result, relative to this package."""

    name: str
    source: str
    script: str
    binary: str


PROGRAMS: Final = (
    Program("shim", "shim/shim.S", "shim/shim.ld", "shim/shim.bin"),
    Program("tiny", "shim/tiny.S", "shim/tiny.ld", "shim/tiny.bin"),
    Program("tdreport", "tools/tdreport.S", "tools/program.ld", "tools/tdreport.bin"),
    Program("renew", "tools/renew.S", "tools/program.ld", "tools/renew.bin"),
)


def binutils_missing() -> str | None:
    """None if ``as``, ``ld`` and ``objcopy`` are there; otherwise what to type to get them."""
    absent = [tool for tool in ("as", "ld", "objcopy") if shutil.which(tool) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} not found; install binutils (Debian, Ubuntu: apt-get install binutils)"


def assemble(program: Program) -> bytes:
    """Assemble and link ``program`` from its source; return its bytes.

    Raises:
        GuestError: binutils is missing, or the source has an error (the tools' own words follow).
    """
    missing = binutils_missing()
    if missing:
        raise GuestError(missing)
    with (
        resources.as_file(resources.files("swtdx.guests")) as package,
        tempfile.TemporaryDirectory(prefix="swtdx-as-") as scratch,
    ):
        source = package / program.source
        obj, linked, flat = (Path(scratch) / name for name in ("o", "linked", "flat"))
        _run("as", "--64", "-I", str(source.parent), "-o", str(obj), str(source))
        # Flat bytes only: ELF section tables differ between versions of binutils.
        script = str(package / program.script)
        _run(
            *("ld", "--build-id=none", "-m", "elf_x86_64", "-nostdlib", "-static", "-z", "noexecstack"),
            *("-T", script, "-o", str(linked), str(obj)),
        )
        _run("objcopy", "-O", "binary", "-j", ".text", str(linked), str(flat))
        return flat.read_bytes()


def committed(name: str) -> bytes:
    """The committed bytes of the program called ``name``.

    Raises:
        GuestError: there is no such program, or its file is missing from this installation.
    """
    for program in PROGRAMS:
        if program.name == name:
            try:
                return resources.files("swtdx.guests").joinpath(program.binary).read_bytes()
            except OSError as error:
                raise GuestError(f"{program.binary} is missing from this installation of swtdx") from error
    raise GuestError(f"swtdx has no guest program called {name!r}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GuestError(f"{command[0]} failed: {done.stderr.strip()}")


def main() -> None:
    """Reassemble every program into its committed place."""
    with resources.as_file(resources.files("swtdx.guests")) as package:
        for program in PROGRAMS:
            data = assemble(program)
            (package / program.binary).write_bytes(data)
            print(f"{program.binary}: {len(data)} bytes")


if __name__ == "__main__":
    main()
