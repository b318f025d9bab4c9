"""Walking one chain, and the guard that keeps QEMU programs away from chains that never end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.walk import guard, walk
from imgtool.errors import ChainError, ImageFormatError, ImageNotFoundError, ImageUnreadableError, PolicyError
from imgtool.image.policy import Policy, in_force

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_a_walk_goes_from_the_image_to_its_base(images: Images) -> None:
    base = images.base("base.img", format="raw")
    middle = images.overlay("middle.qcow2", "base.img", format="raw")
    top = images.overlay("sub/top.qcow2", "../middle.qcow2")
    chain = walk(top)
    assert [image.path for image in chain] == [str(top), str(middle), str(base)]
    assert [image.depth for image in chain] == [2, 1, 0]
    assert [image.format for image in chain] == ["qcow2", "qcow2", "raw"]
    assert [image.parent for image in chain] == [str(middle), str(base), None]
    assert guard(top, policy=Policy().naming(images.directory)) == chain


def test_what_the_policy_does_not_allow_is_refused_and_not_looked_at(images: Images) -> None:
    base = images.base("base.qcow2")
    top = images.overlay("sub/top.qcow2", "../base.qcow2")
    with pytest.raises(PolicyError) as caught:
        guard(top)
    assert caught.value.word == str(images.directory)
    last = walk(top, policy=Policy())[-1]
    assert (last.path, last.format) == (str(base), None)
    assert [found.code for found in walk(top, policy=Policy())[0].findings] == ["not-trusted"]
    for policy in (Policy(directories=(str(images.directory),)), Policy(files=(str(base),))):
        assert len(guard(top, policy=policy)) == 2
        with in_force(policy):
            assert len(guard(top)) == 2
    with pytest.raises(PolicyError):
        guard(top)


def test_what_is_not_opened_does_not_have_to_be_allowed(images: Images) -> None:
    images.base("elsewhere/base.qcow2")
    images.overlay("sub/middle.qcow2", "../elsewhere/base.qcow2")
    top = images.overlay("top.qcow2", "sub/middle.qcow2")
    assert guard(top, opens_parents=False)
    with pytest.raises(PolicyError):
        guard(top)


def test_a_parent_is_read_in_the_format_its_child_names(images: Images) -> None:
    """A guest that writes a qcow2 header into its raw disk does not choose what stands beneath."""
    secret = images.base("secret.qcow2")
    hostile = images.overlay("disk.img", str(secret))
    top = images.overlay("top.qcow2", "disk.img", format="raw")
    assert [image.path for image in walk(top)] == [str(top), str(hostile)]
    assert [image.path for image in walk(hostile)] == [str(hostile), str(secret)]
    assert [image.path for image in walk(hostile, format="raw")] == [str(hostile)]


def test_a_parent_of_another_format_than_named_breaks_the_chain(images: Images) -> None:
    images.base("base.img", format="raw")
    top = images.overlay("top.qcow2", "base.img", size="1M")
    assert [found.code for found in walk(top)[-1].findings] == ["malformed"]
    with pytest.raises(ChainError, match=r"base\.img|not a qcow2"):
        guard(top)
    assert guard(top, opens_parents=False)


def make_cycle(images: Images, length: int) -> Path:
    names = [f"{number}.qcow2" for number in range(length)]
    for name, backing in zip(names, [*names[1:], names[0]], strict=True):
        images.overlay(name, backing, size="1M")
    return images / names[0]


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("opens_parents", [True, False])
def test_a_cycle_is_refused_before_anything_opens_it(images: Images, length: int, opens_parents: bool) -> None:
    first = make_cycle(images, length)
    assert len(walk(first)) == length
    with pytest.raises(ChainError, match="never ends") as caught:
        guard(first, opens_parents=opens_parents)
    assert caught.value.hint
    assert "imgtool rebase -u" in caught.value.hint


def test_a_cycle_below_the_image_is_refused(images: Images) -> None:
    make_cycle(images, 2)
    top = images.overlay("top.qcow2", "1.qcow2", size="1M")
    with pytest.raises(ChainError, match="never ends"):
        guard(top)


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_a_cycle_through_another_name_is_refused(images: Images, link: str) -> None:
    top = images.overlay("top.qcow2", "other.qcow2", size="1M")
    if link == "symlink":
        (images / "other.qcow2").symlink_to("top.qcow2")
    else:
        os.link(top, images / "other.qcow2")
    with pytest.raises(ChainError, match="never ends"):
        guard(top)


def test_a_cycle_through_a_json_reference_is_refused(images: Images) -> None:
    path = images / "top.qcow2"
    images.overlay("top.qcow2", f'json:{{"driver":"qcow2","file.filename":"{path}"}}', size="1M")
    with pytest.raises(ChainError, match="never ends"):
        guard(path)


def test_a_cycle_through_a_tree_of_several_files_is_refused(images: Images) -> None:
    other = images.base("other.img", format="raw")
    leaf = images.overlay("leaf.qcow2", "top.qcow2", size="1M")

    def tree(path: Path) -> str:
        test = f'{{"driver":"qcow2","file":{{"driver":"file","filename":"{path}"}}}}'
        return f'json:{{"driver":"blkverify","raw":{{"driver":"file","filename":"{other}"}},"test":{test}}}'

    top = images.overlay("top.qcow2", tree(leaf), format="raw", size="1M")
    with pytest.raises(ChainError, match="never ends"):
        guard(top, opens_parents=False)
    harmless = images.overlay("harmless.qcow2", tree(images.base("base.qcow2")), format="raw", size="1M")
    assert len(guard(harmless)) == 2
    (images / "base.qcow2").unlink()
    with pytest.raises(ChainError, match="does not exist"):
        guard(harmless)


def test_a_missing_parent_matters_only_to_what_opens_it(images: Images) -> None:
    images.overlay("middle.qcow2", "gone.qcow2", size="1M")
    top = images.overlay("top.qcow2", "middle.qcow2", size="1M")
    with pytest.raises(ChainError, match=r"gone\.qcow2 does not exist") as caught:
        guard(top)
    assert caught.value.hint
    assert str(images / "middle.qcow2") in caught.value.hint
    assert len(guard(top, opens_parents=False)) == 3


def test_a_parent_that_would_block_is_refused(images: Images) -> None:
    os.mkfifo(images / "pipe")
    top = images.overlay("top.qcow2", "pipe", format="raw", size="1M")
    with pytest.raises(PolicyError, match="not a file or block device"):
        guard(top)


def test_a_data_file_that_would_block_is_refused(images: Images) -> None:
    top = images / "top.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", top, "1M")
    assert guard(top)
    (images / "data.raw").unlink()
    assert guard(top, opens_parents=False)
    with pytest.raises(ChainError, match="does not exist"):
        guard(top)
    os.mkfifo(images / "data.raw")
    with pytest.raises(ChainError, match="FIFO"):
        guard(top)


def test_a_parent_reached_by_a_protocol_ends_the_walk(images: Images) -> None:
    top = images.overlay("top.qcow2", "nbd://127.0.0.1:1/disk", format="raw", size="1M")
    chain = guard(top, policy=Policy().trusting(["nbd"]))
    assert [image.path for image in chain] == [str(top), "nbd://127.0.0.1:1/disk"]
    with pytest.raises(PolicyError):
        guard(top)


def test_a_reference_that_makes_no_sense_is_refused(images: Images) -> None:
    top = images.overlay("top.qcow2", "json:{nonsense", size="1M")
    with pytest.raises(ChainError, match="json"):
        guard(top)


def test_a_chain_deeper_than_allowed_is_refused(images: Images) -> None:
    images.base("0.qcow2")
    for number in range(1, 5):
        images.overlay(f"{number}.qcow2", f"{number - 1}.qcow2", size="1M")
    assert len(guard(images / "4.qcow2", max_depth=5)) == 5
    with pytest.raises(ChainError, match="5 images deep; 4 are safe"):
        guard(images / "4.qcow2", max_depth=4)
    assert len(guard(images / "4.qcow2", max_depth=None)) == 5


def test_the_image_itself_must_be_usable(images: Images) -> None:
    with pytest.raises(ImageNotFoundError):
        guard(images / "gone.qcow2")
    with pytest.raises(ImageUnreadableError, match="a directory"):
        guard(images.directory)
    bad = images.base("bad.qcow2")
    with bad.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff\xff\xff")
    with pytest.raises(ImageFormatError):
        guard(bad)
    with pytest.raises(ImageFormatError, match="not a qcow2"):
        guard(images.base("plain.img", format="raw"), format="qcow2")
