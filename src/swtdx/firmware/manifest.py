"""What an image admits into SEAM: Python source files, each by its SHA-384.

Intel's module is machine code, and its pages are measured.  swtdx's module is Python, so its image
holds this manifest instead, and the loader checks, before it installs the entry point, that the files
that Python will import are exactly those: none changed, none missing, none beside them.  What is not
covered is below SEAM, as microcode is on hardware: the Python interpreter with its bytecode cache, its
standard library, and ``swtdx.machine``.

The text is JSON with sorted keys and no spaces, so a manifest has one encoding only.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swtdx.firmware.errors import ImageError

#: Endings of files that Python can import.
_IMPORTABLE: Final = tuple(importlib.machinery.all_suffixes())
_SOURCE: Final = ".py"


@dataclass(frozen=True, slots=True)
class Manifest:
    """``name`` and ``version`` (dotted numbers) of the software, its ``entry`` point as
    ``module:attribute``, the ``packages`` that run in SEAM, the SHA-384 (hex) of each of their source
    files by name, and ``constants`` (text): those of a loader are its own, those of a module are what its
    entry point is made with.
    """

    name: str
    version: str
    entry: str
    packages: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """UTF-8 JSON."""
        content = {
            "constants": dict(self.constants),
            "entry": self.entry,
            "files": dict(self.files),
            "name": self.name,
            "packages": list(self.packages),
            "version": self.version,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """The manifest in ``data``.

        Raises:
            ImageError: it is not one of ours.
        """
        try:
            content: dict[str, Any] = json.loads(data)
            manifest = cls(
                name=str(content["name"]),
                version=str(content["version"]),
                entry=str(content["entry"]),
                packages=tuple(str(package) for package in content["packages"]),
                files=tuple(sorted((str(name), str(value)) for name, value in content["files"].items())),
                constants=tuple(sorted((str(k), str(v)) for k, v in content["constants"].items())),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(f"the image's manifest cannot be read: {error!r}") from None
        if manifest.encode() != data:
            raise ImageError("the image's manifest is not in its one canonical form")
        return manifest

    def constant(self, name: str) -> str:
        """One of the constants.

        Raises:
            ImageError: there is none of that name.
        """
        for key, value in self.constants:
            if key == name:
                return value
        raise ImageError(f"the manifest of {self.name} has no constant {name!r}")


def find_sources(package: str) -> dict[str, Path]:
    """Every file of ``package`` (a package or a single module) that Python could import, by name.

    Raises:
        ImageError: there is no such package, or it holds importable files that are not source.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not spec.has_location:
        raise ImageError(f"there is no Python package {package!r} to load")
    if not spec.submodule_search_locations:
        if not spec.origin.endswith(_SOURCE):
            raise ImageError(f"{spec.origin}: only source files can be admitted to SEAM; remove it")
        return {package + _SOURCE: Path(spec.origin)}
    found: dict[str, Path] = {}
    for root in spec.submodule_search_locations:
        for path in sorted(Path(root).rglob("*")):
            if not path.name.endswith(_IMPORTABLE) or path.parent.name == "__pycache__":
                continue
            if path.suffix != _SOURCE:
                raise ImageError(f"{path}: only source files can be admitted to SEAM; remove it")
            found[f"{package}/{path.relative_to(root).as_posix()}"] = path
    return found


def measure(packages: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(name, SHA-384 in hex) of every source file of ``packages``, sorted by name."""
    hashes: list[tuple[str, str]] = []
    for package in packages:
        for name, path in find_sources(package).items():
            hashes.append((name, hashlib.sha384(path.read_bytes()).hexdigest()))
    return tuple(sorted(hashes))


def check_sources(manifest: Manifest) -> None:
    """Check that what would be imported is what the manifest admits.

    Raises:
        ImageError: a file was changed, is missing, or is not admitted; or a module of these packages
            was imported from somewhere else.
    """
    admitted = dict(manifest.files)
    found: dict[str, Path] = {}
    for package in manifest.packages:
        found.update(find_sources(package))
    for name, path in found.items():
        expected = admitted.pop(name, None)
        if expected is None:
            raise ImageError(f"{path} is not in the manifest of {manifest.name} {manifest.version}")
        if hashlib.sha384(path.read_bytes()).hexdigest() != expected:
            raise ImageError(f"{path} is not the file that was signed: its SHA-384 differs")
    if admitted:
        raise ImageError(f"{sorted(admitted)[0]} is in the manifest of {manifest.name}, but is missing")
    paths = {str(path) for path in found.values()}
    for name, module in list(sys.modules.items()):
        if any(name == package or name.startswith(package + ".") for package in manifest.packages):
            origin = getattr(module, "__file__", None)
            if origin is not None and origin not in paths:
                raise ImageError(f"module {name} was imported from {origin}, which was not admitted")


def load_entry(manifest: Manifest) -> Any:
    """Import the entry point that the manifest names.

    Raises:
        ImageError: it does not exist, or lies in a file that the manifest does not admit.
    """
    module_name, _, attribute = manifest.entry.partition(":")
    inside = any(
        module_name == package or module_name.startswith(package + ".") for package in manifest.packages
    )
    if not attribute or not inside:
        raise ImageError(f"the entry point {manifest.entry!r} is not in the packages of {manifest.name}")
    try:
        module = importlib.import_module(module_name)
        entry = getattr(module, attribute)
    except (ImportError, AttributeError) as error:
        raise ImageError(f"the entry point {manifest.entry!r} cannot be loaded: {error}") from error
    origin = getattr(sys.modules.get(getattr(entry, "__module__", "")), "__file__", None)
    paths = {str(path) for package in manifest.packages for path in find_sources(package).values()}
    if origin not in paths:
        raise ImageError(f"{manifest.entry!r} is defined in {origin}, which was not admitted")
    return entry
