"""`imgtool inspect` as its users run it, and what it and the other lookers open: seen by strace."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.hostile.cases import corpus, overlay, qcow2, with_data_file
from fixtures.hostile.make import write
from tests.cli.conftest import Imgtool

CASES = {case.name: case for case in corpus()}


def test_a_sound_image_is_safe_and_a_hostile_one_has_its_own_exit_status(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "sound.qcow2").write_bytes(qcow2())
    (tmp_path / "bad.qcow2").write_bytes(overlay(b"/nonexistent/shadow"))
    done = imgtool("inspect", "sound.qcow2")
    assert (done.status, done.stderr) == (0, "")
    assert re.search(r"verdict: +safe", done.stdout)
    done = imgtool("inspect", "bad.qcow2")
    assert (done.status, done.stderr) == (3, "")
    assert "refers-to-host" in done.stdout
    assert "[backing-outside] CVE-2015-5163" in done.stdout


def test_no_qemu_program_is_needed(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "sound.qcow2").write_bytes(qcow2())
    done = imgtool("inspect", "sound.qcow2", PATH="/nonexistent", IMGTOOL_QEMU_IMG="/nonexistent")
    assert done.status == 0


def test_several_images_answer_with_a_list_and_the_worst_counts(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(qcow2())
    (tmp_path / "b.qcow2").write_bytes(with_data_file(b"data.raw"))
    done = imgtool("inspect", "a.qcow2", "b.qcow2", "--output", "json")
    assert done.status == 3
    assert [one["verdict"] for one in done.document] == ["safe", "refers-to-host"]
    codes = {found["code"]: found for found in done.document[1]["findings"]}
    assert {"data-file", "depends-on-cwd"} <= codes.keys()
    assert codes["data-file"]["cve"] == "CVE-2024-32498"
    done = imgtool("inspect", "a.qcow2", "gone", "--output", "json")
    assert done.status == 1
    assert done.document[0]["verdict"] == "safe"
    assert done.error["code"] == "image-not-found"


def test_what_it_answers_fits_its_schema(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(overlay(b"nbd://192.0.2.1/x"))
    schema = json.loads(imgtool("schema", "inspect").stdout)
    document = imgtool("inspect", "a.qcow2", "--output", "json").document
    assert set(document) == set(schema["$defs"]["Inspection"]["properties"])
    assert set(document["references"][0]) == set(schema["$defs"]["NamedImage"]["properties"])


@pytest.mark.parametrize(("data", "status"), [(qcow2(), 0), (overlay(b"x"), 3), (b"", 0)])
def test_a_pipe_is_read(tmp_path: Path, data: bytes, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imgtool", "inspect", "-", "--output", "json"],
        input=data + bytes(8 << 20 if data else 0),
        capture_output=True,
        check=False,
    )
    assert done.returncode == status
    assert json.loads(done.stdout)["path"] is None


def test_what_is_no_image_is_one_clear_error(imgtool: Imgtool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for words in (["."], ["gone"], ["fifo"]):
        done = imgtool("inspect", *words)
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr.startswith("imgtool: error: ")
    assert imgtool("inspect").status == 2
    assert imgtool("inspect", "-f", "nonsense", "gone").status == 2


def test_a_declared_format_is_not_replaced_by_a_probed_one(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(overlay(b"/nonexistent/shadow"))
    assert imgtool("inspect", "disk.img").status == 3
    assert imgtool("inspect", "-f", "raw", "disk.img").status == 0


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, and images that name files which do exist outside of its directory."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "outside").mkdir()
    for name in ("secret.raw", "secret.qcow2"):
        (root / "outside" / name).write_bytes(qcow2() if name.endswith("qcow2") else bytes(4096))
    write(root / "corpus")
    outside = bytes(root / "outside")
    for name, data in {
        "real-backing": overlay(outside + b"/secret.qcow2", b"qcow2"),
        "real-relative": overlay(b"../outside/secret.raw"),
        "real-guessed": overlay(outside + b"/secret.qcow2", None),
        "real-json": overlay(b'json:{"driver":"qcow2","file.filename":"%s/secret.qcow2"}' % outside),
        "real-file": overlay(b"file:" + outside + b"/secret.raw"),
        "real-data": with_data_file(outside + b"/secret.raw"),
        "real-vvfat": overlay(b"fat:" + outside),
    }.items():
        (root / "corpus" / f"{name}.qcow2").write_bytes(data)
    (root / "corpus/link.qcow2").symlink_to("../outside/secret.qcow2")
    (root / "corpus/real-link.qcow2").write_bytes(overlay(b"link.qcow2", b"qcow2"))
    return root


_OPEN = re.compile(r'\bopen(?:at2?)?\((?:AT_FDCWD, |\d+(?:<[^>]*>)?, )?"((?:[^"\\]|\\.)*)"')
_ALLOWED = ("/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/null", "/dev/urandom")


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize("verb", ["inspect", "chain show", "chain verify"])
def test_lookers_connect_to_nothing_and_open_nothing_outside(hostile: Path, verb: str, output: str) -> None:
    names = sorted(path for path in (hostile / "corpus").iterdir() if not path.is_symlink())
    words = [str(name) for name in names] if verb == "inspect" else [str(hostile / "corpus")]
    trace = hostile / "trace"
    strace = shutil.which("strace")
    assert strace is not None, "apt-get install strace"
    done = subprocess.run(
        [
            *(strace, "-f", "-qq", "-s", "4096", "-o", trace, "-e", "trace=open,openat,openat2,network,execve"),
            *(sys.executable, "-m", "imgtool", *verb.split(), *words, "--output", output),
        ],
        cwd=hostile / "corpus",
        capture_output=True,
        check=False,
    )
    assert done.returncode == (0 if verb == "chain show" else 3), done.stderr
    calls = trace.read_text(errors="surrogateescape").splitlines()
    assert sum(" execve(" in call for call in calls) == 1
    assert not [call for call in calls if re.search(r"\b(connect|sendto|sendmsg|bind)\(", call)]
    opened = [found[1] for call in calls if (found := _OPEN.search(call))]
    state = os.path.join(os.environ["XDG_STATE_HOME"], "imgtool/references")
    own = (str(hostile / "corpus"), state, sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *_ALLOWED)
    assert sum(name.startswith(str(hostile / "corpus")) for name in opened) >= len(CASES)
    assert [name for name in opened if name.startswith("/") and not name.startswith(own)] == []
    for secret in ("/etc/shadow", "/dev/sd", "/dev/fd/3", "/proc/self/environ"):
        assert not any(name.startswith(secret) for name in opened)
    text = (done.stdout + done.stderr).decode()
    assert all(line.isprintable() for line in text.splitlines())
    assert str(hostile / "outside/secret.raw") in text or "../outside/secret.raw" in text
