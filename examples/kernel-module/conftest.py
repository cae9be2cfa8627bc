"""The module, built against the headers of the kernel that the TD runs."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def headers(release: str, folder: Path) -> Path:
    """Debian's headers of ``release`` in ``folder``: fetched by apt, unpacked, and told where they are."""
    base = release.removesuffix("-cloud-amd64")
    tree = folder / f"usr/src/linux-headers-{release}"
    if tree.exists():
        return tree
    packages = [f"linux-headers-{release}", f"linux-headers-{base}-common", f"linux-kbuild-{base}"]
    folder.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(["apt-get", "download", *packages], cwd=folder, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"the headers of {release} cannot be fetched: {fetched.stderr.strip().splitlines()[-1]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        package.unlink()
    # The packages are made for the root of the file system.
    for name in ("Makefile", ".kernelvariables"):
        file = tree / name
        file.write_text(re.sub(r"(?<![\w/])/usr/", f"{folder}/usr/", file.read_text()))
    # With it make would want pahole, to describe the module's types.
    (tree / "vmlinux").unlink(missing_ok=True)
    return tree


@pytest.fixture(scope="session")
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bulletin.ko."""
    for tool in ("gcc", "make", "apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    fetched = subprocess.run(["swtdx", "guest", "fetch", "--json"], capture_output=True, text=True, check=True)
    release = json.loads(fetched.stdout)["version"]
    tree = headers(release, request.config.cache.mkdir("linux-headers") / release)
    build = tmp_path_factory.mktemp("build")
    shutil.copy(HERE / "bulletin.c", build)
    (build / "Makefile").write_text("obj-m := bulletin.o\n")
    made = subprocess.run(
        ["make", "-C", tree, f"M={build}", "CC=gcc", "modules"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return build / "bulletin.ko"
