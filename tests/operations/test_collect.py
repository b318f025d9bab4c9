"""What nobody needs goes, what anybody needs stays, and all of it comes back."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.content import digest_of
from imgtool.chain.hidden import KEPT
from imgtool.chain.verify import verify
from imgtool.errors import ImageInUseError, ImageNotFoundError, RefusedError, UsageError
from imgtool.operations.collect import CollectRequest, collect
from imgtool.operations.journal import recover
from imgtool.operations.overlay import new_overlay
from imgtool.operations.quarantine import purge, quarantined, undo
from tests.files import as_nobody
from tests.operations.dying import ends_well

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def family(images: Images) -> None:
    """base ← web ← web-test, base ← old ← older; lone; and a file that is no image."""
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 0 1M")
    (images / "old").mkdir()
    for name, below in (("web", "base"), ("web-test", "web"), ("old/old", "base"), ("old/older", "old/old")):
        new_overlay(images / f"{below}.qcow2", images / f"{name}.qcow2")
    images.base("lone.qcow2")
    (images / "notes.txt").write_text("mine")


def names(images: Images) -> set[str]:
    """What can be seen in the directory."""
    top = images.directory
    found = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(KEPT)}


KEPT_BY_WEB = {"base.qcow2", "web.qcow2", "notes.txt"}


def test_what_the_kept_images_do_not_stand_on_is_put_away_and_comes_back(images: Images) -> None:
    family(images)
    before = names(images)
    contents = {name: digest_of(images / name) for name in before - {"notes.txt"}}
    done = collect(images.directory, keep=[images / "web.qcow2"])
    assert names(images) == KEPT_BY_WEB
    assert done.kept == 2
    assert sorted(os.path.basename(file.path) for file in done.files) == [
        "lone.qcow2",
        "old.qcow2",
        "older.qcow2",
        "web-test.qcow2",
    ]
    assert verify([images.directory]).defects == ()
    (batch,) = quarantined(images.directory)
    assert (batch.id, batch.files) == (done.id, done.files)
    undo(images.directory)
    assert names(images) == before
    assert {name: digest_of(images / name) for name in contents} == contents
    assert not (images / KEPT).exists()


def test_where_files_cannot_have_two_names_they_are_renamed(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """On FAT, on some network shares, and those of another user."""

    def forbidden(*paths: str, **options: bool) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    family(images)
    before = names(images)
    monkeypatch.setattr(os, "link", forbidden)
    collect(images.directory, keep=[images / "web.qcow2"])
    assert names(images) == KEPT_BY_WEB
    undo(images.directory)
    assert names(images) == before
    assert verify(images.directory).errors == 0


def test_purge_deletes_and_only_what_was_put_away(images: Images) -> None:
    family(images)
    collect(images.directory, keep=[images / "web.qcow2"])
    purge(images.directory)
    assert names(images) == KEPT_BY_WEB
    assert not (images / KEPT).exists()
    with pytest.raises(ImageNotFoundError):
        undo(images.directory)


def test_each_run_is_a_batch_of_its_own(images: Images) -> None:
    family(images)
    first = collect(images.directory, keep=[images / "web-test.qcow2"])
    second = collect(images.directory, keep=[images / "web.qcow2"])
    assert [os.path.basename(file.path) for file in second.files] == ["web-test.qcow2"]
    undo(images.directory, first.id)
    assert "old/older.qcow2" in names(images)
    assert "web-test.qcow2" not in names(images)
    purge(images.directory, second.id)
    assert quarantined(images.directory) == []


def test_what_a_program_has_open_is_needed(images: Images) -> None:
    family(images)
    with images.opened(images / "old/older.qcow2"):
        collect(images.directory, keep=[images / "web.qcow2"])
    assert names(images) == {*KEPT_BY_WEB, "old/old.qcow2", "old/older.qcow2"}


def test_what_images_elsewhere_stand_on_is_needed(images: Images, tmp_path: Path) -> None:
    family(images)
    (tmp_path / "outside").mkdir()
    new_overlay(images / "lone.qcow2", tmp_path / "outside/top.qcow2")
    collect(images.directory, keep=[images / "web.qcow2"], store=[tmp_path / "outside"])
    assert names(images) == {*KEPT_BY_WEB, "lone.qcow2"}


def test_what_a_build_names_is_needed_and_may_be_gone(images: Images) -> None:
    family(images)
    collect(images.directory, keep=[images / "web.qcow2"], needed=[images / "lone.qcow2", images / "gone.qcow2"])
    assert names(images) == {*KEPT_BY_WEB, "lone.qcow2"}


def test_a_data_file_goes_and_stays_with_its_image(images: Images) -> None:
    for name in ("kept", "unkept"):
        data = images / f"{name}.raw"
        images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", images / f"{name}.qcow2", "1M")
    collect(images.directory, keep=[images / "kept.qcow2"])
    assert names(images) == {"kept.qcow2", "kept.raw"}


def test_what_a_tree_of_options_or_a_vmdk_names_is_needed(images: Images) -> None:
    base = images.base("base.qcow2")
    reference = f'json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{base}"}}}}'
    images.overlay("top.qcow2", reference)
    for name in ("disk.vmdk", "old.vmdk"):
        images.qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", images / name, "3G")
    done = collect(images.directory, keep=[images / "top.qcow2", images / "disk.vmdk"])
    assert {os.path.basename(file.path) for file in done.files} == {"old.vmdk", "old-s001.vmdk", "old-s002.vmdk"}
    assert names(images) == {"base.qcow2", "top.qcow2", "disk.vmdk", "disk-s001.vmdk", "disk-s002.vmdk"}


def test_broken_images_are_garbage_like_others(images: Images) -> None:
    kept = images.base("kept.qcow2")
    images.overlay("orphan.qcow2", "gone.qcow2", size="1M")
    images.overlay("one.qcow2", "two.qcow2", size="1M")
    images.overlay("two.qcow2", "one.qcow2", size="1M")
    collect(images.directory, keep=[kept])
    assert names(images) == {"kept.qcow2"}


@pytest.mark.parametrize("closed", ["folder", "secret", "top.qcow2"])
def test_nothing_goes_while_it_is_unknown_what_is_needed(images: Images, closed: str) -> None:
    """What cannot be looked at may stand on anything: a directory, a file that may be an image, an image to keep."""
    images.base("base.qcow2")
    images.overlay("top.qcow2", "base.qcow2")
    images.base("other.qcow2")
    (images / "folder").mkdir()
    images.overlay("folder/unseen.qcow2", "../base.qcow2")
    (images / "secret").write_bytes((images / "top.qcow2").read_bytes())
    (images / closed).chmod(0)
    before = names(images)
    for keep in ("other.qcow2", "top.qcow2"):
        with as_nobody(images.directory), pytest.raises(RefusedError, match="is not known") as caught:
            CollectRequest(images.directory, keep=[images / keep])
        assert caught.value.hint
    (images / closed).chmod(0o700)
    assert names(images) == before


def test_nothing_to_put_away(images: Images) -> None:
    kept = images.base("kept.qcow2")
    assert collect(images.directory, keep=[kept]).id is None
    assert not (images / KEPT).exists()


def test_without_a_keep_list_nothing_goes(images: Images) -> None:
    family(images)
    before = names(images)
    with pytest.raises(UsageError, match="everything would be collected"):
        collect(images.directory, keep=[])
    with pytest.raises(ImageNotFoundError, match="to be kept"):
        collect(images.directory, keep=[images / "wbe.qcow2"])
    (images / "latest.qcow2").symlink_to("lone.qcow2")
    with pytest.raises(RefusedError, match="symlink"):
        collect(images.directory, keep=[images / "web.qcow2"])
    (images / "latest.qcow2").unlink()
    CollectRequest(images.directory, keep=[images / "web.qcow2"]).plan()
    assert names(images) == before


def test_what_came_in_its_place_meanwhile_is_not_replaced(images: Images) -> None:
    family(images)
    collect(images.directory, keep=[images / "web.qcow2"])
    (images / "lone.qcow2").write_text("new")
    with pytest.raises(RefusedError, match="exists again"):
        undo(images.directory)
    assert (images / "lone.qcow2").read_text() == "new"


def test_what_is_used_in_the_quarantine_is_not_deleted(images: Images) -> None:
    family(images)
    done = collect(images.directory, keep=[images / "web.qcow2"])
    inside = images / KEPT / str(done.id) / "lone.qcow2"
    with images.opened(inside), pytest.raises(ImageInUseError):
        purge(images.directory)
    assert inside.exists()


def test_a_quarantine_goes_where_its_directory_goes(images: Images, tmp_path: Path) -> None:
    family(images)
    collect(images.directory, keep=[images / "web.qcow2"])
    moved = images.directory.rename(tmp_path / "moved")
    undo(moved)
    assert (moved / "old/older.qcow2").exists()


SCRIPT = """
import sys
from imgtool.operations.collect import collect
from imgtool.operations.quarantine import undo
collect(".", keep=["web.qcow2"]) if sys.argv[1] == "collect" else undo(".")
"""


@pytest.mark.parametrize("verb", ["collect", "undo"])
def test_dying_at_any_call_loses_nothing(images: Images, tmp_path: Path, verb: str) -> None:
    family(images)
    everything = names(images)
    if verb == "undo":
        collect(images.directory, keep=[images / "web.qcow2"])
    ends = set()
    for deaths in range(1, 300):
        store = tmp_path / str(deaths)
        subprocess.run(["cp", "-a", images.directory, store], check=True)
        done = ends_well(SCRIPT, verb, at=deaths, cwd=store)
        assert verify([store]).errors == 0
        recover(str(store))
        recover(str(store / KEPT))
        assert verify([store]).errors == 0
        if quarantined(store):
            undo(store)
            ends.add("away")
        else:
            ends.add("here")
        found = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
        assert {name for name in found if not name.startswith(KEPT)} == everything
        subprocess.run(["rm", "-rf", store], check=True)
        if done:
            break
    assert done
    assert ends == {"away", "here"}
