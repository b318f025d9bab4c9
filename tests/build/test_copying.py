"""Trees into a guest and out of it: the archive, read by a real tar, and what a guest's answers may not do."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
from pathlib import Path

import pytest

from imgtool.build import copying
from imgtool.build.executor import ExecutorError
from imgtool.build.inputs import copied, files_of
from imgtool.build.memory import Memory
from imgtool.build.recipe import Copy
from imgtool.errors import ConfigError
from tests.files import state_of


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with what is awkward in it."""
    root = tmp_path / "tree"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "sub" / "run.sh").write_bytes(b"#!/bin/sh\n\0\xff")
    (root / "sub" / "run.sh").chmod(0o750)
    (root / "a b\nc").write_text("awkward")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("no UTF-8")
    (root / ("n" * 200)).write_text("long")
    os.symlink("../a b\nc", root / "sub" / "link")
    os.symlink("/nowhere", root / "dangling")
    return root


def unpacked(tmp_path: Path, copy: Copy, memory: Memory) -> Path:
    archive, target = tmp_path / "archive.tar", tmp_path / "target"
    copying.pack(str(archive), copy, files_of(copy.from_, memory))
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    target.mkdir()
    subprocess.run(["tar", "-x", "-p", "-f", archive, "-C", target], check=True)
    return target


def test_a_tree_arrives_as_it_is(tmp_path: Path, tree: Path, memory: Memory) -> None:
    copy = Copy(from_=str(tree), to="/srv")
    target = unpacked(tmp_path, copy, memory)
    before = [found.entry for found in files_of(str(tree), memory)]
    assert [found.entry for found in files_of(str(target), memory)] == before
    assert len(before) == 8


def test_a_mode_is_for_files_and_folders_can_be_entered(tmp_path: Path, tree: Path, memory: Memory) -> None:
    target = unpacked(tmp_path, Copy(from_=str(tree), to="/srv", mode="0640"), memory)
    assert stat.S_IMODE((target / "sub" / "run.sh").stat().st_mode) == 0o640
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o750
    assert os.readlink(target / "sub" / "link") == "../a b\nc"


@pytest.mark.parametrize(
    ("owner", "expected"),
    [(None, "root/root"), ("www-data", "www-data/root"), ("www:web", "www/web"), ("33:44", "33/44")],
)
def test_everything_belongs_to_its_owner(
    tmp_path: Path, tree: Path, memory: Memory, owner: str | None, expected: str
) -> None:
    archive = tmp_path / "archive.tar"
    copying.pack(str(archive), Copy(from_=str(tree), to="/srv", owner=owner), files_of(str(tree), memory))
    listed = subprocess.run(["tar", "-t", "-v", "-f", archive], check=True, capture_output=True).stdout
    owners = {line.split()[1] for line in listed.decode(errors="replace").splitlines()}
    assert owners == {expected}


def test_what_is_no_file_is_not_copied(tmp_path: Path, memory: Memory) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "pipe")
    with pytest.raises(ConfigError, match="pipe is no file, folder or link"):
        files_of(str(tmp_path / "tree"), memory)
    with pytest.raises(ConfigError, match=r"nothing cannot be copied"):
        files_of(str(tmp_path / "nothing"), memory)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of work as people have it."""
    root = tmp_path / "project"
    for name in (".git/HEAD", "src/main.py", "src/main.pyc", "src/keep.pyc", "docs/build/a", "build/b", "web.qcow2"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("# made\n*.pyc\n/build/\n")
    os.mkfifo(root / ".git" / "pipe")
    return root


def test_what_is_excluded_stays_behind(project: Path, tmp_path: Path, memory: Memory) -> None:
    """As git would leave it out, whatever lies in an excluded folder."""
    copy = Copy(
        from_=str(project),
        to="/srv",
        exclude=(".git", "!keep.pyc", "/web.qcow2*"),
        exclude_from=(str(project / ".gitignore"),),
    )
    archive, target = tmp_path / "archive.tar", tmp_path / "target"
    copying.pack(str(archive), copy, copied(copy, memory))
    target.mkdir()
    subprocess.run(["tar", "-x", "-f", archive, "-C", target], check=True)
    arrived = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert arrived == {".gitignore", "src/main.py", "src/keep.pyc", "docs/build/a"}


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (Copy(from_="src/main.py", to="/srv/", exclude=("x",)), "main.py is a file: nothing in it can be excluded"),
        (Copy(from_="src", to="/srv", exclude=("!",)), "exclude: Invalid git pattern: '!'"),
        (Copy(from_="src", to="/srv", exclude_from=("nothing",)), "nothing cannot be read: No such file"),
    ],
)
def test_what_cannot_be_excluded(
    project: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, copy: Copy, message: str
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match=message):
        copied(copy, memory)


class Listing:
    """An executor whose guest lists what it is told to."""

    def __init__(self, answer: bytes, status: int = 0) -> None:
        self.answer, self.status = answer, status
        self.got: list[str] = []

    def run(self, script: bytes, **options: object) -> int:
        options["on_output"](self.answer)  # type: ignore[operator]
        return self.status

    def get(self, source: str, target: str) -> None:
        self.got.append(source)
        Path(target).write_text(source)


def test_a_folder_is_fetched_file_by_file(tmp_path: Path) -> None:
    guest = Listing(b"folder\0./a\0./sub/b c\0")
    copying.fetch(guest, "/var/report/", str(tmp_path / "kept"))  # type: ignore[arg-type]
    assert guest.got == ["/var/report/a", "/var/report/sub/b c"]
    assert (tmp_path / "kept" / "sub" / "b c").read_text() == "/var/report/sub/b c"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "./a/../../outside"])
def test_a_guest_cannot_make_files_elsewhere_on_the_host(tmp_path: Path, name: str) -> None:
    guest = Listing(f"folder\0{name}\0".encode())
    with pytest.raises(ExecutorError, match="lies nowhere in"):
        copying.fetch(guest, "/var/report", str(tmp_path / "kept"))  # type: ignore[arg-type]
    assert os.listdir(tmp_path / "kept") == []
    assert guest.got == []


@pytest.mark.parametrize("names", [b"./a\0./a/b\0", b"./" + b"n" * 300 + b"/b\0"])
def test_names_that_no_folder_can_have_are_an_error_of_the_guests(tmp_path: Path, names: bytes) -> None:
    with pytest.raises(ExecutorError, match="cannot be made here"):
        copying.fetch(Listing(b"folder\0" + names), "/var/report", str(tmp_path / "kept"))  # type: ignore[arg-type]


def test_a_list_without_an_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_LONGEST_LIST", 10)
    with pytest.raises(ExecutorError, match="holds too many files"):
        copying.fetch(Listing(b"folder\0./a\0./b\0"), "/var/report", str(tmp_path / "kept"))  # type: ignore[arg-type]
    assert not (tmp_path / "kept").exists()


def test_what_is_not_there_is_not_fetched(tmp_path: Path) -> None:
    guest = Listing(b"there is no file or folder /x\n", status=1)
    with pytest.raises(ExecutorError, match="there is no file or folder /x"):
        copying.fetch(guest, "/x", str(tmp_path / "kept"))  # type: ignore[arg-type]


def test_what_cannot_be_delivered_leaves_no_half(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(bytes(17))
    (tmp_path / "out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(ConfigError, match="cannot be written: File too large"):
            copying.deliver(str(tmp_path / "kept"), str(tmp_path / "out"), "report")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path / "out") == []


def test_what_was_remembered_and_not_written_is_computed_again(tmp_path: Path, memory: Memory) -> None:
    file = tmp_path / "file"
    file.touch()
    for lost in (b"", bytes(64)):
        assert memory.digest("kind", [str(file)], lambda: "computed") == "computed"
        (kept,) = Path(memory.directory).iterdir()
        assert kept.read_bytes() == b"computed"
        kept.write_bytes(lost)
    assert memory.digest("kind", [str(file)], lambda: "again") == "again"


def test_what_is_delivered_replaces_only_what_differs(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "sub").mkdir(parents=True)
    (kept / "same").write_text("same")
    (kept / "sub" / "new").write_text("new")
    target = tmp_path / "out"
    target.mkdir()
    (target / "same").write_text("same")
    (target / "other").write_text("other")
    before = state_of(target / "same")
    copying.deliver(str(kept), str(target), "report")
    assert state_of(target / "same") == before
    assert sorted(os.listdir(target)) == ["other", "same", "sub"]
    assert (target / "sub" / "new").read_text() == "new"
    copying.deliver(str(kept / "same"), str(target), "report")
    assert (target / "report").read_text() == "same"
