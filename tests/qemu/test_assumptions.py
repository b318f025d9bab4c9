"""What imgtool relies on in QEMU and QEMU does not promise, seen in the QEMU at hand.

Where versions differ the test says how. `make matrix` runs this under QEMU 5.2, 7.2 and 10.0.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgtool.image.names import option_value
from imgtool.qemu.process import Completed, Limits, run
from imgtool.qemu.programs import Programs

pytestmark = pytest.mark.matrix

AWKWARD = (
    b"-x",
    b"--help",
    b"a,b",
    b"a:b",
    b"nbd:foo",
    b"json:{}",
    b"fat:rw:x",
    b"a b%s",
    b"new\nline",
    b"\xff\xfe.img",
    "ünï".encode(),
)


class Qemu:
    """The QEMU programs at hand, run in a directory of images."""

    def __init__(self, directory: Path) -> None:
        self.programs = Programs()
        self.directory = directory

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def version(self) -> tuple[int, int]:
        return self.programs.version("qemu-img")[:2]

    def img(self, *words: str | bytes | Path) -> Completed:
        argv = [self.programs.find("qemu-img"), *(os.fsdecode(word) for word in words)]
        return run(argv, limits=Limits(seconds=60))

    def good(self, *words: str | bytes | Path) -> bytes:
        """stdout of a qemu-img that must have nothing to complain of."""
        done = self.img(*words)
        assert (done.status, done.stderr) == (0, b""), done
        return done.stdout

    def info(self, path: Path, *options: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.good("info", "--output=json", "-f", "qcow2", *options, path))
        return answer

    def base(self, name: str = "base.qcow2", size: str = "1M") -> Path:
        self.good("create", "-q", "-f", "qcow2", self / name, size)
        return self / name

    def overlay(self, name: str, backing: str | Path, *more: str) -> Path:
        self.good("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", *more[:1], self / name, *more[1:])
        return self / name

    def fill(self, path: Path, byte: int, where: str = "0 64k") -> None:
        argv = [self.programs.find("qemu-io"), "-f", "qcow2", "-c", f"write -q -P {byte} {where}", str(path)]
        assert run(argv).status == 0

    def first_byte(self, path: Path) -> int:
        """What a guest reads at 0."""
        self.good("convert", "-f", "qcow2", "-O", "raw", path, self / "raw-view")
        return (self / "raw-view").read_bytes()[0]

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[None]:
        """Within, the image is open for writing, as a running machine has it."""
        argv = [self.programs.find("qemu-io"), "-f", "qcow2", str(path)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(b"length\n")
            program.stdin.flush()
            assert b"1 MiB" in program.stdout.readline()
            try:
                yield
            finally:
                program.stdin.close()


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    return Qemu(tmp_path)


def test_every_program_found_is_of_the_version_that_the_matrix_names(qemu: Qemu) -> None:
    named = os.environ.get("IMGTOOL_QEMU_VERSION")
    expected = tuple(map(int, named.split("."))) if named else qemu.version()
    found = {name: qemu.programs.version(name)[:2] for name in ("qemu-img", "qemu-io", "qemu-system-x86_64")}
    assert set(found.values()) == {expected}, found
    assert expected >= (5, 2)


def test_a_locked_image_is_refused_and_info_answers_with_u(qemu: Qemu) -> None:
    base = qemu.base()
    overlay = qemu.overlay("overlay.qcow2", base)
    with qemu.opened(base):
        refused = qemu.img("info", "-f", "qcow2", base)
        assert refused.status == 1
        assert b"lock" in refused.stderr
        assert qemu.info(base, "-U")["virtual-size"] == 1 << 20
        for words in (["check", "-f", "qcow2"], ["snapshot", "-c", "s"], ["resize", "-f", "qcow2"]):
            assert qemu.img(*words, base, *["2M"] * (words[0] == "resize")).status == 1
        assert qemu.img("commit", "-f", "qcow2", overlay).status == 1
    assert qemu.img("info", "-f", "qcow2", base).status == 0


def test_a_locked_image_survives_create_and_convert_over_it(qemu: Qemu) -> None:
    base, other = qemu.base(), qemu.base("other.qcow2")
    qemu.fill(base, 7)
    with qemu.opened(base):
        assert qemu.img("create", "-f", "qcow2", base, "1M").status == 1
        assert qemu.img("convert", "-f", "qcow2", "-O", "qcow2", other, base).status == 1
    assert qemu.first_byte(base) == 7


def test_an_overlay_in_use_locks_its_base_against_writers_and_not_against_another_overlay(qemu: Qemu) -> None:
    base = qemu.base()
    running, sibling = qemu.overlay("running.qcow2", base), qemu.overlay("sibling.qcow2", base)
    qemu.fill(sibling, 9)
    with qemu.opened(running):
        refused = qemu.img("commit", "-f", "qcow2", sibling)
        assert refused.status == 1
        assert b"lock" in refused.stderr
        assert qemu.img("resize", "-f", "qcow2", base, "2M").status == 1
        qemu.overlay("third.qcow2", base)
        qemu.overlay("on-running.qcow2", running, "-u", "1M")
    qemu.good("commit", "-q", "-f", "qcow2", sibling)


def test_nothing_keeps_a_writer_from_the_base_of_idle_overlays(qemu: Qemu) -> None:
    base = qemu.base()
    overlay = qemu.overlay("overlay.qcow2", base)
    qemu.fill(base, 5)
    assert qemu.first_byte(overlay) == 5


def test_create_and_convert_truncate_what_exists_without_a_word(qemu: Qemu) -> None:
    base, other = qemu.base(), qemu.base("other.qcow2")
    qemu.fill(base, 7)
    qemu.fill(other, 8)
    qemu.base("base.qcow2")
    assert qemu.first_byte(base) == 0
    qemu.good("convert", "-f", "qcow2", "-O", "qcow2", other, base)
    assert qemu.first_byte(base) == 8


@pytest.mark.parametrize("name", AWKWARD)
def test_an_absolute_path_is_a_file_whatever_its_name(qemu: Qemu, name: bytes) -> None:
    path, overlay = os.fsencode(qemu.directory) + b"/" + name, qemu / "overlay.qcow2"
    qemu.good("create", "-q", "-f", "qcow2", path, "1M")
    assert name in os.listdir(os.fsencode(qemu.directory))
    qemu.good("info", "-f", "qcow2", path)
    qemu.good("create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay)
    qemu.good("info", "-f", "qcow2", "--backing-chain", overlay)
    doubled = option_value(os.fsdecode(path))
    qemu.good("info", "--image-opts", f"driver=qcow2,file.driver=file,file.filename={doubled}")
    assert sorted(os.listdir(os.fsencode(qemu.directory))) == sorted([name, b"overlay.qcow2"])


def test_json_output_loses_the_bytes_of_a_name_that_is_no_utf8(qemu: Qemu) -> None:
    path = os.fsencode(qemu.directory) + b"/\xff.qcow2"
    qemu.good("create", "-q", "-f", "qcow2", path, "1M")
    answer = json.loads(qemu.good("info", "--output=json", "-f", "qcow2", path))
    assert answer["filename"].endswith("/�.qcow2")


def test_a_bare_name_may_be_an_option_or_a_protocol(qemu: Qemu) -> None:
    assert qemu.img("info", "--help").status == 0
    missing = qemu.img("info", "unheard-of:name")
    assert missing.status == 1
    assert b"Unknown protocol" in missing.stderr


def test_a_relative_backing_name_starts_at_the_directory_of_the_path_as_given(qemu: Qemu) -> None:
    for folder in ("a", "b"):
        (qemu / folder).mkdir()
    qemu.base("a/base.qcow2")
    overlay = qemu.overlay("a/overlay.qcow2", "base.qcow2")
    link = qemu / "b/link.qcow2"
    link.symlink_to(overlay)
    assert qemu.info(overlay)["full-backing-filename"] == str(qemu / "a/base.qcow2")
    assert qemu.info(link)["full-backing-filename"] == str(qemu / "b/base.qcow2")
    assert qemu.img("check", "-f", "qcow2", link).status == 1
    qemu.good("check", "-f", "qcow2", overlay)


def test_info_opens_no_backing_file(qemu: Qemu) -> None:
    overlay = qemu.overlay("overlay.qcow2", "missing.qcow2", "-u", "1M")
    assert qemu.info(overlay)["backing-filename"] == "missing.qcow2"
    assert qemu.img("info", "--backing-chain", "-f", "qcow2", overlay).status == 1
    assert qemu.img("check", "-f", "qcow2", overlay).status == 1


def test_info_opens_a_data_file_only_where_cve_2024_4467_is_open(qemu: Qemu) -> None:
    """Debian mended 7.2, QEMU 9.1; Ubuntu's 8.2.2 is as it was released."""
    data = qemu / "data.raw"
    qemu.good("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", qemu / "image.qcow2", "1M")
    data.unlink()
    info = qemu.img("info", "-f", "qcow2", qemu / "image.qcow2")
    assert info.status == (1 if qemu.version() in ((5, 2), (8, 2)) else 0)
    assert qemu.img("check", "-f", "qcow2", qemu / "image.qcow2").status == 1


def test_a_relative_data_file_name_starts_at_the_working_directory(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (qemu / folder).mkdir()
    image = qemu / "a/image.qcow2"
    monkeypatch.chdir(qemu / "b")
    qemu.good("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", image, "1M")
    assert sorted(path.name for path in qemu.directory.rglob("*.*")) == ["data.raw", "image.qcow2"]
    assert (qemu / "b/data.raw").exists()
    qemu.good("check", "-f", "qcow2", image)
    monkeypatch.chdir(qemu / "a")
    assert qemu.img("check", "-f", "qcow2", image).status == 1


def test_a_raw_disk_with_the_magic_of_qcow2_is_taken_for_one_unless_the_format_is_given(qemu: Qemu) -> None:
    base = qemu.base()
    probed = json.loads(qemu.good("info", "--output=json", base))
    named = json.loads(qemu.good("info", "--output=json", "-f", "raw", base))
    assert (probed["format"], named["format"]) == ("qcow2", "raw")


def test_a_backing_file_without_a_format_is_refused_or_worse(qemu: Qemu) -> None:
    base = qemu.base()
    done = qemu.img("create", "-q", "-f", "qcow2", "-b", base, qemu / "overlay.qcow2")
    if qemu.version() < (6, 1):  # made, with a warning, and its parent will be probed
        assert done.status == 0
        assert b"warning" in done.stderr
    else:
        assert done.status == 1
        assert b"without backing format" in done.stderr


def test_an_overlay_smaller_than_its_base_is_made_without_a_word(qemu: Qemu) -> None:
    overlay = qemu.overlay("small.qcow2", qemu.base(), "-q", "512k")
    assert qemu.info(overlay)["virtual-size"] == 512 << 10


def test_an_unsafe_rebase_accepts_a_missing_base_and_a_cycle(qemu: Qemu) -> None:
    overlay = qemu.overlay("overlay.qcow2", qemu.base())
    for backing in (qemu / "missing.qcow2", overlay):
        qemu.good("rebase", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", overlay)
        assert qemu.info(overlay)["full-backing-filename"] == str(backing)
    looped = qemu.img("info", "--backing-chain", "-f", "qcow2", overlay)
    assert looped.status == 1
    assert b"loop" in looped.stderr


def test_a_safe_rebase_keeps_what_a_guest_reads(qemu: Qemu) -> None:
    one, two = qemu.base("one.qcow2"), qemu.base("two.qcow2")
    qemu.fill(one, 1)
    qemu.fill(two, 2)
    overlay = qemu.overlay("overlay.qcow2", one)
    qemu.good("rebase", "-t", "writethrough", "-f", "qcow2", "-b", two, "-F", "qcow2", overlay)
    assert qemu.first_byte(overlay) == 1
    qemu.good("rebase", "-t", "writethrough", "-f", "qcow2", "-b", "", overlay)
    assert qemu.first_byte(overlay) == 1
    assert "backing-filename" not in qemu.info(overlay)


def test_commit_writes_the_base_and_empties_the_overlay_unless_told_to_keep_it(qemu: Qemu) -> None:
    base = qemu.base()
    overlay = qemu.overlay("overlay.qcow2", base)
    qemu.fill(overlay, 3)
    qemu.good("commit", "-q", "-d", "-f", "qcow2", overlay)
    assert allocated(qemu, overlay) == 65536
    qemu.good("commit", "-q", "-f", "qcow2", overlay)
    assert allocated(qemu, overlay) == 0
    assert (qemu.first_byte(base), qemu.first_byte(overlay)) == (3, 3)


def allocated(qemu: Qemu, path: Path) -> int:
    """Bytes of the disk that are in the image itself."""
    entries = json.loads(qemu.good("map", "--output=json", "-f", "qcow2", path))
    return sum(entry["length"] for entry in entries if entry["depth"] == 0 and entry["data"])


def test_resize_shrinks_only_when_asked_to(qemu: Qemu) -> None:
    base = qemu.base()
    assert qemu.img("resize", "-q", "-f", "qcow2", base, "512k").status == 1
    assert qemu.info(base)["virtual-size"] == 1 << 20
    qemu.good("resize", "-q", "--shrink", "-f", "qcow2", base, "512k")
    assert qemu.info(base)["virtual-size"] == 512 << 10


def test_compare_answers_0_same_1_different_and_2_not_opened(qemu: Qemu) -> None:
    one, two = qemu.base("one.qcow2"), qemu.base("two.qcow2")
    words = ("compare", "-q", "-f", "qcow2", "-F", "qcow2")
    assert qemu.img(*words, one, two).status == 0
    qemu.fill(two, 1)
    assert qemu.img(*words, one, two).status == 1
    assert qemu.img(*words, one, qemu / "missing.qcow2").status == 2


def test_check_answers_0_clean_1_failed_2_corrupt_3_leaks_and_63_no_check(qemu: Qemu) -> None:
    base = qemu.base()
    qemu.fill(base, 1)
    clean = base.read_bytes()
    assert qemu.img("check", "-f", "qcow2", base).status == 0
    assert qemu.img("check", "-f", "qcow2", qemu / "missing.qcow2").status == 1
    assert qemu.img("check", "-f", "raw", base).status == 63
    refcounts = struct.unpack_from(">Q", clean, struct.unpack_from(">Q", clean, 48)[0])[0]
    last = len(clean) // 65536 - 1

    def set_refcount(cluster: int, count: int) -> None:
        data = bytearray(clean)
        struct.pack_into(">H", data, refcounts + cluster * 2, count)
        base.write_bytes(data + bytes(65536))

    set_refcount(last, 0)
    assert qemu.img("check", "-f", "qcow2", base).status == 2
    set_refcount(last + 1, 1)
    leaks = qemu.img("check", "--output=json", "-f", "qcow2", base)
    assert leaks.status == 3
    assert json.loads(leaks.stdout)["leaks"] == 1
    repaired = qemu.img("check", "-r", "leaks", "-f", "qcow2", base)
    assert repaired.status == 0
    assert b"Repairing" in repaired.stderr  # text on stderr that tells of no failure
    assert qemu.img("check", "-f", "qcow2", base).status == 0


def test_a_backing_name_of_over_1023_bytes_is_refused(qemu: Qemu) -> None:
    qemu.overlay("overlay.qcow2", "x" * 1023, "-u", "1M")
    words = ("create", "-q", "-u", "-f", "qcow2", "-b", "x" * 1024, "-F", "qcow2")
    assert qemu.img(*words, qemu / "refused.qcow2", "1M").status == 1


def test_a_compressed_qcow_always_fails_without_a_message(qemu: Qemu) -> None:
    done = qemu.img("convert", "-c", "-f", "qcow2", "-O", "qcow", qemu.base(), qemu / "target.qcow")
    assert (done.status, done.stdout, done.stderr) == (1, b"", b"")


def test_a_check_of_a_backing_cycle_goes_round_until_a_limit_ends_it(qemu: Qemu) -> None:
    overlay = qemu.overlay("overlay.qcow2", "overlay.qcow2", "-u", "1M")
    argv = [qemu.programs.find("qemu-img"), "check", "-f", "qcow2", str(overlay)]
    done = run(argv, limits=Limits(seconds=60, cpu_seconds=2, address_space=512 << 20))
    # It went round until a limit ended it, or memory ran out hundreds of rounds deep.
    assert done.status < 0 or done.stderr.count(b"Could not open backing file") > 100


EXTENSION = struct.pack(">II", 0x494D4754, 11) + b"for imgtool" + bytes(5)


def extend(path: Path) -> Path:
    """Adds EXTENSION, of a type no QEMU knows, behind the header extensions of the qcow2."""
    with path.open("r+b") as image:
        header = bytearray(image.read(4096))
        end = struct.unpack_from(">I", header, 100)[0]
        while struct.unpack_from(">I", header, end)[0] != 0:
            end += 8 + -(-struct.unpack_from(">I", header, end + 4)[0] // 8) * 8
        backing = struct.unpack_from(">Q", header, 8)[0]
        if backing:
            struct.pack_into(">Q", header, 8, backing + len(EXTENSION))
        image.seek(0)
        image.write(header[:end] + EXTENSION + header[end:])
    return path


def has_extension(path: Path) -> bool:
    return EXTENSION in path.read_bytes()[:65536]


@pytest.mark.parametrize(
    "words",
    [
        ["snapshot", "-c", "one"],
        ["resize", "-q", "-f", "qcow2", "+1M"],
        ["rebase", "-f", "qcow2", "-F", "qcow2", "-b", "other.qcow2"],
        ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "missing.qcow2"],
        ["rebase", "-f", "qcow2", "-b", ""],
        ["amend", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on"],
        ["bitmap", "--add", "-f", "qcow2", "daily"],
        ["commit", "-q", "-f", "qcow2"],
        ["check", "-q", "-f", "qcow2", "-r", "all"],
    ],
    ids=lambda words: " ".join(word for word in words if word not in ("-f", "-F", "qcow2", "-q")),
)
def test_a_header_extension_no_qemu_knows_is_kept_by(qemu: Qemu, words: list[str]) -> None:
    base, other = extend(qemu.base()), qemu.base("other.qcow2")
    overlay = extend(qemu.overlay("overlay.qcow2", base))
    qemu.fill(overlay, 1)
    head, tail = (words[:-1], words[-1:]) if words[0] in ("resize", "bitmap") else (words, [])
    qemu.good(*(str(other) if word == other.name else word for word in head), overlay, *tail)
    assert has_extension(overlay)
    assert has_extension(base)
    if words[-1] != "missing.qcow2":
        assert qemu.first_byte(overlay) == 1


def test_a_header_extension_no_qemu_knows_is_lost_by_convert(qemu: Qemu) -> None:
    qemu.good("convert", "-f", "qcow2", "-O", "qcow2", extend(qemu.base()), qemu / "copy.qcow2")
    assert not has_extension(qemu / "copy.qcow2")
