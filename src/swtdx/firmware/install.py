"""SEAMLDR.INSTALL on the last processor: from SEAMLDR_PARAMS to a module that SEAMCALL enters.

Steps: ``seamldr_install.c`` of intel/seam-loader 1.0.  What a TD-preserving update adds (the handoff
data) is of the 1.5 loader, whose source is not public; rules from structures.md §12, life-cycle.md §2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swtdx.arch import status as st
from swtdx.arch.msrs import IA32_SGX_DEBUG_MODE
from swtdx.arch.regs import RDX
from swtdx.arch.seam_structs import (
    HANDOFF_DATA_HEADER,
    P_SYS_INFO_TABLE,
    SEAM_SIGSTRUCT,
    SEAMEXTEND,
    SEAMLDR_MAX_MODULE_PAGES,
    SEAMLDR_PARAMS,
    SEAMLDR_SCENARIO_LOAD,
    SEAMLDR_SCENARIO_UPDATE,
    SYS_INFO_TABLE,
)
from swtdx.arch.units import PAGE
from swtdx.firmware import image, seam_vmcs, sigstruct
from swtdx.firmware.errors import ImageError
from swtdx.firmware.loader import Loader
from swtdx.firmware.manifest import Manifest, check_sources, load_entry
from swtdx.firmware.seam_layout import (
    HALF_PAGE,
    LINEAR_CODE,
    LINEAR_DATA,
    LINEAR_KEYHOLE,
    LINEAR_KEYHOLE_EDIT,
    LINEAR_STACK,
    SeamLayout,
    aslr_bits,
)
from swtdx.firmware.signing import simulated_signer
from swtdx.firmware.sigstruct import Expectations, Refusal
from swtdx.machine import seamops
from swtdx.machine.memory import Requestor

if TYPE_CHECKING:
    from swtdx.machine.processor import LogicalProcessor

VALID_INTEL = 0x1FF
_DEBUG_UNLOCKED = 1 << 1


class Installer:
    """The part of the P-SEAMLDR that loads modules."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        #: The module that is installed now.
        self.manifest: Manifest | None = None
        self.layout: SeamLayout | None = None
        self.sigstruct = b""

    def install(self, lp: LogicalProcessor, params_pa: int) -> int:
        """Load the module that SEAMLDR_PARAMS at ``params_pa`` names.

        On failure RDX says whether the old module is still there (0) or memory was changed (1).

        Raises:
            Refusal: with the status for RAX.
        """
        loader = self._loader
        changed = False
        try:
            params = self._params(params_pa)
            scenario = SEAMLDR_PARAMS.scenario.get(params)
            signature = loader.memory.read(
                SEAMLDR_PARAMS.sigstruct_pa.get(params), SEAM_SIGSTRUCT.size, Requestor.SEAM
            )
            sigstruct.check(signature, self._expectations(scenario))
            layout = self._layout(lp, params, signature)
            if scenario == SEAMLDR_SCENARIO_UPDATE and seamops.is_full(loader.machine.seam):
                raise Refusal(
                    st.PSEAMLDR_EUNSPECERR,
                    f"SEAMDB holds {seamops.DATABASE_SIZE} modules; load afresh instead of updating",
                )
            handoff = self._handoff(layout, signature) if scenario == SEAMLDR_SCENARIO_UPDATE else b""
            changed = True
            entry = self._load(lp, layout, params, signature, handoff)
        except Refusal:
            lp.gpr[RDX] = int(changed)
            self._undo(lp, changed)
            raise
        self._identify(lp, signature, scenario)
        loader.machine.seam.install_module(entry, len(loader.machine.agents))
        return st.PSEAMLDR_SUCCESS

    # ------------------------------------------------------------------ checks
    def _params(self, pa: int) -> bytes:
        loader, fields = self._loader, SEAMLDR_PARAMS
        pa = loader.shared_buffer(pa, fields.size, "SEAMLDR_PARAMS")
        params = loader.memory.read(pa, fields.size, Requestor.SEAM)
        scenario, count = fields.scenario.get(params), fields.num_module_pages.get(params)
        why = None
        if fields.version.get(params):
            why = f"VERSION is {fields.version.get(params)}, not 0"
        elif any(fields.reserved.get(params)):
            why = "reserved bytes are set"
        elif scenario not in (SEAMLDR_SCENARIO_LOAD, SEAMLDR_SCENARIO_UPDATE):
            why = f"there is no SCENARIO {scenario}"
        elif not 1 <= count <= SEAMLDR_MAX_MODULE_PAGES:
            why = f"NUM_MODULE_PAGES is {count}, not 1 to {SEAMLDR_MAX_MODULE_PAGES}"
        elif scenario == SEAMLDR_SCENARIO_UPDATE and not SEAMEXTEND.seam_ready.get(loader.snapshot):
            why = "SCENARIO is update, and no module is loaded"
        if why is not None:
            raise Refusal(st.PSEAMLDR_EBADPARAM, f"SEAMLDR_PARAMS: {why}")
        for index in range(count):
            loader.shared_buffer(fields.mod_pages_pa.get(params, index), PAGE, f"module page {index}")
        loader.shared_buffer(fields.sigstruct_pa.get(params), PAGE, "SIGSTRUCT")
        return params

    def _expectations(self, scenario: int) -> Expectations:
        loader = self._loader
        table = loader.memory.read(loader.table_pa, PAGE, Requestor.SEAM)
        sockets = P_SYS_INFO_TABLE.tot_num_sockets.get(table)
        cpuids = [P_SYS_INFO_TABLE.socket_cpuid_table.get(table, index) for index in range(sockets)]
        current = None
        if scenario == SEAMLDR_SCENARIO_UPDATE:
            current = int.from_bytes(SEAMEXTEND.tee_tcb_svn.get(loader.snapshot)[:2], "little")
        debug = loader.machine.agents[0].rdmsr(IA32_SGX_DEBUG_MODE) & _DEBUG_UNLOCKED
        return Expectations(loader.trusted, cpuids, bool(debug), current)

    def _layout(self, lp: LogicalProcessor, params: bytes, signature: bytes) -> SeamLayout:
        """Where the module goes; ENOMEM if its part of the range is too small."""
        loader = self._loader
        seam = loader.memory.seamrr
        assert seam is not None, "the P-SEAMLDR runs without a SEAM range"
        sharing = (lp.cpuid(4, 3)[0] >> 14 & 0xFFF) + 1
        addressable = (1 << (sharing - 1).bit_length()) * loader.machine.config.packages
        pages = SEAMLDR_PARAMS.num_module_pages.get(params)
        layout = SeamLayout.of(signature, seam[0], loader.range_base, addressable, pages)
        have = layout.limit - layout.base
        if have < layout.needed:
            raise Refusal(
                st.PSEAMLDR_ENOMEM,
                f"the module needs {layout.needed >> 10} KiB of the SEAM range and {have >> 10} KiB are "
                "there; enlarge SEAMRR in the BIOS",
            )
        return layout

    def _handoff(self, layout: SeamLayout, signature: bytes) -> bytes:
        """The data that the module before left at the start of the data region.

        Raises:
            Refusal: EBADHANDOFF: there is none, or the new module does not take its version.
        """
        memory, header_layout = self._loader.memory, HANDOFF_DATA_HEADER
        header = memory.read(layout.data, header_layout.size, Requestor.SEAM)
        version, size = header_layout.hv.get(header), header_layout.size_.get(header)
        oldest = SEAM_SIGSTRUCT.min_update_hv.get(signature)
        newest = SEAM_SIGSTRUCT.module_hv.get(signature)
        room = (SEAM_SIGSTRUCT.num_handoff_pages.get(signature) + 1) * PAGE
        why = None
        if not header_layout.valid.get(header):
            why = "the loaded module has left no handoff data; call TDH.SYS.SHUTDOWN first"
        elif not oldest <= version <= newest:
            why = f"handoff data of version {version}; the new module takes {oldest} to {newest}"
        elif size > room - header_layout.size:
            why = f"handoff data of {size} bytes; the new module has room for {room - header_layout.size}"
        elif self.layout is not None and self.layout.data != layout.data:
            why = "the data region would move"
        elif self._is_downgrade(newest):
            why = "the loaded module allows no downgrade"
        if why is not None:
            raise Refusal(st.PSEAMLDR_EBADHANDOFF, why)
        return memory.read(layout.data, header_layout.size + size, Requestor.SEAM)

    def _is_downgrade(self, version: int) -> bool:
        """Whether the loaded module forbids one of handoff version ``version``."""
        loaded, fields = self.sigstruct, SEAM_SIGSTRUCT
        return bool(loaded and fields.no_downgrade.get(loaded) and version < fields.module_hv.get(loaded))

    # ------------------------------------------------------------------ loading
    def _load(
        self, lp: LogicalProcessor, layout: SeamLayout, params: bytes, signature: bytes, handoff: bytes
    ) -> Any:
        """Clear the module's part, copy and measure its pages, and make its entry point."""
        loader = self._loader
        memory = loader.memory
        aslr = aslr_bits(int.from_bytes(loader.machine.random.bytes(8), "little"))
        memory.direct_zero(layout.base, layout.limit - layout.base, Requestor.SEAM)
        for index in range(layout.pages):
            page = memory.read(SEAMLDR_PARAMS.mod_pages_pa.get(params, index), PAGE, Requestor.SEAM)
            memory.write(layout.code + index * PAGE, page, Requestor.SEAM)
        pages = memory.read(layout.code, layout.code_size, Requestor.SEAM)
        sigstruct.check_pages(signature, pages)
        if handoff:
            memory.write(layout.data, handoff, Requestor.SEAM)
        memory.write(layout.base, self._sys_info(layout, signature, aslr), Requestor.SEAM)
        rip = SEAM_SIGSTRUCT.rip_offset.get(signature)
        for x2apic_id in range(layout.processors):
            vmcs = seam_vmcs.build(layout, x2apic_id, rip, aslr)
            memory.write(layout.vmcs + x2apic_id * PAGE, vmcs, Requestor.SEAM)
        entry = self._entry(pages, layout)
        self.layout, self.sigstruct = layout, signature
        return entry

    def _entry(self, pages: bytes, layout: SeamLayout) -> Any:
        """What HOST_RIP stands for: the object that the image's manifest names."""
        try:
            manifest = image.unpack(pages)
            entry = self.start(manifest, layout)
        except ImageError as error:
            raise Refusal(st.PSEAMLDR_EBADHASH, str(error)) from None
        except Exception as error:
            # The module's own start failed; nothing of it may stay behind.
            raise Refusal(st.PSEAMLDR_EUNSPECERR, f"the module could not be started: {error!r}") from error
        self.manifest = manifest
        return entry

    def start(self, manifest: Manifest, layout: SeamLayout) -> Any:
        """Admit the manifest's files, and make its entry point over the module's part of the range.

        The entry is constructed with the machine, ``(base, size)`` of that part, and the manifest's constants
        as keywords.  It finds its state there, zeros after a load.

        Raises:
            ImageError: the files here are not those of the manifest.
        """
        check_sources(manifest)
        make = load_entry(manifest)
        where = (layout.base, layout.limit - layout.base)
        return make(self._loader.machine, where, **dict(manifest.constants))

    def _sys_info(self, layout: SeamLayout, signature: bytes, aslr: int) -> bytes:
        """SYS_INFO_TABLE: MCHECK's half copied, the other half about the module."""
        loader, fields = self._loader, SYS_INFO_TABLE
        table = bytearray(PAGE)
        table[:HALF_PAGE] = loader.memory.read(loader.table_pa, HALF_PAGE, Requestor.SEAM)
        fields.code_rgn_base.set(table, LINEAR_CODE | aslr)
        fields.code_rgn_size.set(table, layout.code_size)
        fields.data_rgn_base.set(table, LINEAR_DATA | aslr)
        fields.data_rgn_size.set(table, layout.data_size)
        fields.stack_rgn_base.set(table, LINEAR_STACK | aslr)
        fields.stack_rgn_size.set(table, layout.stack_size)
        fields.keyhole_rgn_base.set(table, LINEAR_KEYHOLE | aslr)
        fields.keyhole_rgn_size.set(table, layout.keyhole_size)
        fields.keyhole_edit_rgn_base.set(table, LINEAR_KEYHOLE_EDIT | aslr)
        fields.keyhole_edit_rgn_size.set(table, layout.keyhole_edit_size)
        fields.num_stack_pages.set(table, layout.data_stack // PAGE - 1)
        fields.num_tls_pages.set(table, layout.tls // PAGE - 1)
        for name in ("module_hv", "min_update_hv", "no_downgrade", "num_handoff_pages"):
            value = getattr(SEAM_SIGSTRUCT, name).get(signature)
            getattr(fields, name).set(table, value)
        return bytes(table)

    # ------------------------------------------------------------------ SEAMEXTEND
    def _identify(self, lp: LogicalProcessor, signature: bytes, scenario: int) -> None:
        """SEAMEXTEND := the module's identity; it also enters SEAMDB."""
        loader = self._loader
        extend = bytearray(loader.snapshot)
        svn = SEAM_SIGSTRUCT.seamsvn.get(signature).to_bytes(2, "little")
        SEAMEXTEND.valid.set(extend, VALID_INTEL)
        SEAMEXTEND.tee_tcb_svn.set(extend, svn + bytes(14))
        SEAMEXTEND.mrseam.set(extend, SEAM_SIGSTRUCT.seamhash.get(signature))
        SEAMEXTEND.mrsigner.set(extend, self._mrsigner(signature))
        SEAMEXTEND.attributes.set(extend, 0)
        # Not ready until the entry point is in place.
        SEAMEXTEND.seam_ready.set(extend, 0)
        loader.write_extend(lp, bytes(extend))
        if scenario == SEAMLDR_SCENARIO_LOAD:
            lp.seamops(seamops.Leaf.SEAMDB_CLEAR)
        lp.seamops(seamops.Leaf.SEAMDB_INSERT)

    @staticmethod
    def _mrsigner(signature: bytes) -> bytes:
        """Zeros for the key that plays Intel's part (structures.md §12), else the signer's key hash."""
        modulus = SEAM_SIGSTRUCT.modulus.get(signature)
        if modulus == simulated_signer().modulus:
            return bytes(48)
        return sigstruct.signer_hash(modulus)

    def _undo(self, lp: LogicalProcessor, changed: bool) -> None:
        """Put SEAMEXTEND back; if memory was changed no module is left."""
        loader = self._loader
        if not changed:
            loader.write_extend(lp, loader.snapshot)
            return
        extend = bytearray(SEAMEXTEND.size)
        SEAMEXTEND.p_seamldr_ready.set(extend, SEAMEXTEND.p_seamldr_ready.get(loader.snapshot))
        SEAMEXTEND.system_under_debug.set(extend, SEAMEXTEND.system_under_debug.get(loader.snapshot))
        loader.write_extend(lp, bytes(extend))
        loader.machine.seam.remove_module()
        self.manifest = self.layout = None
        self.sigstruct = b""
