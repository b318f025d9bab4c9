"""`imgtool export libvirt`, `import libvirt`, `serve`, `mount` and `sync`, as they are typed"""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Imgtool
from tests.conftest import Images
from tests.publish.libvirtd import Libvirt
from tests.publish.sshd import SshServer


@pytest.fixture
def web(images: Images) -> Path:
    images.base("base.qcow2", "4M")
    return images.overlay("web.qcow2", "base.qcow2")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "vm.toml"
    path.write_text('name = "it-cli"\naccel = "tcg"\nmemory = "128M"\nsmp = 2\n')
    return path


def test_a_domain_is_written_and_read_as_a_profile(
    imgtool: Imgtool, web: Path, profile: Path, tmp_path: Path
) -> None:
    done = imgtool("export", "libvirt", web, "--profile", profile)
    assert (done.status, done.stderr) == (0, "")
    root = ElementTree.fromstring(done.stdout)
    assert root.findtext("name") == "it-cli"
    sources = [source.get("file") for source in root.iter("source")]
    assert sources == [str(web), str(web.parent / "base.qcow2")]
    done = imgtool("export", "libvirt", web, "--profile", profile, "-o", "vm.xml", "--output", "json")
    assert (done.document["file"], done.document["name"]) == (str(tmp_path / "vm.xml"), "it-cli")
    read = imgtool("import", "libvirt", "./vm.xml")
    assert (read.status, read.stderr) == (0, "")
    assert 'memory = { size = "128M" }' in read.stdout
    (tmp_path / "again.toml").write_text(read.stdout)
    again = imgtool("export", "libvirt", "--profile", "again.toml")
    assert again.stdout == (tmp_path / "vm.xml").read_text()
    into = imgtool("import", "libvirt", "vm.xml", "-o", "again.toml", "--output", "json")
    assert into.document["machine"]["name"] == "it-cli"


def test_a_cloud_init_seed_becomes_a_disk(imgtool: Imgtool, web: Path, profile: Path, tmp_path: Path) -> None:
    with open(profile, "a") as file:
        file.write('cloud-init = { hostname = "it-web", user = "me" }\n')
    refused = imgtool("export", "libvirt", web, "--profile", profile)
    assert (refused.status, "--seed FILE" in refused.stderr) == (1, True)
    words = ("export", "libvirt", web, "--profile", profile, "--seed", "seed.iso")
    assert imgtool(*words, "--dry-run").status == 0
    assert not (tmp_path / "seed.iso").exists()
    done = imgtool(*words)
    assert (done.status, done.stderr) == (0, "")
    disk = ElementTree.fromstring(done.stdout).findall("devices/disk")[1]
    source, driver = disk.find("source"), disk.find("driver")
    assert source is not None
    assert driver is not None
    assert (source.get("file"), driver.get("type")) == (str(tmp_path / "seed.iso"), "raw")
    assert disk.find("readonly") is not None
    assert b"it-web" in (tmp_path / "seed.iso").read_bytes()


def test_what_libvirt_cannot_have_is_refused_or_said(imgtool: Imgtool, web: Path, profile: Path) -> None:
    with open(profile, "a") as file:
        file.write('keymap = "de"\n')
    refused = imgtool("export", "libvirt", web, "--profile", profile)
    assert (refused.status, refused.stdout) == (1, "")
    assert "keymap:" in refused.stderr
    done = imgtool("export", "libvirt", web, "--profile", profile, "--partial")
    assert done.status == 0
    assert "keymap is left out" in done.stderr


def test_a_domain_is_defined_copied_and_imported(
    imgtool: Imgtool, web: Path, profile: Path, libvirt: Libvirt, tmp_path: Path
) -> None:
    words = ("export", "libvirt", web, "--profile", profile, "--define", libvirt.uri, "--pool", "cli")
    plan = imgtool(*words, "--dry-run")
    assert plan.status == 0
    assert "define --validate it-cli.xml" in plan.stdout
    libvirt.virsh("pool-create-as", "cli", "dir", "--target", libvirt.pool)
    try:
        done = imgtool(*words)
        assert (done.status, done.stdout) == (0, f"it-cli is defined on {libvirt.uri}\n")
        assert done.stderr.count("(sent)") == 2
        again = imgtool(*words, "--output", "json").document
        assert [volume["sent"] for volume in again["volumes"]] == [False, False]
        read = imgtool("import", "libvirt", "it-cli", "--connect", libvirt.uri)
        assert read.status == 0
        assert f'file = "{again["volumes"][1]["volume"]}"' in read.stdout
    finally:
        libvirt.remove("it-cli")
        libvirt.virsh("pool-destroy", "cli")
    missing = imgtool("import", "libvirt", "it-cli", "--connect", libvirt.uri)
    assert missing.status == 1
    assert "failed to get domain 'it-cli'" in missing.stderr


def test_an_image_is_served_until_ctrl_c(imgtool: Imgtool, web: Path) -> None:
    plan = imgtool("serve", web, "--dry-run")
    assert plan.status == 0
    assert re.search(r"run +\S*qemu-nbd ", plan.stdout)
    assert imgtool("serve", web, "--socket", "s", "--port", "1").status == 2
    server = subprocess.Popen(
        [sys.executable, "-m", "imgtool", "serve", "--socket", web.parent / "s", web],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    uri = server.stdout.readline().strip()
    info = subprocess.run(["nbdinfo", "--size", uri], stdout=subprocess.PIPE, check=True)
    assert info.stdout == b"4194304\n"
    busy = imgtool("serve", "-w", web)
    assert busy.status == 1
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=30)
    assert server.returncode == 0


def test_a_disk_is_mounted_as_a_file(imgtool: Imgtool, web: Path, tmp_path: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    plan = imgtool("mount", "--raw", web, "disk.raw", "--dry-run", XDG_RUNTIME_DIR=str(tmp_path))
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        assert "/dev/fuse" in plan.stderr
        return
    assert "type=fuse" in plan.stdout
    done = imgtool("mount", "--raw", web, "disk.raw", XDG_RUNTIME_DIR=env["XDG_RUNTIME_DIR"])
    assert (done.status, done.stderr) == (0, "")
    try:
        assert (tmp_path / "disk.raw").stat().st_size == 4 << 20
    finally:
        ended = imgtool("unmount", "disk.raw", "--output", "json", XDG_RUNTIME_DIR=env["XDG_RUNTIME_DIR"])
    assert ended.document["image"] == str(web)
    assert imgtool("unmount", "disk.raw", XDG_RUNTIME_DIR=env["XDG_RUNTIME_DIR"]).status == 1
    assert imgtool("mount", "--raw", web, "disk.raw", XDG_RUNTIME_DIR=env["XDG_RUNTIME_DIR"]).status == 0
    silent = imgtool("unmount", "disk.raw", XDG_RUNTIME_DIR=env["XDG_RUNTIME_DIR"])
    assert (silent.status, silent.stdout, silent.stderr) == (0, "", "")


def test_what_is_wrong_in_a_domains_file_is_said_of_that_file(imgtool: Imgtool, tmp_path: Path) -> None:
    for content in ("", "<domain>", "<a/>", "<!DOCTYPE a><domain/>"):
        (tmp_path / "web.xml").write_text(content)
        done = imgtool("import", "libvirt", "web.xml", "--output", "json")
        assert (done.status, done.error["path"]) == (2, str(tmp_path / "web.xml"))
        assert "web.xml" in done.error["message"]


def test_chains_are_copied_over_ssh(imgtool: Imgtool, web: Path, sshd: SshServer, tmp_path: Path) -> None:
    place = f"{getpass.getuser()}@127.0.0.1:{tmp_path / 'far'}"
    plan = imgtool("sync", *sshd.words, "--dry-run", web, place)
    assert plan.status == 0
    assert "lacks 2 of 2 images" in plan.stdout
    done = imgtool("sync", *sshd.words, web, place)
    assert done.status == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[:2]] == ["sent", "sent"]
    again = imgtool("sync", *sshd.words, "--output", "json", web.parent, place).document
    assert [image["state"] for image in again["images"]] == ["present", "present"]
    assert imgtool("chain", "verify", tmp_path / "far").status == 0
    closed = imgtool("sync", "--port", "1", web, "127.0.0.1:x")
    assert closed.status == 1
    assert "ssh" in closed.stderr
    assert closed.stderr.splitlines()[-1].endswith("-p 1 -- 127.0.0.1")
    assert "\\r" not in closed.stderr
    (tmp_path / "file").touch()
    barred = imgtool("sync", *sshd.words, web, f"{getpass.getuser()}@127.0.0.1:{tmp_path / 'file'}")
    assert (barred.status, "sha256sum" in barred.stderr) == (1, False)
    assert "resumes where it stopped" in barred.stderr
    assert imgtool("sync", web, "nowhere").status == 2


@pytest.mark.parametrize("name", ["libvirt", "libvirt-import", "serve", "mount", "sync"])
def test_their_documents_have_schemas(imgtool: Imgtool, name: str) -> None:
    assert imgtool("schema", name).document["$defs"]
