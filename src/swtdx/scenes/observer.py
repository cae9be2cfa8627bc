"""The state of a TD's life, as only an observer with all keys sees it: in the module's own structures."""

from __future__ import annotations

from collections import Counter

from swtdx.arch.control_structs import TDCS, TDR
from swtdx.arch.states import KotState, Lifecycle, OpState, PageType
from swtdx.machine.memory import Requestor
from swtdx.proof.probe import ModuleProbe
from swtdx.scenes.stage import Stage


class Observer:
    """Looks at one TD: ``tdr`` is its root page, ``hkid`` its key, ``pages`` every page it ever got."""

    def __init__(self, stage: Stage, tdr: int, hkid: int) -> None:
        self._stage = stage
        self._probe = ModuleProbe(stage.machine)
        self.tdr = tdr
        self.hkid = hkid
        self.pages: list[int] = [tdr]

    def _read(self, hpa: int, keyid: int) -> bytes:
        memory = self._stage.machine.memory
        return memory.read(memory.addresses.join(hpa, keyid), 4096, Requestor.SEAM)

    def page_type(self, hpa: int) -> PageType:
        """What the PAMT says of a page."""
        return self._probe.page_type(hpa)

    def kot(self) -> str:
        """State of the HKID in the key ownership table."""
        return KotState(self._probe.key(self.hkid).state).name

    def facts(self) -> tuple[tuple[str, str], ...]:
        """The states, in words."""
        types = Counter(self.page_type(page) for page in self.pages)
        facts = [("HKID", f"{self.hkid} {self.kot()}")]
        if self.page_type(self.tdr) is PageType.TDR:
            tdr = self._read(self.tdr, self._probe.global_hkid)
            life = Lifecycle(TDR.lifecycle_state.get(tdr))
            facts.append(("LIFECYCLE_STATE", life.name))
            facts.append(("OP_STATE", self._op_state(tdr, life)))
            facts.append(("CHLDCNT", str(TDR.chldcnt.get(tdr))))
        owned = ", ".join(
            f"{count} {kind.name}" for kind, count in sorted(types.items()) if kind is not PageType.NDA
        )
        free = types[PageType.NDA]
        facts.append(("PAMT", ", ".join(part for part in (owned, f"{free} NDA" if free else "") if part)))
        return tuple(facts)

    def _op_state(self, tdr: bytes, life: Lifecycle) -> str:
        if life is not Lifecycle.KEYS_CONFIGURED or not TDR.num_tdcx.get(tdr):
            return "-"
        _, hpa = self._stage.machine.memory.addresses.split(TDR.tdcx_pa.get(tdr, 0))
        tdcs = self._read(hpa, self.hkid)
        return OpState(TDCS.op_state.get(tdcs)).name
