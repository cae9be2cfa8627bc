"""SEAM_SIGSTRUCT: who signed, what, and every field that must be as it must (structures.md §12).

The oracle for signatures is OpenSSL, through ``cryptography``, on the raw bytes of the structure.
"""

from __future__ import annotations

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from swtdx.firmware import sigstruct
from swtdx.firmware.errors import ImageError, LoaderError
from swtdx.firmware.image import SignedImage
from swtdx.firmware.signing import ModuleProperties, Signer, sign_module, simulated_signer, verify
from swtdx.firmware.sigstruct import Expectations, Refusal
from swtdx.firmware.simulated_key import SIMULATED_SIGNER_PEM
from swtdx.platform import Platform

from .conftest import Boot
from .support import (
    EBADHASH,
    EBADSIG,
    ENOMEM,
    EUNSUPCPU,
    SUCCESS,
    enter_root,
    install,
    offer,
    patched,
    put,
    seam_state,
    u,
)


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    """The simulated key, to sign what the tests changed."""
    loaded = serialization.load_pem_private_key(
        SIMULATED_SIGNER_PEM, None, unsafe_skip_rsa_key_validation=True
    )
    assert isinstance(loaded, rsa.RSAPrivateKey)
    return loaded


def covered(structure: bytes) -> bytes:
    """What the signature is over: bytes 0..127 and 900..2047, 1276 in all."""
    return structure[:128] + structure[900:]


def signed_again(image: SignedImage, key: rsa.RSAPrivateKey, *changes: tuple[int, int, int]) -> SignedImage:
    """``image`` with fields changed and signed anew: only the field's own check can refuse it."""
    structure = bytearray(patched(image, *changes).sigstruct)
    signature = key.sign(covered(bytes(structure)), padding.PKCS1v15(), hashes.SHA384())
    structure[516:900] = signature[::-1]
    return SignedImage(image.pages, bytes(structure))


@pytest.fixture
def loader(boot: Boot) -> Platform:
    platform = boot(load=False)
    enter_root(platform)
    return platform


def refused(platform: Platform, image: SignedImage) -> tuple[tuple[int, int], str]:
    offer(platform, image)
    before = seam_state(platform)
    result = install(platform)
    if not result[1]:
        assert seam_state(platform) == before
    assert platform.machine.seam.module is None
    return result, platform.loader.reason


# ---------------------------------------------------------------------- a good one
def test_openssl_verifies_it(image: SignedImage) -> None:
    structure = image.sigstruct
    assert len(structure) == 2048
    assert len(covered(structure)) == 1276
    modulus, exponent = u(structure, 128, 384), u(structure, 512, 4)
    public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    public.verify(structure[516:900][::-1], covered(structure), padding.PKCS1v15(), hashes.SHA384())
    with pytest.raises(InvalidSignature):
        public.verify(structure[516:900][::-1], covered(structure)[:-1], padding.PKCS1v15(), hashes.SHA384())


def test_its_fields(image: SignedImage) -> None:
    structure = image.sigstruct
    constants = {
        0: 6,
        4: 0xE1,
        8: 0x10000,
        12: 0,
        16: 0x8086,
        24: 0x200,
        28: 0x60,
        32: 0x60,
        36: 1,
        512: 0x10001,
    }
    assert {offset: u(structure, offset, 4) for offset in constants} == constants
    assert structure[900:948] == hashlib.sha384(image.pages).digest()
    assert u(structure, 948, 2) == 0x0105
    assert (u(structure, 968, 2), u(structure, 970, 2)) == (64, 16)
    assert [u(structure, offset, 2) for offset in (972, 974, 976)] == [16, 16, 16]
    assert u(structure, 1024, 4) == 3
    assert [u(structure, 1028 + 4 * index, 4) for index in range(4)] == [0x806F0, 0xC06F0, 0xA06F0, 0]


# ---------------------------------------------------------------------- fields
@pytest.mark.parametrize(
    ("offset", "size", "value", "words"),
    [
        (0, 4, 7, "HEADER_TYPE is 0x7"),
        (4, 4, 0xE0, "HEADER_LENGTH"),
        (8, 4, 0x10001, "HEADER_VERSION"),
        (12, 4, 1, "MODULE_TYPE has reserved bits"),
        (12, 4, 1 << 31, "not debug-unlocked"),
        (16, 4, 0x1022, "MODULE_VENDOR is 0x1022"),
        (24, 4, 0x201, "SIGSTRUCT.SIZE"),
        (28, 4, 0x40, "KEY_SIZE"),
        (32, 4, 0x40, "MODULUS_SIZE"),
        (36, 4, 2, "EXPONENT_SIZE"),
        (40, 1, 1, "reserved"),
        (127, 1, 1, "reserved"),
        (512, 4, 3, "EXPONENT is 0x3"),
        (950, 8, 1, "ATTRIBUTES is not 0"),
        (978, 1, 1, "reserved"),
        (989, 1, 1, "reserved"),
        (1023, 1, 1, "reserved"),
        (1024, 4, 256, "CPUID_TABLE_SIZE is 256"),
    ],
)
def test_a_field_that_is_wrong_is_named(
    loader: Platform,
    image: SignedImage,
    key: rsa.RSAPrivateKey,
    offset: int,
    size: int,
    value: int,
    words: str,
) -> None:
    result, reason = refused(loader, signed_again(image, key, (offset, size, value)))
    assert result == (EBADSIG, 0)
    assert words in reason


def test_a_field_that_was_changed_after_signing(loader: Platform, image: SignedImage) -> None:
    result, reason = refused(loader, patched(image, (948, 2, 0x0199)))
    assert result == (EBADSIG, 0)
    assert "signature of SIGSTRUCT does not verify" in reason


def test_a_debug_module_loads_on_a_debug_unlocked_platform(
    loader: Platform, image: SignedImage, key: rsa.RSAPrivateKey
) -> None:
    for lp in loader.machine.processors:
        lp.msrs.poke(0x503, 2)
    offer(loader, signed_again(image, key, (12, 4, 1 << 31)))
    assert install(loader) == (SUCCESS, 0)


# ---------------------------------------------------------------------- signers and signatures
def test_an_unknown_signer(loader: Platform, pages: bytes, stranger: Signer) -> None:
    result, reason = refused(loader, sign_module(pages, stranger))
    assert result == (EBADSIG, 0)
    assert "unknown signer" in reason


def test_a_known_modulus_over_a_strangers_signature(
    loader: Platform, pages: bytes, image: SignedImage, stranger: Signer
) -> None:
    theirs = bytearray(sign_module(pages, stranger).sigstruct)
    theirs[128:512] = image.sigstruct[128:512]
    result, reason = refused(loader, SignedImage(pages, bytes(theirs)))
    assert result == (EBADSIG, 0)
    assert "does not verify" in reason


def test_a_platform_that_trusts_him_measures_who_it_was(pages: bytes, stranger: Signer) -> None:
    from swtdx.firmware.acm import build_acm

    from .support import boot_standin

    acm = build_acm(module_signers=(stranger.key_hash,))
    with boot_standin(sign_module(pages, stranger), acm) as platform:
        extend = platform.machine.seam.extend
        assert extend[72:120] == hashlib.sha384(stranger.modulus).digest()
    with pytest.raises(LoaderError, match="unknown signer"):
        boot_standin(sign_module(pages), acm)


def test_one_flipped_bit_anywhere(image: SignedImage) -> None:
    """A bit of every fourth byte of SIGSTRUCT, and of the pages: never accepted."""
    expected = Expectations({simulated_signer().key_hash}, [0xA06F3])
    sigstruct.check(image.sigstruct, expected)
    sigstruct.check_pages(image.sigstruct, image.pages)
    for offset in range(0, 2048, 4):
        structure = bytearray(image.sigstruct)
        structure[offset + offset // 4 % 4] ^= 1 << offset % 7
        with pytest.raises(Refusal) as refusal:
            sigstruct.check(bytes(structure), expected)
        assert refusal.value.status in (EBADSIG, EUNSUPCPU)
    for offset in range(0, len(image.pages), 61):
        module = bytearray(image.pages)
        module[offset] ^= 1 << offset % 8
        with pytest.raises(Refusal) as refusal:
            sigstruct.check_pages(image.sigstruct, bytes(module))
        assert refusal.value.status == EBADHASH


def test_one_flipped_bit_of_the_module_through_install(loader: Platform, image: SignedImage) -> None:
    module = bytearray(image.pages)
    module[200] ^= 0x10
    result, reason = refused(loader, SignedImage(bytes(module), image.sigstruct))
    assert result == (EBADHASH, 1)  # memory was changed by then
    assert "not what was signed" in reason


def test_pages_in_another_order(loader: Platform, key: rsa.RSAPrivateKey) -> None:
    """SEAMHASH is over the pages in load order."""
    pages = bytes(4096) + b"\1" * 4096
    swapped = SignedImage(pages[4096:] + pages[:4096], sign_module(pages).sigstruct)
    assert refused(loader, swapped)[0] == (EBADHASH, 1)


def test_verify_agrees_with_openssl(key: rsa.RSAPrivateKey) -> None:
    """RSASSA-PKCS1-v1_5 with SHA-384 and nothing else; little-endian."""
    data = b"what was signed"
    modulus = key.public_key().public_numbers().n
    n = modulus.to_bytes(384, "little")
    good = key.sign(data, padding.PKCS1v15(), hashes.SHA384())[::-1]
    assert verify(n, 65537, good, data)
    assert not verify(n, 65537, good, data + b"!")
    assert not verify(n, 65537, good[::-1], data)
    assert not verify(n, 3, good, data)
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), padding.PSS.MAX_LENGTH)
    for other in (
        key.sign(data, padding.PKCS1v15(), hashes.SHA256()),
        key.sign(data, padding.PKCS1v15(), hashes.SHA512()),
        key.sign(data, pss, hashes.SHA384()),
    ):
        assert not verify(n, 65537, other[::-1], data)
    for trivial in (0, 1, modulus - 1, modulus, modulus + 1):
        assert not verify(n, 65537, trivial.to_bytes(384, "little"), data)
    assert not verify(bytes(384), 65537, good, data)
    assert not verify((1).to_bytes(384, "little"), 65537, good, data)


@pytest.mark.parametrize("garbage", [0, 8, 200])
def test_padding_must_be_whole(key: rsa.RSAPrivateKey, garbage: int) -> None:
    """A signature whose padding is short, with bytes behind the digest (Bleichenbacher's forgery)."""
    numbers = key.private_numbers()
    n, d = numbers.public_numbers.n, numbers.d
    digest = bytes.fromhex("3041300d060960864801650304020205000430") + hashlib.sha384(b"x").digest()
    fill = 384 - 3 - len(digest) - garbage
    block = b"\0\1" + b"\xff" * fill + b"\0" + digest + bytes(garbage)
    signature = pow(int.from_bytes(block, "big"), d, n).to_bytes(384, "little")
    assert verify(n.to_bytes(384, "little"), 65537, signature, b"x") == (garbage == 0)


# ---------------------------------------------------------------------- processors and memory
def test_a_processor_that_is_not_listed(loader: Platform, pages: bytes) -> None:
    result, reason = refused(loader, sign_module(pages, properties=ModuleProperties(cpuids=(0xC06F2,))))
    assert result == (EUNSUPCPU, 0)
    assert "socket 0 has CPUID 0xa06f3" in reason


@pytest.mark.parametrize("cpuids", [(), (0xA06F1,), (0xC06F2, 0xA06FF)])
def test_listed_processors_whatever_their_stepping(
    loader: Platform, pages: bytes, cpuids: tuple[int, ...]
) -> None:
    offer(loader, sign_module(pages, properties=ModuleProperties(cpuids=cpuids)))
    assert install(loader) == (SUCCESS, 0)


def test_entries_beyond_the_tables_size_do_not_count(
    loader: Platform, image: SignedImage, key: rsa.RSAPrivateKey
) -> None:
    hidden = signed_again(image, key, (1024, 4, 1), (1028, 4, 0xC06F0), (1032, 4, 0xA06F0))
    assert refused(loader, hidden)[0] == (EUNSUPCPU, 0)


def test_a_module_that_does_not_fit(loader: Platform, pages: bytes) -> None:
    large = sign_module(pages, properties=ModuleProperties(num_global_data_pages=0xFFFF))
    result, reason = refused(loader, large)
    assert result == (ENOMEM, 0)
    assert "enlarge SEAMRR in the BIOS" in reason


def test_it_fits_in_a_larger_range(boot: Boot, pages: bytes) -> None:
    from swtdx.firmware.bios import BiosConfig

    large = sign_module(pages, properties=ModuleProperties(num_global_data_pages=0x3FFF))
    with pytest.raises(LoaderError, match="ENOMEM"):
        boot(module=large)
    boot(module=large, memory=512 << 20, bios=BiosConfig(seamrr_size=128 << 20))


# ---------------------------------------------------------------------- making them
def test_only_rsa_3072_signs() -> None:
    with pytest.raises(ImageError, match="openssl genrsa 3072"):
        Signer(rsa.generate_private_key(65537, 2048))
    with pytest.raises(ImageError, match="not a private key"):
        Signer.from_pem(b"-----BEGIN NOTHING-----")


def test_too_many_processors(pages: bytes) -> None:
    sign_module(pages, properties=ModuleProperties(cpuids=[0x806F0] * 255))
    with pytest.raises(ImageError, match="at most 255"):
        sign_module(pages, properties=ModuleProperties(cpuids=[0x806F0] * 256))


def test_a_sigstruct_of_another_size(image: SignedImage) -> None:
    with pytest.raises(Refusal, match="has 2048 bytes"):
        sigstruct.check_form(image.sigstruct[:-1])
    structure = bytearray(image.sigstruct)
    put(structure, 1024, 4, 255)
    sigstruct.check_form(bytes(structure))
