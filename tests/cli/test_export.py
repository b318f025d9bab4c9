"""`imgtool export containerdisk` and `kubevirt`"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Imgtool
from tests.conftest import Images
from tests.publish.registries import RegistryServer


@pytest.fixture
def web(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images.base("base.qcow2", "4M")
    return images.overlay("web.qcow2", "base.qcow2")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "vm.toml"
    path.write_text('name = "Web"\nmemory = "1G"\nsmp = 2\n')
    return path


def test_a_containerdisk_is_written_into_a_folder(imgtool: Imgtool, web: Path, tmp_path: Path) -> None:
    done = imgtool("export", "containerdisk", web, "--layout", "disk", "--tag", "1", "-c")
    assert (done.status, done.stderr) == (0, "")
    disk, name = done.stdout.splitlines()
    assert disk.startswith("/disk/disk.qcow2  qcow2  ")
    (entry,) = json.loads((tmp_path / "disk" / "index.json").read_bytes())["manifests"]
    assert name == f"{tmp_path / 'disk'} is {entry['digest']}"


def test_a_containerdisk_is_pushed(imgtool: Imgtool, web: Path, registry: RegistryServer) -> None:
    reference = f"{registry.host}/cli/containerdisk:1"
    done = imgtool("export", "containerdisk", web, reference, "-O", "raw", "--output", "json")
    assert (done.document["reference"], done.document["disk"]) == (reference, "/disk/disk.img")
    assert registry.blob_file(done.document["digest"]).exists()


def test_a_dry_run_makes_no_containerdisk(imgtool: Imgtool, web: Path, tmp_path: Path) -> None:
    done = imgtool("export", "containerdisk", web, "--layout", "disk", "--dry-run")
    assert done.status == 0
    assert "convert" in done.stdout
    assert not (tmp_path / "disk").exists()


def test_a_containerdisk_goes_somewhere(imgtool: Imgtool, web: Path) -> None:
    done = imgtool("export", "containerdisk", web)
    assert done.status == 2
    assert "--layout DIR" in done.stderr


def test_manifests_are_yaml_and_the_notes_are_not_among_them(imgtool: Imgtool, web: Path, profile: Path) -> None:
    done = imgtool("export", "kubevirt", web, "--profile", profile)
    assert done.status == 0
    volume, machine = yaml.safe_load_all(done.stdout)
    assert (volume["kind"], machine["kind"]) == ("DataVolume", "VirtualMachine")
    assert machine["spec"]["template"]["spec"]["domain"]["memory"] == {"guest": "1Gi"}
    assert f"virtctl image-upload dv web-disk0 --no-create --image-path={web}" in done.stderr
    quiet = imgtool("export", "kubevirt", web, "--profile", profile, "--ref", "localhost:5000/web", "-q")
    assert quiet.stderr == ""
    assert "docker://localhost:5000/web:latest" in quiet.stdout


def test_what_kubevirt_cannot_have_is_refused_or_said(imgtool: Imgtool, web: Path, profile: Path) -> None:
    with open(profile, "a") as file:
        file.write('accel = "tcg"\n')
    refused = imgtool("export", "kubevirt", web, "--profile", profile)
    assert (refused.status, refused.stdout) == (1, "")
    assert "accel:" in refused.stderr
    done = imgtool("export", "kubevirt", web, "--profile", profile, "--partial", "--output", "json")
    assert done.status == 0
    assert [one["setting"] for one in done.document["left-out"]] == ["accel"]
    assert "accel is left out" in done.stderr
