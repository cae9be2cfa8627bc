"""Can this kernel be a TD?  Decided before anything starts, and "cannot tell" is an answer.

Three witnesses, cheapest first:

1. The uncompressed part of a bzImage, its decompressor, checks CPUID leaf 0x21 when it is built with
   ``CONFIG_INTEL_TDX_GUEST`` and so holds the text ``IntelTDX`` (Linux
   ``arch/x86/boot/compressed/tdx.c``; in Debian's kernels since 5.19).
2. The configuration file beside the kernel (``/boot/config-<release>``).
3. The unpacked kernel holds the message ``tdx: Guest detected`` (``arch/x86/coco/tdx/tdx.c``).

Only the second and the third can say no.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.guests.errors import NoTdxSupport
from swtdx.guests.kernel import KernelImage
from swtdx.guests.payload import CannotUnpack, unpack_payload

CONFIG_OPTION: Final = "CONFIG_INTEL_TDX_GUEST"
_DECOMPRESSOR_WITNESS: Final = b"IntelTDX    "
_KERNEL_WITNESS: Final = b"tdx: Guest detected"


class Answer(enum.Enum):
    """Whether a kernel has TDX guest support."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TdxSupport:
    """The answer and the evidence for it, in words that complete "... because"."""

    answer: Answer
    evidence: str


def tdx_support(kernel: KernelImage, config: Path | None = None) -> TdxSupport:
    """Look for the witnesses described in this module's docstring.

    Args:
        kernel: the parsed bzImage.
        config: its configuration file, if one is known.  A file that cannot be read is no witness.
    """
    payload_start = kernel.setup_bytes + kernel.payload_offset
    payload_end = payload_start + kernel.payload_length
    outside = (kernel.data[:payload_start], kernel.data[payload_end:])
    if any(_DECOMPRESSOR_WITNESS in part for part in outside):
        return TdxSupport(Answer.YES, "its decompressor looks for a TD")
    if config is not None:
        try:
            lines = config.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        if f"{CONFIG_OPTION}=y" in lines:
            return TdxSupport(Answer.YES, f"{config} says {CONFIG_OPTION}=y")
        # A build's configuration lists every option it knows; without the marker line it may be cut.
        if any(line.startswith("CONFIG_X86_64=") for line in lines):
            return TdxSupport(Answer.NO, f"{config} does not say {CONFIG_OPTION}=y")
    try:
        unpacked = unpack_payload(kernel.payload)
    except CannotUnpack as error:
        return TdxSupport(Answer.UNKNOWN, str(error))
    if _KERNEL_WITNESS in unpacked:
        return TdxSupport(Answer.YES, f"it holds the message {_KERNEL_WITNESS.decode()!r}")
    return TdxSupport(
        Answer.NO, f"the unpacked kernel does not hold the message {_KERNEL_WITNESS.decode()!r}"
    )


def require_tdx_support(
    kernel: KernelImage, config: Path | None = None, *, force: bool = False
) -> TdxSupport:
    """Refuse a kernel that cannot, or may not, run as a TD.

    Args:
        kernel: the parsed bzImage.
        config: its configuration file, if one is known.
        force: let a kernel pass that is refused here.

    Raises:
        NoTdxSupport: the answer is no, or unknown, and ``force`` is not set.
    """
    support = tdx_support(kernel, config)
    if force or support.answer is Answer.YES:
        return support
    label = f"{kernel.name} ({kernel.release or 'unknown version'})"
    if support.answer is Answer.NO:
        raise NoTdxSupport(
            f"{label} has no TDX guest support ({CONFIG_OPTION}): {support.evidence}. "
            "It would stop at its first CPUID or I/O. Give another kernel, run `swtdx guest fetch` for one, "
            "or use --force to see for yourself."
        )
    raise NoTdxSupport(
        f"cannot tell whether {label} has TDX guest support ({CONFIG_OPTION}): {support.evidence}, and no "
        "configuration file lies beside it. If you know that it has, use --force."
    )


def config_beside(kernel_path: Path, release: str) -> Path | None:
    """The configuration file that distributions keep beside a kernel: ``config-<release>``, or None."""
    names = [f"config-{release}"] if release else []
    if kernel_path.name.startswith("vmlinuz-"):
        names.append("config-" + kernel_path.name.removeprefix("vmlinuz-"))
    if kernel_path.parent.name == release:
        names.append("config")  # lib/modules/RELEASE/vmlinuz
    for name in names:
        candidate = kernel_path.parent / name
        if candidate.is_file():
            return candidate
    return None
