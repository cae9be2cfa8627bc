"""The integrator: a machine from reset to a loaded TDX Module, and what a hypervisor gets of it.

:meth:`Platform.boot` does what a server does before its operating system starts: the BIOS programs the
registers, MCHECK verifies them, GETSEC[ENTERACCS] runs the NP-SEAMLDR, and the P-SEAMLDR installs the
module on every logical processor in turn (life-cycle.md §1).  A hypervisor uses :attr:`Platform.host` and
nothing else.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any, Final, Self

from swtdx.arch import status as st
from swtdx.arch.features import ModuleFeatures
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.arch.seam_structs import SEAMLDR_PARAMS, SEAMLDR_SCENARIO_LOAD
from swtdx.arch.units import MIB, PAGE
from swtdx.arch.x86 import CR4_SMXE, CR4_VMXE
from swtdx.firmware import loader_state, mcheck, np_seamldr
from swtdx.firmware.acm import Acm, build_acm
from swtdx.firmware.bios import Bios, BiosConfig
from swtdx.firmware.errors import FirmwareError, LoaderError
from swtdx.firmware.image import SignedImage, build_module
from swtdx.firmware.inventory import describe
from swtdx.firmware.memory_map import EXTENDED, MemoryPlan, dram_ranges
from swtdx.firmware.p_seamldr import INSTALL, PSeamldr
from swtdx.firmware.signing import ModuleProperties, sign_module, simulated_signer
from swtdx.machine import save
from swtdx.machine.host import Host
from swtdx.machine.machine import Machine, MachineConfig
from swtdx.machine.memory import AddressMap, PhysicalMemory, saving
from swtdx.machine.processor import LogicalProcessor, Mode
from swtdx.machine.random import derive
from swtdx.machine.snapshot import Snapshot, SnapshotWriter

#: Where the firmware keeps what it loads: the second MiB of extended memory, given back afterwards.
_BUFFER: Final = EXTENDED + (1 << 20)


@dataclass(frozen=True, slots=True)
class PlatformConfig:
    """A platform: its machine, the BIOS set-up, and what is loaded.

    ``module`` is a signed module image; without it the installed ``swtdx.module`` is built and signed
    with the simulated key.  ``acm`` is the NP-SEAMLDR's image (:func:`~swtdx.firmware.acm.build_acm`);
    ``acm_key_hash`` is the hash of its signer's key in the processor's fuses (default: the simulated
    key).  ``load_module`` False stops after the P-SEAMLDR.  ``start_engine`` starts the engine before the
    firmware, so that it comes up meanwhile, for those who will run a guest at once.
    """

    machine: MachineConfig = field(default_factory=MachineConfig)
    bios: BiosConfig = field(default_factory=BiosConfig)
    module: SignedImage | None = None
    acm: bytes | None = None
    acm_key_hash: bytes | None = None
    load_module: bool = True
    start_engine: bool = False


def module_image(
    properties: ModuleProperties | None = None, features: ModuleFeatures | None = None
) -> SignedImage:
    """The installed ``swtdx.module``, signed with the simulated key.

    ``features`` makes it one that offers less than swtdx's own: MODULE_1_5_01 what Intel's 1.5.01 does.
    """
    return sign_module(build_module(features=features), properties=properties or ModuleProperties())


#: What the machine has besides the guest's memory: firmware ranges, PAMTs (1/256 of all), Secure EPT and
#: control pages, and pages that the guest turns into shared ones.  It costs only what is touched.
_BESIDES: Final = 256 * MIB
_SMALLEST_MACHINE: Final = 512 * MIB
#: What the QEMU engine has at most.  More CPUs than the host's pay off all the same: a vCPU that changes
#: CPU, or waits for one while another spins, costs a boot of three vCPUs a minute.
_MOST_CPUS: Final = 32


def platform_config(
    memory: int,
    vcpus: int,
    cpus: int | None,
    seed: bytes,
    model: str | None = None,
    features: ModuleFeatures | None = None,
) -> PlatformConfig:
    """A machine that suits the guest: memory for it and for what it takes, a CPU for each vCPU."""
    machine_memory = max(memory + memory // 8 + _BESIDES, _SMALLEST_MACHINE)
    machine = MachineConfig(
        processors_per_package=cpus or min(vcpus, _MOST_CPUS),
        memory_bytes=-(-machine_memory // (2 * MIB)) * 2 * MIB,
        seed=seed,
        options={} if model is None else {"model": model},
    )
    module = None if features is None else module_image(features=features)
    return PlatformConfig(machine=machine, start_engine=True, module=module)


class Platform:
    """A machine whose firmware has run.  ``close`` frees everything; also a context manager."""

    def __init__(self, config: PlatformConfig, machine: Machine, plan: MemoryPlan, acm: Acm) -> None:
        self.config = config
        self.machine = machine
        self.plan = plan
        self.acm = acm
        self.host = Host(machine)

    @classmethod
    def boot(cls, config: PlatformConfig | None = None) -> Self:
        """Build the machine and run its firmware.

        Raises:
            FirmwareError: a stage refuses; the message names the stage, the thing and the reason.
            EngineError: the engine was to be started, and cannot be.
            ValueError: the machine's configuration makes no sense.
        """
        config = config or PlatformConfig()
        seed = derive(config.machine.seed, "memory root", 32)
        dram = dram_ranges(config.machine.memory_bytes)
        memory = PhysicalMemory(dram, seed, AddressMap.without_tme())
        machine: Machine | None = None
        try:
            machine = Machine(config.machine, memory)
            if config.start_engine:
                machine.start_engine()
            plan = Bios(machine, config.bios).run()
            mcheck.run(machine, plan.cmrs)
            platform = cls(config, machine, plan, _start_loader(machine, config))
            if config.load_module:
                platform.install(config.module or module_image())
            return platform
        except BaseException:
            (machine or memory).close()
            raise

    @property
    def loader(self) -> PSeamldr:
        """The P-SEAMLDR.

        Raises:
            FirmwareError: it was shut down.
        """
        entry = self.machine.seam.p_seamldr_entry
        if not isinstance(entry, PSeamldr):
            raise FirmwareError("the P-SEAMLDR is not loaded (it was shut down)")
        return entry

    def install(self, image: SignedImage, scenario: int = SEAMLDR_SCENARIO_LOAD) -> None:
        """SEAMLDR.INSTALL of ``image`` on every logical processor in turn.

        ``scenario`` is 0 to load, 1 to update and preserve TDs.

        Raises:
            LoaderError: the P-SEAMLDR refuses; it names the status and the reason.
        """
        memory = self.machine.memory
        size = 2 * PAGE + len(image.pages)
        params_pa, sigstruct_pa, pages_pa = _BUFFER, _BUFFER + PAGE, _BUFFER + 2 * PAGE
        params = SEAMLDR_PARAMS.new()
        SEAMLDR_PARAMS.scenario.set(params, scenario)
        SEAMLDR_PARAMS.sigstruct_pa.set(params, sigstruct_pa)
        SEAMLDR_PARAMS.num_module_pages.set(params, image.page_count)
        for number in range(image.page_count):
            SEAMLDR_PARAMS.mod_pages_pa.set(params, number, pages_pa + number * PAGE)
        memory.write(params_pa, params)
        memory.write(sigstruct_pa, image.sigstruct)
        memory.write(pages_pa, image.pages)
        try:
            for lp in self.machine.processors:
                self._call(lp, INSTALL, params_pa, "SEAMLDR.INSTALL")
        finally:
            _give_back(memory, _BUFFER, size)

    def _call(self, lp: LogicalProcessor, leaf: int, operand: int, name: str) -> None:
        """One P-SEAMLDR call in VMX root mode; the processor leaves it as it was."""
        saved, cr4 = list(lp.gpr), lp.cr4
        loader = self.loader
        outside = lp.mode is Mode.LEGACY
        if outside:
            lp.write_cr4(cr4 | CR4_VMXE)
            lp.vmxon()
        try:
            lp.gpr[RAX], lp.gpr[RCX] = leaf, operand
            lp.seamcall()
            status, unrecoverable = lp.gpr[RAX], lp.gpr[RDX]
        finally:
            lp.gpr[:] = saved
            if outside:
                lp.vmxoff()
                lp.write_cr4(cr4)
        if status != st.PSEAMLDR_SUCCESS:
            where = f"{name} on processor {lp.index}"
            raise LoaderError(where, status, loader.reason, recoverable=not unrecoverable)

    def summary(self) -> dict[str, Any]:
        """The platform in plain data, see :mod:`swtdx.firmware.inventory`."""
        return describe(self.machine, self.plan, self.acm)

    # ------------------------------------------------------------------ snapshots
    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the whole machine to a file, which appears whole or not at all.

        Raises:
            SnapshotError: a processor is running, or the file cannot be written.
        """
        with SnapshotWriter(path) as snapshot:
            self.write(snapshot)

    def write(self, snapshot: SnapshotWriter, *, as_image: bool = False) -> None:
        """Write the whole machine into a snapshot that may hold more.

        ``as_image``: its frames become the file's image, so that it goes on without reading them.

        Raises:
            SnapshotError: a processor is running.
        """
        save.save(self.machine, snapshot, as_image=as_image)
        with snapshot.section("firmware", loader_state.VERSION) as out:
            loader_state.save(self.machine, self.plan, self.acm, out)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The platform that :meth:`save` saved.

        Loader and module come back only if their source files are still those that were admitted.

        Raises:
            SnapshotError: not a snapshot of this version, truncated, corrupted, or of other software.
        """
        with Snapshot(path) as snapshot:
            return cls.read(snapshot)

    @classmethod
    def read(cls, snapshot: Snapshot, resumed: tuple[int, float] | None = None) -> Self:
        """The platform of an open snapshot.

        ``resumed``: the value and the nominal frequency (Hz) of its time-stamp counter, if that goes on; the
        engine is then started at once.

        Raises:
            SnapshotError: as :meth:`load`.
            EngineError: the engine cannot be started.
        """
        section = snapshot.section("firmware", loader_state.VERSION)
        machine = save.load(snapshot, resumed)
        try:
            with contextlib.nullcontext() if machine.memory.image else saving.undisturbed(machine.memory):
                plan, acm = loader_state.load(machine, section)
            return cls(PlatformConfig(machine=machine.config), machine, plan, acm)
        except BaseException:
            machine.close()
            raise

    def close(self) -> None:
        """Stop the engine and free the memory.  Idempotent."""
        self.machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start_loader(machine: Machine, config: PlatformConfig) -> Acm:
    """Put the ACM into memory and enter it on the bootstrap processor."""
    acm = config.acm or build_acm()
    fused = config.acm_key_hash or simulated_signer().key_hash
    lp = machine.processors[0]
    machine.memory.write(_BUFFER, acm)
    cr4 = lp.cr4
    lp.write_cr4(cr4 | CR4_SMXE)
    try:
        return np_seamldr.start(lp, _BUFFER, len(acm), fused)
    finally:
        lp.write_cr4(cr4)
        _give_back(machine.memory, _BUFFER, len(acm))


def _give_back(memory: PhysicalMemory, pa: int, size: int) -> None:
    """Clear what the firmware used."""
    whole = -(-size // PAGE) * PAGE
    memory.direct_zero(pa, whole)
