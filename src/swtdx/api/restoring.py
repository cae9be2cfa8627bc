"""Going on from a file with a Linux TD."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from swtdx.api.linux import LinuxTd, Sink
from swtdx.api.platform import Platform
from swtdx.guests.agent import renew_request
from swtdx.guests.errors import GuestError
from swtdx.vmm.agent import GuestAgent
from swtdx.vmm.launch import LaunchConfig
from swtdx.warm import SavedTd

#: Bytes of randomness that a restored guest is given.
_SEED: Final = 64
#: Seconds that it has to take them.
_TIME: Final = 60.0


def restore(path: str | Path) -> LinuxTd:
    """Go on with a TD that :meth:`LinuxTd.save` wrote, on a machine of its own; as often as wanted.

    Its clock is set, and its random source gets something that no sibling has.  Closing the TD switches its
    machine off.

    Raises:
        SnapshotError: the file is no such snapshot, of another version or QEMU, or cut short.
        GuestError: the TD in it takes no commands.
        EngineError: QEMU cannot be started.
    """
    with SavedTd(path) as saved:
        about = saved.about
        if not about.waits:
            raise GuestError(f"{path}: the TD in it takes no commands; save one of `Platform.linux`")
        serving, output = GuestAgent(), bytearray()
        inner = saved.platform()
        try:
            platform = Platform.around(inner)
            config = LaunchConfig(
                None, ports=(serving.port,), serial=output.extend, quote_service=platform.quote_service
            )
            launch = saved.launch(inner, config, Sink(output))
            td = LinuxTd(
                platform, launch, serving, output,
                kernel=about.label, cmdline=about.cmdline, memory=about.memory, owns=True,
            )  # fmt: skip
            platform.adopt(launch.hypervisor, td)
            serving.bind(launch, ready=True)
            serving.ask(renew_request(time.time(), os.urandom(_SEED)), _TIME, "setting its clock")
        except BaseException:
            inner.close()
            raise
        return td
