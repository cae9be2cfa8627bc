"""The cache: complete or absent, checked on use, one writer at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from swtdx.guests.cache import Cache, cache_root
from swtdx.guests.errors import CacheError
from swtdx.guests.progress import Quiet
from tests.cache import FOLDER, use_own_cache

FILES = {"vmlinuz": b"kernel", "modules/a.ko": b"A"}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "swtdx")


def test_the_place_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_root() == Path("/somewhere/swtdx")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert cache_root() == Path("/home/u/.cache/swtdx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("/home/u/.cache/swtdx")


def test_what_is_stored_comes_back(cache: Cache) -> None:
    assert cache.names("guests") == []
    cache.store("guests", "linux-6.12+x", FILES, {"version": "6.12"})
    entry = cache.open("guests", "linux-6.12+x")
    assert cache.names("guests") == ["linux-6.12+x"]
    assert {file: entry.path(file).read_bytes() for file in entry.files} == FILES
    assert entry.details == {"version": "6.12"}
    cache.store("guests", "linux-6.12+x", {"vmlinuz": b"new"}, {})
    assert cache.open("guests", "linux-6.12+x").files == ("vmlinuz",)
    cache.remove("guests", "linux-6.12+x")
    assert cache.names("guests") == []


@pytest.mark.parametrize("file", list(FILES))
def test_every_file_is_checked(cache: Cache, file: str) -> None:
    path = cache.store("guests", "g", FILES, {}).path(file)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CacheError, match=f"{file} is damaged.*fetch it again"):
        cache.open("guests", "g")
    path.unlink()
    with pytest.raises(CacheError, match=f"{file} is missing"):
        cache.open("guests", "g")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "files": 3, "details": 0}'])
def test_a_damaged_manifest(cache: Cache, text: str) -> None:
    entry = cache.store("guests", "g", FILES, {})
    entry.path("manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        cache.open("guests", "g")


def test_another_format(cache: Cache) -> None:
    path = cache.store("guests", "g", FILES, {}).path("manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CacheError, match="another version of swtdx"):
        cache.open("guests", "g")


def test_nothing_half_written_is_ever_seen(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store("guests", "g", FILES, {"generation": 1})
    real = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        if path.name == "a.ko":
            raise OSError(28, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(CacheError, match="No space left"):
        cache.store("guests", "g", FILES, {"generation": 2})
    assert cache.open("guests", "g").details == {"generation": 1}
    assert [entry.name for entry in (cache.root / "guests").iterdir()] == ["g"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_names_stay_inside(cache: Cache, name: str) -> None:
    with pytest.raises(CacheError, match="cannot be the name"):
        cache.store("guests", name, FILES, {})
    with pytest.raises(CacheError, match="cannot be the name"):
        cache.store("guests", "g", {"../x": b""}, {})


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "swtdx")
    with pytest.raises(CacheError, match="XDG_CACHE_HOME"), cache.lock(Quiet()):
        pass
    with pytest.raises(CacheError, match="cannot write"):
        cache.store("guests", "g", FILES, {})


class Steps(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, text: str) -> None:
        self.said.append(text)


def test_the_second_writer_waits_and_says_so(cache: Cache) -> None:
    order: list[str] = []
    steps = Steps()

    def second() -> None:
        with cache.lock(steps):
            order.append("second")

    with cache.lock(Quiet()):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 60
        while not steps.said and time.monotonic() < deadline:
            time.sleep(0.005)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert steps.said == ["waiting for another swtdx that is fetching"]


def test_the_tests_have_a_cache_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so have the programs that they start."""
    command = "from swtdx.guests.cache import cache_root; print(cache_root())"
    told = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()) == FOLDER / "swtdx"
    # What a user has is used, and stays as it is.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    users = Cache()
    with users.lock(Quiet()):
        users.store("guests", "old", {"a/file": b"one"}, {})
    use_own_cache(tmp_path / "tests")
    ours = Cache()
    assert ours.root == tmp_path / "tests/swtdx"
    assert ours.open("guests", "old").path("a/file").read_bytes() == b"one"
    with ours.lock(Quiet()):
        ours.store("guests", "old", {"a/file": b"two"}, {})
        ours.store("guests", "new", {"file": b""}, {})
    assert users.open("guests", "old").path("a/file").read_bytes() == b"one"
    assert users.names("guests") == ["old"]
