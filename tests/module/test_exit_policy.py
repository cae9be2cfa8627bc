"""One table of exits for ``explain`` and the module's dispatcher; what XSETBV may load."""

from __future__ import annotations

import pytest

from swtdx.arch.exit_policy import EXIT_POLICY, Outcome, Policy
from swtdx.arch.exits import ExitReason
from swtdx.module.exits import dispatch, xsetbv

X87, SSE, AVX, AVX512, PKRU, AMX, CET = 1, 2, 4, 0xE0, 0x200, 0x60000, 0x1800


def test_a_row_without_a_handler_is_noticed_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(dispatch._OWN, int(ExitReason.CPUID))
    with pytest.raises(LookupError, match="exit reason 10"):
        dispatch._handlers()


def test_a_handler_without_a_row_is_noticed_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._OWN, int(ExitReason.INVLPG), dispatch._unexpected)
    with pytest.raises(LookupError, match="14"):
        dispatch._handlers()


def test_a_row_that_changes_changes_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXIT_POLICY, ExitReason.HLT, Policy(Outcome.UD))
    assert dispatch._handlers()[ExitReason.HLT] is dispatch._HANDLERS[ExitReason.VMXON]
    assert dispatch._HANDLERS[ExitReason.HLT] is not dispatch._HANDLERS[ExitReason.VMXON]


@pytest.mark.parametrize(
    ("xcr0", "xfam", "taken"),
    [
        (X87, X87 | SSE, True),
        (X87 | SSE | AVX, X87 | SSE | AVX, True),
        (SSE | AVX, X87 | SSE | AVX, False),  # x87 cannot be off
        (X87 | AVX, X87 | SSE | AVX, False),  # AVX needs SSE
        (X87 | SSE | AVX, X87 | SSE, False),  # not in XFAM
        (X87 | SSE | AVX | AVX512, X87 | SSE | AVX | AVX512, True),
        (X87 | SSE | AVX | 0x20, X87 | SSE | AVX | AVX512, False),  # a part of AVX-512
        (X87 | SSE | AVX512, X87 | SSE | AVX | AVX512, False),  # AVX-512 without AVX
        (X87 | SSE | PKRU, X87 | SSE | PKRU, True),
        (X87 | SSE | AMX, X87 | SSE | AMX, True),
        (X87 | SSE | 0x20000, X87 | SSE | AMX, False),  # TILECFG alone
        (X87 | SSE | CET, X87 | SSE | CET, False),  # supervisor state is IA32_XSS's
        (X87 | SSE | 1 << 63, X87 | SSE, False),
    ],
)
def test_xsetbv(xcr0: int, xfam: int, taken: bool) -> None:
    assert xsetbv.allowed(xcr0, xfam) is taken
