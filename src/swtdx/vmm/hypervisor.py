"""The hypervisor of one machine: its processors, its memory, and the initialised TDX module."""

from __future__ import annotations

from collections import Counter

from swtdx.devices.saved import In, Out
from swtdx.machine.host import Host
from swtdx.vmm.memory import PageAllocator
from swtdx.vmm.processor import Processor, Trace
from swtdx.vmm.saved import get, put
from swtdx.vmm.tdx_init import TdxPlatform, initialise


class Hypervisor:
    """Takes a machine whose firmware has loaded the TDX module, and initialises that module.

    Args:
        memory_limit: convert at most so many bytes to TDX memory; all of it by default.
        trace: sees every SEAMCALL; see :data:`swtdx.vmm.processor.Trace`.

    Raises:
        SeamcallError: the module does not come up.
        VmmError: the machine has no memory or no keys for TDX.
    """

    def __init__(self, host: Host, *, memory_limit: int | None = None, trace: Trace | None = None) -> None:
        self.host = host
        self.processors = [Processor(lp) for lp in host.processors]
        self.set_trace(trace)
        self.allocator = PageAllocator(host.memory.clear)
        self.platform = initialise(host, self.processors, self.allocator, memory_limit)
        self._names: Counter[str] = Counter()

    @classmethod
    def restored(cls, host: Host, section: In) -> Hypervisor:
        """The hypervisor that :meth:`save_state` wrote down, on the machine that was saved with it."""
        self = cls.__new__(cls)
        self.host = host
        self.processors = [Processor(lp) for lp in host.processors]
        self.allocator = PageAllocator(host.memory.clear)
        self.allocator.load_state(section)
        self.platform = TdxPlatform.restored(self.processors[0], self.allocator, section)
        fields = get(section)
        self._names = Counter(fields["names"])
        for cpu, taken in zip(self.processors, fields["taken"], strict=True):
            cpu.taken = int(taken)
        return self

    def save_state(self, out: Out) -> None:
        """Write down everything but the TDs."""
        self.allocator.save_state(out)
        self.platform.save_state(out)
        put(out, names=dict(self._names), taken=[cpu.taken for cpu in self.processors])

    def set_trace(self, trace: Trace | None) -> None:
        """Have ``trace`` called for every SEAMCALL from now on; None stops it."""
        for cpu in self.processors:
            cpu.trace = trace

    def unique_name(self, name: str) -> str:
        """``name``, with a number if another TD has had it."""
        self._names[name] += 1
        count = self._names[name]
        return name if count == 1 else f"{name} {count}"

    @property
    def stats(self) -> dict[str, int]:
        """SEAMCALLs so far, by leaf name, over all processors."""
        total: Counter[str] = Counter()
        for cpu in self.processors:
            total.update(cpu.leaf_counts())
        return dict(total.most_common())
