"""What the TDX Module knows while a leaf runs: its data, the control structures, the processor's facts.

It holds no state of its own that a SEAMCALL changes: state is in the module's part of the SEAM range
(:mod:`swtdx.module.globals`) and in pages that the hypervisor donated; what the object keeps are windows to
them.  Every leaf gets it; it knows none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from swtdx.arch import status as st
from swtdx.arch.cpuid_table import Quad
from swtdx.arch.features import BASE_MODULE, ModuleFeatures
from swtdx.arch.msrs import IA32_TSC_ADJUST
from swtdx.arch.operands import OperandId
from swtdx.arch.units import PAGE
from swtdx.machine import seamops
from swtdx.machine.memory import (
    MKTME_KEY_PROGRAM,
    SEAM,
    Algorithm,
    Command,
    ProgramResult,
)
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.uncore import Uncore
from swtdx.module.errors import LeafFailed
from swtdx.module.globals import SYS, ModuleData
from swtdx.module.keyhole import Keyhole
from swtdx.module.objects.pamt import Pamt
from swtdx.module.objects.td import Td, Vp
from swtdx.module.processor_facts import ProcessorFacts
from swtdx.module.served import Served
from swtdx.module.sysinfo import SysInfo


class ModuleState:
    """One loaded module's.

    ``seam_range`` is (base, bytes) of its part of the SEAM range; ``features`` what the module offers, and
    ``guest_leaves`` those leaves of it that a TD calls, by number.
    """

    def __init__(
        self,
        machine: Uncore,
        seam_range: tuple[int, int],
        guest_leaves: Mapping[int, Served],
        features: ModuleFeatures = BASE_MODULE,
    ) -> None:
        self.features = features
        #: The leaves of TDCALL, by number.
        self.guest_leaves = guest_leaves
        #: The CPUID leaves that it virtualises, and its metadata fields.
        self.cpuid = features.cpuid
        self.fields = features.fields
        self.machine = machine
        self.memory = memory = machine.memory
        self.sysinfo: SysInfo = SysInfo(memory, seam_range[0])
        self.data = ModuleData(memory, self.sysinfo.global_data)
        self.keyhole = Keyhole(memory)
        #: Physical address bits below the KeyID, and in all.
        self.hpa_bits = memory.addresses.hpa_bits
        self.max_pa = memory.addresses.maxpa
        self.facts = ProcessorFacts(machine, features.xfam, features.cpuid)
        self.pamt = Pamt(self.data, self.keyhole, self.max_pa, self.hpa_bits)
        self._tds: dict[int, Td] = {}
        self._vps: dict[int, Vp] = {}
        self._epoch = memory.epoch

    # ------------------------------------------------------------------ control structures
    def _check_epoch(self) -> None:
        """Forget windows to pages that may have left the cache since."""
        if self.memory.epoch != self._epoch:
            self._tds.clear()
            self._vps.clear()
            self._epoch = self.memory.epoch

    def td(self, hpa: int) -> Td:
        """The TD whose TDR is at ``hpa``, which the PAMT says is one."""
        self._check_epoch()
        td = self._tds.get(hpa)
        if td is None:
            view = self.keyhole.map(hpa, self.data.global_hkid)
            self._check_epoch()
            td = self._tds[hpa] = Td(hpa, view)
        return td

    def vp(self, hpa: int, td: Td) -> Vp:
        """The vCPU of ``td`` whose TDVPR is at ``hpa``, which the PAMT says is one."""
        self._check_epoch()
        vp = self._vps.get(hpa)
        if vp is None or vp.td is not td:
            view = self.keyhole.map(hpa, td.hkid)
            vp = self._vps[hpa] = Vp(hpa, td, view)
        return vp

    def forget_all(self) -> None:
        """No page is the root of anything any more."""
        self._tds.clear()
        self._vps.clear()

    def forget(self, hpa: int) -> None:
        """The page at ``hpa`` has become, or is no longer, the root of something."""
        self._tds.pop(hpa, None)
        self._vps.pop(hpa, None)

    # ------------------------------------------------------------------ addresses and memory
    def private(self, td: Td, hpa: int) -> int:
        """``hpa`` with the TD's HKID."""
        return hpa | int(td.hkid) << self.hpa_bits

    @property
    def global_keyid_bits(self) -> int:
        """The global private HKID where physical addresses carry it."""
        return self.data.global_hkid << self.hpa_bits

    def flush_page(self, pa: int) -> None:
        """Write back and invalidate the lines of one page cached under the HKID of ``pa``."""
        self.memory.clflush(pa, PAGE, SEAM)

    def memory_written(self, hpa: int, size: int) -> None:
        """The module wrote to guest memory that may have been executed."""
        self.machine.code_written(hpa, size)

    # ------------------------------------------------------------------ the processor
    def native_cpuid(self, leaf: int, subleaf: int) -> Quad:
        """CPUID as the processor answers it."""
        return self.facts.native_cpuid(leaf, subleaf)

    def sampled_cpuid(self, index: int) -> Quad:
        """CPUID of row ``index`` of the table of leaves, as TDH.SYS.INIT saw it."""
        return self.facts.sampled[index]

    @property
    def attributes_fixed0(self) -> int:
        """ATTRIBUTES bits that a TD may set."""
        return self.features.attributes_fixed0

    @property
    def xfam_fixed0(self) -> int:
        """XFAM bits that a TD may set."""
        return self.facts.xfam_fixed0

    @property
    def xss_supported(self) -> int:
        """Supervisor state components that processor and module know."""
        return self.facts.xss_supported

    @property
    def five_level_ept(self) -> bool:
        """Whether a TD may have a five-level Secure EPT."""
        return self.facts.five_level_ept

    @property
    def arch_capabilities(self) -> int:
        """Native IA32_ARCH_CAPABILITIES."""
        return self.facts.arch_capabilities

    @property
    def cr_fixed(self) -> tuple[int, int, int, int]:
        """IA32_VMX_CR0_FIXED0, CR0_FIXED1, CR4_FIXED0, CR4_FIXED1."""
        return self.facts.cr_fixed

    @property
    def features0(self) -> int:
        """TDX_FEATURES0."""
        verify = seamops.capabilities() >> seamops.Leaf.SEAMVERIFYREPORT & 1
        return self.features.features0(seamverifyreport=bool(verify))

    def check_tsc_adjust(self, lp: LogicalProcessor) -> None:
        """IA32_TSC_ADJUST must be what it was at TDH.SYS.INIT.

        Raises:
            LeafFailed: INCONSISTENT_MSR | 0x3B.
        """
        if lp.rdmsr(IA32_TSC_ADJUST) != SYS.tsc_adjust.get(self.data.sys):
            raise LeafFailed(st.TDX_INCONSISTENT_MSR | IA32_TSC_ADJUST)

    def program_key(self, lp: LogicalProcessor, hkid: int) -> None:
        """PCONFIG: a new random key for ``hkid`` on the package of ``lp``.

        Raises:
            LeafFailed: OPERAND_BUSY|KET, KEY_GENERATION_FAILED.
        """
        plain = self.sysinfo.without_integrity
        algorithm = Algorithm.AES_XTS_128 if plain else Algorithm.AES_XTS_128_INTEGRITY
        structure = MKTME_KEY_PROGRAM.new()
        MKTME_KEY_PROGRAM.keyid.set(structure, hkid)
        MKTME_KEY_PROGRAM.keyid_ctrl.set(structure, Command.SET_KEY_RANDOM | algorithm << 8)
        result = lp.program_key(structure)
        if result is ProgramResult.DEVICE_BUSY:
            raise LeafFailed(st.TDX_OPERAND_BUSY | OperandId.KET)
        if result is not ProgramResult.SUCCESS:
            raise LeafFailed(st.TDX_KEY_GENERATION_FAILED)

    @staticmethod
    @lru_cache(maxsize=256)
    def selected(mask: int) -> tuple[int, ...]:
        """The register numbers of a TDVMCALL mask."""
        return tuple(number for number in range(16) if mask >> number & 1)
