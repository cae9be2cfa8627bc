"""Module dependencies, read from objects that the real assembler made."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

import pytest

from swtdx.guests.assemble import binutils_missing
from swtdx.guests.errors import GuestError
from swtdx.guests.modules import Module, load_order, modinfo, module_name, unpack_module

needs_binutils = pytest.mark.skipif(binutils_missing() is not None, reason="needs binutils")


def build(tmp_path: Path, name: str, depends: str) -> bytes:
    source = tmp_path / f"{name}.s"
    source.write_text(
        f'.section .modinfo,"a"\n.asciz "license=GPL"\n.asciz "depends={depends}"\n'
        f'.asciz "name={name}"\n.text\nnop\n.section .later,"a"\n.asciz "x"\n'
    )
    subprocess.run(["as", "--64", "-o", f"{tmp_path}/{name}.o", str(source)], check=True)
    return (tmp_path / f"{name}.o").read_bytes()


@needs_binutils
def test_order_follows_the_dependencies(tmp_path: Path) -> None:
    made = {
        "kernel/a/tdx-guest.ko.xz": lzma.compress(build(tmp_path, "tdx_guest", "tsm,built-in,gone")),
        "kernel/b/tsm.ko.gz": gzip.compress(build(tmp_path, "tsm", "configfs")),
        "kernel/c/configfs.ko": build(tmp_path, "configfs", ""),
        "kernel/d/other.ko": b"never read",
    }
    read: list[str] = []

    def reader(path: str) -> bytes:
        read.append(path)
        return made[path]

    files = {path: (lambda path=path: reader(path)) for path in made}
    modules, missing = load_order(files, ["kernel/x/built-in.ko\n"])
    assert [module.name for module in modules] == ["configfs", "tsm", "tdx_guest"]
    assert modules[0].data == made["kernel/c/configfs.ko"]
    assert missing == ("gone",)
    assert "kernel/d/other.ko" not in read
    assert modinfo(modules[2])["license"] == "GPL"


def test_names() -> None:
    assert module_name("lib/modules/6/kernel/tdx-guest.ko.xz") == "tdx_guest"
    assert module_name("x.ko.zst") == "x"
    assert module_name("modules.order") is None


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01" + bytes(20), b"\x7fELF\x02\x01" + b"\xff" * 100])
def test_damaged_modules_are_named(data: bytes) -> None:
    with pytest.raises(GuestError, match=r"module odd has no \.modinfo"):
        modinfo(Module("odd", data))
    with pytest.raises(GuestError, match=r"tsm\.ko\.xz is damaged"):
        unpack_module("tsm.ko.xz", b"junk" + data)
