"""One command in a TD of its own."""

from __future__ import annotations

from typing import Any

from swtdx.api.linux import Completed
from swtdx.api.platform import Platform


def run(command: str, *, stdin: bytes = b"", timeout: float | None = 60.0, **options: Any) -> Completed:
    """Boot Linux as a TD, run one command in it, and switch it off.

    Args:
        command: lines for the shell, as in :meth:`LinuxTd.run`.
        stdin: what it reads.
        timeout: seconds that it may take.
        options: more for ``Platform.linux``: ``kernel``, ``memory``, ``vcpus``, ``add`` ...

    Raises:
        Exception: those of ``Platform``, ``Platform.linux`` and ``LinuxTd.run``.
    """
    memory = options.get("memory", 512 << 20)
    with Platform(memory=memory, cpus=options.get("vcpus", 1)) as platform:
        return platform.linux(**options).run(command, stdin=stdin, timeout=timeout)
