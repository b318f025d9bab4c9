"""Changes of several files, whole or not at all: also when the process dies between any two of its steps."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.errors import ImageError, ImageExistsError, ImageInUseError, RefusedError
from imgtool.operations import journal, steps
from imgtool.operations.alone import alone_in, if_alone_in
from imgtool.operations.journal import journals, recover
from imgtool.operations.transaction import Transaction
from tests.files import as_nobody
from tests.operations.dying import ends_well


def hidden(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def test_what_was_staged_takes_its_places_at_commit(tmp_path: Path) -> None:
    a, b, c = (str(tmp_path / name) for name in "abc")
    write(a, "a before")
    write(c, "c before")
    with Transaction(a) as change:
        new_a = change.stage(a, copy_of=a)
        write(new_a, "a after")
        new_b = change.stage(b)
        write(new_b, "b after")
        change.replace(a, new_a)
        change.place(b, new_b)
        change.remove(c)
        assert Path(a).read_text() == "a before"
        assert not Path(b).exists()
        change.commit()
    assert (Path(a).read_text(), Path(b).read_text(), Path(c).exists()) == ("a after", "b after", False)
    assert hidden(tmp_path) == []


def test_without_a_commit_nothing_happened(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    write(a, "before")

    def fail() -> None:
        with Transaction(a) as change:
            change.replace(a, change.stage(a, copy_of=a))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert Path(a).read_text() == "before"
    assert hidden(tmp_path) == []


def test_a_staged_copy_keeps_holes(tmp_path: Path) -> None:
    a = tmp_path / "a"
    with a.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    with Transaction(str(a)) as change:
        staged = Path(change.stage(str(a), copy_of=str(a)))
        assert staged.read_bytes() == a.read_bytes()
        assert staged.stat().st_blocks == a.stat().st_blocks


def test_a_replaced_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    a = tmp_path / "a"
    a.write_text("before")
    a.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(a, 1234, 1234)
    owner = (a.stat().st_uid, a.stat().st_gid)
    with Transaction(str(a)) as change:
        change.replace(str(a), change.stage(str(a)))
        change.commit()
    assert a.stat().st_mode & 0o7777 == 0o640
    assert (a.stat().st_uid, a.stat().st_gid) == owner


def test_a_file_with_two_names_is_not_replaced(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    write(a, "before")
    os.link(a, tmp_path / "other")
    with Transaction(a) as change, pytest.raises(RefusedError, match="2 names"):
        change.replace(a, change.stage(a))


def test_a_new_name_must_be_free(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    write(a, "mine")
    with Transaction(a) as change, pytest.raises(ImageExistsError):
        change.place(a, change.stage(a))
    assert Path(a).read_text() == "mine"


def test_where_one_new_name_was_taken_at_the_last_moment_none_is_given(tmp_path: Path) -> None:
    a, b = (str(tmp_path / name) for name in "ab")
    with Transaction(a) as change:
        for path, staged in zip((a, b), [change.stage(a), change.stage(b)], strict=True):
            change.place(path, staged)
        write(b, "theirs")
        with pytest.raises(ImageExistsError) as caught:
            change.commit()
    assert caught.value.path == b
    assert Path(b).read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


ADDING = """
import os
from imgtool.operations import steps, transaction
real = steps._do
def stopping(step, later):
    if step.target.endswith("b"):
        os._exit(9)
    real(step, later)
steps._do = stopping
paths = [os.path.abspath(name) for name in "abc"]
with transaction.Transaction(paths[0]) as change:
    for path in paths:
        change.place(path, change.stage(path))
    change.commit()
"""


def test_a_new_name_taken_since_the_change_broke_off_ends_it_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ADDING], cwd=tmp_path, check=False)
    assert done.returncode == 9
    write(str(tmp_path / "b"), "theirs")
    assert recover(str(tmp_path)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "theirs"


def test_a_held_image_cannot_be_written_by_qemu(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", a, "1M"], check=True)
    writing = ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", a]
    with Transaction(a) as change:
        change.hold(a)
        refused = subprocess.run(writing, capture_output=True, check=False)
        assert b"lock" in refused.stderr
        reading = subprocess.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", a], check=False)
        assert reading.returncode == 0
    assert subprocess.run(writing, check=False).returncode == 0


def test_a_held_image_that_changed_all_the_same_stops_the_commit(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    write(a, "before")
    with Transaction(a) as change:
        change.hold(a)
        staged = change.stage(a, copy_of=a)
        change.replace(a, staged)
        write(a, "changed by something that knows no locks")
        with pytest.raises(ImageInUseError):
            change.commit()
    assert Path(a).read_text().startswith("changed")
    assert hidden(tmp_path) == []


SCRIPT = """
import os
from imgtool.operations import transaction
with transaction.Transaction(os.path.abspath("a")) as change:
    for name in "ab":
        staged = change.stage(os.path.abspath(name), copy_of=name)
        fd = os.open(staged, os.O_WRONLY | os.O_TRUNC)
        real["write"](fd, (name + " after").encode())
        os.close(fd)
        change.replace(os.path.abspath(name), staged)
    new = change.stage(os.path.abspath("new"))
    change.place(os.path.abspath("new"), new)
    change.link(os.path.abspath("c"), os.path.abspath("d"))
    change.remove(os.path.abspath("c"))
    change.hold(os.path.abspath("e"))
    change.patch(os.path.abspath("e"), b"E")
    change.commit()
"""


def test_dying_at_any_call_leaves_before_or_after_and_recovery_ends_it(tmp_path: Path) -> None:
    before = {"a": "a before", "b": "b before", "c": "c before", "e": "e before"}
    after = {"a": "a after", "b": "b after", "d": "c before", "new": "", "e": "E before"}
    ends = set()
    for deaths in range(1, 200):
        store = tmp_path / str(deaths)
        store.mkdir()
        for name, text in before.items():
            (store / name).write_text(text)
        done = ends_well(SCRIPT, at=deaths, cwd=store)
        for name in "ab":
            assert (store / name).read_text() in (before[name], after[name])
        recover(str(store))
        found = {path.name: path.read_text() for path in store.iterdir()}
        assert found in (before, after)
        ends.add(found == after)
        if done:
            break
    assert done
    assert deaths > 15
    assert ends == {True, False}


def test_a_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    write(a, "before")
    with Transaction(a) as change:
        staged = change.stage(a)
        assert recover(str(tmp_path)) == []
        assert Path(staged).exists()
        assert journals(str(tmp_path)) == [change.journal]


def test_a_journal_that_came_from_elsewhere_moves_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store = tmp_path / "store"
    store.mkdir()
    steps = [{"verb": "remove", "source": "", "target": "../victim", "inode": victim.stat().st_ino, "data": ""}]
    (store / ".imgtool-000000000000.journal").write_text(
        json.dumps({"inode": 12345}) + "\n" + json.dumps({"steps": steps}) + "\n"
    )
    assert recover(str(store)) == []
    assert victim.read_text() == "precious"


def test_a_directory_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError), Transaction(str(tmp_path / "gone" / "a")):
        pass


def test_why_a_directory_has_to_be_writable_is_said(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"disk")
    with as_nobody(tmp_path), pytest.raises(ImageError) as caught, Transaction(str(tmp_path / "disk")):
        pass
    assert caught.value.hint == "images are changed on a copy beside them, which then takes their place"


STOPPED = """
import os, sys
from imgtool.operations import steps, transaction
store = os.getcwd()
after = int(sys.argv[1])
real = steps._do
def stopping(step, later):
    global after
    if after == 0:
        os._exit(9)
    after -= 1
    real(step, later)
steps._do = stopping
with transaction.Transaction(os.path.join(store, "a")) as change:
    for name in "ab":
        path = os.path.join(store, name)
        change.hold(path)
        staged = change.stage(path, copy_of=path)
        with open(staged, "a") as file:
            file.write(" after")
        change.replace(path, staged)
    change.hold(os.path.join(store, "c"))
    change.patch(os.path.join(store, "c"), b"C")
    change.remove(os.path.join(store, "d"))
    change.commit()
"""


def stopped(store: Path, after: int) -> None:
    """A change of a, b and c that also deletes d, killed after so many of its four steps."""
    store.mkdir()
    for name in "abcd":
        (store / name).write_text(f"{name} before")
    done = subprocess.run([sys.executable, "-c", STOPPED, str(after)], cwd=store, check=False)
    assert done.returncode == 9


@pytest.mark.parametrize("written", ["b", "c", "d"])
def test_what_was_written_since_the_change_broke_off_is_not_lost(tmp_path: Path, written: str) -> None:
    """A machine was started on it before imgtool ran again."""
    store = tmp_path / "store"
    stopped(store, 1)
    (store / written).write_text("precious")
    assert recover(str(store)) == []
    assert (store / written).read_text() == "precious"
    assert (store / "a").read_text() == "a before after"
    assert (store / "d").exists()
    assert hidden(store) == []


@pytest.mark.parametrize(("used", "options"), [("b", []), ("c", []), ("b", ["-r"]), ("d", ["-r"])])
def test_what_a_machine_has_open_is_not_pulled_from_under_it(tmp_path: Path, used: str, options: list[str]) -> None:
    """Nor is that which it only reads, by an overlay that nobody knows: it may write it by its name later."""
    store = tmp_path / "store"
    stopped(store, 1)
    journal.given_up.clear()
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", *options, used], cwd=store, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        machine.stdin.write(b"length\n")
        machine.stdin.flush()
        machine.stdout.readline()
        assert recover(str(store)) == []
        machine.stdin.close()
        machine.wait()
    assert (store / used).read_text() == f"{used} before"
    assert hidden(store) == []
    assert journal.given_up == [(str(store / used), "another program has changed or opened it since")]


def test_what_nobody_touched_is_finished(tmp_path: Path) -> None:
    for after in range(4):
        store = tmp_path / str(after)
        stopped(store, after)
        times = (store / "c").stat().st_mtime_ns
        finished = recover(str(store))
        assert [os.path.basename(path) for path in finished] == ["a", "b", "c", "d"]
        found = {path.name: path.read_text() for path in store.iterdir()}
        assert found == {"a": "a before after", "b": "b before after", "c": "C before"}
        assert (store / "c").stat().st_mtime_ns == times


def test_a_file_of_the_same_number_that_came_later_is_another_file(tmp_path: Path) -> None:
    store = tmp_path / "store"
    stopped(store, 3)
    inode = (store / "d").stat().st_ino
    (store / "d").unlink()
    for number in range(1000):
        (store / f"try-{number}").write_text("mine")
        if (store / f"try-{number}").stat().st_ino == inode:
            break
    os.rename(store / f"try-{number}", store / "d")
    recover(str(store))
    assert (store / "d").read_text() == "mine"


def test_what_cannot_be_taken_away_now_is_taken_away_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = str(tmp_path / "a")
    write(a, "before")
    unlink = os.unlink

    def failing(path: str) -> None:
        if path.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        unlink(path)

    with Transaction(a) as change:
        change.stage(a)
        change.replace(a, change.stage(a, copy_of=a))
        monkeypatch.setattr(os, "unlink", failing)
        change.commit()
    assert len(hidden(tmp_path)) == 2
    monkeypatch.undo()
    assert recover(str(tmp_path)) == []
    assert hidden(tmp_path) == []


def test_a_symlink_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/a").write_text("before")
    (tmp_path / "a").symlink_to("far/a")
    with Transaction(str(tmp_path / "a")) as change:
        staged = change.stage(str(tmp_path / "a"))
        write(staged, "after")
        change.replace(str(tmp_path / "a"), staged)
        change.commit()
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "far/a").read_text() == "after"
    assert hidden(tmp_path) == hidden(tmp_path / "far") == []


def test_of_two_changes_of_one_file_the_second_is_refused(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    write(a, "before")
    with Transaction(a) as one, Transaction(a) as two:
        for change, text in ((one, "one"), (two, "two")):
            change.hold(a)
            staged = change.stage(a)
            write(staged, text)
            change.replace(a, staged)
        one.commit()
        with pytest.raises(ImageInUseError, match="in the meantime"):
            two.commit()
    assert Path(a).read_text() == "one"
    assert hidden(tmp_path) == []


def test_what_confirm_finds_stops_the_change(tmp_path: Path) -> None:
    a = str(tmp_path / "a")
    write(a, "before")

    def no() -> None:
        raise RefusedError("something came between")

    with Transaction(a) as change:
        change.replace(a, change.stage(a))
        with pytest.raises(RefusedError):
            change.commit(no)
    assert Path(a).read_text() == "before"
    assert hidden(tmp_path) == []


def replace(change: Transaction, store: Path, names: str) -> None:
    for name in names:
        path = str(store / name)
        write(path, f"{name} before")
        staged = change.stage(path)
        write(staged, f"{name} after")
        change.replace(path, staged)


@pytest.mark.parametrize(("when", "said"), [("a", "nothing was changed here"), ("b", "before it or as after")])
def test_what_came_between_the_steps_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, said: str
) -> None:
    """Somebody writes a file after it was seen to be as it was: the change does not end as if it were done."""
    do = steps._do

    def written(step: steps.Step, later: list[bytes]) -> None:
        if step.target.endswith(when):
            write(step.target, "theirs")
        do(step, later)

    with Transaction(str(tmp_path / "a")) as change:
        replace(change, tmp_path, "ab")
        monkeypatch.setattr(steps, "_do", written)
        with pytest.raises(ImageInUseError) as refused:
            change.commit()
    assert refused.value.path == str(tmp_path / when)
    assert said in (refused.value.hint or "")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == ({"a": "theirs", "b": "b before"} if when == "a" else {"a": "a after", "b": "theirs"})


def forbidden(*paths: str, **options: bool) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def place_and_rename(change: Transaction, store: Path, names: str = "b") -> None:
    """A new file, and a new name for the one there is."""
    change.place(str(store / "a"), change.stage(str(store / "a")))
    path = str(store / names)
    write(path, f"{names} before")
    change.link(path, str(store / "c"))
    change.remove(path)


@pytest.mark.parametrize(("call", "steps_of", "names"), [("rename", replace, "ab"), ("link", place_and_rename, "b")])
def test_what_the_system_does_not_let_us_do_is_taken_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    steps_of: Callable[[Transaction, Path, str], None],
    names: str,
) -> None:
    """A file may be a mount point, or its file system have no hard links: no journal stays that nobody can finish."""
    with Transaction(str(tmp_path / "a")) as change:
        steps_of(change, tmp_path, names)
        monkeypatch.setattr(os, call, forbidden)
        with pytest.raises(ImageError, match="cannot be put in place: Operation not permitted"):
            change.commit()
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {name: f"{name} before" for name in names}


RENAMING = """
import os
from imgtool.operations import steps, transaction
a, b, c = (os.path.abspath(name) for name in "abc")
real = steps._do
steps._do = lambda step, later: os._exit(9) if step.target == c else real(step, later)
with transaction.Transaction(a) as change:
    change.place(a, change.stage(a))
    change.link(b, c)
    change.remove(b)
    change.commit()
"""


def test_a_change_that_broke_off_and_cannot_go_on_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path / "b"), "b before")
    assert subprocess.run([sys.executable, "-c", RENAMING], cwd=tmp_path, check=False).returncode == 9
    assert journals(str(tmp_path))
    monkeypatch.setattr(os, "link", forbidden)
    assert recover(str(tmp_path)) == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "b before"}


def test_what_cannot_be_finished_yet_waits_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not the first, of those that replace files: each reads as before or as after until that is
    mended, however often it is tried."""
    store = tmp_path / "store"
    stopped(store, 1)

    def readings() -> dict[str, str]:
        return {path.name: path.read_text() for path in store.iterdir() if not path.name.startswith(".")}

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", forbidden)
            with pytest.raises(ImageError) as caught:
                recover(str(store))
        said = f"the change was decided but not finished: {store / 'b'}: Operation not permitted"
        assert caught.value.message == said
        assert (caught.value.hint or "").startswith("once that is mended, the next imgtool command")
        assert readings() == {"a": "a before after", "b": "b before", "c": "c before", "d": "d before"}
    assert len(recover(str(store))) == 4
    assert readings() == {"a": "a before after", "b": "b before after", "c": "C before"}
    assert hidden(store) == []


def test_a_directory_of_two_names_is_one(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "again").symlink_to("store")
    with alone_in([str(tmp_path / "store"), str(tmp_path / "again")]), if_alone_in(str(tmp_path / "again")) as alone:
        assert not alone


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ImageError, match="No space left on device") as refused:
        Transaction(str(tmp_path / "image")).__enter__()
    monkeypatch.undo()
    assert (refused.value.hint or "").startswith("make room there")
    assert [*tmp_path.iterdir()] == []
