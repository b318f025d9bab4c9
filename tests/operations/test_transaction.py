"""Changes of several files, whole or not at all: also when the process dies between any two of its steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgtool.errors import ImageError, ImageExistsError, ImageInUseError, RefusedError
from imgtool.operations.journal import journals, recover
from imgtool.operations.transaction import Transaction


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


DYING = """
import os, sys
from imgtool.operations import transaction
deaths = int(sys.argv[1])
real = {name: getattr(os, name) for name in ("rename", "link", "unlink", "fsync", "write", "pwrite")}
count = 0
def dying(name):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == deaths:
            os._exit(9)
        return real[name](*args, **kwargs)
    return call
for name in real:
    setattr(os, name, dying(name))
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
os._exit(0)
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
        done = subprocess.run([sys.executable, "-c", DYING, str(deaths)], cwd=store, check=False)
        for name in "ab":
            assert (store / name).read_text() in (before[name], after[name])
        recover(str(store))
        found = {path.name: path.read_text() for path in store.iterdir()}
        assert found in (before, after)
        ends.add(found == after)
        if done.returncode == 0:
            break
    assert done.returncode == 0
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
