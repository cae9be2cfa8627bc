"""``swtdx host prepare``: which source is taken, what is asked for first, what the user is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from swtdx.guests.apt import Package
from swtdx.guests.cache import Cache
from swtdx.guests.errors import FetchError
from swtdx.host import kernel
from swtdx.host.errors import HostError
from swtdx.host.kernel_config import REQUIRED, fragment


class Sources:
    """Package sources with these packages."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self._names if name.startswith(prefix))

    def packages(self, names: list[str]) -> list[Package]:
        return [Package(name, "1", 1, "00") for name in names if name in self._names]


def choose(*names: str) -> str:
    sources: Any = Sources(*names)
    return kernel._choose(sources).name


def test_the_newest_source_is_taken_by_number() -> None:
    assert choose("linux-source-6.16", "linux-source-7.2", "linux-source-7.10", "linux-source") == (
        "linux-source-7.10"
    )


@pytest.mark.parametrize("names", [(), ("linux-source-6.1", "linux-source-6.12")])
def test_sources_that_are_too_old_are_named_with_a_way_out(names: tuple[str, ...]) -> None:
    with pytest.raises(FetchError, match=r"6\.16 on.*--suite sid") as told:
        choose(*names)
    assert all(name in str(told.value) for name in names)


def test_missing_tools_are_named_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"sudo apt-get install .* flex bison"):
        kernel.prepare_kernel(cache=Cache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_kernel_of_another_configuration_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    files = {"bzImage": b"k", **{f"{name}.ko": b"m" for name in ("irqbypass", "kvm", "kvm-intel")}}
    cache.store(kernel.KIND, "linux-9.9.9-old", files, {"version": "9.9.9", "config": "other"})
    assert kernel.cached_kernel(cache) is None
    for version in ("6.16.1", "7.2.13", "7.2.9"):
        details = {"version": version, "config": kernel._digest(fragment())}
        cache.store(kernel.KIND, f"linux-{version}-x", files, details)
    found = kernel.cached_kernel(cache)
    assert found is not None
    assert found.version == "7.2.13"
    assert [(module.name, module.parameters) for module in found.modules()][-1] == ("kvm-intel", "tdx=1")
    (found.image).write_bytes(b"damaged")
    again = kernel.cached_kernel(cache)
    assert again is not None
    assert again.version == "7.2.9", "a damaged file is noticed"


def test_the_fragment_asks_for_what_is_required() -> None:
    lines = fragment().splitlines()
    assert set(REQUIRED) <= set(lines)
    names = [line.partition("=")[0] for line in lines]
    assert len(names) == len(set(names)), "each option is said once"


def test_a_suite_is_a_name() -> None:
    with pytest.raises(HostError, match="not the name of a release"):
        kernel.prepare_kernel("../etc", cache=Cache(Path(os.devnull)))
