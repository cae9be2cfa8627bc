"""A module image may name what the module shall offer: it is measured, and a snapshot keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.arch.features import BASE_MODULE, MODULE_1_5_01, MODULES
from swtdx.firmware.errors import LoaderError
from swtdx.firmware.image import build_module
from swtdx.firmware.signing import sign_module
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig, module_image


def test_it_is_loaded_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "saved"
    image = module_image(features=MODULE_1_5_01)
    assert image.pages != module_image().pages, "another MRSEAM"
    with Platform.boot(PlatformConfig(machine=MachineConfig(engine="scripted"), module=image)) as platform:
        assert platform.machine.seam.module.state.features is MODULE_1_5_01
        platform.save(file)
    with Platform.load(file) as platform:
        assert platform.machine.seam.module.state.features is MODULE_1_5_01


def test_by_itself_the_module_offers_what_it_has() -> None:
    with Platform.boot(PlatformConfig(machine=MachineConfig(engine="scripted"))) as platform:
        assert platform.machine.seam.module.state.features is BASE_MODULE


def test_features_that_the_module_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    image = sign_module(build_module(features=MODULE_1_5_01))
    monkeypatch.delitem(MODULES, MODULE_1_5_01.name)
    with pytest.raises(LoaderError, match=r"1\.5\.01"):
        Platform.boot(PlatformConfig(machine=MachineConfig(engine="scripted"), module=image))
