"""``swtdx setup`` against a system whose package manager is a script that keeps a diary."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swtdx.cli import packages
from swtdx.cli.main import main
from swtdx.machine.engine.qemu.process import install_hint

QEMU = "#!/bin/sh\necho 'QEMU emulator version {version}'\n"


class System:
    """A search path of our own.  ``apt-get install`` works once ``apt-get update`` has run, if then."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.diary = folder / "diary"
        self.diary.touch()
        self.lists = folder / "lists"
        self.delivers = folder / "delivers"
        self.program("env", '#!/bin/sh\nexec /usr/bin/env "$@"\n')

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def apt(self, version: str = "8.2.0") -> None:
        self.delivers.write_text(QEMU.format(version=version))
        self.program(
            "apt-get",
            f"""#!/bin/sh
echo "$DEBIAN_FRONTEND $*" >>{self.diary}
case $1 in
update) : >{self.lists} ;;
install)
    [ -e {self.lists} ] || {{ echo "E: Unable to locate package"; exit 100; }}
    echo "Setting up things ..."
    /bin/cp {self.delivers} {self.bin}/qemu-system-x86_64
    /bin/chmod 755 {self.bin}/qemu-system-x86_64 ;;
esac
""",
        )

    @property
    def calls(self) -> list[list[str]]:
        return [line.split() for line in self.diary.read_text().splitlines()]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    made = System(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.delenv("SWTDX_QEMU", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return made


def test_nothing_to_do_is_quiet(system: System, capfd: pytest.CaptureFixture[str]) -> None:
    system.program("qemu-system-x86_64", QEMU.format(version="7.2.18"))
    system.apt()
    assert main(["setup", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert system.calls == []
    assert main(["setup"]) == 0
    assert "QEMU 7.2 " in capfd.readouterr().out


def test_a_fresh_container_without_package_lists(system: System, capfd: pytest.CaptureFixture[str]) -> None:
    system.apt()
    assert main(["setup"]) == 0
    assert [call[1] for call in system.calls] == ["install", "update", "install"]
    for call in system.calls:
        assert call[0] == "noninteractive"
    assert "qemu-system-x86" in system.calls[-1]
    shown = capfd.readouterr()
    assert "QEMU 8.2 " in shown.out
    assert "Setting up" not in shown.out + shown.err


def test_what_the_package_manager_says_is_shown_on_request(
    system: System, capfd: pytest.CaptureFixture[str]
) -> None:
    system.apt()
    system.lists.touch()
    assert main(["setup", "--verbose"]) == 0
    assert [call[1] for call in system.calls] == ["install"]
    assert "Setting up things" in capfd.readouterr().err


def test_a_qemu_that_is_too_old_is_replaced(system: System, capfd: pytest.CaptureFixture[str]) -> None:
    system.program("qemu-system-x86_64", QEMU.format(version="5.2.0"))
    system.apt(version="9.0.1")
    assert main(["setup"]) == 0
    assert "QEMU 9.0 " in capfd.readouterr().out


def test_a_distribution_that_is_too_old_is_named(system: System, capfd: pytest.CaptureFixture[str]) -> None:
    system.apt(version="5.2.0")
    assert main(["setup"]) == 2
    shown = capfd.readouterr().err
    assert "5.2" in shown
    assert "7.2" in shown


def test_a_failure_shows_the_package_managers_words(
    system: System, capfd: pytest.CaptureFixture[str]
) -> None:
    system.program("apt-get", "#!/bin/sh\necho 'E: the disk is full'\nexit 100\n")
    assert main(["setup", "--quiet"]) == 2
    shown = capfd.readouterr().err
    assert "E: the disk is full" in shown
    assert "apt-get install" in shown


def test_without_root_it_says_what_to_type(
    system: System, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    system.apt()
    assert main(["setup"]) == 2
    assert "sudo apt-get install --no-install-recommends qemu-system-x86" in capfd.readouterr().err
    assert system.calls == []


def test_with_a_sudo_that_asks_for_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    system.apt()
    system.program("true", "#!/bin/sh\n")
    system.program(
        "sudo", f'#!/bin/sh\n[ "$1" = -n ] || exit 1\nshift\necho sudo >>{system.diary}\nexec "$@"\n'
    )
    assert main(["setup"]) == 0
    assert system.calls.count(["sudo"]) == 4  # true, install, update, install


def test_check_changes_nothing(system: System, capfd: pytest.CaptureFixture[str]) -> None:
    system.apt()
    assert main(["setup", "--check"]) == 2
    assert system.calls == []
    assert "apt-get install" in capfd.readouterr().err


def test_programs_for_tests_are_installed_and_missed_without_harm(
    system: System, capfd: pytest.CaptureFixture[str]
) -> None:
    system.program("qemu-system-x86_64", QEMU.format(version="7.2.18"))
    system.program("openssl", "#!/bin/sh\n")
    system.apt()
    assert main(["setup", "--tests"]) == 0
    assert {"acpica-tools", "binutils", "cpio"} <= set(system.calls[-1])
    assert "openssl" not in system.calls[-1]
    system.program("apt-get", "#!/bin/sh\nexit 100\n")
    assert main(["setup", "--tests"]) == 0
    assert "skipped" in capfd.readouterr().err


@pytest.mark.parametrize("manager", packages.MANAGERS, ids=lambda manager: manager.tool)
def test_the_engine_names_the_same_packages(manager: packages.Manager, system: System) -> None:
    system.program(manager.tool, "#!/bin/sh\n")
    assert packages.find_manager() == manager
    assert install_hint().split()[-1] == manager.qemu
    assert packages.what_to_type(manager, [manager.qemu]).split()[-1] == manager.qemu
