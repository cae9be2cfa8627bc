"""``swtdx measure`` as a user runs it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from swtdx.attestation.world import World
from swtdx.cli.measure import measure
from swtdx.measure.mrtd import Region, mrtd
from swtdx.vmm.launch import LaunchConfig, plan
from swtdx.vmm.td_params import TdConfig
from tests.guests.bzimage import make_bzimage
from tests.measure.images import MR_EXTEND, PAGE_AUG, PAYLOAD, ROWS, Image, Row
from tests.measure.test_tdvf import expected


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(measure, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.fd"
    path.write_bytes(Image().build())
    return path


def test_an_image_for_people_and_for_programs(image: Path) -> None:
    status, shown = run(image)
    assert status == 0
    wanted = expected(Image()).hex()
    assert f"MRTD   {wanted}" in shown
    for word in ("BFV", "CFV", "TempMem", "TD_HOB", "0x00fffe8000"):
        assert word in shown
    status, text = run(image, "--json")
    summary = json.loads(text)
    assert (status, summary["mrtd"]) == (0, wanted)
    assert summary["pages"] == {"added": 24 + 8 + 16 + 2, "measured": 24}
    assert [section["type"] for section in summary["sections"]] == ["BFV", "CFV", "TempMem", "TD_HOB"]


def test_a_kernel_is_measured_as_run_builds_it(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(make_bzimage())
    initrd.write_bytes(b"initrd")
    status, text = run(
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--cmdline",
        "quiet",
        "--memory",
        "256M",
        "--vcpus",
        2,
        "--json",
    )
    assert status == 0
    summary = json.loads(text)
    boot = plan(LaunchConfig(make_bzimage(), b"initrd", "quiet", 256 << 20, TdConfig(vcpus=2)))
    pages = [Region(page.gpa, len(page.data), page.data, page.measured) for page in boot.pages]
    assert summary["mrtd"] == mrtd(pages).hex()
    assert [summary[f"rtmr{n}"] for n in range(4)] == [rtmr.hex() for rtmr in boot.rtmrs]
    # Everything that the shim checks is part of the measurement: another command line, another MRTD.
    _, other = run("--kernel", kernel, "--initrd", initrd, "--append", "debug", "--memory", "256M", "--json")
    assert json.loads(other)["mrtd"] != summary["mrtd"]
    status, shown = run("--kernel", kernel, "--memory", "256M")
    assert status == 0
    assert "RTMR0" in shown


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "firmware image"),
        (("IMAGE", "--kernel", "IMAGE"), "firmware image"),
        (("IMAGE", "--memory", "1G"), "only with --kernel"),
        (("nowhere",), "No such file"),
        (("/",), "directory"),
        (("/dev/zero",), "larger than 64 MiB: it cannot be a firmware image"),
        (("--kernel", "IMAGE"), "not a Linux bzImage"),
        (("--kernel", "IMAGE", "--memory", "many"), "not a size"),
    ],
)
def test_wrong_use_is_one_message(arguments: tuple[str, ...], word: str, image: Path) -> None:
    status, shown = run(*(image if argument == "IMAGE" else argument for argument in arguments))
    assert status == 2
    assert word in shown
    assert "Traceback" not in shown


def test_a_truncated_image_is_named(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-16])
    status, shown = run(image)
    assert status == 2
    assert str(image) in shown
    assert "truncated" in shown


def test_the_command_line_is_made_as_run_makes_it(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(make_bzimage())
    lines = {
        (): "console=hvc0 panic=-1 reboot=acpi",
        ("--append", "debug"): "console=hvc0 panic=-1 reboot=acpi debug",
        ("--cmdline", "quiet"): "quiet",
        ("--cmdline", "quiet", "--append", "debug"): "quiet debug",
    }
    for options, line in lines.items():
        _, text = run("--kernel", kernel, *options, "--json")
        assert json.loads(text)["cmdline"] == line


def by_section(image: Image) -> str:
    """MRTD when all PAGE.ADDs of a section come before its MR.EXTENDs, written from the rule."""
    data, sha = image.build(), hashlib.sha384()

    def block(name: bytes, gpa: int) -> bytes:
        return (name.ljust(16, b"\0") + gpa.to_bytes(8, "little")).ljust(128, b"\0")

    for row in image.rows:
        if row.attributes & PAGE_AUG:
            continue
        for at in range(0, row.size, 4096):
            sha.update(block(b"MEM.PAGE.ADD", row.gpa + at))
        if row.attributes & MR_EXTEND:
            contents = data[row.offset : row.offset + row.raw].ljust(row.size, b"\0")
            for at in range(0, row.size, 256):
                sha.update(block(b"MR.EXTEND", row.gpa + at) + contents[at : at + 256])
    return sha.hexdigest()


# A section that ends inside a page, has zero pages behind, and is larger than the pages hashed at a time.
ROWS_OF_ALL_SIZES = (*ROWS, Row(PAYLOAD, 0x4000000, 0x25000, 0x100, 0x1F321, MR_EXTEND))


@pytest.mark.parametrize("rows", [ROWS, ROWS_OF_ALL_SIZES])
def test_both_orders_of_vmms(tmp_path: Path, rows: tuple[Row, ...]) -> None:
    made = replace(Image(), rows=rows, size=0x20000, td_shim=True)
    image = tmp_path / "firmware.fd"
    image.write_bytes(made.build())
    page, section = expected(made).hex(), by_section(made)
    assert page != section
    status, text = run(image)
    assert status == 0
    assert f"MRTD   {page}  page by page" in text
    assert f"MRTD   {section}  all pages of a section" in text
    assert json.loads(run(image, "--json")[1])["mrtd_by_order"] == {"page": page, "section": section}
    status, text = run(image, "--order", "section")
    assert section in text
    assert page not in text
    assert json.loads(run(image, "--json", "--order", "section")[1])["mrtd"] == section


def test_which_order_a_quote_has(tmp_path: Path, image: Path) -> None:
    world = World()
    for mrtd_, order in (
        (expected(Image()).hex(), "page"),
        (by_section(Image()), "section"),
        ("ab" * 48, None),
    ):
        path = tmp_path / "quote"
        path.write_text(world.quote(replace(world.report_fields(), mrtd=bytes.fromhex(mrtd_))).hex())
        status, text = run(image, "--quote", path)
        assert status == (0 if order else 1)
        assert (f"is that of the order {order}" if order else f"is neither: {mrtd_}") in text
        assert json.loads(run(image, "--quote", path, "--json")[1])["quote"]["order"] == order
    status, text = run(image, "--quote", image)
    assert status == 2
    assert "Traceback" not in text
