"""``swtdx run --gdb``: what GDB's ``monitor`` says of a TD, by name."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Final

from swtdx.arch import status as st
from swtdx.arch.sept import BY_PUBLIC
from swtdx.vmm import seamcalls as sc

if TYPE_CHECKING:
    from swtdx.vmm.launch import Launch

_HELP: Final = """\
monitor exits          TD exits, TDVMCALLs and SEAMCALLs so far
monitor sept GPA       the Secure EPT entry of a guest-physical address
monitor explain WHAT   what a number or a name of the ABI means, as `swtdx explain`
"""


class Monitor:
    """The commands; called with what the user has typed, while the TD stands still."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def __call__(self, words: str) -> str:
        """What there is to say."""
        verb, _, rest = words.strip().partition(" ")
        match verb:
            case "exits":
                return self._exits()
            case "sept":
                return self._sept(rest)
            case "explain":
                return _explained(rest.split())
        return _HELP if verb in ("", "help") else f"there is no `monitor {verb}`\n{_HELP}"

    def _exits(self) -> str:
        stats = self._launch.runner.stats()
        parts = (("TD exits", stats.exits), ("TDVMCALLs", stats.tdvmcalls), ("SEAMCALLs", stats.seamcalls))
        lines = []
        for title, counts in parts:
            lines.append(f"{title}:")
            lines += [f"  {count:8} {name}" for name, count in counts.items()]
        return "\n".join(lines) + "\n"

    def _sept(self, text: str) -> str:
        try:
            gpa = int(text, 0)
        except ValueError:
            return f"{text!r} is no guest-physical address\n"
        td = self._launch.td
        with td.cpu.borrowed() as cpu:
            # The walk ends above where a larger page is.
            for level in range(3):
                base = gpa & -(4096 << 9 * level)
                status, entry, info = sc.tdh_mem_sept_rd(cpu, base, level, td.root)
                if not st.is_error(status):
                    break
        if st.is_error(status):
            return f"TDH.MEM.SEPT.RD: {st.name_of(status)}\n"
        state = BY_PUBLIC.get(info >> 8 & 0xFF)
        name = "in an unknown state" if state is None else state.name
        return f"level {info & 7}, {name}, entry {entry:#x}\n"


def _explained(words: list[str]) -> str:
    """What ``swtdx explain`` prints."""
    from swtdx.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        main(["explain", *words])
    return said.getvalue()
