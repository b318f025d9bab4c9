"""What an image is as a layer, whatever host it lies on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from imgtool.chain.walk import guard
from imgtool.errors import ImageInUseError, RefusedError
from imgtool.operations.overlay import new_overlay
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.layers import is_layer, open_layers
from tests.conftest import Images


def digests(path: Path, known: Known | None = None) -> list[str]:
    with contextlib.ExitStack() as stack:
        return [layer.digest for layer in open_layers(stack, guard(path), known or Known())]


def write_layers(path: Path, folder: Path) -> list[str]:
    """Writes each layer of a chain under its hexadecimal digits, as registries and OCI layouts keep blobs."""
    with contextlib.ExitStack() as stack:
        layers = open_layers(stack, guard(path), Known())
        for layer in layers:
            (folder / layer.digest.partition(":")[2]).write_bytes(b"".join(layer.blob.pieces()))
        return [layer.digest.partition(":")[2] for layer in layers]


def test_an_overlay_is_the_same_layer_wherever_it_lies(chain: Images, elsewhere: Path) -> None:
    shutil.copy(chain / "base.qcow2", elsewhere / "another-name.img")
    shutil.copy(chain / "web.qcow2", elsewhere / "web.qcow2")
    moved = Images(elsewhere)
    moved.rebase("web.qcow2", str(elsewhere / "another-name.img"))
    assert (elsewhere / "web.qcow2").read_bytes() != (chain / "web.qcow2").read_bytes()
    assert digests(elsewhere / "web.qcow2") == digests(chain / "web.qcow2")


def test_an_anchor_is_no_part_of_a_layer(chain: Images) -> None:
    new_overlay(chain / "base.qcow2", chain / "anchored.qcow2")
    new_overlay(chain / "base.qcow2", chain / "plain.qcow2", anchor=False)
    assert (chain / "anchored.qcow2").read_bytes() != (chain / "plain.qcow2").read_bytes()
    assert digests(chain / "anchored.qcow2") == digests(chain / "plain.qcow2")


def test_a_base_is_its_file(chain: Images) -> None:
    content = (chain / "base.qcow2").read_bytes()
    assert digests(chain / "base.qcow2") == [f"sha256:{hashlib.sha256(content).hexdigest()}"]


def test_layers_in_one_folder_under_their_digests_are_a_chain(chain: Images, elsewhere: Path) -> None:
    names = write_layers(chain / "web.qcow2", elsewhere)
    found = guard(elsewhere / names[-1])
    assert [os.path.basename(image.path) for image in found] == names[::-1]
    chain.qemu_img("compare", elsewhere / names[-1], chain / "web.qcow2")
    chain.qemu_img("check", elsewhere / names[-1])


def test_layers_of_another_base_are_others(chain: Images) -> None:
    before = digests(chain / "web.qcow2")
    chain.run_io(chain / "base.qcow2", "write -P 9 12M 4k")
    after = digests(chain / "web.qcow2")
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_file_is_known_as_a_layer_by_its_bytes(chain: Images) -> None:
    with contextlib.ExitStack() as stack:
        base, web = open_layers(stack, guard(chain / "web.qcow2"), Known())
    known = Known()
    assert is_layer(str(chain / "base.qcow2"), base.config(), base.blob.size, known)
    assert is_layer(str(chain / "web.qcow2"), web.config(), web.blob.size, known)
    assert not is_layer(str(chain / "db.qcow2"), web.config(), web.blob.size, known)
    assert not is_layer(str(chain / "gone.qcow2"), web.config(), web.blob.size, known)


def test_a_digest_that_is_remembered_is_not_believed_of_a_file_that_was_written(chain: Images) -> None:
    path = chain / "base.qcow2"
    os.utime(path, (1_000_000, 1_000_000))
    known = Known()
    before = digests(path, known)
    for _ in range(2):  # at once, and again: a write in the same tick of the clock must show too
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, (1_000_000, 1_000_000))
        after = digests(path, known)
        assert after != before
        before = after


def test_an_image_that_is_written_is_no_layer(chain: Images) -> None:
    with chain.opened(chain / "web.qcow2"), pytest.raises(ImageInUseError, match="in use for writing"):
        digests(chain / "web.qcow2")


def test_an_overlay_of_version_2_is_a_layer_too(chain: Images, elsewhere: Path) -> None:
    chain.qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "base.qcow2", "-F", "qcow2", "old.qcow2")
    chain.run_io(chain / "old.qcow2", "write -P 7 64k 64k")
    names = write_layers(chain / "old.qcow2", elsewhere)
    assert [os.path.basename(image.path) for image in guard(elsewhere / names[-1])] == names[::-1]
    chain.qemu_img("compare", elsewhere / names[-1], chain / "old.qcow2")


def test_an_overlay_of_another_format_is_refused(chain: Images) -> None:
    chain.qemu_img("create", "-q", "-f", "qed", "-b", "base.qcow2", "-F", "qcow2", "overlay.qed")
    with pytest.raises(RefusedError, match="cannot be given another name") as caught:
        digests(chain / "overlay.qed")
    assert "--flatten" in (caught.value.hint or "")


def test_an_image_of_several_files_is_refused(chain: Images) -> None:
    chain.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=outside.raw", "with-data.qcow2", "1M")
    with pytest.raises(RefusedError, match="in other files"):
        digests(chain / "with-data.qcow2")
