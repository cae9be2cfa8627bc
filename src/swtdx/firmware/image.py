"""The module's image: a manifest in 4 KiB pages, as SEAMLDR.INSTALL gets it.

First page: magic (8 bytes), format (u32), length of the manifest in bytes (u32), zeros up to byte 64,
then the manifest, which may go on through further pages; zeros to the end of the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.arch.features import ModuleFeatures
from swtdx.arch.layout import Blob, Field, Struct
from swtdx.arch.seam_structs import SEAMLDR_MAX_MODULE_PAGES
from swtdx.arch.units import PAGE
from swtdx.firmware.errors import ImageError
from swtdx.firmware.manifest import Manifest, measure

MAGIC: Final = b"SWTDXIMG"
FORMAT: Final = 1


class IMAGE_HEADER(Struct, size=64):
    """Start of a swtdx image."""

    magic = Blob(0, 8)
    format_ = Field(8, 4)
    length = Field(12, 4, "bytes of the manifest, which follows")
    reserved = Blob(16, 48, reserved=True)


#: What runs in SEAM: the module, and the ABI tables that it is generated from.
MODULE_PACKAGES: Final = ("swtdx.arch", "swtdx.module")
MODULE_ENTRY: Final = "swtdx.module.entry:TdxModule"
MODULE_NAME: Final = "swtdx TDX Module"
#: The module of Intel whose interface it has (structures.md).
MODULE_VERSION: Final = "1.5.1"


@dataclass(frozen=True, slots=True)
class SignedImage:
    """A module as it is shipped: its pages (a multiple of 4096 bytes) and its SEAM_SIGSTRUCT."""

    pages: bytes
    sigstruct: bytes

    @property
    def page_count(self) -> int:
        """Number of 4 KiB pages."""
        return len(self.pages) // PAGE


def pack(manifest: Manifest) -> bytes:
    """The pages that hold ``manifest``.

    Raises:
        ImageError: it needs more pages than SEAMLDR_PARAMS can name.
    """
    content = manifest.encode()
    header = IMAGE_HEADER.new()
    IMAGE_HEADER.magic.set(header, MAGIC)
    IMAGE_HEADER.format_.set(header, FORMAT)
    IMAGE_HEADER.length.set(header, len(content))
    image = bytes(header) + content
    pages = -(-len(image) // PAGE)
    if pages > SEAMLDR_MAX_MODULE_PAGES:
        raise ImageError(f"an image has at most {SEAMLDR_MAX_MODULE_PAGES} pages, and this needs {pages}")
    return image.ljust(pages * PAGE, b"\0")


def unpack(pages: bytes) -> Manifest:
    """The manifest in ``pages``.

    Raises:
        ImageError: these are not the pages of an image.
    """
    if len(pages) < PAGE or len(pages) % PAGE:
        raise ImageError(f"an image consists of 4 KiB pages; {len(pages)} bytes are none")
    if IMAGE_HEADER.magic.get(pages) != MAGIC or not IMAGE_HEADER.reserved_is_zero(pages):
        raise ImageError("these pages are not a swtdx module image")
    if IMAGE_HEADER.format_.get(pages) != FORMAT:
        raise ImageError(
            f"the image has format {IMAGE_HEADER.format_.get(pages)}; this loader knows {FORMAT}"
        )
    end = IMAGE_HEADER.size + IMAGE_HEADER.length.get(pages)
    if end > len(pages) or any(pages[end:]):
        raise ImageError("the image's length field does not fit its pages")
    return Manifest.decode(pages[IMAGE_HEADER.size : end])


def build_module(
    packages: Sequence[str] = MODULE_PACKAGES,
    entry: str = MODULE_ENTRY,
    name: str = MODULE_NAME,
    version: str = MODULE_VERSION,
    *,
    features: ModuleFeatures | None = None,
) -> bytes:
    """The image of the module whose source files are installed here, unsigned.

    ``features``, one of :data:`~swtdx.arch.features.MODULES`, is what the module shall offer, if not what it
    offers by itself.  It is part of the image, and so of MRSEAM.

    Raises:
        ImageError: a package does not exist.
    """
    constants = () if features is None else (("features", features.name),)
    return pack(Manifest(name, version, entry, tuple(packages), measure(packages), constants))
