"""Kernel modules for an initramfs: which ones, in which order, uncompressed.

Debian ships no ``modules.dep`` in its packages (``depmod`` writes it at installation), so dependencies
are read where ``depmod`` reads them: the ``depends=`` entry in each module's ``.modinfo`` section
(Linux ``include/linux/module.h``, ``scripts/mod/modpost.c``).
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import zstandard

from swtdx.guests.errors import GuestError

#: What a TD wants beyond a running kernel: /dev/tdx_guest and, through its dependencies, configfs-tsm.
WANTED: Final = ("tdx_guest",)
#: Its console: part of the kernel in some distributions, modules in others.
CONSOLE: Final = ("virtio_pci", "virtio_console")
#: What Linux drives each peripheral with, and what most use of it needs besides.
PERIPHERALS: Final = {
    "disk": ("virtio_blk", "ext4"),
    "net": ("virtio_net", "af_packet"),
    "share": ("virtiofs", "9pnet_virtio", "9p"),
    "vsock": ("vmw_vsock_virtio_transport",),
    "rng": ("virtio_rng",),
}
_SUFFIXES: Final[dict[str, Callable[[bytes], bytes]]] = {
    ".ko": bytes,
    ".ko.xz": lzma.decompress,
    ".ko.gz": lambda data: zlib.decompress(data, wbits=31),
    ".ko.zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@dataclass(frozen=True, slots=True)
class Module:
    """An uncompressed kernel module; ``name`` as the kernel shows it (``tdx_guest``)."""

    name: str
    data: bytes


def module_name(path: str) -> str | None:
    """The module's name if ``path`` looks like a module file, else None."""
    base = path.rsplit("/", 1)[-1]
    for suffix in _SUFFIXES:
        if base.endswith(suffix):
            return base.removesuffix(suffix).replace("-", "_")
    return None


def unpack_module(path: str, data: bytes) -> Module:
    """The module in file ``path``, decompressed by its suffix (.ko, .ko.xz, .ko.gz, .ko.zst).

    Raises:
        GuestError: not a module, or damaged.
    """
    name = module_name(path)
    for suffix, unpack in _SUFFIXES.items():
        if name is not None and path.endswith(suffix):
            try:
                unpacked = unpack(data)
            except (lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError) as error:
                raise GuestError(f"kernel module {path} is damaged: {error}") from error
            return Module(name, unpacked)
    raise GuestError(f"{path} is not a kernel module")


def modinfo(module: Module) -> dict[str, str]:
    """The ``key=value`` strings of the module's ``.modinfo`` section (the last of each key).

    Raises:
        GuestError: the file is not a 64-bit little-endian ELF object with such a section.
    """
    section = _elf_section(module.data, b".modinfo")
    if section is None:
        raise GuestError(f"kernel module {module.name} has no .modinfo section")
    pairs = (text.decode("utf-8", "replace").partition("=") for text in section.split(b"\0") if text)
    return {key: value for key, _, value in pairs}


def load_order(
    files: Mapping[str, Callable[[], bytes]],
    builtin: Iterable[str] = (),
    wanted: Iterable[str] = WANTED,
) -> tuple[tuple[Module, ...], tuple[str, ...]]:
    """Collect the wanted modules and all they depend on.

    Args:
        files: path of every available module file → how to read it (only the needed are read).
        builtin: lines of ``modules.builtin``: paths of modules that are part of the kernel.
        wanted: module names.

    Returns:
        The modules in an order in which they can be loaded, and the names that exist nowhere.
    """
    by_name = {name: path for path in files if (name := module_name(path)) is not None}
    inside = {module_name(path.strip()) for path in builtin}
    order: dict[str, Module] = {}
    missing: list[str] = []
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in order or name in inside or name in visiting or name in missing:
            return
        if name not in by_name:
            missing.append(name)
            return
        visiting.add(name)
        path = by_name[name]
        module = unpack_module(path, files[path]())
        for dependency in modinfo(module).get("depends", "").split(","):
            if dependency:
                visit(dependency.replace("-", "_"))
        order[name] = module

    for name in wanted:
        visit(name)
    return tuple(order.values()), tuple(missing)


def _elf_section(data: bytes, wanted: bytes) -> bytes | None:
    """Contents of a section of an ELF64 little-endian file, or None (System V ABI, chapter 4)."""
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        entry_size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        headers = [
            # sh_name, sh_offset, sh_size
            (
                struct.unpack_from("<I", data, table + i * entry_size)[0],
                *struct.unpack_from("<QQ", data, table + i * entry_size + 0x18),
            )
            for i in range(count)
        ]
        names_offset = headers[names_index][1]
    except (struct.error, IndexError, OverflowError):
        return None
    for name, offset, size in headers:
        start = names_offset + name
        if data[start : start + len(wanted) + 1] == wanted + b"\0":
            return data[offset : offset + size]
    return None
