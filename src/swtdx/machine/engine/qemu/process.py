"""Finding, checking and running the QEMU process that lends us its processors."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from importlib.resources import files
from typing import ClassVar, Final

from swtdx.arch.units import PAGE
from swtdx.machine.engine.protocol import EngineError
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu.slices import SHORT, set_slice

#: The oldest QEMU whose SVM emulation this engine was tested with.
MINIMUM_VERSION: Final = (7, 2)
BINARY: Final = "qemu-system-x86_64"

_PR_SET_PDEATHSIG: Final = 1
_ROM_SIZE: Final = 0x10000
_VECTOR_SIZE: Final = 16


def install_hint() -> str:
    """The package manager's command that installs QEMU here, as far as it can be told."""
    for tool, command in (
        ("apt-get", "sudo apt-get install --no-install-recommends qemu-system-x86"),
        ("dnf", "sudo dnf install qemu-system-x86-core"),
        ("zypper", "sudo zypper install qemu-x86"),
        ("pacman", "sudo pacman -S qemu-system-x86"),
        ("apk", "sudo apk add qemu-system-x86_64"),
        ("brew", "brew install qemu"),
    ):
        if shutil.which(tool):
            return command
    return "install the package with qemu-system-x86_64, 7.2 or later"


def find_qemu() -> tuple[str, tuple[int, int]]:
    """Path and version (major, minor) of the QEMU to use; ``SWTDX_QEMU`` overrides the search.

    Raises:
        EngineError: there is none, or it is too old; the message says which package to install.
    """
    path = os.environ.get("SWTDX_QEMU") or shutil.which(BINARY)
    if not path:
        raise EngineError(f"{BINARY} is not installed; to install it: {install_hint()}")
    try:
        shown = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{path} does not run ({error}); to install QEMU: {install_hint()}") from None
    found = re.search(r"version (\d+)\.(\d+)", shown)
    if not found:
        raise EngineError(f"{path} --version says {shown.splitlines()[:1]}: not a QEMU we know")
    version = (int(found[1]), int(found[2]))
    if version < MINIMUM_VERSION:
        raise EngineError(
            f"{path} is QEMU {version[0]}.{version[1]}; swtdx needs {MINIMUM_VERSION[0]}."
            f"{MINIMUM_VERSION[1]} or later: {install_hint()}"
        )
    return path, version


def stub_image(name: str = "stub.bin") -> bytes:
    """The stub, padded to the 64 KiB that QEMU wants of a BIOS (``stub.S``, assembled)."""
    compact = files("swtdx.machine.engine.qemu").joinpath(name).read_bytes()
    # The committed file leaves out the filler before the reset vector.
    body, vector = compact[:-_VECTOR_SIZE], compact[-_VECTOR_SIZE:]
    return body.ljust(_ROM_SIZE - _VECTOR_SIZE, b"\0") + vector


def compact_stub(image: bytes) -> bytes:
    """The committed form of an assembled 64 KiB stub image."""
    return image[:-_VECTOR_SIZE].rstrip(b"\0") + image[-_VECTOR_SIZE:]


def _die_with_parent() -> None:  # pragma: no cover - runs in the child
    """PDEATHSIG: a crashed Python must not leave a spinning QEMU behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def interrupt_message(cpu: int, vector: int) -> bytes:
    """A command to QEMU's door for tests: send ``vector`` (the message's data) to processor ``cpu``.

    A store to 0xFEE00000 | destination << 12 is a message-signalled interrupt (SDM volume 3, section 11.11).
    QEMU's main loop makes it, so no other processor has to stop for it.
    """
    return f"writel {0xFEE00000 | cpu << 12:#x} {vector:#x}\n".encode()


class QemuProcess:
    """A running QEMU whose processors wait at their mailboxes.

    ``frames_fd`` is the machine's frames file of ``frames_size`` bytes (a multiple of 2 MiB);
    ``image`` is a snapshot's file with frames, which is only read: its descriptor, and where in it HPA 0 is
    (a multiple of 2 MiB too; the file ends where the frames do).  ``memory`` is the engine's own memory,
    mapped.
    """

    #: The file of the stub that the processors run.
    stub: ClassVar[str] = "stub.bin"
    #: Open files that the command names by number, besides those of the engine.
    more_fds: tuple[int, ...] = ()

    def __init__(
        self, frames_fd: int, frames_size: int, cpus: int, image: tuple[int, int] | None = None
    ) -> None:
        """Start QEMU; :meth:`wait_ready` waits until the processors have arrived.

        Raises:
            EngineError: QEMU is missing, too old or does not start, or ``cpus`` is out of range.
        """
        if not 1 <= cpus <= at.MAX_CPUS:
            raise EngineError(f"the QEMU engine has 1 to {at.MAX_CPUS} logical processors, not {cpus}")
        path, self.version = find_qemu()
        self.cpus = cpus
        self.frames_size = frames_size
        self._image = image
        #: Of the engine's memory, of all frames, and of the snapshot's file.
        self._total = at.ENGINE_SIZE + frames_size + (0 if image is None else image[1] + frames_size)
        self._fd = os.memfd_create("swtdx-engine")
        os.ftruncate(self._fd, at.ENGINE_SIZE)
        self._map = mmap.mmap(self._fd, at.ENGINE_SIZE)
        self.memory = memoryview(self._map)
        self._prepare_memory()
        rom = os.memfd_create("swtdx-stub")
        os.write(rom, stub_image(self.stub))
        self._kick, kick_peer = socket.socketpair()
        pairs = [socket.socketpair() for _ in range(cpus)]
        self.bells = [ours for ours, _ in pairs]
        for bell in self.bells:
            bell.setblocking(False)
        peers = [kick_peer, *(theirs for _, theirs in pairs)]
        # QEMU's words are read when it has ended, so it must not wait for that: what does not fit is lost.
        self._words, words = os.pipe()
        os.set_blocking(words, False)
        os.set_blocking(self._words, False)
        command = self._command(path, frames_fd, rom, kick_peer, [theirs for _, theirs in pairs])
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=(
                    self._fd,
                    frames_fd,
                    rom,
                    *(() if image is None else image[:1]),
                    *(peer.fileno() for peer in peers),
                    *self.more_fds,
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                preexec_fn=_die_with_parent,
                # The terminal's Ctrl-C is for us alone: we end QEMU in order.
                process_group=0,
            )
        except OSError as error:
            raise EngineError(f"{path} could not be started: {error}") from None
        finally:
            os.close(rom)
            os.close(words)
            for peer in peers:
                peer.close()
        self._kick.setblocking(False)
        self._kick_lock = threading.Lock()
        self._kicks = [interrupt_message(cpu, at.VEC_IPI) for cpu in range(cpus)]
        self._wakes = [interrupt_message(cpu, at.VEC_WAKE) for cpu in range(cpus)]

    def _prepare_memory(self) -> None:
        """Identity page tables of 1 GiB pages, and the I/O map.

        Our pages are the supervisor's: the stub runs with the guest's SMEP and SMAP.
        """
        memory = self.memory
        struct.pack_into("<I", memory, at.NUM_CPUS, self.cpus)
        for index in range(4):
            struct.pack_into("<Q", memory, at.PML4 + 8 * index, at.PDPT + PAGE * index | 3)
        entries = [(number << 30) | 0xE3 for number in range(4 * 512)]
        struct.pack_into("<2048Q", memory, at.PDPT, *entries)
        memory[at.IOPM : at.IOPM + 3 * PAGE] = b"\xff" * (3 * PAGE)

    def _command(
        self, path: str, frames_fd: int, rom: int, kick: socket.socket, bells: list[socket.socket]
    ) -> list[str]:
        def backend(name: str, size: int, fd: int, how: str = "share=on") -> str:
            return f"memory-backend-file,id={name},size={size},mem-path=/proc/self/fd/{fd},{how}"

        command = [
            path, "-accel", "tcg,thread=multi",
            # MPX is gone from real servers, and its state would only cost time.
            "-cpu", "max,phys-bits=48,-mpx",
            "-smp", f"{self.cpus},sockets=1,cores={self.cpus},threads=1",
            "-m", f"{self._total >> 20}M",
            "-object", backend("engine", at.ENGINE_SIZE, self._fd),
            "-object", backend("frames", self.frames_size, frames_fd),
            "-numa", "node,memdev=engine", "-numa", "node,memdev=frames",
            "-machine", "q35,smm=off,hpet=off,usb=off,vmport=off,graphics=off",
            "-bios", f"/proc/self/fd/{rom}",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "swtdx",
            "-chardev", f"socket,id=kick,fd={kick.fileno()}",
            # QEMU's own door for tests: a store to the local APICs' addresses is an interrupt message.
            "-object", "qtest,id=door,chardev=kick,log=none",
        ]  # fmt: skip
        if self._image is not None:
            fd, start = self._image
            command += [
                "-object", backend("image", start + self.frames_size, fd, "share=off,readonly=on"),
                "-numa", "node,memdev=image",
            ]  # fmt: skip
        for index, bell in enumerate(bells):
            command += [
                "-chardev", f"socket,id=bell{index},fd={bell.fileno()}",
                "-device", f"isa-debugcon,iobase={at.DOORBELL_PORT + index},chardev=bell{index}",
            ]  # fmt: skip
        return command

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until every processor has reached its mailbox.

        Raises:
            EngineError: QEMU ended, or the processors did not arrive within ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while struct.unpack_from("<I", self.memory, at.NEXT_CPU)[0] < self.cpus:
            self.check_alive()
            if time.monotonic() > end:
                raise EngineError(f"QEMU's processors did not start within {timeout:g} s")
            time.sleep(0.002)

    def answer_soon(self) -> None:
        """Let QEMU's main loop, which wakes and kicks processors, have a core as soon as it is asked to."""
        set_slice(SHORT, self._process.pid)

    def check_alive(self) -> None:
        """Raises EngineError with QEMU's own words if it has ended."""
        if self._process.poll() is not None:
            try:
                words = os.read(self._words, 1 << 16).decode(errors="replace").strip()
            except BlockingIOError:
                words = ""
            raise EngineError(f"QEMU ended (status {self._process.returncode}): {words or 'no message'}")

    @staticmethod
    def report_fault(cpu: int, where: int) -> None:
        """Raises EngineError: the stub of processor ``cpu`` has had an exception."""
        raise EngineError(f"the stub failed on processor {cpu} at {where:#x}")

    def wake(self, cpu: int, *, kick: bool) -> None:
        """Send an interrupt to processor ``cpu``: it wakes from HLT; with ``kick`` it also leaves
        the guest, or does not enter it at the next RUN."""
        self._send(self._kicks[cpu] if kick else self._wakes[cpu])

    def _send(self, message: bytes) -> None:
        """Give a command to QEMU's door for tests."""
        with self._kick_lock:
            try:
                self._kick.send(message)
                # "OK", for the message before.
                self._kick.recv(4096)
            except BlockingIOError:
                # No answer yet; or too many messages wait, and those who want something ask again.
                pass
            except OSError:
                self.check_alive()

    def physical(self, hpa: int) -> int:
        """QEMU physical address of frame byte ``hpa``."""
        return self._address(at.ENGINE_SIZE + hpa)

    def physical_in_image(self, hpa: int) -> int:
        """QEMU physical address of frame byte ``hpa`` in the snapshot's file."""
        assert self._image is not None
        return self._address(at.ENGINE_SIZE + self.frames_size + self._image[1] + hpa)

    def _address(self, offset: int) -> int:
        """Where byte ``offset`` of RAM is: q35 splits RAM around the PCI hole.

        Source: QEMU ``hw/i386/pc_q35.c`` (2 GiB below 4 GiB once RAM reaches 0xB0000000).
        """
        low = self._total if self._total < 0xB0000000 else 0x80000000
        return offset if offset < low else offset - low + (4 << 30)

    def close(self) -> None:
        """Kill QEMU and free its memory.  Idempotent."""
        if self._fd < 0:
            return
        self._process.kill()
        self._process.wait()
        os.close(self._words)
        for link in (self._kick, *self.bells):
            link.close()
        os.close(self._fd)
        self._fd = -1
