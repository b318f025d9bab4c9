import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from imgtool.errors import ImageError, ImageExistsError, ImageInUseError, ImageNotFoundError, RefusedError
from imgtool.operations.journal import recover
from imgtool.qemu.replace import replacing


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_the_target_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with replacing(target) as place:
        Path(place).write_text("new")
        assert not target.exists()
        assert os.path.dirname(place) == str(tmp_path)
    assert target.read_text() == "new"
    assert names(tmp_path) == {"a"}


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as place:  # noqa: PT012
        Path(place).write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ImageExistsError), replacing(tmp_path / "a"):
        raise AssertionError("nothing may be made")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == {"a"}


def test_a_dangling_link_exists_too(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("gone")
    with pytest.raises(ImageExistsError), replacing(tmp_path / "a"):
        raise AssertionError("nothing may be made")


def test_overwriting_keeps_the_old_until_the_end_and_its_permissions_after(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    target.chmod(0o640)
    with replacing(target, overwrite=True) as place:
        Path(place).write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_an_error_while_overwriting_keeps_the_old(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a", overwrite=True) as place:  # noqa: PT012
        Path(place).write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == {"a"}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "real").write_text("old")
    (tmp_path / "a").symlink_to("d/real")
    with replacing(tmp_path / "a", overwrite=True) as place:
        Path(place).write_text("new")
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "d" / "real").read_text() == "new"


def test_a_file_that_turned_up_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ImageExistsError), replacing(tmp_path / "a") as place:  # noqa: PT012
        Path(place).write_text("mine")
        (tmp_path / "a").write_text("theirs")
    assert (tmp_path / "a").read_text() == "theirs"
    assert names(tmp_path) == {"a"}


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(RefusedError), replacing(tmp_path / "a", overwrite=True):
        raise AssertionError("nothing may be made")


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError) as caught, replacing(tmp_path / "d" / "a"):
        raise AssertionError("nothing may be made")
    assert caught.value.hint is not None
    assert str(tmp_path / "d") in caught.value.hint


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError), replacing(f"{tmp_path}/{name}"):
        raise AssertionError("nothing may be made")


def test_the_longest_names_and_the_strangest_work(tmp_path: Path) -> None:
    for name in ("x" * 255, "\n", "-", "a,b:c", os.fsdecode(b"\xff")):
        with replacing(tmp_path / name) as place:
            Path(place).write_text(name.encode(errors="replace").decode())
    assert len(names(tmp_path)) == 5


def test_what_the_file_system_refuses_is_an_image_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ImageError) as caught, replacing(tmp_path / "a"):
        pass
    assert "No space left" in caught.value.message
    assert "make room" in (caught.value.hint or "")
    assert names(tmp_path) == set()


def test_nothing_is_written_through_a_link_that_somebody_left_at_the_hidden_name(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as place:
        hidden = place
    (tmp_path / "a").unlink()
    (tmp_path / "victim").write_text("precious")
    os.symlink("victim", hidden)
    with replacing(tmp_path / "a") as place:
        Path(place).write_text("new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert names(tmp_path) == {"a", "victim"}


def test_several_files_arrive_together(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.x", several_files=True) as place:
        folder = Path(place).parent
        assert Path(place).name == "a.x"
        (folder / "a-1.x").write_text("one")
        (folder / "a-2.x").write_text("two")
        Path(place).write_text("list")
        assert [name for name in names(tmp_path) if not name.startswith(".imgtool-")] == []
    assert names(tmp_path) == {"a.x", "a-1.x", "a-2.x"}
    assert (tmp_path / "a-2.x").read_text() == "two"


def test_a_file_in_the_way_of_one_of_several_stops_all(tmp_path: Path) -> None:
    (tmp_path / "a-2.x").write_text("theirs")
    with pytest.raises(ImageExistsError), replacing(tmp_path / "a.x", several_files=True) as place:  # noqa: PT012
        for name in ("a-1.x", "a-2.x", "a.x"):
            (Path(place).parent / name).write_text("mine")
    assert names(tmp_path) == {"a-2.x"}
    assert (tmp_path / "a-2.x").read_text() == "theirs"


CHILD = """
    import os, sys, time
    from imgtool.qemu import replace
    target, several, stop = sys.argv[1], sys.argv[2] == "several", sys.argv[3]

    def pause():
        print("here", flush=True)
        time.sleep(600)

    real_link, real_unlink = os.link, os.unlink
    calls = []

    def link(source, place, **options):
        calls.append(place)
        if stop == f"before link {len(calls)}":
            pause()
        real_link(source, place, **options)
        if stop == f"after link {len(calls)}":
            pause()

    os.link = link
    with replace.replacing(target, several_files=several) as place:
        if several:
            for n in (1, 2):
                with open(os.path.join(os.path.dirname(place), f"part-{n}"), "w") as part:
                    part.write("whole")
        with open(place, "w") as file:
            file.write("ha")
            file.flush()
            if stop == "half-way":
                pause()
            file.write("lf and half")
"""


def killed_at(target: Path, several: bool, stop: str) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(CHILD), str(target), "several" if several else "one", stop]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        child.send_signal(signal.SIGKILL)


KILLED = pytest.mark.parametrize(
    ("several", "stop", "complete"),
    [
        (False, "half-way", False),
        (False, "before link 1", False),
        (False, "after link 1", True),
        (True, "half-way", False),
        (True, "before link 1", False),
        (True, "after link 1", False),
        (True, "before link 2", False),
        (True, "after link 2", False),
        (True, "before link 3", False),
        (True, "after link 3", True),
    ],
)


@KILLED
def test_the_next_run_finds_the_whole_or_clears_away_what_a_killed_one_left(
    tmp_path: Path, several: bool, stop: str, complete: bool
) -> None:
    target = tmp_path / "a"
    killed_at(target, several, stop)
    assert target.exists() == complete
    if complete:
        assert target.read_text() == "half and half"
        with replacing(target, overwrite=True, several_files=several) as place:
            Path(place).write_text("new")
        assert (tmp_path / "part-1").exists() == several
    else:
        with replacing(target, several_files=several) as place:
            Path(place).write_text("new")
        assert names(tmp_path) == {"a"}
    assert target.read_text() == "new"
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@KILLED
@pytest.mark.parametrize("by", ["another", "a change"])
def test_a_run_for_another_target_clears_it_away_too(
    tmp_path: Path, several: bool, stop: str, complete: bool, by: str
) -> None:
    killed_at(tmp_path / "a", several, stop)
    if by == "another":
        with replacing(tmp_path / "b") as place:
            Path(place).write_text("b")
        (tmp_path / "b").unlink()
    else:
        recover(str(tmp_path))
    whole = {"a", "part-1", "part-2"} if several else {"a"}
    assert names(tmp_path) == (whole if complete else set())
    assert not complete or (tmp_path / "a").stat().st_nlink == 1


def test_what_a_living_run_works_on_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "a", several_files=True) as one, replacing(tmp_path / "b") as other:
        Path(one).write_text("a")
        Path(other).write_text("b")
        recover(str(tmp_path))
        with replacing(tmp_path / "c") as third:
            Path(third).write_text("c")
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize(("several", "stop"), [(False, "after link 1"), (True, "after link 3")])
def test_a_run_that_is_refused_clears_away_what_one_killed_after_its_work_left(
    tmp_path: Path, several: bool, stop: str
) -> None:
    target = tmp_path / "a"
    killed_at(target, several, stop)
    with pytest.raises(ImageExistsError), replacing(target):
        pytest.fail("it would have been replaced")
    assert names(tmp_path) == ({"a", "part-1", "part-2"} if several else {"a"})
    assert target.read_text() == "half and half"


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as place:
        Path(place).write_text("first")
        with pytest.raises(ImageInUseError), replacing(tmp_path / "a"):
            raise AssertionError("nothing may be made")
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == {"a"}
