"""The 16550A UART, at eight byte-wide ports (COM1: 0x3F8).

The transmitter is infinitely fast: a byte written is out, and the holding register is empty again.
That is what a hypervisor wants, since a guest then never waits for it.

Source: the register descriptions of National Semiconductor's PC16550D data sheet.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from swtdx.devices.saved import In, Out

COM1: Final = 0x3F8
#: Ports that a UART has.
PORTS: Final = 8

# Register offsets
_DATA, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCR = range(8)

# Interrupt enable
_IER_RDA, _IER_THRE, _IER_LSR, _IER_MSR = 1, 2, 4, 8
# Interrupt identification, highest priority first
_IIR_NONE, _IIR_LSR, _IIR_RDA, _IIR_TIMEOUT, _IIR_THRE, _IIR_MSR = 0x01, 0x06, 0x04, 0x0C, 0x02, 0x00
_IIR_FIFO: Final = 0xC0
# Line status
_LSR_DR, _LSR_OE, _LSR_THRE, _LSR_TEMT = 0x01, 0x02, 0x20, 0x40
# Modem control
_MCR_DTR, _MCR_RTS, _MCR_OUT1, _MCR_OUT2, _MCR_LOOP = 1, 2, 4, 8, 16
# Modem status: inputs in the high half, "changed" bits in the low half
_MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x10, 0x20, 0x40, 0x80
_MSR_TERI: Final = 0x04

_LCR_DLAB: Final = 0x80
_FIFO_DEPTH: Final = 16
_TRIGGER: Final = (1, 4, 8, 14)
#: A terminal that is there and ready: clear to send, data set ready, carrier.
_CONNECTED: Final = _MSR_CTS | _MSR_DSR | _MSR_DCD


class Uart:
    """A 16550A.

    Args:
        output: takes what the guest sends, as it sends it.
        interrupt: takes the level of the interrupt line whenever it changes; None if the line goes
            nowhere and the guest polls.
    """

    def __init__(
        self, output: Callable[[bytes], None], interrupt: Callable[[bool], None] | None = None
    ) -> None:
        self._output = output
        self._interrupt = interrupt
        self._lock = threading.RLock()
        self._waiting: deque[int] = deque()
        self._line = False
        self._fifo: deque[int] = deque()
        self._fifo_on = False
        self._trigger = 1
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._divisor = 0x0C  # 9600 baud, which only a guest that reads it will notice
        self._thre_pending = False
        self._overrun = False
        self._msr_delta = 0

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`.  Input that waits is kept."""
        with self._lock:
            out.blob(bytes(self._waiting))
            out.blob(bytes(self._fifo))
            for value in (self._trigger, self._ier, self._lcr, self._mcr, self._scratch, self._msr_delta):
                out.u8(value)
            for flag in (self._fifo_on, self._thre_pending, self._overrun, self._line):
                out.u8(flag)
            out.u16(self._divisor)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        with self._lock:
            self._waiting = deque(section.blob())
            self._fifo = deque(section.blob())
            self._trigger, self._ier, self._lcr, self._mcr, self._scratch, self._msr_delta = section.read(6)
            self._fifo_on, self._thre_pending, self._overrun, self._line = map(bool, section.read(4))
            self._divisor = section.u16()
            if len(self._fifo) > (_FIFO_DEPTH if self._fifo_on else 1) or self._trigger not in _TRIGGER:
                raise section.fail("a UART whose FIFO cannot be like that")

    def send(self, data: bytes) -> None:
        """Input for the guest; kept until it has room.  Callable from any thread."""
        with self._lock:
            self._waiting.extend(data)
            self._refill()
            self._update()

    @property
    def pending(self) -> int:
        """Bytes of input that the guest has not read."""
        return len(self._waiting) + len(self._fifo)

    def read(self, offset: int, size: int) -> int:
        """IN from register ``offset`` (0..7)."""
        with self._lock:
            value = self._read(offset)
            self._update()
            return value

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT of a byte to register ``offset`` (0..7)."""
        with self._lock:
            self._write(offset, value)
            self._update()

    def _read(self, offset: int) -> int:
        if offset == _DATA:
            if self._lcr & _LCR_DLAB:
                return self._divisor & 0xFF
            byte = self._fifo.popleft() if self._fifo else 0
            self._refill()
            return byte
        if offset == _IER:
            return self._divisor >> 8 if self._lcr & _LCR_DLAB else self._ier
        if offset == _IIR_FCR:
            cause = self._cause()
            if cause == _IIR_THRE:
                self._thre_pending = False
            return cause | (_IIR_FIFO if self._fifo_on else 0)
        if offset == _LCR:
            return self._lcr
        if offset == _MCR:
            return self._mcr
        if offset == _LSR:
            status = _LSR_THRE | _LSR_TEMT | (_LSR_DR if self._fifo else 0)
            if self._overrun:
                status |= _LSR_OE
                self._overrun = False
            return status
        if offset == _MSR:
            status = self._modem_lines() | self._msr_delta
            self._msr_delta = 0
            return status
        return self._scratch

    def _write(self, offset: int, value: int) -> None:
        if offset == _DATA:
            if self._lcr & _LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._transmit(value)
        elif offset == _IER:
            if self._lcr & _LCR_DLAB:
                self._divisor = value << 8 | self._divisor & 0xFF
            else:
                # Enabling the transmitter's interrupt while the transmitter is empty raises it.
                if value & _IER_THRE and not self._ier & _IER_THRE:
                    self._thre_pending = True
                self._ier = value & 0x0F
        elif offset == _IIR_FCR:
            self._set_fifo(value)
        elif offset == _LCR:
            self._lcr = value
        elif offset == _MCR:
            before = self._modem_lines()
            self._mcr = value & 0x1F
            self._note_modem_change(before, self._modem_lines())
            self._refill()
        elif offset == _SCR:
            self._scratch = value
        # LSR and MSR are for factory tests when written: ignored.

    def _transmit(self, value: int) -> None:
        if self._mcr & _MCR_LOOP:
            if len(self._fifo) < (_FIFO_DEPTH if self._fifo_on else 1):
                self._fifo.append(value)
            else:
                self._overrun = True
                if not self._fifo_on:
                    self._fifo[0] = value  # without FIFOs the new byte replaces the old one
        else:
            self._output(bytes((value,)))
        self._thre_pending = True

    def _set_fifo(self, value: int) -> None:
        on = bool(value & 1)
        # Switching the FIFOs empties both; so does asking for it, one by one.
        switched = on != self._fifo_on
        if switched or value & 2:
            self._fifo.clear()
        if switched or value & 4:
            self._thre_pending = True  # "empty" is news again, as QEMU has it; the data sheet is silent
        self._fifo_on = on
        self._trigger = _TRIGGER[value >> 6] if on else 1
        self._refill()

    def _refill(self) -> None:
        """Move input that waits into the receiver; the line is cut while in loopback."""
        if not self._mcr & _MCR_LOOP:
            room = (_FIFO_DEPTH if self._fifo_on else 1) - len(self._fifo)
            while self._waiting and room > 0:
                self._fifo.append(self._waiting.popleft())
                room -= 1

    def _modem_lines(self) -> int:
        if not self._mcr & _MCR_LOOP:
            return _CONNECTED
        pairs = ((_MCR_RTS, _MSR_CTS), (_MCR_DTR, _MSR_DSR), (_MCR_OUT1, _MSR_RI), (_MCR_OUT2, _MSR_DCD))
        return sum(line for control, line in pairs if self._mcr & control)

    def _note_modem_change(self, before: int, after: int) -> None:
        changed = (before ^ after) >> 4
        if not before & ~after & _MSR_RI:
            changed &= ~_MSR_TERI  # ring is noted on its trailing edge only
        self._msr_delta |= changed

    def _cause(self) -> int:
        """The interrupt identification of the highest enabled cause."""
        if self._ier & _IER_LSR and self._overrun:
            return _IIR_LSR
        if self._ier & _IER_RDA and self._fifo:
            # A real receiver waits four characters' time before it reports fewer than the trigger
            # level; with input from a keyboard nothing is gained by waiting.
            return _IIR_RDA if len(self._fifo) >= self._trigger else _IIR_TIMEOUT
        if self._ier & _IER_THRE and self._thre_pending:
            return _IIR_THRE
        if self._ier & _IER_MSR and self._msr_delta:
            return _IIR_MSR
        return _IIR_NONE

    def _update(self) -> None:
        line = self._cause() != _IIR_NONE
        if line != self._line:
            self._line = line
            if self._interrupt is not None:
                self._interrupt(line)
