from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fixtures.hostile.cases import Case, corpus, descriptor, overlay, qcow2, sparse_vmdk
from imgtool.errors import ImageNotFoundError, ImageUnreadableError
from imgtool.image.findings import KINDS, finding, verdict_of
from imgtool.image.header import read_header
from imgtool.image.inspect import STREAM_LIMIT, Inspection, inspect
from tests.image.fuzz import QEMU_IMG, make_seeds

CASES = corpus()


def inspect_file(path: Path, format: str | None = None) -> Inspection:
    fd = os.open(path, os.O_RDONLY)
    try:
        return inspect(fd, path=str(path), format=format)
    finally:
        os.close(fd)


def inspect_stream(data: bytes) -> Inspection:
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as file:
            try:
                file.write(data)
            except BrokenPipeError:
                return

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        return inspect(reading)
    finally:
        os.close(reading)
        feeder.join()


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_hostile_image_has_its_verdict(tmp_path: Path, case: Case) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.data)
    inspection = inspect_file(path)
    codes = {found.code for found in inspection.findings}
    assert inspection.verdict == case.verdict, inspection.findings
    assert codes >= case.codes
    assert all(found.message.isprintable() for found in inspection.findings)
    assert inspect_stream(case.data).verdict == case.verdict


@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "luks", "parallels"])
def test_an_honest_image_that_stands_alone_is_safe(tmp_path: Path, format: str) -> None:
    for seed in make_seeds(format, tmp_path):
        inspection = inspect_file(tmp_path / seed.name)
        standing_alone = not inspection.references
        assert inspection.safe == standing_alone, (seed.name, inspection.findings)


def test_an_image_full_of_data_is_safe(tmp_path: Path) -> None:
    source, image = tmp_path / "data.raw", tmp_path / "image.qcow2"
    source.write_bytes(os.urandom(1 << 20) + b"text " * 1_000_000)
    for words in (
        ["-c"],
        ["-o", "extended_l2=on,cluster_size=128k"],
        ["-o", "cluster_size=2M"],
        ["-o", "cluster_size=512"],
    ):
        subprocess.run([QEMU_IMG, "convert", "-O", "qcow2", *words, source, image], check=True)
        subprocess.run([QEMU_IMG, "snapshot", "-c", "one", image], check=True)
        inspection = inspect_file(image)
        assert inspection.safe, inspection.findings
        assert inspection.snapshots == 1


def test_an_image_taken_for_raw_is_a_raw_disk(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(overlay(b"/nonexistent/shadow"))
    inspection = inspect_file(path, format="raw")
    assert (inspection.format, inspection.verdict) == ("raw", "safe")


def test_a_stream_that_goes_on_is_judged_by_its_beginning() -> None:
    tail = bytes(STREAM_LIMIT)
    sound, raw, bad = (
        inspect_stream(qcow2() + tail),
        inspect_stream(tail + tail),
        inspect_stream(overlay(b"x") + tail),
    )
    assert (sound.verdict, raw.verdict, bad.verdict) == ("safe", "safe", "refers-to-host")
    assert sound.file_size is None
    assert raw.virtual_size is None
    assert inspect_stream(qcow2()).file_size == len(qcow2())


def test_a_stream_cut_before_what_matters_is_unknown() -> None:
    data = bytearray(sparse_vmdk(descriptor(b'RW 2048 SPARSE "x.vmdk"', kind=b"streamOptimized")))
    data[56:64] = b"\xff" * 8  # the header at the end of the file counts
    cut = inspect_stream(bytes(data) + bytes(2 * STREAM_LIMIT))
    assert (cut.format, cut.verdict) == ("vmdk", "unknown")


def test_what_is_no_image_is_said_so(tmp_path: Path) -> None:
    assert [found.code for found in inspect_file(tmp_path).findings] == ["not-an-image"]


def test_relative_names_lead_to_the_images_directory(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    image = tmp_path / "image.qcow2"
    image.write_bytes(overlay(b"link/base.raw"))
    (tmp_path / "link").symlink_to("outside")
    assert "backing-file" in {found.code for found in inspect_file(image).findings}
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("/")
    assert "backing-outside" in {found.code for found in inspect_file(image).findings}
    (reference,) = inspect_file(image).references
    assert reference.reference is not None
    assert reference.reference.path == str(tmp_path / "link/base.raw")


def test_the_worst_finding_decides_the_verdict() -> None:
    assert verdict_of([]) == "safe"
    assert verdict_of([finding("encrypted", "")]) == "safe"
    assert verdict_of([finding("many-bitmaps", ""), finding("backing-network", "")]) == "refers-to-network"
    assert finding("backing-outside", "").cve == "CVE-2015-5163"
    assert all(kind.meaning for kind in KINDS.values())


_SANDBOX = """
import os, sys, tracemalloc
from imgtool.image.inspect import inspect

armed = False

def watch(event, arguments):
    starts = event in ("os.posix_spawn", "os.fork", "os.exec", "os.system")
    if armed and (event == "open" or starts or event.split(".")[0] in ("socket", "subprocess", "ctypes")):
        print(event, arguments)
        os._exit(9)

sys.addaudithook(watch)
paths = sorted(os.path.join(sys.argv[1], name) for name in os.listdir(sys.argv[1]))
tracemalloc.start()
for armed in (False, True):  # the first time through everything needed is imported
    for path in paths:
        was, armed = armed, False
        fd = os.open(path, os.O_RDONLY)
        tracemalloc.reset_peak()
        armed = was
        inspect(fd, path=path)
        armed = False
        if tracemalloc.get_traced_memory()[1] > 64 << 20:
            sys.exit(f"{path} took over 64 MiB")
        os.close(fd)
        armed = was
"""


def test_nothing_else_is_opened_or_connected_to(tmp_path: Path) -> None:
    for case in CASES:
        (tmp_path / case.name).write_bytes(case.data)
    done = subprocess.run([sys.executable, "-c", _SANDBOX, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_path_is_as_good_as_a_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(
        [QEMU_IMG, "create", "-q", "-f", "qcow2", "-u", "-b", "../b", "-F", "raw", "o", "1M"],
        cwd=tmp_path,
        check=True,
    )
    monkeypatch.chdir(tmp_path)
    with open("o", "rb") as file:
        assert inspect("o") == inspect(file.fileno(), path=str(tmp_path / "o"))
        assert read_header(Path("o")) == read_header(file.fileno())
    with pytest.raises(ImageNotFoundError, match="/none does not exist"):
        inspect(b"none")
    with pytest.raises(ImageUnreadableError, match="neither a file nor a block device"):
        read_header(tmp_path)
