"""`imgtool pull`"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Imgtool
from tests.conftest import Images
from tests.publish.registries import RegistryServer


@pytest.fixture
def reference(
    imgtool: Imgtool,
    images: Images,
    registry: RegistryServer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """An image in a registry, of which this host remembers nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images.base("base.qcow2")
    images.overlay("web.qcow2", "base.qcow2")
    name = f"{registry.host}/cli-pull/{request.node.name.replace('_', '-')[:40].strip('-')}/web:1"
    assert imgtool("push", images / "web.qcow2", name).status == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other-cache"))
    return name


def test_an_image_is_pulled_into_the_current_directory(imgtool: Imgtool, reference: str, tmp_path: Path) -> None:
    folder = tmp_path / "pulled"
    folder.mkdir()
    done = imgtool("pull", reference, cwd=folder)
    assert (done.status, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[:2]] == ["fetched", "fetched"]
    assert done.stdout.splitlines()[2].startswith(f"{folder / 'web.qcow2'} is {reference} (sha256:")
    assert len(os.listdir(folder)) == 2
    assert imgtool("chain", "verify", folder).status == 0


def test_the_answer_is_a_document(imgtool: Imgtool, reference: str, tmp_path: Path) -> None:
    done = imgtool("pull", reference, "mine.qcow2", "--deep", "--read-only", "--output", "json")
    assert done.document["path"] == str(tmp_path / "mine.qcow2")
    assert done.document["fetched-bytes"] == sum(layer["size"] for layer in done.document["layers"])
    assert not (tmp_path / "mine.qcow2").stat().st_mode & 0o222


def test_a_dry_run_fetches_nothing(imgtool: Imgtool, reference: str, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    done = imgtool("pull", reference, "--dry-run", cwd=folder)
    assert done.status == 0
    assert f"create  {folder / 'web.qcow2'}" in done.stdout
    assert os.listdir(folder) == []


def test_what_is_in_the_way_stays(imgtool: Imgtool, reference: str, tmp_path: Path) -> None:
    (tmp_path / "mine.qcow2").write_bytes(b"mine")
    done = imgtool("pull", reference, "mine.qcow2", "--output", "json")
    assert (done.status, done.error["code"]) == (1, "image-exists")
    assert (tmp_path / "mine.qcow2").read_bytes() == b"mine"


def test_a_directory_that_is_not_there_is_not_made_a_file(imgtool: Imgtool, reference: str, tmp_path: Path) -> None:
    done = imgtool("pull", reference, "disks/")
    assert done.status == 1
    assert f"there is no directory {tmp_path / 'disks'}" in done.stderr
    assert not (tmp_path / "disks").exists()


def test_a_disk_with_no_room_is_named_and_what_to_do(reference: str, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    argv = [sys.executable, "-m", "imgtool", "pull", reference, "web.qcow2", "--output", "json"]
    done = subprocess.run(argv, cwd=tmp_path, preexec_fn=small, capture_output=True, check=False)
    error = json.loads(done.stderr)["error"]
    assert error["path"].startswith(f"{tmp_path}/")
    assert "File too large" in error["message"]
    assert "resumes where it stopped" in error["hint"]


def test_what_the_registry_does_not_have_is_said(imgtool: Imgtool, registry: RegistryServer) -> None:
    done = imgtool("pull", f"{registry.host}/nothing/here:1", "--output", "json")
    assert (done.status, done.error["code"]) == (1, "registry-not-found")


def test_no_registry_is_said_at_once(imgtool: Imgtool) -> None:
    done = imgtool("pull", "127.0.0.1:1/web")
    assert done.status == 1
    assert "is there a registry at" in done.stderr
