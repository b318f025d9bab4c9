"""Scanning real images, whole ones and broken ones. No qemu-img verb that follows chains is run on a cycle here."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from imgtool.chain.graph import Graph, Image
from imgtool.chain.scan import scan, survey
from imgtool.chain.verify import verify
from imgtool.errors import ImageError, ImageNotFoundError, ImageUnreadableError
from imgtool.operations.overlay import new_overlay
from tests.files import as_nobody

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def node(graph: Graph, path: Path | str) -> Image:
    return graph.by_path()[os.fspath(path)]


def codes(image: Image) -> list[str]:
    return [found.code for found in image.findings]


def test_a_chain_is_seen_in_both_directions_with_its_sizes(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    middle = images.overlay("middle.qcow2", "base.qcow2")
    top = images.overlay("top.qcow2", "middle.qcow2")
    graph = scan([images.directory])
    assert [image.path for image in graph.images] == [str(base), str(middle), str(top)]
    assert graph.roots == [str(base)]
    assert graph.findings == []
    found = node(graph, middle)
    assert found.parent == str(base)
    assert found.children == [str(top)]
    assert [image.depth for image in graph.images] == [0, 1, 2]
    assert found.format == "qcow2"
    assert found.virtual_size == 8 << 20
    assert found.actual_size == middle.stat().st_blocks * 512
    assert found.findings == ()


def test_the_json_document_has_exactly_the_documented_members(images: Images) -> None:
    base = images.base("base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    images.qemu_img("snapshot", "-c", "before", top)
    document = msgspec.to_builtins(scan([images.directory]))
    assert set(document) == {"images", "roots", "findings"}
    (below, above) = document["images"]
    members = {"path", "format", "virtual-size", "actual-size", "parent", "children", "depth", "backing"}
    assert set(below) == set(above) == members | {"snapshots", "in-use", "findings"}
    assert below["backing"] is None
    assert below["parent"] is None
    assert above["backing"] == {
        "reference": "base.qcow2",
        "format": "qcow2",
        "kind": "file",
        "path": str(base),
    }
    (snapshot,) = above["snapshots"]
    assert snapshot["name"] == "before"
    assert above["in-use"] is None


def test_an_image_brings_its_chain_and_its_dependents_but_not_its_siblings(images: Images) -> None:
    base = images.base("base.qcow2")
    middle = images.overlay("middle.qcow2", "base.qcow2")
    top = images.overlay("top.qcow2", "middle.qcow2")
    images.overlay("sibling.qcow2", "base.qcow2")
    images.base("stranger.qcow2")
    graph = scan([middle])
    assert {image.path for image in graph.images} == {str(base), str(middle), str(top)}
    assert node(graph, base).children == [str(middle)]
    assert node(graph, base).other_children == 1


def test_dependents_are_looked_for_where_the_chain_lies_and_in_the_stores_named(images: Images) -> None:
    base = images.base("bases/base.qcow2")
    top = images.overlay("vms/top.qcow2", "../bases/base.qcow2")
    beside = images.overlay("bases/beside.qcow2", "base.qcow2")
    below = images.overlay("elsewhere/deep/below.qcow2", "../../bases/base.qcow2")
    assert {image.path for image in scan([base]).images} == {str(base), str(beside)}
    assert {image.path for image in scan([top]).images} == {str(base), str(top)}
    found = scan([base], store=[images / "elsewhere"])
    assert {image.path for image in found.images} == {str(base), str(beside), str(below)}


def test_directories_are_scanned_with_all_below_and_what_they_refer_to_outside(images: Images) -> None:
    base = images.base("outside/base.qcow2")
    one = images.overlay("store/a/one.qcow2", "../../outside/base.qcow2")
    two = images.overlay("store/a/b/two.qcow2", "../one.qcow2")
    graph = scan([images / "store"])
    assert [image.path for image in graph.images] == [str(base), str(two), str(one)]
    assert node(graph, two).depth == 2


def test_absolute_references_are_kept_as_they_are(images: Images) -> None:
    base = images.base("base.qcow2")
    top = images.overlay("sub/top.qcow2", str(base))
    backing = node(scan([top]), top).backing
    assert backing is not None
    assert (backing.reference, backing.path) == (str(base), str(base))


def test_a_missing_parent_is_a_node_and_a_finding_not_an_exception(images: Images) -> None:
    top = images.overlay("top.qcow2", "gone.qcow2", size="1M")
    over = images.overlay("over.qcow2", "top.qcow2", size="1M")
    graph = scan([images.directory])
    gone = node(graph, images / "gone.qcow2")
    assert codes(gone) == ["missing"]
    assert gone.children == [str(top)]
    assert (gone.format, gone.virtual_size, gone.actual_size) == (None, None, None)
    assert codes(node(graph, top)) == ["missing-parent"]
    assert codes(node(graph, over)) == ["broken-chain"]
    assert graph.roots == [gone.path]


def test_asking_for_a_missing_base_finds_its_orphans(images: Images) -> None:
    top = images.overlay("top.qcow2", "gone.qcow2", size="1M")
    found = survey([images / "gone.qcow2"])
    assert found.asked == (str(images / "gone.qcow2"),)
    assert {image.path for image in found.graph.images} == {str(images / "gone.qcow2"), str(top)}


def test_an_image_that_is_its_own_backing_file_is_a_finding(images: Images) -> None:
    images.base("base.qcow2")
    own = images.overlay("own.qcow2", "base.qcow2")
    images.rebase("own.qcow2", "own.qcow2")
    over = images.overlay("over.qcow2", "own.qcow2", size="1M")
    graph = scan([own])
    assert codes(node(graph, own)) == ["self-reference"]
    assert node(graph, own).depth is None
    assert codes(node(graph, over)) == ["broken-chain"]
    assert graph.roots == [str(own)]


@pytest.mark.parametrize("length", [2, 3, 40])
def test_a_cycle_is_a_finding_on_each_of_its_images(images: Images, length: int) -> None:
    names = [f"{number:02}.qcow2" for number in range(length)]
    for name, backing in zip(names, [*names[1:], names[0]], strict=True):
        images.overlay(name, backing, size="1M")
    tail = images.overlay("tail.qcow2", names[0], size="1M")
    graph = scan([images.directory])
    for name in names:
        assert codes(node(graph, images / name)) == ["cycle"]
        assert node(graph, images / name).depth is None
    assert codes(node(graph, tail)) == ["broken-chain"]
    assert graph.roots == [str(images / names[0])]
    assert names[1] in node(graph, images / names[0]).findings[0].message


def test_a_cycle_through_a_symlink_is_found(images: Images) -> None:
    one = images.overlay("one.qcow2", "link.qcow2", size="1M")
    two = images.overlay("two.qcow2", "one.qcow2", size="1M")
    (images / "link.qcow2").symlink_to("two.qcow2")
    graph = scan([one])
    assert "cycle" in codes(node(graph, one))
    assert "cycle" in codes(node(graph, two))
    assert node(graph, images / "link.qcow2") is node(graph, two)


def test_a_self_reference_by_a_hard_link_is_found(images: Images) -> None:
    one = images.overlay("one.qcow2", "two.qcow2", size="1M")
    os.link(one, images / "two.qcow2")
    graph = scan([one])
    assert len(graph.images) == 1
    assert codes(graph.images[0])[:1] == ["duplicate-name"]
    assert "self-reference" in codes(graph.images[0])


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_two_names_of_one_file_are_one_image_with_a_finding_that_names_both(images: Images, link: object) -> None:
    images.base("base.qcow2")
    one = images.overlay("one.qcow2", "base.qcow2")
    assert callable(link)
    link(one, images / "other.qcow2")
    graph = scan([images.directory])
    assert len(graph.images) == 2
    image = node(graph, one)
    assert image.path == str(one)
    assert image is node(graph, images / "other.qcow2")
    assert codes(image) == ["duplicate-name"]
    assert str(one) in image.findings[0].message
    assert str(images / "other.qcow2") in image.findings[0].message
    assert len(image.all_names) == 2


def test_a_relative_reference_means_another_file_by_another_name(images: Images) -> None:
    left = images.base("left/base.qcow2")
    right = images.base("right/base.qcow2")
    top = images.overlay("left/top.qcow2", "base.qcow2")
    link = images / "right/top.qcow2"
    link.symlink_to(top)
    by_name = node(scan([images.directory]), top)
    assert by_name.parent == str(left)
    assert codes(by_name) == ["duplicate-name", "backing-ambiguous"]
    by_link = node(scan([link]), link)
    assert by_link.path == str(link)
    assert by_link.parent == str(right), "QEMU resolves against the directory of the path as given"


def test_a_symlinked_directory_gives_no_second_name(images: Images) -> None:
    base = images.base("real/base.qcow2")
    (images / "link").symlink_to("real")
    top = images.overlay("top.qcow2", "link/base.qcow2")
    graph = scan([images.directory])
    assert {image.path for image in graph.images} == {str(base), str(top)}
    assert node(graph, base).findings == ()
    assert node(graph, top).parent == str(base)


def test_dots_behind_a_symlink_lead_where_the_kernel_goes(images: Images) -> None:
    base = images.base("far/base.qcow2")
    (images / "far/deep").mkdir()
    (images / "near").symlink_to("far/deep")
    images.base("base.qcow2")
    top = images.overlay("top.qcow2", "near/../base.qcow2")
    assert node(scan([top]), top).parent == str(base)


def test_json_references_lead_to_their_file(images: Images) -> None:
    base = images.base("base.qcow2")
    name = f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}"}}}}'
    top = images.overlay("top.qcow2", name)
    graph = scan([top])
    backing = node(graph, top).backing
    assert backing is not None
    assert (backing.reference, backing.kind, backing.path) == (name, "json", str(base))
    assert node(graph, top).parent == str(base)
    assert node(graph, base).children == [str(top)]


def tree_of(*files: Path) -> str:
    """A `json:` reference to several images."""
    leaves = [f'{{"driver":"qcow2","file":{{"driver":"file","filename":"{file}"}}}}' for file in files]
    return f'json:{{"driver":"quorum","vote-threshold":1,"children":[{",".join(leaves)}]}}'


def test_an_image_stands_on_every_file_of_a_tree(images: Images) -> None:
    base, other = images.base("base.qcow2"), images.base("far/other.qcow2")
    middle = images.overlay("far/middle.qcow2", "other.qcow2")
    reference = tree_of(base, middle)
    top = images.overlay("top.qcow2", reference, format="raw", size="1M")
    graph = scan([top])
    backing = node(graph, top).backing
    assert backing is not None
    assert (backing.path, backing.files) == (None, (str(base), str(middle)))
    assert node(graph, top).parent == reference
    for path in (base, middle, other):
        graph = scan([path], store=[images.directory])
        assert str(top) in {child for image in graph.images for child in image.children}
    assert node(scan([images.directory]), middle).children == [str(top)]


def test_with_options_a_file_is_not_the_disk_that_is_read(images: Images) -> None:
    base = images.base("base.img", "2M", format="raw")
    reference = f'json:{{"driver":"raw","offset":1048576,"file":{{"driver":"file","filename":"{base}"}}}}'
    top = images.overlay("top.qcow2", reference, format="raw")
    graph = scan([top])
    assert node(graph, top).parent == reference
    assert codes(node(graph, top)) == ["options-parent"]
    assert node(scan([base]), base).children == [str(top)]


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicFlat"])
def test_the_extents_of_a_vmdk_are_no_images(images: Images, subformat: str) -> None:
    disk = images / "disk.vmdk"
    images.qemu_img("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", disk, "3G")
    graph = scan([images.directory])
    assert graph.roots == [str(disk)]
    assert [image.findings for image in graph.images] == [()] * len(graph.images)
    extents = node(graph, disk).extents or ()
    assert len(extents) == (1 if subformat == "monolithicFlat" else 2)
    for extent in extents:
        found = node(scan([extent]), extent)
        assert (found.format, found.data_file_of) == ("raw", [str(disk)])
    os.unlink(extents[0])
    assert "data-file-missing" in codes(node(scan([disk]), disk))


@pytest.mark.parametrize(
    ("reference", "kind", "code"),
    [
        ("nbd://127.0.0.1:1/disk", "protocol", "remote-parent"),
        ("https://127.0.0.1:1/disk.qcow2", "protocol", "remote-parent"),
        ("fat:/etc", "protocol", "remote-parent"),
        ('json:{"driver":"blkverify","raw":{"driver":"nbd","host":"a"},"test":{"driver":"null-co"}}', "json", None),
    ],
)
def test_parents_elsewhere_are_nodes_that_are_never_contacted(
    images: Images, reference: str, kind: str, code: str | None
) -> None:
    top = images.overlay("top.qcow2", reference, format="raw", size="1M")
    graph = scan([top])
    backing = node(graph, top).backing
    assert backing is not None
    assert (backing.reference, backing.kind, backing.path) == (reference, kind, None)
    parent = node(graph, reference)
    assert (parent.format, parent.children) == (None, [str(top)])
    assert codes(node(graph, top)) == [code or "options-parent"]
    assert graph.roots == [reference]


def test_a_reference_that_qemu_could_not_read_is_a_finding(images: Images) -> None:
    top = images.overlay("top.qcow2", "json:{nonsense", size="1M")
    over = images.overlay("over.qcow2", "top.qcow2", size="1M")
    graph = scan([images.directory])
    assert codes(node(graph, top)) == ["reference-malformed"]
    assert codes(node(graph, over)) == ["broken-chain"]


def test_an_external_data_file_is_a_node_of_its_own(images: Images) -> None:
    owner = images / "owner.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", owner, "1M")
    graph = scan([images.directory])
    image = node(graph, owner)
    assert image.data_file is not msgspec.UNSET
    assert image.data_file.path == str(images / "data.raw")
    data = node(graph, images / "data.raw")
    assert data.data_file_of == [str(owner)]
    assert data.format == "raw"
    assert graph.roots == [str(owner)]
    assert {one.path for one in scan([data.path]).images} == {str(owner), data.path}


def test_missing_shared_and_misused_data_files_are_findings(images: Images) -> None:
    for name in ("one", "two", "three"):
        images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={name}.raw", images / f"{name}.qcow2", "1M")
    (images / "one.raw").unlink()
    (images / "three.raw").unlink()
    os.link(images / "two.raw", images / "three.raw")
    images.overlay("top.qcow2", "two.raw", format="raw")
    graph = scan([images.directory])
    assert codes(node(graph, images / "one.qcow2")) == ["depends-on-cwd", "data-file-missing"]
    shared = node(graph, images / "two.raw")
    assert {"data-file-shared", "data-file-misused"} <= set(codes(shared))


def test_a_data_file_that_is_no_file_is_a_finding(images: Images) -> None:
    owner = images / "owner.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", owner, "1M")
    (images / "data.raw").unlink()
    os.mkfifo(images / "data.raw")
    assert codes(node(scan([owner]), owner)) == ["depends-on-cwd", "data-file-unusable"]


def test_a_data_file_that_is_not_named_is_a_finding(images: Images) -> None:
    owner = images / "owner.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", owner, "1M")
    owner.write_bytes(owner.read_bytes().replace(b"DATA", b"DATB", 1))
    assert codes(node(scan([owner]), owner)) == ["data-file-missing"]


def test_what_is_wrong_with_a_backing_format_is_found(images: Images) -> None:
    images.base("base.qcow2")
    images.base("plain.img", format="raw")
    unnamed = images.overlay("unnamed.qcow2", "base.qcow2", format="qcow2")
    unnamed.write_bytes(unnamed.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\xe2\x79\x2a\xcb", 1))
    wrong = images.overlay("wrong.qcow2", "plain.img", size="1M")
    doubtful = images.overlay("doubtful.qcow2", "base.qcow2", format="raw", size="1M")
    graph = scan([images.directory])
    assert codes(node(graph, unnamed)) == ["backing-format-missing"]
    assert codes(node(graph, wrong)) == ["backing-format-wrong"]
    assert codes(node(graph, doubtful)) == ["backing-format-doubtful"]


def test_an_overlay_smaller_than_its_base_is_a_finding(images: Images) -> None:
    images.base("base.qcow2", "8M")
    top = images.overlay("top.qcow2", "base.qcow2", size="4M")
    assert codes(node(scan([top]), top)) == ["overlay-smaller"]


def test_unusable_files_are_nodes_with_the_reason(images: Images) -> None:
    bad = images.base("bad.qcow2")
    with bad.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff\xff\xff")
    top = images.overlay("top.qcow2", "bad.qcow2", size="1M")
    (images / "lost.qcow2").write_bytes(bytes(65536))
    on_directory = images.overlay("on-directory.qcow2", "folder", size="1M")
    (images / "folder").mkdir()
    graph = scan([images.directory])
    assert codes(node(graph, bad)) == ["malformed"]
    assert codes(node(graph, top)) == ["broken-chain"]
    assert codes(node(graph, images / "lost.qcow2")) == ["name-misleads"]
    assert codes(node(graph, images / "folder")) == ["not-a-file"]
    assert codes(node(graph, on_directory)) == ["broken-chain"]


def test_an_image_that_may_not_be_read_is_a_node_with_the_reason(images: Images) -> None:
    base = images.base("base.qcow2")
    images.overlay("top.qcow2", "base.qcow2")
    (images / "secret").write_bytes(b"x")
    (images / "closed").mkdir()
    for path in (base, images / "secret", images / "closed"):
        path.chmod(0)
    with as_nobody(images.directory):
        (images / "closed").exists()
        graph = scan([images.directory])
    assert codes(node(graph, base)) == ["unreadable"]
    assert [found.code for found in graph.findings] == ["unreadable-directory", "unreadable-files"]
    (images / "closed").chmod(0o700)


def test_what_others_keep_where_imgtool_made_an_overlay_is_their_own_affair(images: Images) -> None:
    """In /tmp there are always files that cannot be read."""
    base = images.base("bases/base.qcow2")
    (images / "shared").mkdir()
    (images / "shared/theirs").write_bytes(b"x")
    (images / "shared/theirs").chmod(0)
    new_overlay(base, images / "shared/mine.qcow2")
    with as_nobody(base.parent, images / "shared"):
        graph = scan([base])
        assert graph.findings == []
        assert [found.code for found in scan([images / "shared"]).findings] == ["unreadable-files"]
    assert node(graph, base).children == [str(images / "shared/mine.qcow2")]


def test_one_path_is_as_good_as_a_list_of_one(images: Images) -> None:
    """And is not taken for its letters."""
    base = images.base("base.qcow2")
    images.overlay("top.qcow2", "base.qcow2")
    for given in (images.directory, str(images.directory), os.fsencode(images.directory)):
        assert scan(given).by_path().keys() == scan([images.directory]).by_path().keys()
        assert codes(node(scan(base, store=given), base)) == []
        assert verify(str(given) if isinstance(given, Path) else given).images == 2


def test_a_directory_that_somebody_names_must_be_listed(images: Images) -> None:
    """Else a misspelt --store would have images with overlays look as if they had none."""
    base = images.base("base.qcow2")
    (images / "closed").mkdir()
    (images / "closed").chmod(0)
    cases: list[tuple[Path, type[ImageError]]] = [
        (images / "gone", ImageNotFoundError),
        (base, ImageNotFoundError),
        (images / "closed", ImageUnreadableError),
    ]
    for directory, kind in cases:
        with as_nobody(images.directory), pytest.raises(kind) as caught:
            scan([base], store=[directory])
        assert caught.value.path == str(directory)
    with as_nobody(images.directory), pytest.raises(ImageUnreadableError, match="cannot be listed"):
        scan([images / "closed"])
    (images / "closed").chmod(0o700)


def test_fifos_sockets_and_devices_are_never_opened(images: Images, tmp_path: Path) -> None:
    fifo = images / "pipe.qcow2"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(images / "s.qcow2"))
        top = images.overlay("top.qcow2", "pipe.qcow2", size="1M")
        terminal = images.overlay("terminal.qcow2", "/dev/tty", size="1M")
        graph = scan([images.directory])
    assert {image.path for image in graph.images} == {str(top), str(terminal), str(fifo), "/dev/tty"}
    assert codes(node(graph, fifo)) == ["not-a-file"]
    assert codes(node(graph, "/dev/tty")) == ["not-a-file"]


def test_files_of_no_format_count_when_named_so_or_referred_to(images: Images) -> None:
    for name in ("disk.img", "disk.raw", "cd.iso", "notes.txt", "vm-flat.vmdk", "disk"):
        (images / name).write_bytes(bytes(1 << 20))
    images.overlay("top.qcow2", "disk", format="raw")
    images.base("image-without-suffix")
    (images / ".imgtool-0123.tmp").write_bytes((images / "top.qcow2").read_bytes())
    found = {os.path.basename(image.path) for image in scan([images.directory]).images}
    assert found == {"disk.img", "disk.raw", "cd.iso", "disk", "top.qcow2", "image-without-suffix"}


def test_symlinks_to_directories_are_not_followed(images: Images) -> None:
    images.base("store/base.qcow2")
    (images / "store/loop").symlink_to(".")
    (images / "store/gone.qcow2").symlink_to("nowhere")
    graph = scan([images / "store"])
    assert [os.path.basename(image.path) for image in graph.images] == ["base.qcow2", "gone.qcow2"]
    assert codes(node(graph, images / "store/gone.qcow2")) == ["missing"]


@pytest.mark.parametrize(
    "name",
    ["a,b.qcow2", "new\nline.qcow2", "\x1b[31mred.qcow2", "-x.qcow2", "nbd:foo.qcow2", "späß.qcow2", "a b.qcow2"],
)
def test_awkward_names_are_files_and_messages_escape_them(images: Images, name: str) -> None:
    base = images.base(name)
    reference = f"./{name}" if ":" in name else name
    top = images.overlay("top.qcow2", reference)
    orphan = images.overlay("orphan.qcow2", f"./gone-{name}", size="1M")
    graph = scan([images.directory])
    assert node(graph, top).parent == str(base)
    assert node(graph, top).findings == ()
    (found,) = node(graph, orphan).findings
    assert found.code == "missing-parent"
    assert found.message.isprintable()


def test_names_that_are_not_utf8_are_kept_whole(images: Images) -> None:
    raw_name = b"\xff\xfe.qcow2"
    base = images.base(os.fsdecode(raw_name))
    top = images.overlay("top.qcow2", raw_name)
    graph = scan([images.directory])
    parent = node(graph, top).parent
    assert parent is not None
    assert os.fsencode(parent) == os.fsencode(base)
    assert node(graph, parent).children == [str(top)]


def test_an_image_held_by_a_process_is_marked_so(images: Images) -> None:
    base = images.base("base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    with images.opened(top):
        graph = scan([images.directory])
        assert node(graph, top).in_use == "write"
        assert node(graph, base).in_use == "read"
    graph = scan([images.directory])
    assert (node(graph, top).in_use, node(graph, base).in_use) == (None, None)


def deep_chain(images: Images, length: int) -> list[Path]:
    """A chain of `length` images, made from the bytes of one."""
    images.base("c00000.qcow2")
    template = images.overlay("c99999.qcow2", "c00000.qcow2").read_bytes()
    (images / "c99999.qcow2").unlink()
    for number in range(1, length):
        below = f"c{number - 1:05}.qcow2".encode()
        (images / f"c{number:05}.qcow2").write_bytes(template.replace(b"c00000.qcow2", below))
    return [images / f"c{number:05}.qcow2" for number in range(length)]


def test_a_chain_of_three_thousand_images_is_seen_whole(images: Images) -> None:
    chain = deep_chain(images, 3000)
    graph = scan([chain[-1]])
    assert len(graph.images) == 3000
    assert node(graph, chain[-1]).depth == 2999
    assert codes(node(graph, chain[199])) == []
    assert codes(node(graph, chain[200])) == ["too-deep"]


def test_the_format_of_an_image_may_be_given(images: Images) -> None:
    base = images.base("base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    graph = scan([top], format="raw")
    assert [image.path for image in graph.images] == [str(top)]
    assert graph.images[0].format == "raw"
    assert len(scan([top, base]).images) == 2


def test_a_store_that_changes_while_it_is_scanned_raises_nothing(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.base("one.qcow2")
    gone = images.base("two.qcow2")
    real = os.open

    def vanishing(path: str, *rest: int) -> int:
        if os.fspath(path) == str(gone):
            gone.unlink(missing_ok=True)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", vanishing)
    assert [image.path for image in scan([images.directory]).images] == [str(images / "one.qcow2")]
