"""containerDisks: file by file from their layout, and at a registry."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from imgtool.chain.content import digest_of
from imgtool.errors import ImageError, UsageError
from imgtool.publish.containerdisk import ContainerDiskRequest, export_containerdisk
from tests.conftest import Images
from tests.publish.registries import RegistryServer


class Layout:
    """An OCI layout as another program reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
        self.index = json.loads((folder / "index.json").read_bytes())

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        """The bytes of a blob, which must be those of its digest and size."""
        algorithm, _, digits = descriptor["digest"].partition(":")
        assert algorithm == "sha256"
        content: bytes = (self.folder / "blobs" / "sha256" / str(digits)).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digits
        assert len(content) == descriptor["size"]
        return content

    def manifest(self, tag: str) -> dict[str, Any]:
        (found,) = (
            entry
            for entry in self.index["manifests"]
            if entry["annotations"]["org.opencontainers.image.ref.name"] == tag
        )
        return dict(json.loads(self.blob(found)))


def files(layout: Layout, tag: str, target: Path) -> tarfile.TarFile:
    (layer,) = layout.manifest(tag)["layers"]
    target.write_bytes(layout.blob(layer))
    return tarfile.open(target)


@pytest.mark.parametrize(("disk_format", "name"), [("qcow2", "disk.qcow2"), ("raw", "disk.img")])
def test_a_layout_holds_the_disk_and_nothing_else(
    disk_format: Any, name: str, chain: Images, elsewhere: Path
) -> None:
    exported = export_containerdisk(chain / "web.qcow2", layout=elsewhere / "layout", disk_format=disk_format)
    layout = Layout(elsewhere / "layout")
    assert exported.disk == f"/disk/{name}"
    manifest = layout.manifest("latest")
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
    config = json.loads(layout.blob(manifest["config"]))
    assert config["os"] == "linux"
    assert config["rootfs"] == {"type": "layers", "diff_ids": [layer["digest"]]}
    with files(layout, "latest", elsewhere / "layer.tar") as tar:
        folder, disk = tar.getmembers()
        for entry in (folder, disk):
            assert (entry.uid, entry.gid, entry.mtime) == (107, 107, 0)
        assert (folder.name, folder.isdir()) == ("disk", True)
        assert (disk.name, disk.isreg(), disk.mode) == (f"disk/{name}", True, 0o440)
        content = tar.extractfile(disk)
        assert content is not None
        (elsewhere / name).write_bytes(content.read())
    info = json.loads(chain.qemu_img("info", "--output=json", elsewhere / name))
    assert info["format"] == disk_format
    assert "backing-filename" not in info
    chain.qemu_img("compare", elsewhere / name, chain / "web.qcow2")
    assert exported.content_digest == digest_of(chain / "web.qcow2")
    referenced = {layer["digest"], manifest["config"]["digest"], layout.index["manifests"][0]["digest"]}
    assert {f"sha256:{blob}" for blob in os.listdir(elsewhere / "layout" / "blobs" / "sha256")} == referenced


def test_the_labels_of_its_recipe_are_annotations(chain: Images, elsewhere: Path) -> None:
    web = chain / "web.qcow2"
    built = {
        "size": web.stat().st_size,
        "content": digest_of(web),
        "recipe-sha256": "ab" * 32,
        "labels": {"org.opencontainers.image.version": "1.4"},
    }
    Path(f"{web}.manifest.json").write_text(json.dumps(built))
    export_containerdisk(web, layout=elsewhere / "layout")
    annotations = Layout(elsewhere / "layout").manifest("latest")["annotations"]
    assert annotations["org.opencontainers.image.version"] == "1.4"


def test_the_same_disk_is_the_same_image(chain: Images, elsewhere: Path) -> None:
    first = export_containerdisk(chain / "web.qcow2", layout=elsewhere / "one", compress=True)
    os.utime(chain / "web.qcow2", (1, 1))
    second = export_containerdisk(chain / "web.qcow2", layout=elsewhere / "two", compress=True, force=True)
    assert first.digest == second.digest


def test_a_layout_holds_several_images(chain: Images, elsewhere: Path) -> None:
    for name in ("web", "db"):
        export_containerdisk(chain / f"{name}.qcow2", layout=elsewhere / "layout", tag=name)
    web = Layout(elsewhere / "layout").manifest("web")
    export_containerdisk(chain / "db.qcow2", layout=elsewhere / "layout", tag="web")
    layout = Layout(elsewhere / "layout")
    assert len(layout.index["manifests"]) == 2
    assert layout.manifest("web") != web
    assert layout.manifest("web") == layout.manifest("db")


def test_skopeo_takes_it_for_an_image(chain: Images, elsewhere: Path, registry: RegistryServer) -> None:
    reference = f"{registry.host}/disks/web:1"
    exported = export_containerdisk(chain / "web.qcow2", reference, architecture="arm64")
    seen = json.loads(
        subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", f"docker://{reference}"], stdout=subprocess.PIPE, check=True
        ).stdout
    )
    assert (seen["Digest"], seen["Architecture"], seen["Os"]) == (exported.digest, "arm64", "linux")
    copied = elsewhere / "copied"
    source = ["--src-tls-verify=false", f"docker://{reference}", f"oci:{copied}:1"]
    subprocess.run(["skopeo", "copy", "--quiet", *source], stdout=subprocess.DEVNULL, check=True)
    with files(Layout(copied), "1", elsewhere / "layer.tar") as tar:
        assert tar.getnames() == ["disk", "disk/disk.qcow2"]


def test_the_same_layer_is_not_pushed_twice(chain: Images, registry: RegistryServer) -> None:
    export_containerdisk(chain / "db.qcow2", f"{registry.host}/disks/db:1")
    since = len(registry.log)
    export_containerdisk(chain / "db.qcow2", f"{registry.host}/disks/db:2")
    assert "PATCH uploads" not in registry.requests(since)


def test_a_folder_that_is_no_layout_is_left_alone(chain: Images, elsewhere: Path) -> None:
    (elsewhere / "mine").write_bytes(b"mine")
    with pytest.raises(ImageError, match="no OCI layout"):
        export_containerdisk(chain / "web.qcow2", layout=elsewhere)
    assert os.listdir(elsewhere) == ["mine"]


def test_where_it_goes_is_said_once(chain: Images, elsewhere: Path) -> None:
    image = chain / "web.qcow2"
    with pytest.raises(UsageError, match="to a registry or into a folder"):
        ContainerDiskRequest(image)
    with pytest.raises(UsageError, match="to a registry or into a folder"):
        ContainerDiskRequest(image, "localhost:5000/web", layout=elsewhere)
    with pytest.raises(UsageError, match="--layout"):
        ContainerDiskRequest(image, "localhost:5000/web", tag="1")
    with pytest.raises(UsageError, match="compressed"):
        ContainerDiskRequest(image, layout=elsewhere, disk_format="raw", compress=True)
    with pytest.raises(UsageError, match="digest"):
        ContainerDiskRequest(image, f"localhost:5000/web@sha256:{'0' * 64}")
