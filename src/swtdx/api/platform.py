"""A machine with its firmware run and its TDX Module loaded, ready for TDs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from swtdx.api.hypervisor import Hypervisor
from swtdx.api.td import Hook, Td
from swtdx.arch.features import MODULES
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform as InnerPlatform
from swtdx.platform import PlatformConfig, module_image, platform_config
from swtdx.quoting import Quoting, world_of
from swtdx.vmm.hypervisor import Hypervisor as InnerHypervisor

if TYPE_CHECKING:
    from swtdx.api.linux import LinuxTd
    from swtdx.api.scripted import Device, ScriptedTd
    from swtdx.attestation.world import World
    from swtdx.machine.engine.scripted import ScriptedEngine
    from swtdx.vmm.quote import QuoteService

#: A guest of the scripted engine (:mod:`swtdx.script`).
Program = Any

#: Memory of a guest for which a machine is made when nothing is said, in bytes.
_GUEST: Final = 1 << 30


class Platform:
    """A TDX machine: processors, memory with encryption, firmware, the TDX Module, and a hypervisor.

    Made, it has gone through reset, BIOS, loaders and module; nothing is left to do but to make TDs.  A
    context manager: :meth:`close` switches it off.

    Args:
        engine: what executes guests.  ``"scripted"`` needs nothing and runs Python generators, in virtual
            time: for unit tests.  ``"qemu"`` runs machine code, such as Linux.
        seed: the machine's identity: everything secret or random on it follows from it.
        cpus: logical processors; TDs with as many vCPUs run fastest.
        memory: bytes of the largest guest that is to run; the machine has more.  It costs what is touched.
        model: the processors: ``"sierra-forest"``, ``"sapphire-rapids"`` or ``"emerald-rapids"``.
        module: what the TDX Module offers: ``"base"``, or ``"1.5.01"`` as Intel's of that version.
        quotes: answers the GetQuote of TDs (bytes of the request to bytes of the quote); None for the
            machine's own quoting enclave.

    Raises:
        ValueError: there is no such engine, model or module, or no such machine.
        EngineError: QEMU is missing, or too old; the message says what to install.
    """

    def __init__(
        self,
        engine: Literal["qemu", "scripted"] = "qemu",
        *,
        seed: str | bytes = b"swtdx",
        cpus: int = 1,
        memory: int = _GUEST,
        model: str | None = None,
        module: str | None = None,
        quotes: QuoteService | None = None,
    ) -> None:
        identity = seed.encode() if isinstance(seed, str) else seed
        features = None
        if module is not None:
            if module not in MODULES:
                raise ValueError(f"there is no module {module!r}: choose one of {', '.join(sorted(MODULES))}")
            features = MODULES[module]
        if engine == "qemu":
            config = platform_config(memory, cpus, cpus, identity, model, features)
        elif engine == "scripted":
            machine = MachineConfig(
                engine="scripted",
                processors_per_package=cpus,
                seed=identity,
                options={} if model is None else {"model": model},
            )
            config = PlatformConfig(
                machine=machine, module=None if features is None else module_image(features=features)
            )
        else:
            raise ValueError(f"there is no engine {engine!r}: choose 'qemu' or 'scripted'")
        self.take(InnerPlatform.boot(config), quotes)

    def take(self, inner: InnerPlatform, quotes: QuoteService | None = None) -> None:
        """Be the public face of ``inner``."""
        config = inner.machine.config
        self._platform = inner
        #: What executes guests: ``"qemu"`` or ``"scripted"``.
        self.engine = config.engine
        #: The machine's identity.
        self.seed = config.seed
        self._tds: list[Td] = []
        self._hypervisor: Hypervisor | None = None
        #: Answers GetQuote.
        self.quote_service: QuoteService = quotes or Quoting(inner)

    @classmethod
    def around(cls, inner: InnerPlatform) -> Self:
        """A platform that is there already: one that goes on from a snapshot."""
        platform = cls.__new__(cls)
        platform.take(inner)
        return platform

    def adopt(self, inner: InnerHypervisor, td: Td) -> None:
        """The hypervisor and the TD that came with it."""
        self._hypervisor = Hypervisor(inner)
        self._tds.append(td)

    # ------------------------------------------------------------------ TDs
    def scripted(
        self,
        *programs: Program,
        debug: bool = False,
        attributes: int = 0,
        devices: Mapping[int, Device] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> ScriptedTd:
        """A TD with a vCPU for each program, a function that yields operations (``swtdx.script``).

        Args:
            programs: each is called with its vCPU's ``swtdx.script.Script``.
            debug: ATTRIBUTES.DEBUG, so that ``td.debug_read`` works.
            attributes: other ATTRIBUTES.
            devices: what answers MMIO, by GPA of its page (above RAM, without the shared bit).
            config: more settings of the TD: ``xfam``, ``gpaw``, ``tsc_hz``, ``mrconfigid``, ``mrowner``,
                ``mrownerconfig``, ``cpuid``, ``pending_ve``.

        Raises:
            ValueError: this platform's engine runs no scripts.
            VmmError: the TD cannot be built.
        """
        from swtdx.api.scripted import ScriptedTd

        td = ScriptedTd(self, programs, debug=debug, attributes=attributes, devices=devices, config=config)
        self._tds.append(td)
        return td

    def linux(
        self,
        *,
        kernel: str | Path | None = None,
        initrd: str | Path | None = None,
        version: str | None = None,
        append: str = "",
        memory: int = 512 << 20,
        vcpus: int = 1,
        debug: bool = False,
        add: Mapping[str | Path, str] | None = None,
        timeout: float = 120.0,
        config: Mapping[str, Any] | None = None,
    ) -> LinuxTd:
        """A TD with an unmodified Linux that has booted and takes commands.

        Args:
            kernel: a bzImage of one's own; by default that of ``version``, or the tested one, which is
                fetched into the cache the first time.
            initrd: an initrd of one's own, for ``kernel``.
            version: of a kernel of Debian's, such as ``"6.12"``.
            append: more words for the kernel's command line.
            memory: bytes of RAM.
            vcpus: virtual CPUs.
            debug: ATTRIBUTES.DEBUG.
            add: files and folders here, and where they go in the guest (absolute paths).
            timeout: seconds that the boot may take.
            config: more settings of the TD, see :meth:`scripted`.

        Raises:
            ValueError: this platform's engine runs no machine code.
            GuestError: the kernel cannot be had, or cannot be a TD.
            VmmError: the TD cannot be built; there is too little memory, say.
            TdEnded: it did not come up; the message says how it ended.
        """
        from swtdx.api.linux import boot_linux

        td = boot_linux(
            self,
            kernel=kernel, initrd=initrd, version=version, append=append, memory=memory, vcpus=vcpus,
            debug=debug, add=add, timeout=timeout, config=config,
        )  # fmt: skip
        self._tds.append(td)
        return td

    # ------------------------------------------------------------------ its software
    @property
    def hypervisor(self) -> Hypervisor:
        """The hypervisor; it has initialised the TDX Module."""
        if self._hypervisor is None:
            self._hypervisor = Hypervisor(InnerHypervisor(self._platform.host))
        return self._hypervisor

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """The hooks at the exits of all TDs."""
        return () if self._hypervisor is None else self._hypervisor.hooks

    def describe(self) -> dict[str, Any]:
        """CPUs, memory, keys, loaders and module in plain data, as ``swtdx platform --json`` has them."""
        return self._platform.summary()

    @property
    def tds(self) -> tuple[Td, ...]:
        """The TDs on it that are not closed."""
        return tuple(self._tds)

    # ------------------------------------------------------------------ attestation
    @property
    def root(self) -> bytes:
        """The simulated root certificate under which this machine's quotes verify, PEM."""
        return self._world().pki.root.pem.encode()

    def collateral(self) -> bytes:
        """Collateral for this machine's quotes that holds now: JSON as dcap-qvl's ``QuoteCollateralV3``."""
        return self._world().collateral().to_json().encode()

    def _world(self) -> World:
        import datetime as dt
        from dataclasses import replace

        return replace(world_of(self._platform), now=dt.datetime.now(dt.UTC))

    # ------------------------------------------------------------------ inside
    @property
    def internals(self) -> InnerPlatform:
        """What is beneath, and may change in any release."""
        return self._platform

    def scripted_engine(self) -> ScriptedEngine:
        """The engine that runs scripts.

        Raises:
            ValueError: this platform has another one.
        """
        if self.engine != "scripted":
            raise ValueError("this platform runs machine code: make it with Platform('scripted') for scripts")
        from swtdx.machine.engine.scripted import ScriptedEngine

        engine = self._platform.machine.engine
        assert isinstance(engine, ScriptedEngine)
        return engine

    def forget(self, td: Td) -> None:
        """A TD is closed."""
        self._tds = [one for one in self._tds if one is not td]

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Switch the machine off; its TDs are gone with it.  Idempotent."""
        for td in self._tds:
            td.lost()
        self._tds.clear()
        self._platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
