"""The TDX Module's MRTD of a TD that is built through SEAMCALLs equals the one computed offline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from swtdx.guests.firmware import fetch_firmware
from swtdx.measure.mrtd import Region, mrtd
from swtdx.measure.tdvf import parse_tdvf
from swtdx.proof.conformance import stages
from swtdx.proof.conformance.world import Td, World
from tests.measure.images import Image
from tests.measure.test_mrtd import ZERO_PAGE

_MRTD_FIELD = 0x1310000300000000
_R8 = 8


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield stages.bring_up(made, "built")


def build(world: World, td: Td, regions: Iterable[Region]) -> bytes:
    """What a VMM does with a list of regions (measurement.md §4.2); MRTD after TDH.MR.FINALIZE."""
    tables: set[tuple[int, int]] = set()
    source = world.buffer()
    for region in regions:
        for at in range(0, region.size, 4096):
            gpa = region.gpa + at
            for level, shift in ((3, 39), (2, 30), (1, 21)):
                table = gpa >> shift << shift
                if (table, level) not in tables:
                    tables.add((table, level))
                    world.ok("TDH.MEM.SEPT.ADD", rcx=table | level, rdx=td.tdr, r8=world.page())
            world.memory.write(source, bytes(region.data[at : at + 4096]).ljust(4096, b"\0"))
            world.ok("TDH.MEM.PAGE.ADD", rcx=gpa, rdx=td.tdr, r8=world.page(), r9=source)
            if region.measured:
                for chunk in range(gpa, gpa + 4096, 256):
                    world.ok("TDH.MR.EXTEND", rcx=chunk, rdx=td.tdr)
    stages.create_vcpu(world, td)
    stages.add_vpcx(world, td)
    world.ok("TDH.VP.INIT", rcx=td.tdvpr, rdx=0)
    world.ok("TDH.MR.FINALIZE", rcx=td.tdr)
    words = [world.ok("TDH.MNG.RD", rcx=td.tdr, rdx=_MRTD_FIELD + word)[_R8] for word in range(6)]
    return b"".join(word.to_bytes(8, "little") for word in words)


def test_the_reference_vector(world: World) -> None:
    page = Region(0xFFFFF000, 4096, b"", measured=True)
    assert build(world, world.td, [page]).hex() == ZERO_PAGE


def test_nothing_at_all_is_measured(world: World) -> None:
    assert build(world, world.td, []) == mrtd([])


def test_an_image(world: World) -> None:
    image = parse_tdvf(Image().build())
    assert build(world, world.td, image.regions()) == image.measure().digest()


@pytest.mark.network
def test_debians_ovmf(world: World) -> None:
    image = parse_tdvf(fetch_firmware().image.read_bytes())
    assert build(world, world.td, image.regions()) == image.measure().digest()
