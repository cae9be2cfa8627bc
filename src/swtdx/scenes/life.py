"""A TD's whole life, one SEAMCALL after the other, with the states after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from swtdx.arch import sept
from swtdx.arch import status as st
from swtdx.arch.exits import ExitReason
from swtdx.arch.ghci import BASIC_MASK, GET_TD_VMCALL_INFO
from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.regs import RAX, RDX, put
from swtdx.arch.units import EXTEND_CHUNK, PAGE
from swtdx.machine.engine.scripted import Read, Script, Tdcall, Write
from swtdx.machine.random import derive
from swtdx.scenes.model import Step
from swtdx.scenes.observer import Observer
from swtdx.scenes.stage import CODE, RAM, Stage
from swtdx.trace.decode import decode
from swtdx.trace.names import status_text
from swtdx.vmm.td_params import TdConfig

_ACCEPT: Final = GUEST_BY_NAME["TDG.MEM.PAGE.ACCEPT"].number
_MARK: Final = 0x7EA5E7

#: Operands of one SEAMCALL, by register.
Operands = dict[str, int]


class Refused(RuntimeError):
    """The module refused a step of the life that it has to allow."""


class _Life:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.platform = stage.hypervisor.platform
        self.allocator = stage.hypervisor.allocator
        self.cpu = stage.cpu
        self.tdr = self._page()
        self.hkid = self.platform.hkids.take()
        self.observer = Observer(stage, self.tdr, self.hkid)
        self.tdvpr = self._page()
        self.answer: list[int] = []
        #: What the guest read back from the page that it was given at run time.
        self.read_back: int | None = None
        stage.engine.add_program(self._guest)

    def _page(self) -> int:
        return self.allocator.page("the scene's TD")

    def new(self) -> int:
        """A page for the TD."""
        page = self._page()
        self.observer.pages.append(page)
        return page

    def _guest(self, _cpu: Script) -> Any:
        """Accept the page that comes at run time, use it, and tell the hypervisor."""
        yield Tdcall(rax=_ACCEPT, rcx=RAM)
        yield Write(RAM, _MARK)
        self.read_back = yield Read(RAM)
        while True:
            yield Tdcall(rax=0, rcx=BASIC_MASK, r10=0, r11=GET_TD_VMCALL_INFO, r12=0, r13=0, r14=0, r15=0)

    # ------------------------------------------------------------------ steps
    def step(
        self,
        leaf: str,
        text: str,
        *calls: Operands,
        looks: Sequence[tuple[int, int]] = (),
        notes: Callable[[], tuple[tuple[str, str], ...]] = tuple,
    ) -> Step:
        """SEAMCALL ``leaf`` with each of ``calls``; the step shows the last of them and the states then.

        ``looks`` are (GPA, level) of Secure EPT entries whose state is looked up afterwards.

        Raises:
            Refused: the module refuses.
        """
        recorder = self.stage.recorder
        for operands in calls:
            start = len(recorder.records)
            put(self.cpu.gpr, operands)
            status = self.cpu.call(HOST_BY_NAME[leaf].number)
            self.answer = self.cpu.gpr[:]
            if st.is_error(status):
                raise Refused(f"{leaf}: {status_text(status)}")
        records = recorder.records[start:]
        facts = (*self.observer.facts(), *(self._sept(gpa, level) for gpa, level in looks), *notes())
        title = leaf if len(calls) == 1 else f"{leaf}, {len(calls)} times"
        return Step(title, text, tuple(event for record in records for event in decode(record)), facts)

    def _sept(self, gpa: int, level: int) -> tuple[str, str]:
        """State of a Secure EPT entry, by TDH.MEM.SEPT.RD."""
        status, after = self.cpu.aside("TDH.MEM.SEPT.RD", rcx=gpa | level, rdx=self.tdr)
        state = (
            sept.BY_PUBLIC[after[RDX] >> 8 & 0xFF].name if not st.is_error(status) else status_text(status)
        )
        return f"SEPT {gpa:#x} level {level}", state

    # ------------------------------------------------------------------ chapters
    def birth(self) -> Iterator[Step]:
        """From a page to a TD with its key and its parameters."""
        info, host = self.platform.info, self.stage.hypervisor.host
        tdr = self.tdr
        yield self.step(
            "TDH.MNG.CREATE",
            "A page and a key number: the page becomes the TDR, encrypted with the module's own key.",
            {"rcx": tdr, "rdx": self.hkid},
        )
        yield self.step(
            "TDH.MNG.KEY.CONFIG",
            "PCONFIG programs a random key for the HKID, on each package. No software ever sees it.",
            {"rcx": tdr},
        )
        yield self.step(
            "TDH.MNG.ADDCX",
            "Pages for the TDCS, the control structure: the Secure EPT's root and the MSR bitmaps are there.",
            *({"rcx": self.new(), "rdx": tdr} for _ in range(info.tdcs_pages)),
        )
        params = self._page()
        host.memory.write(params, TdConfig().params(info, host.tsc_hz))
        yield self.step(
            "TDH.MNG.INIT",
            "TD_PARAMS say what the TD shall be; what was accepted is part of its identity.",
            {"rcx": tdr, "rdx": params},
        )
        self.allocator.free(params)

    def childhood(self) -> Iterator[Step]:
        """A vCPU, the first memory, and its measurement."""
        tdr = self.tdr
        self.observer.pages.append(self.tdvpr)
        yield self.step("TDH.VP.CREATE", "A page becomes a vCPU's root.", {"rcx": self.tdvpr, "rdx": tdr})
        pages = self.platform.info.tdvps_pages - 1
        yield self.step(
            "TDH.VP.ADDCX",
            "More pages for the TDVPS: VMCS, virtual APIC, extended state.",
            *({"rcx": self.new(), "rdx": self.tdvpr} for _ in range(pages)),
        )
        yield self.step(
            "TDH.VP.INIT",
            "The vCPU gets its initial state. It is associated with this processor from now on.",
            {"rcx": self.tdvpr, "rdx": 0},
        )
        for level in (3, 2, 1):
            yield self.step(
                "TDH.MEM.SEPT.ADD",
                f"A Secure EPT page below the entry at level {level}.",
                {"rcx": CODE & -(PAGE << 9 * level) | level, "rdx": tdr, "r8": self.new()},
                looks=((CODE & -(PAGE << 9 * level), level),),
            )
        source = self._page()
        self.stage.hypervisor.host.memory.write(source, derive(self.stage.seed, "code", PAGE))
        yield self.step(
            "TDH.MEM.PAGE.ADD",
            "The first page: contents are copied and encrypted; MRTD takes in its GPA.",
            {"rcx": CODE, "rdx": tdr, "r8": self.new(), "r9": source},
            looks=((CODE, 0),),
        )
        self.allocator.free(source)
        yield self.step(
            "TDH.MR.EXTEND",
            "MRTD takes in the contents, 256 bytes a time.",
            *({"rcx": CODE + at, "rdx": tdr} for at in range(0, PAGE, EXTEND_CHUNK)),
        )
        yield self.step("TDH.MR.FINALIZE", "MRTD is complete; the TD may run.", {"rcx": tdr})

    def work(self) -> Iterator[Step]:
        """Run, get memory, give it back."""
        tdr, enter = self.tdr, {"rcx": self.tdvpr}
        yield self._enter("The guest runs, and accepts a page that is not there: an EPT violation.", enter)
        # RAM is in the next 2 MiB, which has no table at level 1 yet.
        yield self.step(
            "TDH.MEM.SEPT.ADD",
            "A Secure EPT page for the new range.",
            {"rcx": RAM | 1, "rdx": tdr, "r8": self.new()},
            looks=((RAM, 1),),
        )
        page = self.new()
        yield self.step(
            "TDH.MEM.PAGE.AUG",
            "A page for the guest, which is PENDING: no access before the guest accepts it.",
            {"rcx": RAM, "rdx": tdr, "r8": page},
            looks=((RAM, 0),),
        )
        yield self._enter(
            "The guest accepts: the page is zeroed and mapped. It writes, reads, and makes a TDVMCALL.",
            enter,
            looks=((RAM, 0),),
            notes=lambda: (("the guest reads", f"{self.read_back or 0:#x}"),),
        )
        yield self.step(
            "TDH.MEM.RANGE.BLOCK",
            "The hypervisor wants the page back: no new translations of it.",
            {"rcx": RAM, "rdx": tdr},
            looks=((RAM, 0),),
        )
        yield self.step("TDH.MEM.TRACK", "A new TLB epoch: old translations are flushed.", {"rcx": tdr})
        yield self.step(
            "TDH.MEM.PAGE.REMOVE",
            "No translation can be cached any more: the page is free.",
            {"rcx": RAM, "rdx": tdr},
            looks=((RAM, 0),),
        )
        yield self.step(
            "TDH.PHYMEM.PAGE.WBINVD",
            "Its lines leave the cache under the TD's key, before anything else uses it.",
            {"rcx": self.stage.machine.memory.addresses.join(page, self.hkid)},
        )

    def _enter(self, text: str, operands: Operands, **more: Any) -> Step:
        step = self.step("TDH.VP.ENTER", text, operands, **more)
        if self.answer[RAX] not in (ExitReason.EPT_VIOLATION, ExitReason.TDCALL):
            raise Refused(f"TDH.VP.ENTER: {status_text(self.answer[RAX])}")
        if self.answer[RAX] == ExitReason.TDCALL:
            self.cpu.gpr[10:15] = [0] * 5
        return step

    def end(self) -> Iterator[Step]:
        """Take everything apart."""
        tdr = self.tdr
        yield self.step(
            "TDH.VP.FLUSH", "The vCPU leaves its processor: state to memory, VMCLEAR.", {"rcx": self.tdvpr}
        )
        yield self.step(
            "TDH.MNG.VPFLUSHDONE", "No processor holds a vCPU: the TD is blocked for good.", {"rcx": tdr}
        )
        yield self.step(
            "TDH.PHYMEM.CACHE.WB",
            "All caches are written back, on each package, while the key still works.",
            {"rcx": 0},
        )
        yield self.step("TDH.MNG.KEY.FREEID", "The HKID can be used again; the key is lost.", {"rcx": tdr})
        pages = [p for p in self.observer.pages if p != tdr and self.observer.page_type(p)]
        yield self.step(
            "TDH.PHYMEM.PAGE.RECLAIM",
            "Every page comes back, the TDR last.",
            *({"rcx": page} for page in [*pages, tdr]),
        )
        own = self.platform.hkids.global_hkid
        yield self.step(
            "TDH.PHYMEM.PAGE.WBINVD",
            "The TDR was cached under the module's key: its lines leave the cache, too.",
            {"rcx": self.stage.machine.memory.addresses.join(tdr, own)},
        )
        for page in self.observer.pages:
            self.allocator.free(page)
        self.platform.hkids.give_back(self.hkid)


def life(seed: bytes) -> Iterator[Step]:
    """Play the scene."""
    with Stage(seed) as stage:
        play = _Life(stage)
        yield from play.birth()
        yield from play.childhood()
        yield from play.work()
        yield from play.end()
        left = stage.hypervisor.allocator.used
        yield Step(
            "What is left",
            "Every page that the hypervisor gave is its own again.",
            facts=(("pages in use", str(left // PAGE)), ("free HKIDs", str(play.platform.hkids.free))),
            failed=bool(left) or play.read_back != _MARK,
            data={"pages": left // PAGE},
        )
