"""What programs said of their version is asked once a binary."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imgtool.qemu.known_versions import keep, known, path
from imgtool.qemu.process import NO_LIMITS, Completed, Limits
from imgtool.qemu.programs import Programs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def binary(tmp_path: Path) -> str:
    return str(shutil.copy("/bin/true", tmp_path / "qemu-img"))


def programs(binary: str, started: list[Sequence[str]], said: bytes = b"qemu-img version 6.0.0") -> Programs:
    def runner(
        argv: Sequence[str],
        *,
        limits: Limits = NO_LIMITS,
        on_stdout: Callable[[bytes], None] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Completed:
        started.append(argv)
        return Completed(tuple(argv), 0, said, b"")

    return Programs({"qemu-img": binary}, runner=runner)


def test_a_binary_is_asked_once(binary: str) -> None:
    started: list[Sequence[str]] = []
    first = programs(binary, started).version("qemu-img")
    assert programs(binary, started).version("qemu-img") == first
    assert len(started) == 1


def test_another_binary_in_its_place_is_asked_again(binary: str) -> None:
    started: list[Sequence[str]] = []
    programs(binary, started).version("qemu-img")
    os.unlink(binary)
    shutil.copy("/bin/true", binary)
    assert programs(binary, started, b"qemu-img version 7.0.0").version("qemu-img").major == 7
    assert len(started) == 2


def test_a_script_is_asked_each_time_since_its_program_may_change(tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text("#!/bin/sh\nexec qemu-img\n")
    script.chmod(0o755)
    started: list[Sequence[str]] = []
    for _ in range(2):
        programs(str(script), started).version("qemu-img")
    assert len(started) == 2


@pytest.mark.parametrize("content", [b"", b"\xff\0\n\t\n", b"no tab\n", b"1 2 3\tx\n"])
def test_a_damaged_file_is_no_error_and_made_anew(binary: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path()))
    Path(path()).write_bytes(content)
    assert known(binary) is None
    keep(binary, "said")
    assert known(binary) == "said"


def test_where_nothing_can_be_kept_it_is_asked_each_time(binary: str, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    keep(binary, "said")
    assert known(binary) is None


def test_programs_do_not_push_each_other_out_at_once(tmp_path: Path) -> None:
    binaries = [str(shutil.copy("/bin/true", tmp_path / f"qemu-{number}")) for number in range(60)]
    for number, name in enumerate(binaries):
        keep(name, str(number))
    assert known(binaries[0]) is None
    assert [known(name) for name in binaries[-40:]] == [str(number) for number in range(20, 60)]
