"""The package's own names: what there is, what it costs to import, and that it does as it says."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import swtdx
from swtdx import script
from swtdx.arch.ghci import INVALID_OPERAND
from swtdx.vmm.errors import VmmError

ROOT = Path(__file__).parents[2]


def fresh(code: str) -> str:
    """What ``code`` prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------ the names
def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import swtdx; print(sorted(set(sys.modules) - before))"
    loaded = fresh(code)
    assert "numpy" not in loaded
    assert "swtdx.api" not in loaded


@pytest.mark.parametrize("name", [name for name in swtdx.__all__ if name != "__version__"])
def test_each_name_can_be_imported_alone_and_is_documented(name: str) -> None:
    fresh(f"from swtdx import {name}; import swtdx; assert swtdx.{name} is {name}")
    assert f"`{name}`" in (ROOT / "docs/api.md").read_text()
    found: Any = getattr(swtdx, name)
    assert inspect.getdoc(found)
    members = inspect.getmembers(found) if inspect.isclass(found) else []
    for each, member in members:
        if not each.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            assert inspect.getdoc(member), f"{name}.{each}"


def test_a_name_that_is_not_public_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Machine'"):
        _ = swtdx.Machine
    assert "Platform" in dir(swtdx)


def test_names_that_need_no_machine_load_none() -> None:
    code = """
import sys, swtdx
swtdx.explain("TDH.MNG.INIT")
quote = swtdx.make_quote(b"x")
assert quote.reportdata[0] == ord("x")
print([name for name in sys.modules if name.startswith(("swtdx.machine", "swtdx.vmm", "swtdx.module"))])
"""
    assert fresh(code) == "[]"


# ------------------------------------------------------------------ scripted TDs
def test_several_vcpus_and_what_they_return() -> None:
    def first(cpu: script.Script) -> script.Running:
        return (yield from script.tdcall("TDG.VP.INFO")).r9 & 0xFFFFFFFF

    def second(cpu: script.Script) -> script.Running:
        yield script.Pause(1_000_000)
        return (yield from script.tdcall("TDG.VP.INFO")).r9 & 0xFFFFFFFF

    with swtdx.Platform("scripted", cpus=2) as platform, platform.scripted(first, second) as td:
        assert len(td.vcpus) == 2
        assert td.run().orderly
        # Intel TDX Module ABI, TDG.VP.INFO: R9 has the VCPU_INDEX in bits 31:0.
        assert td.results == [0, 1]
        with pytest.raises(swtdx.TdEnded, match="the guest switched off"):
            td.run()


def test_an_assertion_in_a_guest_is_one_of_the_test() -> None:
    def guest(cpu: script.Script) -> script.Running:
        value = yield from script.io_in(0x71)
        assert value == "never", "the guest's own words"

    with swtdx.Platform("scripted") as platform:
        td = platform.scripted(guest)
        with pytest.raises(AssertionError, match="the guest's own words"):
            td.run()
        with pytest.raises(RuntimeError, match="have not returned: 0"):
            _ = td.results


def test_many_tds_on_one_platform_give_everything_back() -> None:
    def guest(cpu: script.Script) -> script.Running:
        yield from script.accept(script.RAM, 8192)

    with swtdx.Platform("scripted") as platform:
        for _ in range(100):  # more than there are private KeyIDs
            with platform.scripted(guest) as td:
                td.run()
        with pytest.raises(swtdx.TdEnded, match="closed"):
            _ = td.tdr


def test_a_page_that_the_module_refuses_to_accept() -> None:
    def guest(cpu: script.Script) -> script.Running:
        yield from script.accept(1 << 47)

    with swtdx.Platform("scripted") as platform, pytest.raises(ValueError, match=r"PAGE\.ACCEPT"):
        platform.scripted(guest).run()


def test_shared_memory_has_two_ends() -> None:
    where = script.RAM + 0x10_0000

    def guest(cpu: script.Script) -> script.Running:
        assert (yield from script.map_gpa(where, 4096, shared=True)) == 0
        yield script.Write(where | script.SHARED, 0x11)
        yield from script.io_out(0x80, 1)
        return (yield script.Read(where | script.SHARED))

    with swtdx.Platform("scripted") as platform:
        td = platform.scripted(guest)

        @td.on_exit
        def host(exit: swtdx.Exit) -> None:
            if exit.port == 0x80:
                assert td.read_shared(where, 1) == b"\x11"
                td.write_shared(where, b"\x22")

        td.run()
        assert td.results[0] & 0xFF == 0x22
        with pytest.raises(ValueError, match="shared"):
            td.read_shared(script.RAM, 8)


def test_debug_tds_can_be_looked_into_and_others_cannot() -> None:
    def guest(cpu: script.Script) -> script.Running:
        yield from script.accept(script.RAM)
        yield script.Write(script.RAM, 0x600D)

    with swtdx.Platform("scripted") as platform:
        for debug in (True, False):
            td = platform.scripted(guest, debug=debug)
            td.run()
            if debug:
                assert td.debug_read(script.RAM, 2) == b"\x0d\x60"
            else:
                with pytest.raises(VmmError, match="TD_NON_DEBUG"):
                    td.debug_read(script.RAM, 2)


# ------------------------------------------------------------------ the hypervisor
def test_hooks_of_the_hypervisor_hear_of_all_tds_and_can_be_removed() -> None:
    def guest(cpu: script.Script) -> script.Running:
        return (yield from script.vmcall("GetTdVmCallInfo", 0)).r10

    with swtdx.Platform("scripted") as platform:

        @platform.hypervisor.on_exit
        def refuse(exit: swtdx.Exit) -> None:
            if exit.tdvmcall == "GetTdVmCallInfo":
                exit.answer(INVALID_OPERAND)

        results = []
        for keep in (True, True, False):
            if not keep:
                platform.hypervisor.remove_hook(refuse)
            td = platform.scripted(guest)
            td.run()
            results += td.results
        assert results == [INVALID_OPERAND, INVALID_OPERAND, 0]


def test_a_seamcall_leaves_the_next_entry_as_it_is() -> None:
    def guest(cpu: script.Script) -> script.Running:
        return (yield from script.io_in(0x71)), (yield from script.io_in(0x71))

    def runs(hooked: bool) -> Any:
        with swtdx.Platform("scripted") as platform:
            td = platform.scripted(guest)
            if hooked:
                td.on_exit(lambda exit: platform.hypervisor.seamcall("TDH.PHYMEM.PAGE.RDMD", rcx=td.tdr))
            td.run()
            return [value is not None for value in td.results[0]], td.result

    assert runs(True)[0] == runs(False)[0]


def test_wrong_names_are_told() -> None:
    with swtdx.Platform("scripted") as platform:
        with pytest.raises(KeyError, match=r"TDH\.NOPE"):
            platform.hypervisor.seamcall("TDH.NOPE")
        with pytest.raises(ValueError, match="R99"):
            platform.hypervisor.seamcall("TDH.MNG.RD", R99=1)
        with pytest.raises(ValueError, match="make the platform with Platform"):
            platform.linux()
        with pytest.raises(ValueError, match="at least one"):
            platform.scripted()
    with pytest.raises(ValueError, match="no engine 'kvm'"):
        swtdx.Platform("kvm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1\.5\.01"):
        swtdx.Platform("scripted", module="9")
    with pytest.raises(LookupError):
        swtdx.explain("no such thing at all")
    with pytest.raises(ValueError, match="a kind is one of leaf"):
        swtdx.explain("1", "sort")


# ------------------------------------------------------------------ attestation
def test_a_quote_of_one_seed_is_none_of_another() -> None:
    quote = swtdx.make_quote(b"x", seed="one", mrtd=bytes(range(48)))
    assert quote.mrtd == bytes(range(48))
    one, other = swtdx.CollateralService("one"), swtdx.CollateralService("other")
    for service, accepted in ((one, True), (other, False)):
        verdict = swtdx.verify(quote, service.collateral(), root=service.root, accept_simulated=True)
        assert verdict.accepted is accepted
    assert not swtdx.verify(quote, one.collateral(), root=one.root).accepted
    with pytest.raises(AttributeError, match="no 'mrdt'; it has tee_tcb_svn, mrseam"):
        _ = quote.mrdt
    with pytest.raises(ValueError, match="64 bytes; these are 65"):
        swtdx.make_quote(bytes(65))


def test_a_policy_decides_about_measurements() -> None:
    quote, service = swtdx.make_quote(), swtdx.CollateralService()
    for mrtd, accepted in ((quote.mrtd.hex(), True), ("00" * 48, False)):
        verdict = swtdx.verify(
            quote, service.collateral(), root=service.root, accept_simulated=True,
            policy=f'[td]\nmrtd = ["{mrtd}"]\n',
        )  # fmt: skip
        assert verdict.accepted is accepted
        assert verdict.authentic
