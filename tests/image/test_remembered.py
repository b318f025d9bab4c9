"""What imgtool remembers of references that it made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.hostile.cases import overlay, qcow2
from imgtool.errors import PolicyError
from imgtool.image import remembered
from imgtool.image.policy import Policy, approve, current, in_force
from imgtool.qemu.qemu_img import QemuImg
from tests.files import no_file_larger_than


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(remembered, "_here", set())
    monkeypatch.setattr(remembered, "unkept", {})
    for name in ("a", "b", "b/below", "c"):
        (tmp_path / name).mkdir()
    return Path(remembered.path())


def pairs(state: Path) -> int:
    return len(state.read_bytes().splitlines())


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process does that ends."""
    monkeypatch.setattr(remembered, "_here", set())


def test_a_reference_that_imgtool_made_is_allowed_there_and_nowhere_else(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other = tmp_path / "a/base.qcow2", tmp_path / "a/other.qcow2"
    for path in (base, other):
        path.write_bytes(qcow2())
    for folder in ("b", "b/below", "c"):
        for backing in (base, other):
            (tmp_path / folder / f"on-{backing.name}").write_bytes(overlay(bytes(backing), b"qcow2"))
    remembered.remember(str(tmp_path / "b/on-base.qcow2"), str(base))
    forget(monkeypatch)
    assert len(approve(tmp_path / "b/on-base.qcow2")) == 2
    (tmp_path / "b/on-base.qcow2").rename(tmp_path / "b/renamed.qcow2")
    assert len(approve(tmp_path / "b/renamed.qcow2")) == 2
    for refused in ("b/on-other.qcow2", "b/below/on-base.qcow2", "c/on-base.qcow2"):
        with pytest.raises(PolicyError):
            approve(tmp_path / refused)
    with pytest.raises(PolicyError):
        approve(tmp_path / "b/renamed.qcow2", Policy())
    with in_force(Policy()):
        assert current() == Policy()


def test_what_lies_in_the_images_own_directory_is_not_noted(tmp_path: Path, state: Path) -> None:
    remembered.remember(str(tmp_path / "a/top"), str(tmp_path / "a/base"))
    assert not state.exists()


def test_what_lies_below_is_noted_to_be_found_from_there_and_needs_no_trust(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered.remember(str(tmp_path / "b/top"), str(tmp_path / "b/below/base"))
    remembered.remember(str(tmp_path / "a/top"), str(tmp_path / "b/below/base"))
    forget(monkeypatch)
    assert remembered.directories() == {str(tmp_path / "b/below/base"): [str(tmp_path / "b"), str(tmp_path / "a")]}
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    for folder in ("a", "b"):
        remembered.remember(str(tmp_path / folder / "top"), str(tmp_path / "b/below/other"))
    assert [*remembered.unkept] == [(str(tmp_path / "a"), str(tmp_path / "b/below/other"))]


def test_it_is_noted_once_under_names_of_any_bytes(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = os.fsdecode(bytes(tmp_path / "a") + b'/\xff\n"base')
    for _ in range(2):
        remembered.remember(str(tmp_path / "b/top"), base)
    assert pairs(state) == 1
    assert state.stat().st_mode & 0o777 == 0o600
    forget(monkeypatch)
    assert remembered.knows(str(tmp_path / "b"), base)


def test_a_line_that_was_cut_off_costs_that_line_only(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered.remember(str(tmp_path / "b/top"), str(tmp_path / "a/one"))
    with state.open("ab") as file:
        file.write(b'["/cut')
    remembered.remember(str(tmp_path / "b/top"), str(tmp_path / "a/two"))
    with state.open("ab") as file:
        file.write(b'[1, 2]\n"x"\n{"a": 1, "b": 2}\n')
    forget(monkeypatch)
    assert all(remembered.knows(str(tmp_path / "b"), str(tmp_path / f"a/{name}")) for name in ("one", "two"))
    assert not remembered.knows("a", "b")


def test_pairs_whose_file_is_gone_are_dropped_when_there_are_many(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_FULL", 10)
    (tmp_path / "a/kept").touch()
    remembered.remember(str(tmp_path / "b/top"), str(tmp_path / "a/kept"))
    for number in range(10):
        remembered.remember(str(tmp_path / "b/top"), str(tmp_path / f"a/{number}"))
    assert pairs(state) == 2
    forget(monkeypatch)
    assert remembered.knows(str(tmp_path / "b"), str(tmp_path / "a/kept"))


UNMOUNTED = """
import os, subprocess, sys
from imgtool.image import remembered
from imgtool.image.remembered import knows, remember
remembered._FULL = 10
top, disk = sys.argv[1] + "/b/top", sys.argv[1] + "/c"
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
os.mkdir(disk + "/images")
open(disk + "/base", "w").close()
remember(top, disk + "/base")
remember(disk + "/images/top", top)
subprocess.run(["umount", disk], check=True)
for number in range(9):
    remember(top, f"{sys.argv[1]}/a/{number}")
remembered._here.clear()
sys.exit(not knows(sys.argv[1] + "/b", disk + "/base") or not knows(disk + "/images", top))
"""


def test_what_lies_on_a_disk_that_is_not_mounted_is_not_dropped(tmp_path: Path, state: Path) -> None:
    (tmp_path / "b/top").touch()
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run([*alone, sys.executable, "-c", UNMOUNTED, tmp_path], check=False)
    assert done.returncode == 0
    assert pairs(state) == 3


def test_who_cannot_drop_them_keeps_them_all(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, a process that dies."""
    monkeypatch.setattr(remembered, "_FULL", 3)
    for number in range(3):
        remembered.remember(str(tmp_path / "b/top"), str(tmp_path / f"a/{number}"))
    before = state.read_bytes()
    with no_file_larger_than(10):
        remembered.remember(str(tmp_path / "b/top"), str(tmp_path / "a/last"))
    assert state.read_bytes() == before
    assert remembered.knows(str(tmp_path / "b"), str(tmp_path / "a/last"))


def test_a_new_version_of_a_file_is_not_noted(tmp_path: Path, state: Path) -> None:
    remembered.remember(str(tmp_path / "b/top"), str(tmp_path / "a/.imgtool-0123-0.tmp"))
    assert not state.exists()


def test_a_reference_is_noted_before_the_image_is_there(tmp_path: Path, state: Path) -> None:
    base, top = tmp_path / "a/base.qcow2", tmp_path / "b/top.qcow2"
    base.write_bytes(qcow2())
    seen = []

    def look(hidden: str) -> None:
        seen.append((os.path.exists(top), remembered.knows(str(tmp_path / "b"), str(base))))

    QemuImg().create(top, format="qcow2", backing="../a/base.qcow2", backing_format="qcow2", finish=look)
    assert seen == [(False, True)]


def test_a_state_directory_that_cannot_be_written_is_no_error(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_bytes(b"a file where a directory should be")
    remembered.remember(str(tmp_path / "b/top"), str(tmp_path / "a/base"))
    assert remembered.knows(str(tmp_path / "b"), str(tmp_path / "a/base"))
    forget(monkeypatch)
    assert not remembered.knows(str(tmp_path / "b"), str(tmp_path / "a/base"))


def test_many_processes_lose_nothing(tmp_path: Path, state: Path) -> None:
    script = (
        "import sys\nfrom imgtool.image.remembered import remember\n"
        "for number in range(20): remember(sys.argv[1] + '/top', f'{sys.argv[2]}/{sys.argv[3]}-{number}')"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path / "b", tmp_path / "a", str(number)])
        for number in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    assert pairs(state) == 80
