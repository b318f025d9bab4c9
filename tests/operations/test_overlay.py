"""Making overlays with real qemu-img, and what is refused before it is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from imgtool.chain.anchors import standing
from imgtool.chain.walk import walk
from imgtool.errors import (
    ChainError,
    ImageError,
    ImageExistsError,
    ImageFormatError,
    ImageInUseError,
    ImageNotFoundError,
    ImgtoolError,
    RefusedError,
    UsageError,
)
from imgtool.operations.overlay import OverlayRequest, fresh_name, list_overlays, new_overlay, reference_to, stem_of
from imgtool.operations.plan import Plan, Touched
from imgtool.qemu.process import Completed, run
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def listing(directory: Path) -> set[str]:
    return {os.fsdecode(os.fsencode(path.name)) for path in directory.iterdir()}


def test_an_overlay_names_its_base_relatively_and_with_its_format(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 7 0 64k")
    image = new_overlay(base, images / "top.qcow2")
    assert image.path == str(images / "top.qcow2")
    assert (image.parent, image.depth, image.virtual_size) == (str(base), 1, 8 << 20)
    info = QemuImg().info(images / "top.qcow2")
    assert info.backing_filename == "base.qcow2"
    assert info.backing_filename_format == "qcow2"
    images.run_io(images / "top.qcow2", "read -P 7 0 64k")


def test_a_raw_base_is_named_raw_and_the_caller_may_say_so(images: Images) -> None:
    plain = images.base("plain.img", format="raw")
    assert new_overlay(plain).backing is not None
    assert QemuImg().info(images / "plain-overlay-1.qcow2").backing_filename_format == "raw"
    hostile = images.base("guest-wrote-qcow2.img")
    said = new_overlay(hostile, base_format="raw")
    assert said.virtual_size == -(-hostile.stat().st_size // 512) * 512
    assert said.backing is not None
    assert said.backing.format == "raw"
    with pytest.raises(ImageFormatError):
        new_overlay(plain, base_format="qcow2")


def test_a_size_may_be_text(images: Images) -> None:
    base = images.base("base.qcow2", "1M")
    assert new_overlay(base, images / "top.qcow2", size="2M").virtual_size == 2 << 20
    with pytest.raises(RefusedError):
        new_overlay(base, images / "small.qcow2", size="512k")
    with pytest.raises(UsageError, match="'2MB' is not a size"):
        new_overlay(base, images / "other.qcow2", size="2MB")
    assert not (images / "other.qcow2").exists()


def test_size_and_options_reach_the_image(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    image = new_overlay(base, size=1 << 30, options={"cluster_size": "128k", "lazy_refcounts": True})
    assert image.virtual_size == 1 << 30
    assert QemuImg().info(image.path).cluster_size == 128 << 10
    with pytest.raises(UsageError, match="backing_file"):
        new_overlay(base, options={"backing_file": "x"})


def test_an_overlay_remembers_its_base_from_the_moment_it_is_there(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    top = new_overlay(base, images / "top.qcow2").path
    assert standing(top, str(base)).state == "same"
    images.run_io(base, "write -P 7 0 64k")
    assert standing(top, str(base)).state in ("written", "changed")
    plain = new_overlay(base, images / "plain.qcow2", anchor=False).path
    assert standing(plain, str(base)).state == "none"


@pytest.mark.parametrize("options", [{"compat": "0.10"}, {"cluster_size": "512"}])
def test_an_overlay_with_no_room_for_an_anchor_is_made_without(images: Images, options: dict[str, str]) -> None:
    base = images.base("base.qcow2", "8M")
    top = new_overlay(base, images / "top.qcow2", options=options).path
    assert standing(top, str(base)).state == "none"
    images.qemu_img("check", top)


def test_an_overlay_may_have_an_external_data_file(images: Images) -> None:
    image = new_overlay(images.base("base.qcow2"), images / "top.qcow2", options={"data_file": "top.data"})
    assert image.data_file is not msgspec.UNSET
    assert image.data_file.path == str(images / "top.data")
    assert listing(images.directory) == {"base.qcow2", "top.qcow2", "top.data"}


def test_without_a_name_the_first_free_one_beside_the_base_is_taken(images: Images) -> None:
    base = images.base("base.qcow2")
    (images / "base-overlay-2.qcow2").write_bytes(b"mine")
    made = [os.path.basename(new_overlay(base).path) for _ in range(3)]
    assert made == ["base-overlay-1.qcow2", "base-overlay-3.qcow2", "base-overlay-4.qcow2"]
    assert (images / "base-overlay-2.qcow2").read_bytes() == b"mine"


def test_a_directory_is_where_the_name_is_made_up(images: Images) -> None:
    base = images.base("bases/base.qcow2")
    (images / "vms").mkdir()
    image = new_overlay(base, images / "vms")
    assert image.path == str(images / "vms/base-overlay-1.qcow2")
    assert image.backing is not None
    assert image.backing.reference == "../bases/base.qcow2"


def test_names_made_up_at_the_same_time_are_all_different(images: Images) -> None:
    base = images.base("base.qcow2")
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: new_overlay(base).path, range(18)))
    assert len(set(made)) == 18
    assert listing(images.directory) == {"base.qcow2", *(os.path.basename(path) for path in made)}


def test_one_name_asked_for_by_many_is_made_once(images: Images) -> None:
    base = images.base("base.qcow2")

    def attempt(_: int) -> bool:
        try:
            new_overlay(base, images / "top.qcow2")
        except (ImageExistsError, ImageInUseError):
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, range(12))) == 1
    assert listing(images.directory) == {"base.qcow2", "top.qcow2"}


def test_an_absolute_reference_can_be_had(images: Images) -> None:
    base = images.base("base.qcow2")
    image = new_overlay(base, absolute=True)
    assert image.backing is not None
    assert image.backing.reference == str(base)


@pytest.mark.parametrize("way", ["overlay behind a link", "base behind a link", "base is a link"])
def test_the_reference_resolves_for_qemu_through_symlinked_directories(images: Images, way: str) -> None:
    base = images.base("bases/base.qcow2", "3M")
    (images / "deep/down/vms").mkdir(parents=True)
    (images / "link").symlink_to("deep/down/vms" if way.startswith("overlay") else "bases")
    if way.startswith("overlay"):
        image = new_overlay(base, images / "link/top.qcow2")
    elif way == "base behind a link":
        image = new_overlay(images / "link/base.qcow2", images / "deep/down/vms/top.qcow2")
    else:
        (images / "latest.qcow2").symlink_to("bases/base.qcow2")
        image = new_overlay(images / "latest.qcow2", images / "deep/down/vms/top.qcow2")
    chain = QemuImg().info_chain(images / "deep/down/vms/top.qcow2")
    assert len(chain) == 2
    assert os.path.samefile(chain[1].filename, base)
    assert walk(image.path)[0].path == image.path
    assert len(QemuImg().info_chain(image.path)) == 2


@pytest.mark.parametrize(
    "name", ["nbd:foo.qcow2", "-x.qcow2", "a,b.qcow2", "a b\n.qcow2", "json:{}.qcow2", "\udcff.qcow2"]
)
def test_awkward_names_are_files(images: Images, name: str) -> None:
    base = images.base(name)
    image = new_overlay(base, images / f"over-{name}")
    assert image.backing is not None
    assert image.backing.path == str(base)
    images.run_io(Path(image.path), "read 0 512")


def refused(
    images: Images, kind: type[ImgtoolError], base: Path, overlay: Path | None = None, **how: object
) -> ImgtoolError:
    """The error, after which nothing in the directory has changed."""
    before = listing(images.directory)
    with pytest.raises(kind) as caught:
        new_overlay(base, overlay, **how)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert listing(images.directory) == before
    assert caught.value.hint
    return caught.value


def test_a_missing_base_is_refused(images: Images) -> None:
    assert "does not exist" in refused(images, ImageNotFoundError, images / "gone.qcow2").message


def test_an_existing_target_is_refused_and_kept(images: Images) -> None:
    base = images.base("base.qcow2")
    (images / "top.qcow2").write_bytes(b"mine")
    refused(images, ImageExistsError, base, images / "top.qcow2")
    assert (images / "top.qcow2").read_bytes() == b"mine"
    (images / "dangling.qcow2").symlink_to("nowhere")
    refused(images, ImageExistsError, base, images / "dangling.qcow2")


def test_a_target_in_no_directory_is_refused(images: Images) -> None:
    refused(images, ImageError, images.base("base.qcow2"), images / "no/where.qcow2")


def test_an_overlay_smaller_than_its_base_is_refused_unless_asked(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    error = refused(images, RefusedError, base, size=4 << 20)
    assert error.hint == "--allow-smaller makes it all the same"
    assert new_overlay(base, size=4 << 20, allow_smaller=True).virtual_size == 4 << 20


def test_a_base_that_is_written_to_is_refused_unless_forced(images: Images) -> None:
    base = images.base("base.qcow2")
    with images.opened(base) as pid:
        error = refused(images, ImageInUseError, base)
        assert f"pid {pid}" in error.message
        assert "--force" in str(error.hint)
        assert new_overlay(base, force=True).parent == str(base)


def test_a_base_whose_own_base_is_written_to_is_refused(images: Images) -> None:
    bottom = images.base("bottom.qcow2")
    base = images.overlay("base.qcow2", "bottom.qcow2")
    with images.opened(bottom):
        assert str(base) in refused(images, ImageInUseError, base).message


def test_a_base_that_is_only_read_may_have_more_overlays(images: Images) -> None:
    base = images.base("base.qcow2")
    with images.opened(base, "-r"):
        assert new_overlay(base).parent == str(base)


def test_a_cycle_and_a_broken_chain_are_refused_before_qemu_sees_them(images: Images) -> None:
    images.overlay("one.qcow2", "two.qcow2", size="1M")
    images.overlay("two.qcow2", "one.qcow2", size="1M")
    refused(images, ChainError, images / "one.qcow2")
    images.overlay("orphan.qcow2", "gone.qcow2", size="1M")
    refused(images, ChainError, images / "orphan.qcow2")


def test_a_chain_as_deep_as_allowed_gets_no_overlay(images: Images) -> None:
    images.base("c000.qcow2")
    template = images.overlay("c999.qcow2", "c000.qcow2").read_bytes()
    for number in range(1, 200):
        below = f"c{number - 1:03}.qcow2".encode()
        (images / f"c{number:03}.qcow2").write_bytes(template.replace(b"c000.qcow2", below))
    assert "200 images deep" in refused(images, ChainError, images / "c199.qcow2").message
    assert new_overlay(images / "c198.qcow2").depth == 199
    assert new_overlay(images / "c199.qcow2", force=True).depth == 200


def test_a_failed_creation_leaves_nothing(images: Images) -> None:
    base = images.base("base.qcow2")
    with pytest.raises(ImgtoolError):
        new_overlay(base, options={"cluster_size": "3"})
    assert listing(images.directory) == {"base.qcow2"}


def test_the_plan_names_the_command_and_the_images(images: Images) -> None:
    base = images.base("base.qcow2")
    plan = OverlayRequest(base, images / "top.qcow2", size=2 << 20, options={"compat": "1.1"}).plan("qemu-img")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"]
    assert plan == Plan(
        commands=((*argv, "-o", "compat=1.1", str(images / "top.qcow2"), "2097152"),),
        images=(
            Touched(path=str(base), action="read"),
            Touched(path=str(images / "top.qcow2"), action="create"),
        ),
    )
    assert listing(images.directory) == {"base.qcow2"}


def test_overlays_are_listed_with_and_without_their_own(images: Images) -> None:
    base = images.base("base.qcow2")
    for name, backing in (("a", "base"), ("b", "base"), ("a1", "a"), ("a2", "a1"), ("else/x", "../base")):
        images.overlay(f"{name}.qcow2", f"{backing}.qcow2")
    names = [os.path.basename(image.path) for image in list_overlays(base)]
    assert names == ["a.qcow2", "b.qcow2"]
    names = [os.path.basename(image.path) for image in list_overlays(base, deep=True, store=[images / "else"])]
    assert names == ["a.qcow2", "a1.qcow2", "a2.qcow2", "b.qcow2", "x.qcow2"]
    assert list_overlays(images / "b.qcow2") == []


def test_the_overlays_of_a_cycle_are_listed_once(images: Images) -> None:
    images.overlay("one.qcow2", "two.qcow2", size="1M")
    images.overlay("two.qcow2", "one.qcow2", size="1M")
    found = list_overlays(images / "one.qcow2", deep=True)
    assert [os.path.basename(image.path) for image in found] == ["two.qcow2"]


def test_the_overlays_of_a_missing_base_are_listed(images: Images) -> None:
    images.overlay("orphan.qcow2", "gone.qcow2", size="1M")
    assert [os.path.basename(image.path) for image in list_overlays(images / "gone.qcow2")] == ["orphan.qcow2"]
    with pytest.raises(ImageNotFoundError):
        list_overlays(images / "never.qcow2")


def test_names_are_made_of_the_bases_name() -> None:
    assert stem_of("disk.qcow2") == "disk"
    assert stem_of("disk.QCOW2") == "disk"
    assert stem_of(".img") == ".img"
    assert stem_of("disk.tar") == "disk.tar"
    assert fresh_name("disk", 12) == "disk-overlay-12.qcow2"
    assert len(os.fsencode(fresh_name("é" * 127, 1))) <= 255


def test_a_name_too_long_for_the_header_is_refused(tmp_path: Path) -> None:
    long = "/" + "/".join(["d" * 200] * 6) + "/base.qcow2"
    with pytest.raises(RefusedError, match="1023"):
        reference_to(long, str(tmp_path), absolute=True)
    assert reference_to(long, os.path.dirname(long)) == "base.qcow2"


@pytest.mark.parametrize("what", ["gone", "another"])
def test_no_overlay_is_made_on_what_is_no_more_the_base(images: Images, what: str) -> None:
    """Another imgtool put it away, or changed it, while qemu-img made the overlay."""
    base, other = images.base("base.qcow2"), images.base("other.qcow2")

    def meanwhile(argv: Sequence[str], **how: Any) -> Completed:
        done = run(argv, **how)
        if argv[1] == "create" and what == "gone":
            base.unlink()
        elif argv[1] == "create":
            other.rename(base)
        return done

    request = OverlayRequest(base, images / "top.qcow2")
    with pytest.raises((ImageInUseError, ImageNotFoundError), match="by another program in the meantime"):
        request.make(QemuImg(Programs(runner=meanwhile)))
    assert not (images / "top.qcow2").exists()
