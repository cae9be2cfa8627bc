"""``--disk``, ``--net``, ``--vsock`` and ``--share``: what their texts mean, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swtdx.cli.device_options import parse_disk, parse_net, parse_share, parse_vsock
from swtdx.vmm.errors import ConfigError
from swtdx.vmm.peripherals.config import (
    DiskConfig,
    Forward,
    NetConfig,
    Peripherals,
    ShareConfig,
    VsockConfig,
)


@pytest.mark.parametrize(
    ("parse", "text", "meant"),
    [
        (parse_disk, "d.img", DiskConfig(Path("d.img"))),
        (parse_disk, "a,,b.qcow2,snapshot=on", DiskConfig(Path("a,b.qcow2"), "qcow2", snapshot=True)),
        (parse_disk, "file=x,format=vmdk,readonly", DiskConfig(Path("x"), "vmdk", read_only=True)),
        (parse_disk, "x.vhd,serial=S1,readonly=off", DiskConfig(Path("x.vhd"), "vpc", serial="S1")),
        (parse_net, "null", NetConfig("null")),
        (parse_net, "user,hostfwd=tcp::2222-:22", NetConfig(forwards=(Forward(2222, 22),))),
        (
            parse_net,
            "user,hostfwd=udp:[::1]:53-10.0.2.15:5353,mac=52:54:00:00:00:01",
            NetConfig(forwards=(Forward(53, 5353, "udp", "::1"),), mac=bytes.fromhex("525400000001")),
        ),
        (parse_vsock, "3:/run/x.sock", VsockConfig(3, Path("/run/x.sock"))),
        (parse_vsock, "77", VsockConfig(77, Path("swtdx-vsock-77.sock"))),
        (parse_share, "/srv/stuff", ShareConfig(Path("/srv/stuff"), "stuff")),
        (parse_share, "/srv/a:b:tag,ro", ShareConfig(Path("/srv/a:b"), "tag", read_only=True)),
    ],
)
def test_texts(parse: Callable[[str], Any], text: str, meant: object) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_disk, "", "needs a file"),
        (parse_disk, "d,format=floppy", "floppy.*choose one of raw, qcow2"),
        (parse_disk, "d,cache=none", "there is no such setting"),
        (parse_disk, "d,snapshot=maybe", "give on or off"),
        (parse_disk, "d,serial=" + 21 * "x", "20 bytes at most"),
        (parse_net, "bridge", "user, null or loopback"),
        (parse_net, "null,hostfwd=tcp::1-:2", "into a user network"),
        (parse_net, "user,hostfwd=2222:22", "write tcp:"),
        (parse_net, "user,hostfwd=tcp::0-:22", "1 to 65535"),
        (parse_net, "user,hostfwd=tcp:somewhere:1-:22", "not an IP address"),
        (parse_net, "user,mac=12", "not the MAC address"),
        (parse_net, "user,mac=01:00:00:00:00:00", "not the MAC address"),
        (parse_vsock, "2:/x", "from 3 to"),
        (parse_vsock, "/x", "a number"),
        (parse_share, "d:" + 32 * "t", "1 to 31 bytes"),
    ],
)
def test_what_is_refused(parse: Callable[[str], Any], text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)


def test_a_tag_stands_for_one_folder() -> None:
    share = ShareConfig(Path("/a"), "same")
    with pytest.raises(ConfigError, match="'same'"):
        Peripherals(shares=(share, ShareConfig(Path("/b"), "same")))
