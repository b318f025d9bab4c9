"""`imgtool push`"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Imgtool
from tests.conftest import Images
from tests.publish.held import held_for_writing
from tests.publish.registries import Certificates, RegistryServer, docker_config


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What imgtool and docker keep for this test's user."""
    folder = tmp_path / "home"
    for name, place in (("HOME", "."), ("XDG_CACHE_HOME", "cache"), ("DOCKER_CONFIG", "docker")):
        monkeypatch.setenv(name, str(folder / place))
    return folder


@pytest.fixture
def chain(images: Images, home: Path) -> Images:
    images.base("base.qcow2")
    images.overlay("web.qcow2", "base.qcow2")
    return images


def test_push_says_what_became_of_each_layer(imgtool: Imgtool, chain: Images, registry: RegistryServer) -> None:
    reference = f"{registry.host}/cli/push:1"
    done = imgtool("push", chain / "web.qcow2", reference)
    assert (done.status, done.stderr) == (0, "")
    base, web, last = done.stdout.splitlines()
    assert base.endswith(f"  {chain / 'base.qcow2'}")
    assert web.endswith(f"  {chain / 'web.qcow2'}")
    assert last.startswith(f"{reference} is sha256:")
    again = imgtool("push", chain / "web.qcow2", reference, "--output", "json", "--annotation", "org.example=1")
    assert again.document["uploaded-bytes"] == 0
    assert [layer["state"] for layer in again.document["layers"]] == ["present", "present"]


def test_a_dry_run_talks_to_nobody(imgtool: Imgtool, chain: Images) -> None:
    done = imgtool("push", chain / "web.qcow2", "registry.invalid/web:1", "--flatten", "-c", "--dry-run")
    assert done.status == 0
    assert f"read    {chain / 'web.qcow2'}" in done.stdout
    assert "convert" in done.stdout


def test_progress_is_one_json_object_a_line(imgtool: Imgtool, chain: Images, registry: RegistryServer) -> None:
    done = imgtool("push", chain / "web.qcow2", f"{registry.host}/cli/progress", "--progress", "json")
    assert done.status == 0
    assert done.stderr.splitlines()[-1].startswith('{"event": "progress", "task": "push"')


def test_who_is_not_logged_in_is_told_how(
    imgtool: Imgtool, chain: Images, home: Path, safe_registry: RegistryServer, certificates: Certificates
) -> None:
    words: list[str | Path] = [
        "push",
        chain / "web.qcow2",
        f"{safe_registry.host}/web",
        "--cert-dir",
        certificates.ca.parent,
    ]
    refused = imgtool(*words, "--output", "json")
    assert (refused.status, refused.error["code"]) == (1, "registry-auth")
    assert "docker login" in refused.error["hint"]
    docker_config(home / "docker", safe_registry.host)
    assert imgtool(*words).status == 0


def test_a_certificate_nobody_knows_is_an_error_with_a_hint(
    imgtool: Imgtool, chain: Images, safe_registry: RegistryServer
) -> None:
    done = imgtool("push", chain / "web.qcow2", f"{safe_registry.host}/web")
    assert done.status == 1
    assert "no trusted connection" in done.stderr
    assert "--cert-dir" in done.stderr


@pytest.mark.parametrize("words", [["web"], ["localhost:5000/Web"], ["localhost:5000/web", "--annotation", "x"]])
def test_words_that_make_no_sense_are_a_usage_error(imgtool: Imgtool, chain: Images, words: list[str]) -> None:
    done = imgtool("push", chain / "web.qcow2", *words)
    assert done.status == 2
    assert "hint:" in done.stderr


def test_an_image_that_is_not_there_is_said_before_anything(imgtool: Imgtool, home: Path) -> None:
    done = imgtool("push", "gone.qcow2", "registry.invalid/web")
    assert done.status == 1
    assert "gone.qcow2 does not exist" in done.stderr


def test_what_an_image_is_flattened_of_may_not_be_written_meanwhile(
    imgtool: Imgtool, chain: Images, registry: RegistryServer, tmp_path: Path
) -> None:
    for name in ("web.qcow2", "base.qcow2"):
        with held_for_writing(chain / name):
            pushed = imgtool("push", chain / "web.qcow2", f"{registry.host}/cli/used", "--flatten")
            exported = imgtool("export", "containerdisk", chain / "web.qcow2", "--layout", tmp_path / "disk")
        for done in (pushed, exported):
            assert done.status == 1
            assert f"{chain / name} is in use for writing" in done.stderr


def test_an_encrypted_image_is_said_to_be_one_before_its_disk_is_read(
    imgtool: Imgtool, images: Images, home: Path, registry: RegistryServer, tmp_path: Path
) -> None:
    secret = ["--object", "secret,id=key,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=key"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *secret, str(images / "closed.qcow2"), "1M"]
    subprocess.run(argv, check=True)
    closed, reference = images / "closed.qcow2", f"{registry.host}/cli/closed"
    asked: list[list[str | Path]] = [
        ["push", closed, reference, "--flatten", "--no-content-digest", "--dry-run"],
        ["export", "containerdisk", closed, reference, "--dry-run"],
        ["serve", "--dry-run", closed],
        ["mount", "--raw", "--dry-run", closed, tmp_path / "disk"],
        ["push", closed, reference],
    ]
    for words in asked:
        done = imgtool(*words)
        assert done.status == 1
        assert "is encrypted: without its secret" in done.stderr
    assert "--no-content-digest" in done.stderr
    assert imgtool("push", closed, reference, "--no-content-digest").status == 0


def test_only_layers_have_internal_snapshots(imgtool: Imgtool, images: Images, home: Path) -> None:
    base = images.base("base.qcow2")
    words: list[str | Path] = ["push", base, "registry.invalid/base", "--dry-run"]
    for name, said in (("one", "its internal snapshot"), ("two", "its 2 internal snapshots")):
        subprocess.run(["qemu-img", "snapshot", "-c", name, str(base)], check=True)
        assert f"is pushed with {said}\n" in imgtool(*words).stdout
        assert f"is pushed without {said}\n" in imgtool(*words, "--flatten").stdout


def test_a_folder_of_certificates_is_there(imgtool: Imgtool, chain: Images) -> None:
    done = imgtool("push", chain / "web.qcow2", "127.0.0.1:1/web", "--cert-dir", "nowhere")
    assert done.status == 2
    assert "nowhere is no directory" in done.stderr


@pytest.mark.parametrize("name", ["base.qcow2", "web.qcow2"])
def test_a_half_copied_image_is_not_published(
    imgtool: Imgtool, chain: Images, registry: RegistryServer, tmp_path: Path, name: str
) -> None:
    chain.run_io(chain / "web.qcow2", "write -P 5 0 256k")
    os.truncate(chain / name, (chain / name).stat().st_size // 2)
    web, reference = chain / "web.qcow2", f"{registry.host}/cli/half"
    asked: list[list[str | Path]] = [
        ["push", web, reference],
        ["push", web, reference, "--flatten"],
        ["export", "containerdisk", web, "--layout", tmp_path / "disk"],
    ]
    for words in asked:
        done = imgtool(*words)
        assert done.status == 1
        assert f"{chain / name} is damaged" in done.stderr
        assert "--force" in done.stderr
    assert not (tmp_path / "disk").exists()
    assert imgtool(*asked[0], "--no-content-digest", "--force").status == 0
