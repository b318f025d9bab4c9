"""`imgtool info`, as it is typed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix

ODD_NAMES = ["-x.qcow2", "a,b", "a:b", "nbd:foo", "json:{}", "two\nlines", "no utf-8 \udcff", "driver=raw", "--help"]


def fields(text: str) -> dict[str, str]:
    """The `key: value` lines of a human answer."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_one_image_in_words(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "1G")
    images.overlay("top.qcow2", "base.qcow2")
    images.qemu_img("snapshot", "-c", "evil\x1b[31m", images / "top.qcow2")
    done = imgtool("info", "top.qcow2", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    said = fields(done.stdout)
    assert said["image"] == "top.qcow2"
    assert said["format"] == "qcow2"
    assert said["virtual size"] == "1 GiB (1073741824 bytes)"
    assert said["backing file"] == f"base.qcow2 ({images / 'base.qcow2'})"
    assert said["backing format"] == "qcow2"
    assert "evil\\x1b[31m" in done.stdout
    assert "\x1b" not in done.stdout
    assert "in use" not in said


def test_json_is_what_qemu_img_says(images: Images, imgtool: Imgtool) -> None:
    import json

    path = images.base("disk.qcow2", "64M")
    images.qemu_img("snapshot", "-c", "one", path)
    done = imgtool("info", path, "--output", "json")
    assert done.status == 0
    assert done.document == json.loads(images.qemu_img("info", "--output=json", "-f", "qcow2", path))


def test_several_images_are_a_list(images: Images, imgtool: Imgtool) -> None:
    one, two = images.base("one.qcow2"), images.base("two.vmdk", format="vmdk")
    done = imgtool("info", one, two, "--output", "json")
    assert [(info["filename"], info["format"]) for info in done.document] == [(str(one), "qcow2"), (str(two), "vmdk")]
    done = imgtool("info", one, images / "gone", two)
    assert done.status == 1
    assert done.stdout.count("virtual size:") == 2
    assert "gone does not exist" in done.stderr


def test_a_name_is_always_a_files(images: Images, imgtool: Imgtool) -> None:
    for name in ODD_NAMES:
        images.base(name)
    done = imgtool("info", "--output", "json", "--", *ODD_NAMES, cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert [info["filename"] for info in done.document] == [f"{images.directory}/{name}" for name in ODD_NAMES]
    done = imgtool("info", "--", *ODD_NAMES, cwd=images.directory)
    assert [line for line in done.stdout.splitlines() if line.startswith("image:")] == [
        f"image:        {name}".replace("\n", "\\n").replace("\udcff", "\\xff") for name in ODD_NAMES
    ]


def bad_files(directory: Path) -> dict[str, str]:
    """Name of a file that is no image → what is said of it."""
    (directory / "empty").touch()
    (directory / "dir").mkdir()
    os.mkfifo(directory / "fifo")
    whole = (directory / "whole.qcow2").read_bytes()
    (directory / "stump").write_bytes(whole[:60])
    (directory / "half").write_bytes(whole[:100000])
    (directory / "link").symlink_to("nowhere")
    return {
        "gone": "does not exist",
        "no/where": "does not exist",
        "nbd:host": "does not exist",
        "empty": "the file is empty",
        "dir": "is a directory",
        "fifo": "is a FIFO",
        "stump": "not a valid qcow2 image",
        "half": "the image is cut off: it ends after 100000 bytes",
        "link": "is a link to nowhere",
    }


def test_what_is_no_image_gets_one_line_and_a_hint(images: Images, imgtool: Imgtool) -> None:
    images.base("whole.qcow2", "1G")
    for name, said in bad_files(images.directory).items():
        done = imgtool("info", name, cwd=images.directory)
        assert (done.status, done.stdout) == (1, ""), name
        first, hint = done.stderr.splitlines()
        assert first.startswith("imgtool: error: "), name
        assert str(images / name) in first
        assert said in first
        assert hint.startswith("hint: ")


def test_an_error_in_json_names_the_file(images: Images, imgtool: Imgtool) -> None:
    done = imgtool("info", images / "gone", "--output", "json")
    assert (done.status, done.stdout) == (1, "")
    assert done.error["code"] == "image-not-found"
    assert done.error["path"] == str(images / "gone")


def without_roots_rights() -> None:
    """CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH go from the bounding set: root, too, is stopped by permissions."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (1, 2):
        prctl(24, capability, 0, 0, 0)


def test_an_image_that_may_not_be_read(images: Images) -> None:
    path = images.base("secret.qcow2")
    path.chmod(0)
    done = subprocess.run(
        [sys.executable, "-m", "imgtool", "info", path],
        preexec_fn=without_roots_rights,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"imgtool: error: {path} cannot be read: Permission denied\nhint: another user may read it, you may not\n"
    )


def test_an_image_that_a_machine_writes_is_answered_for(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    with images.opened(path) as pid:
        done = imgtool("info", path)
        plain = imgtool("info", path, "-U", "--output", "json")
    assert (done.status, done.stderr) == (0, "")
    assert f"(pid {pid}), for writing" in fields(done.stdout)["in use"]
    assert plain.document["format"] == "qcow2"


def test_a_chain_is_told_as_far_as_it_goes(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "2M")
    images.overlay("mid.qcow2", "base.qcow2")
    images.overlay("top.qcow2", "mid.qcow2")
    done = imgtool("info", "--backing-chain", images / "top.qcow2", "--output", "json")
    assert (done.status, done.stderr) == (0, "")
    assert [Path(info["filename"]).name for info in done.document] == ["top.qcow2", "mid.qcow2", "base.qcow2"]
    (images / "base.qcow2").unlink()
    done = imgtool("info", "--backing-chain", images / "top.qcow2", "--output", "json")
    assert done.status == 3
    assert [Path(info["filename"]).name for info in done.document] == ["top.qcow2", "mid.qcow2"]
    assert done.stderr == f"imgtool: warning: {images / 'base.qcow2'} does not exist\n"
    done = imgtool("info", "--backing-chain", images / "top.qcow2")
    assert fields(done.stdout)["problem"] == f"{images / 'base.qcow2'} does not exist"


def test_a_circle_of_backing_files_ends(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    images.overlay("top.qcow2", "base.qcow2")
    images.rebase("base.qcow2", "top.qcow2")
    done = imgtool("info", "--backing-chain", images / "top.qcow2")
    assert done.status == 3
    assert done.stdout.count("virtual size:") == 2
    assert imgtool("info", images / "top.qcow2").status == 0


def test_a_backing_name_that_is_no_utf8_keeps_its_bytes(images: Images, imgtool: Imgtool) -> None:
    images.base("b\udcffse.qcow2")
    images.overlay("top.qcow2", b"b\xffse.qcow2")
    info = imgtool("info", images / "top.qcow2", "--output", "json").document
    assert info["backing-filename"] == "b\udcffse.qcow2"
    assert info["full-backing-filename"] == f"{images.directory}/b\udcffse.qcow2"


def test_a_given_format_is_taken_at_its_word(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2", "1G")
    raw = imgtool("info", "-f", "raw", path, "--output", "json").document
    assert raw["virtual-size"] == -(-path.stat().st_size // 512) * 512
    assert "cluster-size" not in raw
    done = imgtool("info", "-f", "vmdk", path)
    assert (done.status, done.stderr.splitlines()[0]) == (
        1,
        f"imgtool: error: {path}: not a vmdk image: it looks like qcow2",
    )
    (images / "empty").touch()
    assert imgtool("info", "-f", "raw", images / "empty").status == 0


def test_requests_that_make_no_sense(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    for words in (["info"], ["info", "--nope", path], ["info", "-f", "raw", "--image-opts", "driver=raw"]):
        done = imgtool(*words)
        assert (done.status, done.stdout) == (2, "")
        assert "hint: " in done.stderr
    done = imgtool("info", "-f", "qcow3", path)
    assert done.status == 2
    assert "no format 'qcow3'" in done.stderr
    assert "did you mean 'qcow" in done.stderr


def test_image_options_are_qemus_own(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2", "3M")
    done = imgtool("info", "--image-opts", f"driver=qcow2,file.driver=file,file.filename={path}", "--output", "json")
    assert done.document["virtual-size"] == 3 << 20


def test_a_json_answer_loads_nothing_that_people_need(images: Images) -> None:
    path = images.base("disk.qcow2")
    code = (
        "import sys; from imgtool.cli.main import main\n"
        "try: main(['info', sys.argv[1], '--output', 'json'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'humanize', 'tqdm', 'asyncio', 'difflib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_file_without_an_end_is_named_in_the_error(imgtool: Imgtool) -> None:
    done = imgtool("info", "/proc/self/mem")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("imgtool: error: /proc/self/mem: the image cannot be read: ")
