"""bulletin.ko in a TD: the host reads what it is told, and nothing else."""

import re

import pytest

TEXT = "read me"
pytestmark = pytest.mark.tdx_td(memory=256 << 20)


@pytest.fixture
def td(tdx_linux, module):
    tdx_linux.copy_to(module, "/tmp/bulletin.ko")
    return tdx_linux


def load(td) -> int:
    """Load the module: the address of its page."""
    td.run(f"insmod /tmp/bulletin.ko 'text=\"{TEXT}\"'", check=True)
    where = re.search(r"bulletin: at ([0-9a-f]+)", td.run("dmesg").output)
    assert where is not None
    return int(where[1], 16)


def test_the_host_reads_the_text(td):
    page = td.read_shared(load(td), 4096)
    assert page == TEXT.encode().ljust(4096, b"\0"), "the text, and nothing that was in the page before"


def test_the_host_can_change_it_and_no_other_page(td):
    where = load(td)
    td.write_shared(where, b"from the host")
    for other in (where - 4096, where + 4096):
        with pytest.raises(ValueError, match="not shared"):
            td.read_shared(other, 16)


def test_when_it_is_unloaded_the_page_is_private_again(td):
    where = load(td)
    seen = []

    @td.on_exit
    def look(exit):
        # MapGPA is the moment at which the page changes hands: the text must be gone before.
        if exit.tdvmcall == "MapGPA" and exit["R12"] == where:
            seen.append(td.read_shared(where, 4096))

    td.run("rmmod bulletin", check=True)
    assert seen == [bytes(4096)]
    with pytest.raises(ValueError, match="not shared"):
        td.read_shared(where, 16)
    assert td.run("dmesg | grep -ciE 'oops|bug:|call trace'").output == "0\n"


def test_a_host_that_refuses_to_share(td):
    @td.on_exit
    def refuse(exit):
        if exit.tdvmcall == "MapGPA":
            exit.answer(0x8000_0000_0000_0000)

    # Linux says that it cannot go on with a page of which it does not know whose it is; the module must not
    # be loaded as if nothing had happened.
    assert not td.run("insmod /tmp/bulletin.ko").ok
    td.remove_hook(refuse)
    assert td.run("grep -c bulletin /proc/modules").output == "0\n"
