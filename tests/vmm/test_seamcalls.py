"""The functions made from the leaf tables: what goes into which register, and what mypy is told of them."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from swtdx.arch.regs import R8, R9, R10, R11, RAX, RCX, RDX
from swtdx.vmm import seamcalls
from swtdx.vmm.leaf_call import leaf_call

ONES = (1 << 64) - 1
UNTOUCHED = 0xF111


class Recorder:
    """Stands where a processor would, and keeps what it is called with."""

    def __init__(self) -> None:
        self.gpr = [UNTOUCHED] * 16

    def call(self, leaf: int) -> int:
        """Answer each register with its number plus 1000; the status is the leaf's number."""
        self.seen = {number: value for number, value in enumerate(self.gpr) if value != UNTOUCHED}
        self.gpr[:] = [1000 + number for number in range(16)]
        return leaf


#: Linux, arch/x86/virt/vmx/tdx/tdx.c and tdx.h (leaf numbers, tdx_module_args), and the ABI specification:
#: (function, operands, leaf, registers, what comes back).
CALLS: list[tuple[str, tuple[int, ...], int, dict[int, int], Any]] = [
    ("tdh_sys_lp_init", (), 35, {}, 35),
    ("tdh_sys_init", (), 33, {RCX: 0}, (33, 1001)),
    ("tdh_sys_info", (0x1000, 0x2000), 32, {RCX: 0x1000, RDX: 1024, R8: 0x2000, R9: 32}, (32, 1002, 1009)),
    ("tdh_sys_config", (0x1000, 3, 33), 45, {RCX: 0x1000, RDX: 3, R8: 33}, 45),
    ("tdh_mng_create", (0x1000, 33), 9, {RCX: 0x1000, RDX: 33}, 9),
    ("tdh_mng_addcx", (0x1000, 0x2000), 1, {RCX: 0x1000, RDX: 0x2000}, 1),
    ("tdh_vp_init", (0x1000, 7), 22, {RCX: 0x1000, RDX: 7}, 22),
    ("tdh_vp_init_x2apic", (0x1000, 7, 9), 22 | 1 << 16, {RCX: 0x1000, RDX: 7, R8: 9}, 22 | 1 << 16),
    ("tdh_vp_addcx", (0x1000, 0x2000), 4, {RCX: 0x1000, RDX: 0x2000}, 4),
    ("tdh_mng_rd", (0x1000, 7), 11, {RCX: 0x1000, RDX: 7}, (11, 1008)),
    ("tdh_vp_wr", (0x1000, 7, 8, 9), 43, {RCX: 0x1000, RDX: 7, R8: 8, R9: 9}, (43, 1008)),
    ("tdh_mem_sept_add", (0x200000, 1, 0x1000, 0x2000), 3, {RCX: 0x200001, RDX: 0x1000, R8: 0x2000},
     (3, 1001, 1002)),
    ("tdh_mem_page_add", (0x5000, 0x1000, 0x2000, 0x3000), 2,
     {RCX: 0x5000, RDX: 0x1000, R8: 0x2000, R9: 0x3000}, (2, 1001, 1002)),
    ("tdh_mem_page_aug", (0x200000, 1, 0x1000, 0x2000), 6, {RCX: 0x200001, RDX: 0x1000, R8: 0x2000},
     (6, 1001, 1002)),
    ("tdh_mem_page_demote", (0x200000, 1, 0x1000, 0x2000), 15,
     {RCX: 0x200001, RDX: 0x1000, R8: 0x2000, R9: ONES, R10: ONES, R11: ONES}, (15, 1001, 1002)),
    ("tdh_mem_page_relocate", (0x5000, 0x1000, 0x2000), 5, {RCX: 0x5000, RDX: 0x1000, R8: 0x2000},
     (5, 1001, 1002)),
    ("tdh_mem_wr", (0x5008, 0x1000, 99), 14, {RCX: 0x5008, RDX: 0x1000, R8: 99}, (14, 1008)),
    ("tdh_phymem_page_reclaim", (0x1000,), 28, {RCX: 0x1000}, (28, 1001, 1002, 1008)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "operands", "leaf", "registers", "answer"), CALLS, ids=[c[0] for c in CALLS]
)
def test_operands_go_where_they_belong(
    name: str, operands: tuple[int, ...], leaf: int, registers: dict[int, int], answer: object
) -> None:
    cpu = Recorder()
    assert getattr(seamcalls, name)(cpu, *operands) == answer
    assert cpu.seen == registers
    assert RAX not in cpu.seen


def test_annotations_have_the_arity_of_the_functions() -> None:
    # Final stands around the type of a name in a module, where get_type_hints does not expect it.
    texts = {name: text for name, text in seamcalls.__annotations__.items() if name.startswith("tdh_")}
    hints = {name: eval(text.removeprefix("Final[")[:-1], vars(seamcalls)) for name, text in texts.items()}
    assert len(hints) == 42
    for name, hint in hints.items():
        operands, returned = get_args(hint)
        function = getattr(seamcalls, name)
        answer = function(Recorder(), *range(len(operands) - 1))
        assert (len(answer) if isinstance(answer, tuple) else 0) == len(get_args(returned)), name
        for wrong in {len(operands) - 2, len(operands)} - {-1}:
            with pytest.raises(TypeError):
                function(Recorder(), *range(wrong))


def test_an_output_that_the_leaf_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"TDH\.MNG\.RD has no output R9"):
        leaf_call("TDH.MNG.RD", "R9")
    with pytest.raises(ValueError, match=r"TDH\.MNG\.INIT has no version 1"):
        leaf_call("TDH.MNG.INIT", version=1)
    with pytest.raises(KeyError):
        leaf_call("TDH.MNG.DREAM")
