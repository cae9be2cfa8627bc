"""Folders out of a guest: nothing is written outside, whatever the archive says."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from swtdx.api.folders import pack, unpack


def archive(*members: tuple[str, str, str]) -> bytes:
    """(name, kind, contents or target): as a guest could send it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, what in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o6777
            if kind == "file":
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what.encode()))
            else:
                info.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "folder": tarfile.DIRTYPE,
                             "device": tarfile.CHRTYPE}[kind]  # fmt: skip
                info.linkname = what
                tar.addfile(info)
    return out.getvalue()


def test_there_and_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/down").mkdir(parents=True)
    (source / "deep/down/file").write_bytes(os.urandom(5000))
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("run.sh")
    unpack(pack(source), tmp_path / "copy")
    copy = tmp_path / "copy"
    assert (copy / "deep/down/file").read_bytes() == (source / "deep/down/file").read_bytes()
    assert os.access(copy / "run.sh", os.X_OK)
    assert (copy / "link").readlink() == Path("run.sh")


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", "file", "x")],
        [("a/../../evil", "file", "x")],
        [("/evil", "file", "x")],
        [("out", "link", ".."), ("out/evil", "file", "x")],
        [("out", "link", "/"), ("out/tmp/evil-of-swtdx", "file", "x")],
    ],
)
def test_what_would_be_outside_is_refused(members: list[tuple[str, str, str]], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="outside the folder"):
        unpack(archive(*members), tmp_path / "in")
    assert not list(tmp_path.rglob("evil*"))
    assert not Path("/evil").exists()


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    unpack(archive(("f", "link", "../precious"), ("f", "file", "evil")), tmp_path / "in")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "in/f").read_text() == "evil"


def test_no_devices_and_no_set_uid(tmp_path: Path) -> None:
    unpack(archive(("null", "device", ""), ("f", "file", "x"), ("h", "hard", "f")), tmp_path / "in")
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["f"]
    assert (tmp_path / "in/f").stat().st_mode & 0o7022 == 0


@given(data=some.binary(max_size=2000))
def test_what_is_no_archive(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("x")
    with contextlib.suppress(OSError):
        unpack(data, folder / "in")
    assert list(folder.iterdir()) == [folder / "in"]
