"""A stand-in module signed once, an ACM built once, and platforms that are closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from swtdx.firmware.acm import build_acm
from swtdx.firmware.bios import BiosConfig
from swtdx.firmware.image import SignedImage, build_module
from swtdx.firmware.signing import Signer, sign_module
from swtdx.machine.machine import Machine
from swtdx.platform import Platform

from .support import bare_machine, boot_standin

Boot = Callable[..., Platform]
Bare = Callable[..., Machine]


@pytest.fixture(scope="session")
def pages() -> bytes:
    """The image of the stand-in module."""
    return build_module(("tests.firmware.standin",), "tests.firmware.standin:StandIn", "stand-in", "1.0")


@pytest.fixture(scope="session")
def image(pages: bytes) -> SignedImage:
    """The same, signed with the key that plays Intel's part."""
    return sign_module(pages)


@pytest.fixture(scope="session")
def acm() -> bytes:
    """The loader of this installation."""
    return build_acm()


@pytest.fixture(scope="session")
def stranger() -> Signer:
    """Somebody whom no platform trusts."""
    return Signer(rsa.generate_private_key(65537, 3072))


@pytest.fixture
def boot(image: SignedImage, acm: bytes) -> Iterator[Boot]:
    """``boot(packages=1, cpus=2, load=True, bios=BiosConfig(), ...)``: a platform with the stand-in."""
    booted: list[Platform] = []

    def make(**options: object) -> Platform:
        booted.append(boot_standin(image, acm, **options))  # type: ignore[arg-type]
        return booted[-1]

    yield make
    for platform in booted:
        platform.close()


@pytest.fixture
def bare() -> Iterator[Bare]:
    """``bare(packages=2, cpus=2, bios=BiosConfig())``: a machine whose BIOS has run, and nothing else."""
    made: list[Machine] = []

    def make(
        packages: int = 2, cpus: int = 2, memory: int = 256 << 20, bios: BiosConfig | None = None
    ) -> Machine:
        made.append(bare_machine(packages, cpus, memory, bios))
        return made[-1]

    yield make
    for machine in made:
        machine.close()
