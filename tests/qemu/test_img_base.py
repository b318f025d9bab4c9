"""How QemuImg takes what qemu-img does, with programs that behave as the real one seldom does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fixtures.hostile.cases import qcow2
from imgtool.errors import CommandCrashed, CommandError, CommandTimeout, DecodeError, ImageError
from imgtool.qemu.img_base import LONG_LIMITS
from imgtool.qemu.process import NO_LIMITS, Completed, Limits, run
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QUICK_LIMITS, QemuImg

INFO: dict[str, object] = {"filename": "?", "format": "qcow2", "virtual-size": 1024, "backing-filename": "b"}


class Fake:
    """A runner that answers every `info`, and every other verb as told; keeps what it was asked."""

    def __init__(self, status: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> None:
        self.answer = (status, stdout, stderr)
        self.asked: list[tuple[str, Limits]] = []

    def __call__(
        self,
        argv: Sequence[str],
        *,
        limits: Limits = NO_LIMITS,
        on_stdout: Callable[[bytes], None] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Completed:
        self.asked.append((argv[1], limits))
        status, stdout, stderr = self.answer
        if argv[1] == "info":
            return Completed(tuple(argv), 0, json.dumps(INFO).encode(), b"")
        if on_stdout is not None:
            on_stdout(stdout)
            stdout = b""
        return Completed(tuple(argv), status, stdout, stderr)


def wrapper(fake: Fake, **limits: Any) -> QemuImg:
    return QemuImg(Programs({"qemu-img": "/bin/true"}, runner=fake), **limits)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(qcow2())
    return tmp_path / "a"


CHANGES: dict[str, Callable[[QemuImg, Path], object]] = {
    "commit": lambda img, image: img.commit(image),
    "snapshot": lambda img, image: img.snapshot_create(image, "s"),
    "rebase": lambda img, image: img.rebase(image, backing=None),
    "resize": lambda img, image: img.resize(image, 2048),
    "amend": lambda img, image: img.amend(image, {"a": 1}),
    "bitmap": lambda img, image: img.bitmap(image, "b", ["add"]),
    "create": lambda img, image: img.create(image.parent / "new", 1024, format="qcow2"),
    "convert": lambda img, image: img.convert(image, image.parent / "new", output_format="qcow2"),
}


@pytest.mark.parametrize("verb", CHANGES)
def test_words_on_stderr_are_a_failure_of_a_verb_that_changes(image: Path, verb: str) -> None:
    fake = Fake(stderr=b"qemu-img: Failed to flush the L2 table cache: No space left on device\n")
    with pytest.raises(CommandError) as caught:
        CHANGES[verb](wrapper(fake), image)
    assert caught.value.status == 0
    assert "No space left" in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.path is not None
    assert [name for name, _ in fake.asked if name != "info"] == [verb]
    assert set(os.listdir(image.parent)) == {"a", "b"}


def test_failing_words_are_heard_among_those_of_mending(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INFO, "dirty-flag", True)
    mending = b"ERROR cluster 5 refcount=0 reference=1\nRepairing cluster 5 refcount=0 reference=1\n"
    done = wrapper(Fake(stderr=mending)).resize(image, 2048)
    assert done.notes == mending.decode().strip()
    with pytest.raises(CommandError):
        wrapper(Fake(stderr=mending + b"qemu-img: Failed to flush the refcount block cache\n")).resize(image, 2048)
    monkeypatch.setitem(INFO, "dirty-flag", False)
    with pytest.raises(CommandError):
        wrapper(Fake(stderr=mending)).resize(image, 2048)


@pytest.mark.parametrize("verb", CHANGES)
def test_a_verb_that_changes_answers_quietly_else(image: Path, verb: str) -> None:
    CHANGES[verb](wrapper(Fake()), image)


def test_words_on_stderr_are_notes_when_unreadable_sectors_were_expected(image: Path) -> None:
    fake = Fake(stderr=b"qemu-img: warning: error while reading offset 0\n")
    made = wrapper(fake).convert(image, image.parent / "new", output_format="qcow2", salvage=True)
    assert made.notes == "qemu-img: warning: error while reading offset 0"


READS: dict[str, tuple[Callable[[QemuImg, Path], object], bytes, Limits]] = {
    "map": (lambda img, image: img.map(image), b"[]", LONG_LIMITS),
    "measure": (
        lambda img, image: img.measure(image, output_format="raw"),
        b'{"required": 1, "fully-allocated": 1}',
        QUICK_LIMITS,
    ),
    "check": (
        lambda img, image: img.check(image),
        b'{"filename": "?", "format": "raw", "check-errors": 0}',
        LONG_LIMITS,
    ),
    "compare": (lambda img, image: img.compare(image, image), b"Images are identical.\n", LONG_LIMITS),
}


@pytest.mark.parametrize("verb", READS)
def test_a_verb_that_reads_runs_under_its_limits(image: Path, verb: str) -> None:
    call, stdout, limits = READS[verb]
    fake = Fake(stdout=stdout)
    call(wrapper(fake), image)
    assert fake.asked == [(verb, limits)]
    own, long = Limits(seconds=1), Limits(seconds=2)
    fake = Fake(stdout=stdout)
    call(wrapper(fake, limits=own, long_limits=long), image)
    assert fake.asked == [(verb, own if limits is QUICK_LIMITS else long)]


@pytest.mark.parametrize("verb", sorted(set(CHANGES) - {"create", "convert"}))
def test_no_verb_is_stopped_while_it_changes_an_image(image: Path, verb: str) -> None:
    fake = Fake()
    CHANGES[verb](wrapper(fake, limits=Limits(seconds=1), long_limits=Limits(seconds=2)), image)
    assert [limits for name, limits in fake.asked if name == verb] == [NO_LIMITS]


def test_creating_is_limited_unless_it_fills_the_disk(image: Path) -> None:
    fake = Fake()
    img = wrapper(fake)
    img.create(image.parent / "x", 1024, format="qcow2")
    img.create(image.parent / "y", 1024, format="raw", options={"preallocation": "full"})
    assert [limits for name, limits in fake.asked if name == "create"] == [QUICK_LIMITS, NO_LIMITS]


@pytest.mark.parametrize("status", [2, 3, 4, 139])
def test_compare_failing_is_never_a_difference(image: Path, status: int) -> None:
    with pytest.raises(CommandError) as caught:
        wrapper(Fake(status)).compare(image, image)
    assert caught.value.status == status


@pytest.mark.parametrize("status", [1, 4, 64])
def test_check_failing_is_no_answer(image: Path, status: int) -> None:
    with pytest.raises(CommandError):
        wrapper(Fake(status, b'{"filename": "?", "format": "raw", "check-errors": 1}')).check(image)


def test_a_report_that_is_cut_short_is_an_error(image: Path) -> None:
    with pytest.raises(DecodeError):
        wrapper(Fake(stdout=b'[{"start": 0')).map(image)


def script(folder: Path, text: str) -> QemuImg:
    path = folder / "qemu-img"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return QemuImg(Programs({"qemu-img": str(path)}, runner=run), limits=Limits(seconds=1))


def test_a_crash_is_said(image: Path) -> None:
    with pytest.raises(CommandCrashed) as caught:
        script(image.parent, "kill -SEGV $$").info(image)
    assert caught.value.path == str(image)


def test_a_hang_is_ended(image: Path) -> None:
    with pytest.raises(CommandTimeout) as caught:
        script(image.parent, "exec sleep 600").info(image)
    assert caught.value.path == str(image)


def test_progress_is_told_while_it_goes_on(image: Path) -> None:
    told: list[float] = []
    go = image.parent / "go"

    def progress(percentage: float) -> None:
        told.append(percentage)
        go.touch()

    made = script(
        image.parent,
        f"""
        [ "$1" = info ] && {{ echo '{json.dumps(INFO)}'; exit; }}
        printf '    (0.00/100%%)\\r    (1'
        for try in $(seq 1000); do [ -e {go} ] && break; sleep 0.02; done
        [ -e {go} ] && printf '2.50/100%%)\\r    (100.00/100%%)\\r\\n'
        """,
    ).convert(image, image.parent / "new", output_format="raw", progress=progress)
    assert told == [0.0, 12.5, 100.0]
    assert made.info is not None


def test_an_unwritable_directory_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        wrapper(Fake()).create("/proc/imgtool-test", 1024, format="raw")
    assert "/proc/imgtool-test" in caught.value.message
