"""``swtdx guest`` on a cache of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swtdx.cli.main import main
from swtdx.guests.cache import Cache
from swtdx.guests.guest import store_guest
from swtdx.guests.modules import Module
from swtdx.guests.progress import Quiet
from tests.guests.bzimage import make_bzimage

OLD, NEW = "6.9.1-cloud-amd64", "6.12.3+deb-cloud-amd64"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Cache()
    assert made.root == tmp_path / "swtdx"
    return made


def put(cache: Cache, version: str, busybox: bytes = b"busybox") -> None:
    with cache.lock(Quiet()):
        store_guest(
            cache,
            version=version,
            kernel=make_bzimage(version=version.encode()),
            config=None,
            modules=[Module("tsm", b"module")],
            busybox=busybox,
            source="the test",
            packages={},
        )


def test_an_empty_cache(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guest", "list"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "swtdx guest fetch" in shown.err
    assert main(["guest", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list_puts_the_newest_first_and_fetch_uses_it(
    cache: Cache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, OLD)
    put(cache, NEW)
    assert main(["guest", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["version"] for one in listed] == [NEW, OLD]
    assert Path(listed[0]["kernel"]).read_bytes() == make_bzimage(version=NEW.encode())
    assert [Path(path).read_bytes() for path in listed[0]["modules"]] == [b"module"]
    # Nothing is asked of anybody as long as the cache has it.
    monkeypatch.setenv("PATH", "/nonexistent")
    for arguments, expected in (([], NEW), (["6.9"], OLD), ([OLD], OLD)):
        assert main(["guest", "fetch", "--json", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["version"] == expected


def test_where_nothing_can_be_fetched(
    cache: Cache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["guest", "fetch"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("swtdx: apt-cache and apt-get not found")
    assert "swtdx run --kernel" in shown


def test_a_damaged_guest_is_named_and_can_be_removed(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cache, OLD)
    put(cache, NEW)
    cache.open("guests", f"linux-{NEW}").path("vmlinuz").write_bytes(b"flipped")
    assert main(["guest", "list"]) == 0
    shown = capsys.readouterr()
    assert OLD in shown.out
    assert NEW not in shown.out
    assert f"swtdx guest remove {NEW}" in shown.err
    assert main(["guest", "remove", NEW]) == 0
    assert cache.names("guests") == [f"linux-{OLD}"]


@pytest.mark.parametrize("version", ["6.13", "..", "../../etc", ""])
def test_only_what_is_there_can_be_removed(
    version: str, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cache, OLD)
    assert main(["guest", "remove", version]) == 2
    assert "swtdx guest list" in capsys.readouterr().err
    assert cache.names("guests") == [f"linux-{OLD}"]


def test_ovmf_has_no_version(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guest", "fetch", "--ovmf", "6.12"]) == 2
    assert "--ovmf takes no VERSION" in capsys.readouterr().err
