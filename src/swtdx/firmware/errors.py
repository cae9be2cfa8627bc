"""How the firmware refuses: each error names the thing and, where there is one, the status code."""

from __future__ import annotations

from swtdx.arch import status as st


class FirmwareError(RuntimeError):
    """The platform cannot be brought up; the message names what is wrong and the way out."""


class BiosError(FirmwareError):
    """The BIOS was told to set the platform up in a way that its registers cannot express."""


class McheckError(FirmwareError):
    """MCHECK does not accept how the platform was set up.

    ``thing`` is the register or table that is wrong, ``"SEAMRR"`` for example.
    """

    def __init__(self, thing: str, why: str) -> None:
        super().__init__(f"MCHECK refuses the platform: {thing}: {why}")
        self.thing = thing


class ImageError(FirmwareError):
    """A module image, a signature structure or an ACM cannot be read, made or admitted."""


class AcmError(FirmwareError):
    """GETSEC[ENTERACCS] did not accept the ACM, or the NP-SEAMLDR in it failed.

    ``status`` is the NP-SEAMLDR's result, None if the processor never started it.
    """

    def __init__(self, why: str, status: int | None = None) -> None:
        name = "" if status is None else f" ({st.NPSEAMLDR_NAMES.get(status, hex(status))} {status:#x})"
        super().__init__(f"NP-SEAMLDR: {why}{name}")
        self.status = status


class LoaderError(FirmwareError):
    """The P-SEAMLDR refused a call.  ``status`` is its RAX, ``recoverable`` whether RDX was 0."""

    def __init__(self, call: str, status: int, why: str, *, recoverable: bool = True) -> None:
        name = st.PSEAMLDR_NAMES.get(status, "unknown status")
        way_out = "" if recoverable else "; the SEAM range was changed: start the platform again"
        super().__init__(f"{call}: {name} ({status:#x}): {why or 'no reason given'}{way_out}")
        self.status = status
        self.recoverable = recoverable
