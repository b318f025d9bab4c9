from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imgtool.errors import CommandError, ProgramError
from imgtool.qemu.process import NO_LIMITS, Completed, Limits
from imgtool.qemu.programs import Programs, parse_version


def program(path: Path, answer: str = "qemu-img version 9.1.2 (mine)", status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGTOOL_QEMU_IMG", raising=False)


def test_a_program_is_the_one_given_then_the_environments_then_the_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, named, found = (program(tmp_path / place / "qemu-img") for place in ("given", "named", "path"))
    monkeypatch.setenv("PATH", str(found.parent))
    assert Programs().find("qemu-img") == str(found)
    monkeypatch.setenv("IMGTOOL_QEMU_IMG", str(named))
    assert Programs().find("qemu-img") == str(named)
    assert Programs({"qemu-img": str(given)}).find("qemu-img") == str(given)


def test_the_environments_name_for_a_program_is_in_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = program(tmp_path / "q")
    monkeypatch.setenv("IMGTOOL_QEMU_SYSTEM_X86_64", str(named))
    assert Programs().find("qemu-system-x86_64") == str(named)


def test_a_relative_program_stays_the_same_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin" / "qemu-img")
    monkeypatch.chdir(tmp_path)
    programs = Programs({"qemu-img": "bin/qemu-img"})
    assert programs.find("qemu-img") == str(tmp_path / "bin" / "qemu-img")


def test_a_missing_program_is_an_error_that_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError) as caught:
        Programs().find("qemu-img")
    assert caught.value.hint is not None
    assert "qemu-utils" in caught.value.hint


@pytest.mark.parametrize("how", ["given", "environment"])
def test_a_named_program_that_is_none_is_an_error_and_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    wrong = tmp_path / "not-executable"
    wrong.touch()
    given = {"qemu-img": str(wrong)} if how == "given" else {}
    if how == "environment":
        monkeypatch.setenv("IMGTOOL_QEMU_IMG", str(wrong))
    with pytest.raises(ProgramError) as caught:
        Programs(given).find("qemu-img")
    assert ("--qemu-img" if how == "given" else "IMGTOOL_QEMU_IMG") in caught.value.message


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2, 22, "7.2.22 (Debian 1:7.2+dfsg-7)")),
        ("qemu-img version 10.0.2\nCopyright (c)", (10, 0, 2, "10.0.2")),
        ("QEMU emulator version 8.1", (8, 1, 0, "8.1")),
    ],
)
def test_versions_are_read(line: str, version: tuple[int, int, int, str]) -> None:
    assert tuple(parse_version("qemu-img", line)) == version


def test_a_program_that_is_not_qemu_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProgramError):
        Programs({"qemu-img": str(program(tmp_path / "x", "hello"))}).version("qemu-img")


def test_a_program_that_fails_to_say_its_version_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError):
        Programs({"qemu-img": str(program(tmp_path / "x", status=1))}).version("qemu-img")


@pytest.mark.matrix
def test_the_real_program_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # in `make matrix` the environment names the program
    version = Programs().version("qemu-img")
    assert version.major >= 5
    assert version.text.startswith(f"{version.major}.{version.minor}.{version.micro}")


def test_what_runs_programs_can_be_passed_in(tmp_path: Path) -> None:
    seen: list[tuple[Sequence[str], Limits]] = []

    def fake(
        argv: Sequence[str],
        *,
        limits: Limits = NO_LIMITS,
        on_stdout: Callable[[bytes], None] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Completed:
        seen.append((argv, limits))
        return Completed(tuple(argv), 0, b"qemu-img version 6.0.0", b"")

    path = str(program(tmp_path / "x"))
    assert Programs({"qemu-img": path}, runner=fake).version("qemu-img").major == 6
    (argv, limits), *rest = seen
    assert argv == [path, "--version"]
    assert limits.seconds is not None
    assert not rest
