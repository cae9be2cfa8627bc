"""Which processor the machine has: the part's identity and the limits fused into it.

Only TDX-capable server parts are modelled.  Cache and frequency figures: Intel ARK and the Intel 64 and
IA-32 Architectures Optimization Reference Manual; family/model/stepping: Linux
``arch/x86/include/asm/intel-family.h`` and Intel's microcode release notes.

The default is a part of E-cores, which has neither AVX-512 nor AMX.  Programs that choose code by the model
(compilers' ``target_clones("arch=...")``) take a part of P-cores to have both, whatever CPUID's feature bits
say, and die there of instructions that the engine does not execute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swtdx.machine.cpu.features import Core


@dataclass(frozen=True, slots=True)
class ProcessorModel:
    """One part.

    ``signature`` is CPUID(1).EAX; sizes are bytes, frequencies MHz; ``l2_cores`` cores share an L2 cache.
    ``max_keyid_bits`` and ``max_keys`` are what IA32_TME_CAPABILITY reports.  ``cpusvn`` (16 bytes) is the
    security version of the fused part with its microcode, opaque to software.
    """

    name: str
    core: Core
    signature: int
    brand: str
    microcode: int
    l1d: int
    l1i: int
    l2: int
    l3: int
    l3_ways: int
    l1d_ways: int
    l2_cores: int
    base_mhz: int
    turbo_mhz: int
    maxpa: int = 52
    linear_bits: int = 48
    max_keyid_bits: int = 7
    max_keys: int = 127
    cpusvn: bytes = bytes((2, 2, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0))
    #: Security version of the last microcode patch, SEAMEXTEND.TEE_TCB_SVN byte 2.
    se_svn: int = 2

    @property
    def family(self) -> int:
        """Display family (SDM volume 2, CPUID leaf 1)."""
        family = self.signature >> 8 & 0xF
        return family + (self.signature >> 20 & 0xFF) if family == 0xF else family

    @property
    def model(self) -> int:
        """Display model."""
        return self.signature >> 4 & 0xF | self.signature >> 12 & 0xF0

    @property
    def stepping(self) -> int:
        """Stepping."""
        return self.signature & 0xF


MODELS: Final[dict[str, ProcessorModel]] = {
    model.name: model
    for model in (
        ProcessorModel(
            name="sierra-forest", core=Core.EFFICIENT, signature=0xA06F3,
            brand="Intel(R) Xeon(R) swtdx (Sierra Forest)",
            microcode=0x03000362, l1d=32 << 10, l1i=64 << 10, l2=4 << 20, l3=108 << 20, l3_ways=12,
            base_mhz=2200, turbo_mhz=3000, l1d_ways=8, l2_cores=4,
        ),
        ProcessorModel(
            name="sapphire-rapids", core=Core.PERFORMANCE, signature=0x806F8,
            brand="Intel(R) Xeon(R) swtdx (Sapphire Rapids)",
            microcode=0x2B000603, l1d=48 << 10, l1i=32 << 10, l2=2 << 20, l3=105 << 20, l3_ways=15,
            base_mhz=2000, turbo_mhz=3800, l1d_ways=12, l2_cores=1,
        ),
        ProcessorModel(
            name="emerald-rapids", core=Core.PERFORMANCE, signature=0xC06F2,
            brand="Intel(R) Xeon(R) swtdx (Emerald Rapids)",
            microcode=0x21000283, l1d=48 << 10, l1i=32 << 10, l2=2 << 20, l3=320 << 20, l3_ways=20,
            base_mhz=1900, turbo_mhz=3900, l1d_ways=12, l2_cores=1,
        ),
    )
}  # fmt: skip
DEFAULT_MODEL: Final = "sierra-forest"


def find_model(name: str) -> ProcessorModel:
    """The part called ``name``.

    Raises:
        ValueError: there is none; the message lists those that exist.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise ValueError(
            f"there is no processor model {name!r}; choose one of {', '.join(sorted(MODELS))}"
        ) from None
