"""Files of the user's own in an initramfs, read back as the kernel reads it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from swtdx.guests import cpio
from swtdx.guests.added import Addition, entries
from swtdx.guests.errors import GuestError
from tests.guests.test_initramfs import Files, read_newc


def added(*texts: str) -> Files:
    return read_newc(cpio.archive(entries(Addition.parse(text) for text in texts)))


def test_files_folders_and_links(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "tool").write_bytes(b"#!")
    (folder / "deep" / "tool").chmod(0o755)
    (folder / "link").symlink_to("deep/tool")
    (tmp_path / "plain").write_bytes(b"text")
    (tmp_path / "plain").chmod(0o640)
    files = added(f"{tmp_path}/plain", f"{folder}:/opt/mine", f"{tmp_path}/plain:/usr/share/")
    assert files["root/plain"] == (stat.S_IFREG | 0o640, b"text")
    assert files["usr/share/plain"][1] == b"text"
    assert files["opt/mine/deep/tool"] == (stat.S_IFREG | 0o755, b"#!")
    assert files["opt/mine/link"] == (stat.S_IFLNK | 0o777, b"deep/tool")
    # Every folder that something lies in is there, before it.
    for path in files:
        if "/" in path:
            assert stat.S_ISDIR(files[path.rsplit("/", 1)[0]][0])


def test_a_name_with_a_colon_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a:b"
    path.write_bytes(b"x")
    assert added(str(path))["root/a:b"][1] == b"x"


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    assert added(f"{tmp_path}/link")["root/link"] == (stat.S_IFREG | 0o644, b"x")


def test_what_cannot_be_added(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "y").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for texts, words in (
        ([f"{tmp_path}/x:relative"], "absolute path"),
        ([f"{tmp_path}/none"], "none cannot be read: No such file"),
        ([f"{tmp_path}/fifo"], "neither a file nor a folder"),
        ([f"{tmp_path}/x:/dev/x"], "guest's own"),
        ([f"{tmp_path}/x:/init"], "guest's own"),
        ([f"{tmp_path}/x:/.."], "guest's own"),
        ([f"{tmp_path}/x:/a", f"{tmp_path}/y:/a"], "two of the files"),
    ):
        with pytest.raises(GuestError, match=words):
            added(*texts)
