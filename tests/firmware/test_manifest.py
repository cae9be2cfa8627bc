"""A module image names Python files by hash: whatever differs on the disk does not run in SEAM."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swtdx.firmware import image as images
from swtdx.firmware.errors import ImageError, LoaderError
from swtdx.firmware.image import SignedImage, build_module, pack, unpack
from swtdx.firmware.manifest import Manifest, check_sources, find_sources, load_entry
from swtdx.firmware.signing import sign_module

from .conftest import Boot
from .support import EBADHASH

ENTRY = """
class Module:
    def __init__(self, machine, seam_range):
        pass
    def __call__(self, lp):
        lp.gpr[0] = 7
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of its own: ``seamthing`` with ``entry.py`` and ``inner/part.py``."""
    root = tmp_path / "seamthing"
    (root / "inner").mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "entry.py").write_text(ENTRY)
    (root / "inner" / "__init__.py").touch()
    (root / "inner" / "part.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield root
    for name in [name for name in sys.modules if name.split(".")[0] == "seamthing"]:
        del sys.modules[name]


def signed(entry: str = "seamthing.entry:Module") -> SignedImage:
    return sign_module(build_module(("seamthing",), entry, "thing", "1.0"))


def test_every_source_file_is_measured(package: Path) -> None:
    manifest = unpack(build_module(("seamthing",), "seamthing.entry:Module", "thing", "1.0"))
    expected = {
        f"seamthing/{path.relative_to(package).as_posix()}": hashlib.sha384(path.read_bytes()).hexdigest()
        for path in package.rglob("*.py")
    }
    assert dict(manifest.files) == expected
    assert len(expected) == 4


def test_it_runs(boot: Boot, package: Path) -> None:
    platform = boot(module=signed())
    lp = platform.machine.processors[1]
    lp.write_cr4(1 << 13)
    lp.vmxon()
    lp.seamcall()
    assert lp.gpr[0] == 7


def append(path: Path) -> None:
    path.write_text(path.read_text() + "# changed\n")


DISTURBANCES: list[tuple[str, Callable[[Path], object], str]] = [
    ("changed", lambda root: append(root / "inner" / "part.py"), "part.py is not the file that was signed"),
    ("entry-changed", lambda root: append(root / "entry.py"), "entry.py is not the file that was signed"),
    ("missing", lambda root: (root / "inner" / "part.py").unlink(), "inner/part.py is in the manifest"),
    ("added", lambda root: (root / "more.py").touch(), "more.py is not in the manifest"),
    ("binary", lambda root: (root / "entry.so").touch(), "only source files can be admitted"),
    ("bytecode", lambda root: (root / "entry.pyc").touch(), "only source files can be admitted"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("disturb", "words"), [r[1:] for r in DISTURBANCES], ids=[r[0] for r in DISTURBANCES]
)
def test_a_disk_that_differs_from_what_was_signed(
    boot: Boot, package: Path, disturb: Callable[[Path], object], words: str
) -> None:
    image = signed()
    disturb(package)
    with pytest.raises(LoaderError, match="start the platform again") as refusal:
        boot(module=image)
    assert refusal.value.status == EBADHASH
    assert words in str(refusal.value)
    assert "seamthing.entry" not in sys.modules  # refused before any of it ran


def test_a_package_that_is_not_there(boot: Boot, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = signed()
    package.rename(package.with_name("elsewhere"))
    importlib.invalidate_caches()
    with pytest.raises(LoaderError, match="no Python package 'seamthing'"):
        boot(module=image)


def test_a_module_imported_from_elsewhere(boot: Boot, package: Path, tmp_path: Path) -> None:
    image = signed()
    importlib.import_module("seamthing.inner.part")
    sys.modules["seamthing.inner.part"].__file__ = str(tmp_path / "part.py")
    with pytest.raises(LoaderError, match="was imported from"):
        boot(module=image)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("os:system", "is not in the packages"),
        ("seamthing.entry", "is not in the packages"),
        ("seamthing.entry:Nothing", "cannot be loaded"),
        ("seamthing.nothing:Module", "cannot be loaded"),
        ("seamthing_other.entry:Module", "is not in the packages"),
    ],
)
def test_entry_points_outside_the_packages(boot: Boot, package: Path, entry: str, words: str) -> None:
    with pytest.raises(LoaderError) as refusal:
        boot(module=signed(entry))
    assert refusal.value.status == EBADHASH
    assert words in str(refusal.value)


def test_an_entry_point_that_comes_from_elsewhere(boot: Boot, package: Path) -> None:
    (package / "entry.py").write_text("from subprocess import Popen as Module\n")
    with pytest.raises(LoaderError, match=r"defined in .*subprocess\.py, which was not admitted"):
        boot(module=signed())


# ---------------------------------------------------------------------- the format
MANIFEST = Manifest("m", "1.0", "a.b:C", ("a",), (("a/b.py", "00"),), (("k", "v"),))


def test_a_manifest_has_one_encoding() -> None:
    data = MANIFEST.encode()
    assert Manifest.decode(data) == MANIFEST
    content = json.loads(data)
    for other in (
        json.dumps(content).encode(),
        json.dumps(content, indent=1, sort_keys=True).encode(),
        data + b" ",
        json.dumps(content | {"more": 1}, sort_keys=True, separators=(",", ":")).encode(),
    ):
        with pytest.raises(ImageError, match="canonical"):
            Manifest.decode(other)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"name":1}', b"null", b"1"])
def test_what_is_not_a_manifest(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        Manifest.decode(data)


def test_constants() -> None:
    assert MANIFEST.constant("k") == "v"
    with pytest.raises(ImageError, match="no constant 'x'"):
        MANIFEST.constant("x")


def image_with(offset: int, value: bytes) -> bytes:
    data = bytearray(pack(MANIFEST))
    data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "4 KiB pages"),
        (bytes(4095), "4 KiB pages"),
        (bytes(4096), "not a swtdx module image"),
        (image_with(0, b"X"), "not a swtdx module image"),
        (image_with(63, b"\1"), "not a swtdx module image"),
        (image_with(8, b"\2"), "format 2"),
        (image_with(12, b"\1\0\0\0"), "length field"),
        (image_with(12, b"\xff\xff\xff\xff"), "length field"),
        (image_with(4095, b"\1"), "length field"),
    ],
)
def test_what_is_not_an_image(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        unpack(data)


def test_an_image_has_at_most_496_pages() -> None:
    many = Manifest("m", "1.0", "a.b:C", ("a",), tuple((f"a/{n}.py", "0" * 96) for n in range(18_500)))
    with pytest.raises(ImageError, match="at most 496"):
        pack(many)


def test_a_signed_image_that_holds_no_manifest(boot: Boot) -> None:
    """What was signed may still be no module of ours."""
    with pytest.raises(LoaderError, match="not a swtdx module image") as refusal:
        boot(module=sign_module(bytes(8192)))
    assert refusal.value.status == EBADHASH


def test_sources_of_single_modules_and_of_nothing() -> None:
    assert list(find_sources("swtdx.platform")) == ["swtdx.platform.py"]
    for name in ("swtdx.nothing", "nothing.at.all", "", "sys"):
        with pytest.raises(ImageError, match="no Python package"):
            find_sources(name)


def test_the_module_of_this_installation_names_its_files() -> None:
    """The image of swtdx.module and swtdx.arch, file by file, by another reading of the disk."""
    manifest = unpack(build_module())
    import swtdx

    root = Path(swtdx.__path__[0])
    expected = {
        f"swtdx.{room}/{path.relative_to(root / room).as_posix()}"
        for room in ("arch", "module")
        for path in (root / room).rglob("*.py")
    }
    assert {name for name, _ in manifest.files} == expected
    check_sources(manifest)
    assert manifest.entry == images.MODULE_ENTRY
    assert callable(load_entry(manifest))
