"""The monitors of `swtdx qemu`: QMP as QEMU's own client speaks it, and the one for people."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from swtdx.cli.inputs import Unusable
from swtdx.cli.qemu.channels import Channel
from swtdx.cli.qemu.ends import FileEnd, SocketEnd
from swtdx.cli.qemu.monitor import Controls, Monitor


@pytest.fixture
def controls() -> Controls:
    return Controls("td", 3)


@pytest.fixture
def path(tmp_path: Path, controls: Controls) -> Iterator[Path]:
    where = tmp_path / "qmp"
    monitor = Monitor(Channel("socket", where, server=True, wait=False), controls, qmp=True)
    yield where
    monitor.close()
    assert not where.exists()


def test_qemus_client_talks_to_it(path: Path, controls: Controls) -> None:
    seen: list[str] = []
    ended: list[str] = []
    controls.end = ended.append
    controls.reset = lambda: seen.append("reset")

    async def talk() -> None:
        client = QMPClient("test")
        await client.connect(str(path))
        assert await client.execute("query-status") == {
            "status": "prelaunch", "running": False, "singlestep": False,
        }  # fmt: skip
        await client.execute("cont")
        assert controls.go.is_set()
        controls.status = "running"
        with client.listener("SHUTDOWN") as events:
            controls.event("SHUTDOWN", guest=True, reason="guest-shutdown")
            event = await asyncio.wait_for(events.get(), 10)
            assert event["data"] == {"guest": True, "reason": "guest-shutdown"}
        assert await client.execute("query-name") == {"name": "td"}
        cpus = await client.execute("query-cpus-fast")
        assert isinstance(cpus, list)
        assert len(cpus) == 3
        commands = await client.execute("query-commands")
        assert {"name": "quit"} in commands  # type: ignore[operator]
        for name, said in (("migrate", "has not been found"), ("stop", "quit ends it")):
            with pytest.raises(ExecuteError, match=said):
                await client.execute(name)
        await client.execute("system_reset")
        await client.execute("quit")
        # The other end has gone.
        with contextlib.suppress(EOFError):
            await client.disconnect()

    asyncio.run(asyncio.wait_for(talk(), 60))
    assert seen == ["reset"]
    assert controls.quit_wanted.wait(10)
    assert ended == ["quit on a monitor"]


def answers(path: Path, *lines: bytes) -> list[dict[str, object]]:
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as read:
        client.settimeout(10)
        client.connect(str(path))
        found = [json.loads(read.readline())]
        for line in lines:
            client.sendall(line + b"\n")
            found.append(json.loads(read.readline()))
        return found


def test_what_is_no_command_is_an_error(path: Path) -> None:
    greeting, *rest = answers(
        path, b"not json", b"[1]", b'{"execute": 1}', b'{"execute": "query-status", "id": 7}',
        b"[" * 500 + b"]" * 500, b'{"execute": "a \\" } b"}',
    )  # fmt: skip
    assert "QMP" in greeting
    assert [set(each) - {"id"} for each in rest] == [{"error"}] * 6
    assert rest[3]["id"] == 7


def test_the_monitor_for_people(tmp_path: Path, controls: Controls) -> None:
    where = tmp_path / "monitor"
    monitor = Monitor(Channel("socket", where, server=True, wait=False), controls, qmp=False)
    controls.status = "running"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(where))
        seen = b""

        def ask(line: bytes, said: bytes) -> None:
            nonlocal seen
            seen = b""
            client.sendall(line + b"\n")
            while said not in seen or not seen.endswith(b"(qemu) "):
                seen += client.recv(4096)

        ask(b"", b"")
        ask(b"info status", b"VM status: running")
        ask(b"dance", b"unknown command: 'dance'")
        ask(b"help", b"quit")
        client.sendall(b"quit\n")
        assert controls.quit_wanted.wait(10)
    monitor.close()


def test_a_socket_carries_a_serial_port(tmp_path: Path) -> None:
    where = tmp_path / "serial"
    end = SocketEnd(Channel("socket", where, server=True, wait=False))
    heard: list[bytes] = []
    came = threading.Event()

    def send(data: bytes) -> None:
        heard.append(data)
        came.set()

    end.send = send
    # Without a client what the guest prints is lost, and after one has gone the next may come.
    end.write(b"lost")
    for word in (b"one", b"two"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(where))
            client.sendall(word)
            assert came.wait(10)
            came.clear()
            end.write(word)
            assert client.recv(100) == word
    assert b"".join(heard) == b"onetwo"
    end.close()
    end.close()
    with pytest.raises(Unusable, match="cannot be listened on"):
        SocketEnd(Channel("socket", tmp_path / "no" / "folder", server=True))
    with pytest.raises(Unusable, match="nothing answers"):
        SocketEnd(Channel("socket", tmp_path / "nothing"))


def test_a_file_is_begun_anew_or_continued(tmp_path: Path) -> None:
    for append, text in ((False, b"a"), (False, b"b"), (True, b"c")):
        end = FileEnd(tmp_path / "log", append=append)
        end.write(text)
        end.close()
    assert (tmp_path / "log").read_bytes() == b"bc"
    with pytest.raises(Unusable, match="cannot be written"):
        FileEnd(tmp_path / "no" / "log", append=False)
