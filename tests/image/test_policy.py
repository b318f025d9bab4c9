from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from fixtures.hostile.cases import BACKING_FORMAT, Case, corpus, overlay, qcow2, with_data_file
from imgtool.errors import ChainError, ImageFormatError, ImgtoolError, PolicyError, RefusedError, UsageError
from imgtool.image.policy import Policy, approve, current, in_force, trusting, working_directory
from imgtool.publish.oci.parallel import each
from imgtool.qemu.process import workers
from tests.image.fuzz import QEMU_IMG

POLICY = Policy()
REFERRING = [case for case in corpus() if case.verdict in ("refers-to-host", "refers-to-network")]


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refusal(path: Path, policy: Policy = POLICY, format: str | None = None) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        approve(path, policy, format=format)
    return caught.value


def error_of(path: Path, format: str) -> ImgtoolError | None:
    try:
        approve(path, POLICY, format=format)
    except ImgtoolError as error:
        return error
    return None


def test_an_image_that_stands_alone_passes(tmp_path: Path) -> None:
    (approved,) = approve(put(tmp_path / "a.qcow2", qcow2()), POLICY)
    assert (approved.path, approved.format) == (str(tmp_path / "a.qcow2"), "qcow2")


def test_a_chain_in_one_directory_passes_image_first(tmp_path: Path) -> None:
    put(tmp_path / "below/base.raw", bytes(512))
    put(tmp_path / "middle.qcow2", overlay(b"below/base.raw"))
    top = put(tmp_path / "top.qcow2", overlay(b"middle.qcow2", b"qcow2"))
    assert [Path(image.path).name for image in approve(top, POLICY)] == ["top.qcow2", "middle.qcow2", "base.raw"]


def test_a_file_outside_is_refused_by_the_word_that_allows_it(tmp_path: Path) -> None:
    base = put(tmp_path / "store/base.raw", bytes(512))
    top = put(tmp_path / "mine/top.qcow2", overlay(b"../store/base.raw"))
    error = refusal(top)
    assert isinstance(error, RefusedError)
    assert (error.wants, error.word, error.path) == (
        str(top.parent / "../store/base.raw"),
        str(base.parent),
        str(top),
    )
    assert f"--trust {base.parent}" in str(error.hint)
    assert error.word is not None
    assert len(approve(top, POLICY.trusting([error.word]))) == 2
    assert len(approve(top, POLICY.naming(base))) == 2


def test_a_way_out_through_a_symlink_is_found(tmp_path: Path) -> None:
    put(tmp_path / "store/base.raw", bytes(512))
    top = put(tmp_path / "mine/top.qcow2", overlay(b"base.raw"))
    (tmp_path / "mine/base.raw").symlink_to(tmp_path / "store/base.raw")
    assert refusal(top).wants == str(tmp_path / "mine/base.raw")


def test_what_an_image_further_down_wants_is_refused_too(tmp_path: Path) -> None:
    put(tmp_path / "base.qcow2", overlay(b"/nonexistent/shadow"))
    top = put(tmp_path / "top.qcow2", overlay(b"base.qcow2", b"qcow2"))
    assert refusal(top).path == str(tmp_path / "base.qcow2")


def test_a_declared_raw_is_never_looked_into(tmp_path: Path) -> None:
    put(tmp_path / "base", overlay(b"/nonexistent/shadow"))
    top = put(tmp_path / "top.qcow2", overlay(b"base", b"raw"))
    assert [image.format for image in approve(top, POLICY)] == ["qcow2", "raw"]
    assert approve(tmp_path / "base", POLICY, format="raw")[0].format == "raw"


def test_a_guessed_format_may_not_lead_further(tmp_path: Path) -> None:
    put(tmp_path / "last.raw", bytes(512))
    put(tmp_path / "base", overlay(b"last.raw"))
    top = put(tmp_path / "top.qcow2", overlay(b"base", None))
    error = refusal(top)
    assert error.word == "guessed-formats"
    assert len(approve(top, POLICY.trusting(["guessed-formats"]))) == 3
    put(tmp_path / "base", qcow2())
    assert len(approve(top, POLICY)) == 2


@pytest.mark.parametrize(
    ("backing", "word"),
    [
        (b"nbd://192.0.2.1/x", "nbd"),
        (b"nbd:unix:/nonexistent/s", "nbd"),
        (b"https://192.0.2.1/x", "https"),
        (b"fat:/nonexistent", "vvfat"),
        (b"host_device:/dev/sda", "host_device"),
        (b'json:{"driver":"raw","file":{"driver":"ssh","server":{"host":"h"},"path":"/x"}}', "ssh"),
        (b"frob:x", None),
    ],
)
def test_a_protocol_is_refused_by_the_word_that_allows_it(tmp_path: Path, backing: bytes, word: str | None) -> None:
    top = put(tmp_path / "top.qcow2", overlay(backing))
    assert refusal(top).word == word
    if word is not None:
        policy = POLICY.trusting([word, "/nonexistent", "/dev"])
        assert approve(top, policy)[0].path == str(top)


def test_a_protocol_allows_no_directory(tmp_path: Path) -> None:
    top = put(tmp_path / "top.qcow2", overlay(b"fat:/nonexistent"))
    error = refusal(top, POLICY.trusting(["vvfat"]))
    assert error.word == "/nonexistent"


def test_a_driver_for_a_backing_format_is_a_protocol(tmp_path: Path) -> None:
    put(tmp_path / "base.raw", bytes(512))
    assert refusal(put(tmp_path / "top.qcow2", overlay(b"base.raw", b"blkdebug"))).wants == "blkdebug"


def test_a_relative_data_file_is_one_beside_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU looks for it in the current directory, so that is where it has to be started."""
    image = put(tmp_path / "a/image.qcow2", with_data_file(b"data.raw"))
    other = put(tmp_path / "b/image.qcow2", with_data_file(b"data.raw"))
    monkeypatch.chdir(tmp_path / "b")
    assert working_directory(approve(image, POLICY)) == str(tmp_path / "a")
    absolute = put(tmp_path / "a/absolute.qcow2", with_data_file(bytes(tmp_path / "a/data.raw")))
    assert working_directory(approve(absolute, POLICY)) is None
    with pytest.raises(RefusedError):
        working_directory([*approve(image, POLICY), *approve(other, POLICY)])
    assert refusal(put(tmp_path / "a/above.qcow2", with_data_file(b"../b/x"))).wants == str(tmp_path / "a/../b/x")


def test_a_circle_is_found(tmp_path: Path) -> None:
    put(tmp_path / "a.qcow2", overlay(b"b.qcow2", b"qcow2"))
    put(tmp_path / "b.qcow2", overlay(b"a.qcow2", b"qcow2"))
    own = put(tmp_path / "own.qcow2", overlay(b"./own.qcow2", b"qcow2"))
    for path in (tmp_path / "a.qcow2", own):
        with pytest.raises(ChainError):
            approve(path, POLICY)


def test_two_branches_may_lead_to_one_image(tmp_path: Path) -> None:
    base = put(tmp_path / "base.raw", bytes(512))
    leaf = f'{{"driver":"file","filename":"{base}"}}'
    tree = f'json:{{"driver":"quorum","vote-threshold":1,"children":[{leaf},{leaf}]}}'
    assert len(approve(put(tmp_path / "top.qcow2", overlay(tree.encode())), POLICY)) == 2


def test_a_chain_too_deep_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "0.qcow2", qcow2())
    for number in range(1, 6):
        put(tmp_path / f"{number}.qcow2", overlay(b"%d.qcow2" % (number - 1), b"qcow2"))
    assert len(approve(tmp_path / "5.qcow2", Policy(max_depth=6))) == 6
    assert refusal(tmp_path / "5.qcow2", Policy(max_depth=5)).word is None


def test_what_would_hang_qemu_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(put(tmp_path / "top.qcow2", overlay(b"fifo"))).wants == str(tmp_path / "fifo")


def test_what_is_missing_is_left_for_qemu_to_complain_about(tmp_path: Path) -> None:
    assert approve(tmp_path / "missing", POLICY) == []
    assert len(approve(put(tmp_path / "top.qcow2", overlay(b"missing.raw")), POLICY)) == 1


@pytest.mark.parametrize(
    "data", [qcow2(encryption=2), qcow2(backing=b"json:{", extensions=[(BACKING_FORMAT, b"raw")])]
)
def test_a_damaged_image_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ImageFormatError) as caught:
        approve(put(tmp_path / "image.qcow2", data), POLICY)
    assert caught.value.path == str(tmp_path / "image.qcow2")


@pytest.mark.parametrize("word", ["", "nfs4", "images", "json"])
def test_a_word_that_is_nothing_to_trust_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError):
        POLICY.trusting([word])


def test_an_image_in_the_root_directory_owns_nothing() -> None:
    assert not POLICY.allows_file("/etc/passwd", directory="/")
    assert POLICY.trusting(["/"]).allows_file("/etc/passwd", directory="/")


@pytest.mark.parametrize("case", REFERRING, ids=lambda case: case.name)
def test_no_hostile_image_leaves_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """What passes names nothing but files in or below its own directory."""
    monkeypatch.chdir(tmp_path)
    path = put(tmp_path / "image", case.data)
    error = error_of(path, case.name.rpartition(".")[2])
    if error is not None:
        assert error.message.isprintable()
        assert error.hint is None or error.hint.isprintable()
        return
    outside = {"backing-outside", "backing-device", "backing-directory", "backing-network", "backing-protocol"}
    assert not case.codes & (outside | {"data-file-protocol", "backing-format-driver", "reference-malformed"})
    assert b"/nonexistent" not in case.data or case.codes & {"backing-name-cut"}


@pytest.mark.matrix
def test_real_overlays_of_every_format_pass(tmp_path: Path) -> None:
    subprocess.run([QEMU_IMG, "create", "-q", "-f", "raw", tmp_path / "base.raw", "1M"], check=True)
    for format in ("qcow2", "qcow", "qed"):
        image = tmp_path / f"top.{format}"
        subprocess.run(
            [QEMU_IMG, "create", "-q", "-f", format, "-b", "base.raw", "-F", "raw", image], cwd=tmp_path, check=True
        )
        assert len(approve(image, POLICY)) == 2


def test_a_policy_is_in_force_in_its_own_thread_alone() -> None:
    """One that ends while another goes on takes nothing away from it, and leaves nothing behind."""
    ours, theirs = Policy(directories=("/ours",)), Policy(directories=("/theirs",))
    entered, left = threading.Event(), threading.Event()
    seen: list[Policy] = []

    def other() -> None:
        seen.append(current())
        with in_force(theirs):
            entered.set()
            assert left.wait(60)
            seen.append(current())
        seen.append(current())

    strict = current()
    thread = threading.Thread(target=other)
    with in_force(ours):
        thread.start()
        assert entered.wait(60)
        assert current() == ours
    left.set()
    thread.join()
    assert seen == [strict, theirs, strict]
    assert current() == strict


def test_the_threads_that_imgtool_starts_have_the_policy_of_the_one_they_work_for() -> None:
    ours = Policy(directories=("/ours",))
    seen: list[Policy] = []
    with in_force(ours):
        with workers(2) as pool:
            seen += pool.map(lambda _: current(), range(4))
        each(lambda _: seen.append(current()), range(4), jobs=2, halted=threading.Event())
    assert seen == [ours] * 8


def test_words_of_trust_are_in_force_within() -> None:
    before = current()
    with trusting("nbd", "/srv/bases/"), trusting("https"):
        assert current().protocols == {"nbd", "https"}
        assert current().directories == (*before.directories, "/srv/bases")
    assert current() == before
    with pytest.raises(UsageError), trusting("bases"):
        pass
