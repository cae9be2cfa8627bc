"""A mistake that drivers make, found in milliseconds: the length that a device reports is not looked at.

The driver is a few lines of a scripted guest: it copies a packet out of memory that it shares with the device.
"""

import pytest
from swtdx import script

SHARED_PAGE = script.RAM + 0x10_0000
BUFFER = script.RAM
KEY = script.RAM + 64
LENGTH_REGISTER = 0xB000_0000
MOST = 64


class Nic:
    """The device: it says how long the packet is."""

    def __init__(self, length):
        self.length = length

    def read(self, offset, size):
        return self.length

    def write(self, offset, size, value):
        pass


def driver(careful):
    """A guest whose driver has a buffer of 64 bytes, with a key behind it, and receives one packet."""

    def guest(cpu):
        yield from script.accept(script.RAM)
        yield script.Write(KEY, 0x5EC2E7)
        assert (yield from script.map_gpa(SHARED_PAGE, 4096, shared=True)) == 0
        length = yield from script.mmio_read(LENGTH_REGISTER)
        if careful and length > MOST:
            return "refused"
        for at in range(0, length, 8):
            word = yield script.Read(SHARED_PAGE + at | script.SHARED)
            yield script.Write(BUFFER + at, word)
        return (yield script.Read(KEY))

    return guest


@pytest.mark.parametrize("length", [0, 8, 64])
@pytest.mark.parametrize("careful", [True, False])
def test_honest_devices_are_served(tdx_hostile, careful, length):
    td = tdx_hostile.scripted(driver(careful), devices={LENGTH_REGISTER: Nic(length)})
    td.run()
    assert td.results == [0x5EC2E7]


def test_the_careless_driver_loses_its_key(tdx_hostile):
    td = tdx_hostile.scripted(driver(careful=False), devices={LENGTH_REGISTER: Nic(72)})

    @tdx_hostile.on_exit
    def fill(exit):
        if exit.mmio is not None:
            td.write_shared(SHARED_PAGE, b"evil" * 32)

    td.run()
    assert td.results == [int.from_bytes(b"evil" * 2, "little")], "the device has written the key"


def test_the_careful_driver_does_not(tdx_hostile):
    td = tdx_hostile.scripted(driver(careful=True), devices={LENGTH_REGISTER: Nic(72)})
    td.run()
    assert td.results == ["refused"]


def test_the_key_is_not_to_be_had_directly(tdx_hostile):
    td = tdx_hostile.scripted(driver(careful=True), devices={LENGTH_REGISTER: Nic(8)})
    td.run()
    page = td.hpa(KEY)
    assert tdx_hostile.hypervisor.read(page, 8) == bytes(8)
    assert tdx_hostile.refused("TDH.MEM.RD", rcx=KEY & -4096, rdx=td.tdr) == "TDX_TD_NON_DEBUG"
