"""Linux's driver of the CMOS clock, attacked by the hypervisor that plays the clock.

Each read of the clock's registers is a TDVMCALL (IN from port 0x71), and a hostile hypervisor answers what it
likes.  The driver has to refuse nonsense.
"""

import pytest

INDEX, DATA = 0x70, 0x71
STATUS_A = 0x0A
UPDATE_IN_PROGRESS = 0x80

pytestmark = pytest.mark.tdx_td(memory=256 << 20)


class Clock:
    """The hostile clock: what it answers, by register; the others are the real one's."""

    def __init__(self, hostile, answers, most=None):
        self.answers = answers
        self.most = most
        self.index = 0
        self.lies = 0
        hostile.on_exit(self.exit)

    def exit(self, exit):
        if exit.port == INDEX and not exit.is_read:
            self.index = exit["R15"] & 0x7F
        elif exit.port == DATA and exit.is_read and self.index in self.answers and self.lies != self.most:
            self.lies += 1
            exit.answer(r11=self.answers[self.index])


def read_clock(td):
    return td.run("cat /sys/class/rtc/rtc0/date /sys/class/rtc/rtc0/time", timeout=30)


def sound(td):
    """The kernel has noticed no mistake of its own."""
    assert td.run("dmesg | grep -ciE 'oops|bug:|call trace|general protection|stall'").output == "0\n"


@pytest.mark.parametrize(
    ("register", "value", "what"),
    [
        (8, 0xFF, "month"),
        (8, 0x13, "month"),
        (7, 0x45, "day"),
        (4, 0x77, "hour"),
        (2, 0x99, "minute"),
        (0, 0xFF, "second"),
    ],
)
def test_nonsense_is_refused(tdx_hostile_linux, register, value, what):
    td = tdx_hostile_linux.td
    assert read_clock(td).ok, "the real clock"
    clock = Clock(tdx_hostile_linux, {register: value})
    done = read_clock(td)
    assert clock.lies, "the driver has asked"
    assert not done.ok, f"the driver takes a {what} of {value:#x} in BCD: {done.output}"
    sound(td)


def test_an_update_that_takes_long_is_waited_for(tdx_hostile_linux):
    """With interrupts off: one without end would keep the CPU for 10,000 rounds, until the driver gives up."""
    td = tdx_hostile_linux.td
    clock = Clock(tdx_hostile_linux, {STATUS_A: UPDATE_IN_PROGRESS | 0x26}, most=200)
    assert read_clock(td).ok
    assert clock.lies == clock.most, "the driver has asked again and again"
    sound(td)


def test_the_wrong_time_is_believed(tdx_hostile_linux):
    """What no driver can know: a clock that is wrong but makes sense.  A TD must not trust it."""
    clock = Clock(tdx_hostile_linux, {9: 0x99})
    done = read_clock(tdx_hostile_linux.td)
    assert clock.lies
    assert "2099-" in done.output or "1999-" in done.output
