"""Moves of real stores: every image reads what it did, under its new name, and so do those that stand on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standing
from imgtool.chain.content import digest_of
from imgtool.chain.scan import scan
from imgtool.chain.verify import verify
from imgtool.chain.walk import walk
from imgtool.errors import ImageExistsError, ImageInUseError, ImageNotFoundError, RefusedError, UsageError
from imgtool.image.policy import Policy, in_force
from imgtool.operations.journal import recover
from imgtool.operations.move import MoveRequest, move
from imgtool.operations.overlay import new_overlay
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg
from tests.operations.dying import ends_well

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def family(images: Images) -> None:
    """base ← middle ← top, base ← beside, each with bytes of its own."""
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 0 4M")
    for number, (name, below) in enumerate((("middle", "base"), ("beside", "base"), ("top", "middle")), 2):
        new_overlay(images / f"{below}.qcow2", images / f"{name}.qcow2")
        images.run_io(images / f"{name}.qcow2", f"write -P {number} {number}M 100k")


def reads(paths: dict[str, Path]) -> dict[str, str]:
    return {name: digest_of(path) for name, path in paths.items()}


def backing(path: Path | str) -> str | None:
    return QemuImg().info(path).backing_filename


def healthy(directory: Path) -> bool:
    return verify([directory]).defects == ()


NAMES = ("base", "middle", "beside", "top")


@pytest.fixture(params=["same file system", "another"])
def elsewhere(request: pytest.FixtureRequest, images: Images) -> Iterator[Path]:
    """A directory in the same file system as the images, or in memory."""
    if request.param == "another":
        assert os.stat("/dev/shm").st_dev != images.directory.stat().st_dev
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            yield Path(directory)
    else:
        path = images / "elsewhere"
        path.mkdir()
        yield path


@pytest.mark.parametrize("name", ["base", "middle", "top"])
def test_one_image_goes_and_all_read_as_before(images: Images, elsewhere: Path, name: str) -> None:
    family(images)
    paths = {one: images / f"{one}.qcow2" for one in NAMES}
    before = reads(paths)
    done = move([paths[name]], elsewhere)
    assert not paths[name].exists()
    paths[name] = elsewhere / f"{name}.qcow2"
    assert [one.to for one in done.files] == [str(paths[name])]
    assert reads(paths) == before
    for one in paths.values():
        images.qemu_img("check", one)
        assert backing(one) is None or not os.path.isabs(backing(one) or "")
    found = verify([images.directory, elsewhere])
    assert found.defects == ()
    assert [path.name for path in images.directory.iterdir() if path.name.startswith(".")] == []


def test_a_new_name_in_the_same_directory(images: Images) -> None:
    family(images)
    before = reads({one: images / f"{one}.qcow2" for one in NAMES})
    done = move([images / "base.qcow2"], images / "debian.qcow2")
    assert sorted(os.path.basename(one.path) for one in done.followed) == ["beside.qcow2", "middle.qcow2"]
    assert backing(images / "middle.qcow2") == backing(images / "beside.qcow2") == "debian.qcow2"
    after = reads({one: images / f"{'debian' if one == 'base' else one}.qcow2" for one in NAMES})
    assert after == before
    assert healthy(images.directory)


def test_several_images_go_together(images: Images, elsewhere: Path) -> None:
    family(images)
    paths = {one: images / f"{one}.qcow2" for one in NAMES}
    before = reads(paths)
    move([paths["middle"], paths["base"]], elsewhere)
    paths |= {one: elsewhere / f"{one}.qcow2" for one in ("base", "middle")}
    assert reads(paths) == before
    assert backing(paths["middle"]) == "base.qcow2"
    assert verify([images.directory, elsewhere]).defects == ()


def test_a_whole_directory_goes(images: Images, elsewhere: Path) -> None:
    """Overlays beside it follow, what it stands on is still found, and the rest of it goes along."""
    bottom = images.base("bottom.qcow2", "8M")
    images.run_io(bottom, "write -P 9 0 1M")
    for directory in ("store/bases/old", "vms"):
        (images / directory).mkdir(parents=True)
    base = Path(new_overlay(bottom, images / "store/bases/base.qcow2").path)
    images.run_io(base, "write -P 1 1M 1M")
    inside = Path(new_overlay(base, images / "store/bases/old/inside.qcow2").path)
    outside = Path(new_overlay(base, images / "vms/outside.qcow2").path)
    absolute = Path(new_overlay(base, images / "vms/absolute.qcow2", absolute=True).path)
    (images / "store/readme.txt").write_text("about")
    (images / "store/bases/latest").symlink_to("base.qcow2")
    (images / "store/bases").chmod(0o750)
    before = reads({"base": base, "inside": inside, "outside": outside, "absolute": absolute})
    move([images / "store"], elsewhere / "moved")
    assert not (images / "store").exists()
    new = elsewhere / "moved"
    assert (new / "readme.txt").read_text() == "about"
    assert (new / "bases/latest").resolve() == (new / "bases/base.qcow2").resolve()
    assert (new / "bases").stat().st_mode & 0o777 == 0o750
    base, inside = new / "bases/base.qcow2", new / "bases/old/inside.qcow2"
    assert reads({"base": base, "inside": inside, "outside": outside, "absolute": absolute}) == before
    assert backing(inside) == "../base.qcow2"
    assert backing(absolute) == str(base)
    assert verify([images.directory, elsewhere]).errors == 0


def test_a_directory_goes_into_one_that_is_there(images: Images) -> None:
    (images / "store").mkdir()
    (images / "into").mkdir()
    images.base("store/base.qcow2")
    move([images / "store"], images / "into")
    assert (images / "into/store/base.qcow2").exists()


@pytest.mark.parametrize("kind", ["qcow2 of version 2", "qed"])
def test_overlays_without_room_for_a_patch_follow_as_copies(images: Images, kind: str) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 0 4M")
    format = "qed" if kind == "qed" else "qcow2"
    options = [] if kind == "qed" else ["-o", "compat=0.10"]
    top = images / f"top.{format}"
    images.qemu_img("create", "-q", "-f", format, *options, "-b", "base.qcow2", "-F", "qcow2", top)
    images.run_io(top, "write -P 2 1M 64k", format=format)
    upper = Path(new_overlay(top, images / "upper.qcow2").path)
    before = reads({"base": base, "top": top, "upper": upper})
    (images / "bases").mkdir()
    move([base], images / "bases")
    base = images / "bases/base.qcow2"
    assert reads({"base": base, "top": top, "upper": upper}) == before
    assert backing(top) == "bases/base.qcow2"
    assert standing(str(upper), str(top)).state == "same"
    move([top], images / "bases")
    assert reads({"base": base, "top": images / f"bases/{top.name}", "upper": upper}) == before


def test_what_overlays_remember_goes_with_them(images: Images, elsewhere: Path) -> None:
    family(images)
    move([images / "base.qcow2"], elsewhere)
    for name in ("middle", "beside"):
        found = standing(str(images / f"{name}.qcow2"), str(elsewhere / "base.qcow2"))
        assert found.state == "same"
        assert found.anchor is not None
        assert os.fsdecode(found.anchor.reference) == backing(images / f"{name}.qcow2")


def test_an_absolute_reference_stays_absolute(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    top = new_overlay(base, images / "top.qcow2", absolute=True).path
    move([base], images / "new.qcow2")
    assert backing(top) == str(images / "new.qcow2")


def test_a_data_file_goes_with_its_image(images: Images, elsewhere: Path) -> None:
    image, data = images / "disk.qcow2", images / "disk.data"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", image, "4M")
    images.run_io(image, "write -P 1 1M 1M")
    before = digest_of(image)
    move([image], elsewhere)
    assert sorted(os.listdir(elsewhere)) == ["disk.data", "disk.qcow2"]
    assert not data.exists()
    assert digest_of(elsewhere / "disk.qcow2") == before
    info = QemuImg().info(elsewhere / "disk.qcow2")
    assert info.qcow2 is not None
    assert info.qcow2.data_file == str(elsewhere / "disk.data")


def test_an_image_whose_data_file_only_qemu_in_another_directory_finds_stays(images: Images) -> None:
    (images / "folder").mkdir()
    words = ("-f", "qcow2", "-o", "data_file=disk.data", "folder/disk.qcow2", "1M")
    subprocess.run(["qemu-img", "create", "-q", *words], cwd=images.directory, check=True)
    before = (images / "folder" / "disk.qcow2").read_bytes()
    with pytest.raises(RefusedError, match="names a data file that is not in its directory"):
        move(images / "folder", images / "moved")
    assert (images / "folder" / "disk.qcow2").read_bytes() == before
    (images / "disk.data").rename(images / "folder" / "disk.data")
    move(images / "folder", images / "moved")
    assert sorted(path.name for path in (images / "moved").iterdir()) == ["disk.data", "disk.qcow2"]


def test_a_data_file_that_is_moved_alone_is_followed(images: Images) -> None:
    image, data = images / "disk.qcow2", images / "disk.data"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", image, "4M")
    images.run_io(image, "write -P 1 1M 1M")
    before = digest_of(image)
    (images / "data").mkdir()
    move([data], images / "data")
    assert digest_of(image) == before


def test_a_json_reference_becomes_a_plain_one(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    tree = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}})
    top = images.overlay("top.qcow2", f"json:{tree}")
    move([base], images / "new.qcow2")
    assert backing(top) == str(images / "new.qcow2")
    rich = json.dumps({"driver": "qcow2", "file.filename": str(images / "new.qcow2"), "lazy-refcounts": True})
    images.overlay("rich.qcow2", f"json:{rich}")
    with pytest.raises(RefusedError, match="options that would be lost"):
        move([images / "new.qcow2"], images / "newer.qcow2")


@pytest.mark.parametrize("name", ["nbd:x,y.qcow2", "-f.qcow2", "a b\n.qcow2", "\udcff.qcow2"])
def test_awkward_names(images: Images, name: str) -> None:
    base = images.base("base.qcow2", "8M")
    top = Path(new_overlay(base, images / "top.qcow2").path)
    images.run_io(base, "write -P 1 0 1M")
    before = digest_of(top)
    move([base], images / name)
    assert digest_of(top) == before
    move([images / name], images / "base.qcow2")
    assert digest_of(top) == before


def test_overlays_in_a_store_that_is_named_follow(images: Images) -> None:
    base = images.base("bases/base.qcow2", "8M")
    far = Path(new_overlay(base, (images / "bases").parent / "far.qcow2").path)
    (images / "vms/deep").mkdir(parents=True)
    deep = Path(new_overlay(base, images / "vms/deep/deep.qcow2").path)
    move([base], images / "bases/new.qcow2", store=[images.directory])
    assert (backing(far), backing(deep)) == ("bases/new.qcow2", "../../bases/new.qcow2")


def test_a_read_only_base_can_be_moved_but_a_read_only_overlay_cannot_follow(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    top = Path(new_overlay(base, images / "top.qcow2").path)
    base.chmod(0o444)
    move([base], images / "new.qcow2")
    assert (images / "new.qcow2").stat().st_mode & 0o777 == 0o444
    top.chmod(0o444)
    with pytest.raises(RefusedError, match="read-only"):
        move([images / "new.qcow2"], images / "newer.qcow2")
    assert (images / "new.qcow2").exists()


def refused(images: Images, kind: type[Exception], source: Path, target: Path) -> str:
    """The message, after which nothing has changed."""
    before = {path: path.read_bytes() for path in images.directory.rglob("*") if path.is_file()}
    with pytest.raises(kind) as caught:
        move([source], target)
    assert {path: path.read_bytes() for path in images.directory.rglob("*") if path.is_file()} == before
    return str(caught.value)


def test_images_in_use_stay(images: Images) -> None:
    family(images)
    (images / "to").mkdir()
    for used, moved in (("base", "base"), ("middle", "base"), ("top", "middle")):
        with images.opened(images / f"{used}.qcow2"):
            refused(images, ImageInUseError, images / f"{moved}.qcow2", images / "to")


def test_what_stands_in_the_way_stays(images: Images) -> None:
    family(images)
    assert "exists" in refused(images, ImageExistsError, images / "base.qcow2", images / "top.qcow2")
    refused(images, ImageNotFoundError, images / "gone.qcow2", images / "x.qcow2")
    refused(images, ImageNotFoundError, images / "base.qcow2", images / "no/where.qcow2")
    refused(images, UsageError, images / "base.qcow2", images.directory)


def test_a_directory_does_not_go_into_itself(images: Images) -> None:
    images.base("store/base.qcow2")
    refused(images, UsageError, images / "store", images / "store/below")


def test_symlinks_to_a_moved_image_are_in_the_way(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    (images / "latest.qcow2").symlink_to("base.qcow2")
    assert "symlink" in refused(images, RefusedError, base, images / "new.qcow2")
    assert "symlink" in refused(images, RefusedError, images / "latest.qcow2", images / "new.qcow2")


def test_symlinks_within_a_moved_directory_lead_where_they_did(images: Images) -> None:
    base = images.base("store/base.qcow2", "8M")
    (images / "store/deep").mkdir()
    links = {"near": "../base.qcow2", "up": "..", "out": str(images.directory)}
    for name, text in links.items():
        (images / "store/deep" / name).symlink_to(text)
    before = digest_of(base)
    move([images / "store"], images / "moved")
    assert digest_of(images / "moved/deep/near") == before
    assert (images / "moved/deep/up").samefile(images / "moved")
    assert (images / "moved/deep/out").samefile(images.directory)


@pytest.mark.parametrize("text", ["../../other", "../..", "{store}/base.qcow2", "{store}"])
def test_symlinks_that_would_lead_elsewhere_are_in_the_way(images: Images, text: str) -> None:
    images.base("store/base.qcow2", "8M")
    (images / "other").write_text("other")
    (images / "store/deep").mkdir()
    (images / "store/deep/link").symlink_to(text.format(store=images / "store"))
    assert "symlink" in refused(images, RefusedError, images / "store", images / "moved")


def test_a_format_without_a_way_to_follow_is_refused(images: Images) -> None:
    base = images.base("base.vmdk", "8M", format="vmdk")
    images.qemu_img("create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", images / "top.vmdk")
    assert "vmdk image, whose reference" in refused(images, RefusedError, base, images / "new.vmdk")


def test_an_image_of_several_files_goes_with_its_directory_only(images: Images) -> None:
    (images / "store").mkdir()
    image = images / "store/disk.vmdk"
    images.qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", image, "8M")
    images.run_io(image, "write -P 1 1M 1M", format="vmdk")
    before = digest_of(image)
    assert "several files" in refused(images, RefusedError, image, images / "disk.vmdk")
    move([images / "store"], images / "moved")
    assert digest_of(images / "moved/disk.vmdk") == before


def test_a_part_of_an_image_is_not_moved_alone(images: Images) -> None:
    image = images / "disk.vmdk"
    images.qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", image, "8M")
    assert "is a part of" in refused(images, RefusedError, images / "disk-flat.vmdk", images / "data.vmdk")
    (images / "elsewhere").mkdir()
    move([image, images / "disk-flat.vmdk"], images / "elsewhere")
    images.run_io(images / "elsewhere/disk.vmdk", "read 0 8M", format="vmdk")


def test_a_tree_of_options_does_not_follow(images: Images) -> None:
    base = images.base("base.img", "2M", format="raw")
    file = f'"file":{{"driver":"file","filename":"{base}"}}'
    top = images.overlay("top.qcow2", f'json:{{"driver":"raw","offset":1048576,{file}}}', format="raw")
    assert "tree of options" in str(refused(images, RefusedError, base, images / "new.img"))
    move([top], images / "new.qcow2")
    images.run_io(images / "new.qcow2", "read 0 1M")


def test_another_name_by_hard_link_stays(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    os.link(base, images / "other.qcow2")
    by_other = Path(new_overlay(images / "other.qcow2", images / "top.qcow2").path)
    move([base], images / "new.qcow2")
    assert backing(by_other) == "other.qcow2"
    assert (images / "other.qcow2").samefile(images / "new.qcow2")


def test_a_name_that_nobody_found_still_leads_to_the_base(images: Images) -> None:
    """A backup made by `cp -al`: its overlay is the same file, and would look beside itself for the base."""
    base = images.base("store/base.qcow2", "8M")
    images.run_io(base, "write -P 1 0 1M")
    new_overlay(base, images / "store/top.qcow2")
    subprocess.run(["cp", "-al", images / "store", images / "backup"], check=True)
    move([base], images / "moved.qcow2")
    for name in ("store/top.qcow2", "backup/top.qcow2"):
        images.run_io(images / name, "read -P 1 0 1M")


BOUND = """
import os
import imgtool
with imgtool.trusting(os.getcwd() + "/"):
    imgtool.move(["store/base.qcow2"], "moved.qcow2", store=["."])
    imgtool.commit("store/near.qcow2")
"""


def test_two_names_of_one_directory_are_one_place(images: Images) -> None:
    """By a bind mount. far.qcow2 names the base by the other name; the commit has images by both."""
    for name, byte in (("base", 1), ("other", 2)):
        images.run_io(images.base(f"store/{name}.qcow2"), f"write -P {byte} 0 1M")
    bound = images / "bound"
    bound.mkdir()
    images.overlay("far.qcow2", str(bound / "base.qcow2"), size="1M")
    near = images.overlay("store/near.qcow2", str(bound / "other.qcow2"), size="1M")
    bind = 'mount --bind store bound && exec "$@"'
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", bind, "sh"]
    write = [Programs().find("qemu-io"), "-f", "qcow2", "-c", "write -P 3 0 64k", near]
    for argv in (write, [sys.executable, "-c", BOUND]):
        subprocess.run([*alone, *argv], cwd=images.directory, check=True, stdout=subprocess.DEVNULL)
    images.run_io(images / "far.qcow2", "read -P 1 0 1M")
    images.run_io(images / "store/other.qcow2", "read -P 3 0 64k", "read -P 2 64k 960k")


def test_the_plan_changes_nothing_and_names_all(images: Images) -> None:
    family(images)
    request = MoveRequest([images / "base.qcow2"], images / "new.qcow2")
    plan = request.plan("qemu-img")
    assert [(os.path.basename(one.path), one.action) for one in plan.images] == [
        ("base.qcow2", "rename"),
        ("beside.qcow2", "write"),
        ("middle.qcow2", "write"),
    ]
    assert (images / "base.qcow2").exists()


UNDECIDED = """
import os, sys
from imgtool.operations import steps
from imgtool.operations.move import move
steps._do = lambda step, later: os._exit(9)
move([sys.argv[1]], sys.argv[2])
"""


def test_an_image_that_a_guest_wrote_since_keeps_what_it_wrote_and_all_read_right(images: Images) -> None:
    """A move that was decided and broken off is not finished over the head of an image that changed meanwhile."""
    family(images)
    (images / "to").mkdir()
    words: list[str | Path] = [sys.executable, "-c", UNDECIDED, images / "middle.qcow2", images / "to/middle.qcow2"]
    assert subprocess.run(words, check=False).returncode == 9
    images.qemu_img("snapshot", "-c", "since", images / "middle.qcow2")
    before = reads({one: images / f"{one}.qcow2" for one in NAMES})
    recover(str(images.directory))
    assert reads({one: images / f"{one}.qcow2" for one in NAMES}) == before
    assert [one.name for one in QemuImg().snapshot_list(images / "middle.qcow2")] == ["since"]
    assert not (images / "to/middle.qcow2").exists()


SCRIPT = """
import sys
from imgtool.operations.move import move
move([sys.argv[1]], sys.argv[2])
"""


@pytest.mark.parametrize("what", ["a middle image", "a directory"])
def test_dying_at_any_call_leaves_every_image_reading_as_before(tmp_path: Path, what: str) -> None:
    from tests.conftest import Images

    template = Images(tmp_path / "template")
    template.directory.mkdir()
    (template / "store").mkdir()
    base = template.base("base.qcow2", "1M")
    template.run_io(base, "write -P 1 0 512k")
    middle = new_overlay(base, template / "store/middle.qcow2").path
    template.run_io(Path(middle), "write -P 2 100k 100k")
    new_overlay(middle, template / "store/top.qcow2")
    for number in range(4):
        new_overlay(middle, template / f"child{number}.qcow2")
    expected = digest_of(middle)
    source, target = ("store/middle.qcow2", "moved.qcow2") if what == "a middle image" else ("store", "moved")
    for deaths in range(1, 400):
        store = tmp_path / str(deaths)
        subprocess.run(["cp", "-a", template.directory, store], check=True)
        done = ends_well(SCRIPT, source, target, at=deaths, cwd=store)
        with in_force(Policy(directories=(str(store),))):
            check_all(store, expected)
            recover(str(store))
            recover(str(store / "store"))
            if not done:
                check_all(store, expected)
        subprocess.run(["rm", "-rf", store], check=True)
        if done:
            break
    assert done
    assert deaths > 20


def check_all(store: Path, expected: str) -> None:
    """Every image that can be seen reads what it must, by whatever name."""
    found = [image for image in scan([store]).images if image.path != str(store / "base.qcow2")]
    assert len(found) >= 6
    for image in found:
        assert {one.code for one in image.findings} <= {"duplicate-name"}
        for name in image.all_names:
            assert os.path.samefile(walk(name)[-1].path, store / "base.qcow2")
    for image in found[:: len(found) - 1]:
        assert digest_of(image.path) == expected
