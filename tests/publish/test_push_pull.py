"""Images to a registry and back."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imgtool.chain.content import digest_of
from imgtool.chain.verify import verify
from imgtool.chain.walk import guard, walk
from imgtool.errors import ImageExistsError, ImageNotFoundError, PolicyError, RefusedError, UsageError
from imgtool.operations.overlay import new_overlay
from imgtool.publish.oci.connection import DEFAULT
from imgtool.publish.oci.errors import DigestError, RegistryError, RegistryNotFoundError
from imgtool.publish.oci.layers import layer_name
from imgtool.publish.oci.pull import PullRequest, pull
from imgtool.publish.oci.push import PushRequest, push
from imgtool.publish.oci.reference import parse_reference
from imgtool.publish.oci.values import (
    ARTIFACT,
    FORMER_CONFIG,
    IMAGE_CONFIG,
    LAYER,
    MANIFEST,
    ImageConfig,
    Manifest,
    describe,
)
from tests.conftest import Images
from tests.files import block_device, state_of
from tests.publish.conftest import Forget
from tests.publish.registries import RegistryServer


@pytest.fixture
def repository(registry: RegistryServer, request: pytest.FixtureRequest) -> str:
    """A repository that no other test pushes to."""
    name = request.node.name.partition("[")[0].removeprefix("test_").replace("_", "-")[:60].strip("-")
    return f"{registry.host}/tests/{name}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_chain_comes_back_as_it_was(chain: Images, repository: str, elsewhere: Path, forget: Forget) -> None:
    pushed = push(chain / "web.qcow2", f"{repository}:1")
    assert [layer.state for layer in pushed.layers] == ["uploaded", "uploaded"]
    forget()
    pulled = pull(f"{repository}:1", elsewhere / "mine.qcow2", deep=True)
    assert pulled.digest == pushed.digest
    assert [layer.state for layer in pulled.layers] == ["fetched", "fetched"]
    assert digest_of(elsewhere / "mine.qcow2") == digest_of(chain / "web.qcow2") == pulled.content_digest
    chain.qemu_img("compare", elsewhere / "mine.qcow2", chain / "web.qcow2")
    short = pushed.layers[0].digest.partition(":")[2][:12]
    assert names(elsewhere) == [f"base-{short}.qcow2", "mine.qcow2"]
    assert [image.path for image in guard(elsewhere / "mine.qcow2")] == [
        str(elsewhere / name) for name in ("mine.qcow2", f"base-{short}.qcow2")
    ]


def test_what_was_pulled_is_without_defects_and_remembers_its_base(
    chain: Images, repository: str, elsewhere: Path, forget: Forget
) -> None:
    push(chain / "web.qcow2", repository)
    forget()
    pulled = pull(repository, elsewhere)
    assert pulled.path == str(elsewhere / f"{repository.rpartition('/')[2]}.qcow2")
    assert [image.findings for image in walk(pulled.path)] == [(), ()]
    base = Path(pulled.layers[0].path)
    assert stat.S_IMODE(base.stat().st_mode) & 0o222 == 0
    assert stat.S_IMODE(Path(pulled.path).stat().st_mode) & 0o200
    base.chmod(0o644)
    chain.run_io(base, "write -P 9 0 64k")
    with pytest.raises(RefusedError, match="was written after"):
        push(pulled.path, repository)


def test_a_block_device_is_pushed_whole_and_as_it_is_now(
    images: Images, repository: str, elsewhere: Path, forget: Forget
) -> None:
    base = images.base("base.raw", "2M", format="raw")
    for byte in (7, 8):
        images.run_io(base, f"write -P {byte} 0 1M", format="raw")
        with block_device(base) as device:
            new_overlay(device, images / f"{byte}.qcow2", base_format="raw")
            push(images / f"{byte}.qcow2", f"{repository}:{byte}")
        forget()
        pulled = pull(f"{repository}:{byte}", elsewhere / f"{byte}.qcow2")
        assert Path(pulled.layers[0].path).read_bytes() == base.read_bytes()


def test_a_second_push_sends_nothing(chain: Images, registry: RegistryServer, repository: str) -> None:
    first = push(chain / "web.qcow2", repository)
    since = len(registry.log)
    second = push(chain / "web.qcow2", repository)
    assert (second.digest, second.uploaded_bytes) == (first.digest, 0)
    assert [layer.state for layer in second.layers] == ["present", "present"]
    seen = registry.requests(since)
    assert not {"POST uploads", "PATCH uploads", "PUT uploads"} & seen.keys()


def test_a_second_image_on_the_base_sends_its_own_layer_only(
    chain: Images, registry: RegistryServer, repository: str, forget: Forget
) -> None:
    push(chain / "web.qcow2", f"{repository}:web")
    forget()  # the registry is asked, not this host's memory
    since = len(registry.log)
    pushed = push(chain / "db.qcow2", f"{repository}:db")
    assert [layer.state for layer in pushed.layers] == ["present", "uploaded"]
    assert pushed.uploaded_bytes == (chain / "db.qcow2").stat().st_size
    seen = registry.requests(since)
    assert seen["PUT uploads"] == 2, "its layer and its config"
    assert seen["PATCH uploads"] == 2


def test_a_base_that_another_repository_has_is_not_sent_to_this_one(
    chain: Images, registry: RegistryServer, repository: str
) -> None:
    push(chain / "web.qcow2", f"{repository}/web")
    since = len(registry.log)
    pushed = push(chain / "db.qcow2", f"{repository}/db")
    assert [layer.state for layer in pushed.layers] == ["mounted", "uploaded"]
    assert registry.requests(since)["PATCH uploads"] == 2, "its layer and its config"


def test_the_same_image_pushed_from_another_place_is_the_same(
    chain: Images, repository: str, elsewhere: Path, forget: Forget
) -> None:
    first = push(chain / "web.qcow2", repository)
    (elsewhere / "deep").mkdir()
    shutil.copy(chain / "base.qcow2", elsewhere / "deep" / "base.qcow2")
    shutil.copy(chain / "web.qcow2", elsewhere / "web.qcow2")
    Images(elsewhere).rebase("web.qcow2", "deep/base.qcow2")
    forget()
    second = push(elsewhere / "web.qcow2", repository)
    assert (second.digest, second.uploaded_bytes) == (first.digest, 0)


def test_a_pull_fetches_only_what_is_missing(
    chain: Images, registry: RegistryServer, repository: str, elsewhere: Path, forget: Forget
) -> None:
    for name in ("web", "db"):
        push(chain / f"{name}.qcow2", f"{repository}:{name}")
    forget()
    pull(f"{repository}:web", elsewhere / "web.qcow2")
    (base,) = (path for path in elsewhere.iterdir() if path.name.startswith("base"))
    base.rename(elsewhere / "renamed.bin")
    (elsewhere / "web.qcow2").unlink()
    forget()
    since = len(registry.log)
    pulled = pull(f"{repository}:db", elsewhere / "db.qcow2")
    assert [layer.state for layer in pulled.layers] == ["present", "fetched"]
    assert pulled.fetched_bytes == (chain / "db.qcow2").stat().st_size
    assert pulled.layers[0].path == str(elsewhere / "renamed.bin")
    assert registry.requests(since)["GET blobs"] == 2, "its layer and its config"
    chain.qemu_img("compare", elsewhere / "db.qcow2", chain / "db.qcow2")


def test_a_layer_that_lies_elsewhere_on_the_host_is_copied(
    chain: Images, registry: RegistryServer, repository: str, elsewhere: Path
) -> None:
    push(chain / "web.qcow2", repository)
    since = len(registry.log)
    pulled = pull(repository, elsewhere / "web.qcow2")
    assert [layer.state for layer in pulled.layers] == ["copied", "copied"]
    assert registry.requests(since)["GET blobs"] == 1, "its config"
    chain.qemu_img("compare", elsewhere / "web.qcow2", chain / "web.qcow2")


def test_a_layer_that_was_changed_since_is_fetched_instead(chain: Images, repository: str, elsewhere: Path) -> None:
    push(chain / "web.qcow2", repository)
    chain.run_io(chain / "web.qcow2", "write -P 8 1M 4k")
    pulled = pull(repository, elsewhere / "web.qcow2")
    assert [layer.state for layer in pulled.layers] == ["copied", "fetched"]


def test_pulling_again_changes_nothing(chain: Images, repository: str, elsewhere: Path) -> None:
    push(chain / "web.qcow2", repository)
    pull(repository, elsewhere / "web.qcow2")
    before = {path.name: state_of(path) for path in elsewhere.iterdir()}
    again = pull(repository, elsewhere / "web.qcow2")
    assert [layer.state for layer in again.layers] == ["present", "present"]
    assert {path.name: state_of(path) for path in elsewhere.iterdir()} == before


def test_another_file_of_that_name_is_not_replaced(chain: Images, repository: str, elsewhere: Path) -> None:
    push(chain / "web.qcow2", repository)
    (elsewhere / "web.qcow2").write_bytes(b"mine")
    with pytest.raises(ImageExistsError, match="already exists"):
        pull(repository, elsewhere / "web.qcow2")
    assert names(elsewhere) == ["web.qcow2"]
    assert (elsewhere / "web.qcow2").read_bytes() == b"mine"


def test_a_file_that_looks_like_the_base_is_not_taken_for_it(
    chain: Images, repository: str, elsewhere: Path, forget: Forget
) -> None:
    pushed = push(chain / "web.qcow2", repository)
    short = pushed.layers[0].digest.partition(":")[2][:12]
    content = bytearray((chain / "base.qcow2").read_bytes())
    content[-1] ^= 1
    (elsewhere / f"base-{short}.qcow2").write_bytes(content)
    forget()
    pulled = pull(repository, elsewhere / "web.qcow2")
    assert pulled.layers[0].path == str(elsewhere / f"base-{short}-2.qcow2")
    assert (elsewhere / f"base-{short}.qcow2").read_bytes() == content
    chain.qemu_img("compare", elsewhere / "web.qcow2", chain / "web.qcow2")


def test_a_flattened_image_is_one_layer(chain: Images, repository: str, elsewhere: Path, forget: Forget) -> None:
    pushed = push(chain / "web.qcow2", repository, flatten=True, compress=True)
    assert len(pushed.layers) == 1
    assert push(chain / "web.qcow2", repository, flatten=True, compress=True).digest == pushed.digest
    forget()
    pulled = pull(repository, elsewhere / "web.qcow2", deep=True)
    assert names(elsewhere) == ["web.qcow2"]
    assert pulled.content_digest == digest_of(chain / "web.qcow2")


def test_raw_bases_are_layers_and_keep_their_holes(
    chain: Images, repository: str, elsewhere: Path, forget: Forget
) -> None:
    chain.base("disk.img", "64M", format="raw")
    chain.run_io(chain / "disk.img", "write -P 4 32M 1M", format="raw")
    new_overlay(chain / "disk.img", chain / "on-raw.qcow2")
    push(chain / "on-raw.qcow2", repository)
    forget()
    pulled = pull(repository, elsewhere / "on-raw.qcow2")
    base = Path(pulled.layers[0].path)
    assert base.suffix == ".raw"
    assert base.read_bytes() == (chain / "disk.img").read_bytes()
    assert base.stat().st_blocks * 512 < 4 << 20
    chain.qemu_img("compare", elsewhere / "on-raw.qcow2", chain / "on-raw.qcow2")


def test_a_reference_with_a_digest_is_that_image_for_good(
    chain: Images, repository: str, elsewhere: Path, forget: Forget
) -> None:
    first = push(chain / "web.qcow2", f"{repository}:1")
    chain.run_io(chain / "web.qcow2", "write -P 8 1M 4k")
    second = push(chain / "web.qcow2", f"{repository}:1")
    assert first.digest != second.digest
    forget()
    assert pull(f"{repository}@{first.digest}", elsewhere / "first.qcow2").digest == first.digest
    assert pull(f"{repository}:1", elsewhere / "second.qcow2").digest == second.digest
    assert digest_of(elsewhere / "first.qcow2") == first.content_digest


def test_annotations_say_what_the_image_is(chain: Images, registry: RegistryServer, repository: str) -> None:
    pushed = push(chain / "web.qcow2", repository, recipe_digest="sha256:abc", annotations={"org.example.team": "a"})
    manifest = registry_manifest(registry, pushed.digest)
    assert manifest["mediaType"] == MANIFEST
    assert manifest["artifactType"] == ARTIFACT
    assert manifest["config"]["mediaType"] == IMAGE_CONFIG
    content = digest_of(chain / "web.qcow2")
    assert manifest["annotations"] == {
        "io.imgtool.format": "qcow2",
        "io.imgtool.virtual-size": str(16 << 20),
        "io.imgtool.content-digest": content,
        "io.imgtool.recipe-digest": "sha256:abc",
        "org.example.team": "a",
    }
    base, web = manifest["layers"]
    assert {base["mediaType"], web["mediaType"]} == {f"{LAYER}qcow2"}
    assert web["annotations"] == {
        "io.imgtool.format": "qcow2",
        "io.imgtool.virtual-size": str(16 << 20),
        "io.imgtool.content-digest": content,
        "io.imgtool.parent-digest": base["digest"],
        "org.opencontainers.image.title": "web.qcow2",
    }
    assert base["annotations"]["io.imgtool.content-digest"] == digest_of(chain / "base.qcow2")


def test_what_a_recipe_says_of_its_image_goes_with_it(
    chain: Images, registry: RegistryServer, repository: str
) -> None:
    """Unless the manifest is that of another disk: of an older build, or of an image that was written to."""
    web = chain / "web.qcow2"
    built = {
        "size": web.stat().st_size,
        "content": digest_of(web),
        "recipe-sha256": "ab" * 32,
        "labels": {"org.opencontainers.image.version": "1.4", "io.imgtool.format": "mine"},
        "checks": [],
    }
    beside = Path(f"{web}.manifest.json")
    beside.write_text(json.dumps(built))
    own = {
        "io.imgtool.format": "qcow2",
        "io.imgtool.virtual-size": str(16 << 20),
        "io.imgtool.content-digest": built["content"],
        "io.imgtool.recipe-digest": f"sha256:{'ab' * 32}",
    }
    said = {"org.example.team": "a", "org.opencontainers.image.version": "1.5"}
    manifest = registry_manifest(registry, push(web, repository, annotations=said).digest)
    assert manifest["annotations"] == {**own, **said}
    labels = json.loads(registry.blob_file(manifest["config"]["digest"]).read_bytes())["config"]["Labels"]
    assert labels == {**own, "org.opencontainers.image.version": "1.4"}
    for other in ({**built, "size": 1}, {**built, "content": "imgtool1:0"}, {}):
        beside.write_text(json.dumps(other))
        annotations = registry_manifest(registry, push(web, repository).digest)["annotations"]
        assert sorted(annotations) == ["io.imgtool.content-digest", "io.imgtool.format", "io.imgtool.virtual-size"]


def registry_manifest(registry: RegistryServer, digest: str) -> Any:
    return json.loads(registry.blob_file(digest).read_bytes())


def test_skopeo_reads_and_copies_what_was_pushed(
    chain: Images, registry: RegistryServer, repository: str, elsewhere: Path
) -> None:
    pushed = push(chain / "web.qcow2", f"{repository}:1")
    source = f"docker://{repository}:1"
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", source], stdout=subprocess.PIPE, check=True
    ).stdout
    assert raw == registry.blob_file(pushed.digest).read_bytes()
    plain = subprocess.run(["skopeo", "inspect", "--tls-verify=false", source], stdout=subprocess.PIPE, check=True)
    shown = json.loads(plain.stdout)
    assert shown["Digest"] == pushed.digest
    assert shown["Layers"] == [layer.digest for layer in pushed.layers]
    assert shown["Labels"] == json.loads(raw)["annotations"]
    assert shown["Labels"]["io.imgtool.content-digest"] == pushed.content_digest
    config = subprocess.run(
        ["skopeo", "inspect", "--config", "--raw", "--tls-verify=false", source], stdout=subprocess.PIPE, check=True
    ).stdout
    assert config == registry.blob_file(json.loads(raw)["config"]["digest"]).read_bytes()
    layout = elsewhere / "layout"
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--src-tls-verify=false", source, f"oci:{layout}:1"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    top = pushed.layers[-1].digest.partition(":")[2]
    chain.qemu_img("compare", layout / "blobs" / "sha256" / top, chain / "web.qcow2")
    copied = f"{registry.host}/tests/copied:2"
    subprocess.run(
        [
            "skopeo",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            source,
            f"docker://{copied}",
        ],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert pull(copied, elsewhere / "copied.qcow2").digest == pushed.digest


def test_a_wrong_byte_is_caught(
    chain: Images, registry: RegistryServer, repository: str, elsewhere: Path, forget: Forget
) -> None:
    chain.run_io(chain / "web.qcow2", "write -P 99 2M 4k")  # a layer no other test has
    pushed = push(chain / "web.qcow2", repository)
    file = registry.blob_file(pushed.layers[-1].digest)
    content = file.read_bytes()
    spoilt = bytearray(content)
    spoilt[len(spoilt) // 2] ^= 1
    forget()
    file.write_bytes(spoilt)
    with pytest.raises(DigestError, match="other bytes than"):
        pull(repository, elsewhere / "web.qcow2")
    assert not (elsewhere / "web.qcow2").exists()
    file.write_bytes(content)
    assert pull(repository, elsewhere / "web.qcow2").content_digest == digest_of(elsewhere / "web.qcow2")
    assert len(names(elsewhere)) == 2, "nothing unfinished is left"


@pytest.mark.parametrize("which", ["manifest", "config"])
def test_a_spoilt_document_is_caught(
    which: str, chain: Images, registry: RegistryServer, repository: str, elsewhere: Path
) -> None:
    pushed = push(chain / "base.qcow2", repository, annotations={"test": which})
    manifest = registry.blob_file(pushed.digest)
    file = manifest
    if which == "config":
        file = registry.blob_file(json.loads(manifest.read_bytes())["config"]["digest"])
    content = file.read_bytes()
    file.write_bytes(content.replace(b"qcow2", b"qcow3"))
    try:
        with pytest.raises(RegistryError):
            pull(f"{repository}@{pushed.digest}", elsewhere / "web.qcow2")
    finally:
        file.write_bytes(content)
    assert names(elsewhere) == []


def push_by_hand(reference: str, layers: list[tuple[bytes, dict[str, object]]], **config: object) -> None:
    """Pushes what `imgtool push` made formerly, or would not make: blobs, and what the config says of each."""
    from imgtool.publish.oci.blob import Blob
    from imgtool.publish.oci.known import Known
    from imgtool.publish.oci.transfer import upload
    from imgtool.publish.oci.values import Descriptor, digest_of

    registry = DEFAULT.open(parse_reference(reference))
    descriptors, entries = [], []
    for content, said in layers:
        digest = digest_of(content)
        upload(registry, digest, Blob(content), Known(), lambda _: None)
        entry = {"digest": digest, "format": "qcow2", "virtual-size": 16 << 20, **said}
        entries.append(entry)
        descriptors.append(Descriptor(media_type=f"{LAYER}{entry['format']}", digest=digest, size=len(content)))
    document = {"schema": 1, "format": "qcow2", "virtual-size": 16 << 20, "layers": entries, **config}
    content, described = describe(document, FORMER_CONFIG)
    upload(registry, described.digest, Blob(content), Known(), lambda _: None)
    manifest = Manifest(schema_version=2, media_type=MANIFEST, config=described, layers=tuple(descriptors))
    content, _ = describe(manifest, MANIFEST)
    registry.put_manifest(content, MANIFEST, registry.reference.version)


def test_images_of_the_former_form_are_pulled(chain: Images, repository: str, elsewhere: Path) -> None:
    push_by_hand(repository, [((chain / "base.qcow2").read_bytes(), {})])
    pulled = pull(repository, elsewhere / "base.qcow2")
    assert [layer.state for layer in pulled.layers] == ["fetched"]
    assert (elsewhere / "base.qcow2").read_bytes() == (chain / "base.qcow2").read_bytes()


def test_the_oras_client_fetches_the_files(chain: Images, repository: str, elsewhere: Path) -> None:
    push(chain / "web.qcow2", repository)
    from oras.client import OrasClient

    client = OrasClient(hostname=repository.partition("/")[0], insecure=True)
    fetched = client.pull(target=f"{repository}:latest", outdir=str(elsewhere))
    assert [os.path.basename(path) for path in fetched] == ["base.qcow2", "web.qcow2"]
    assert (elsewhere / "base.qcow2").read_bytes() == (chain / "base.qcow2").read_bytes()


def test_a_layer_that_refers_to_a_file_of_ours_is_refused(chain: Images, repository: str, elsewhere: Path) -> None:
    chain.overlay("thief.qcow2", "/etc/passwd", format="raw", size="16M")
    push_by_hand(repository, [((chain / "thief.qcow2").read_bytes(), {})])
    with pytest.raises(RegistryError, match="is not what the image says"):
        pull(repository, elsewhere / "web.qcow2")
    assert not (elsewhere / "web.qcow2").exists()


def test_a_layer_with_a_data_file_is_refused(chain: Images, repository: str, elsewhere: Path) -> None:
    (chain / "outside.raw").write_bytes(b"")
    chain.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=outside.raw", "with-data.qcow2", "16M")
    push_by_hand(repository, [((chain / "with-data.qcow2").read_bytes(), {})])
    with pytest.raises(RegistryError, match="is not what the image says"):
        pull(repository, elsewhere / "web.qcow2")


def test_an_overlay_of_another_layer_than_the_image_says_is_refused(
    chain: Images, repository: str, elsewhere: Path
) -> None:
    base = (chain / "base.qcow2").read_bytes()
    other = layer_name(f"sha256:{'0' * 64}").decode()
    chain.overlay("web.qcow2", other, size="16M")
    digest = f"sha256:{__import__('hashlib').sha256(base).hexdigest()}"
    push_by_hand(repository, [(base, {}), ((chain / "web.qcow2").read_bytes(), {"parent": digest})])
    with pytest.raises(RegistryError, match="is not what the image says"):
        pull(repository, elsewhere / "web.qcow2")
    assert not (elsewhere / "web.qcow2").exists()


@pytest.mark.parametrize(
    "said", [{"format": "raw"}, {"virtual-size": 1}, {"parent": f"sha256:{'0' * 64}"}, {"format": "../../x"}]
)
def test_documents_that_contradict_themselves_are_refused(
    said: dict[str, object], chain: Images, repository: str, elsewhere: Path
) -> None:
    push_by_hand(repository, [((chain / "base.qcow2").read_bytes(), said)])
    with pytest.raises(RegistryError, match="contradicts itself"):
        pull(repository, elsewhere / "web.qcow2")
    assert names(elsewhere) == []


def test_a_hostile_title_is_no_path(chain: Images, repository: str, elsewhere: Path, forget: Forget) -> None:
    nasty = chain / "..\n; rm -rf $HOME .qcow2"
    (chain / "base.qcow2").rename(nasty)
    chain.overlay("web.qcow2", "./" + nasty.name)
    push(chain / "web.qcow2", repository)
    forget()
    pulled = pull(repository, elsewhere / "web.qcow2")
    base = Path(pulled.layers[0].path)
    assert base.parent == elsewhere
    assert base.name.startswith("n-rm-rf-HOME-")


def test_a_container_image_is_no_image_of_ours(repository: str, elsewhere: Path) -> None:
    registry = DEFAULT.open(parse_reference(repository))
    content, described = describe({}, "application/vnd.oci.image.config.v1+json")
    from imgtool.publish.oci.blob import Blob
    from imgtool.publish.oci.known import Known
    from imgtool.publish.oci.transfer import upload

    upload(registry, described.digest, Blob(content), Known(), lambda _: None)
    manifest = Manifest(schema_version=2, media_type=MANIFEST, config=described, layers=())
    document, _ = describe(manifest, MANIFEST)
    registry.put_manifest(document, MANIFEST, "latest")
    with pytest.raises(RegistryError, match="no image of imgtool's"):
        pull(repository, elsewhere)


def test_what_is_not_there_is_said(registry: RegistryServer, elsewhere: Path) -> None:
    with pytest.raises(RegistryNotFoundError, match="no manifest"):
        pull(f"{registry.host}/nothing:1", elsewhere)
    with pytest.raises(ImageNotFoundError, match="cannot be made"):
        pull(f"{registry.host}/nothing:1", elsewhere / "no" / "folder.qcow2")
    with pytest.raises(RegistryError, match="connection broke") as caught:
        pull("127.0.0.1:1/nothing:1", elsewhere)
    assert "is there a registry at" in (caught.value.hint or "")


def test_an_image_that_reads_what_it_must_not_is_not_published(
    chain: Images, repository: str, registry: RegistryServer, elsewhere: Path
) -> None:
    (elsewhere / "secret").write_bytes(bytes(1 << 20))
    chain.overlay("thief.qcow2", str(elsewhere / "secret"), format="raw", size="1M")
    since = len(registry.log)
    with pytest.raises(PolicyError):
        push(chain / "thief.qcow2", repository)
    assert not registry.requests(since)


def test_a_reference_to_push_to_has_no_digest(chain: Images, repository: str) -> None:
    with pytest.raises(UsageError, match="gets by being pushed"):
        PushRequest(chain / "web.qcow2", f"{repository}@sha256:{'0' * 64}")
    with pytest.raises(UsageError, match="nothing compresses"):
        PushRequest(chain / "web.qcow2", repository, compress=True)


def test_a_plan_changes_nothing(chain: Images, repository: str, registry: RegistryServer, elsewhere: Path) -> None:
    since = len(registry.log)
    plan = PushRequest(chain / "web.qcow2", repository).plan("qemu-img")
    assert [(image.path, image.action) for image in plan.images] == [
        (str(chain / "web.qcow2"), "read"),
        (str(chain / "base.qcow2"), "read"),
    ]
    assert not registry.requests(since)
    flat = PushRequest(chain / "web.qcow2", repository, flatten=True).plan("qemu-img")
    assert flat.commands[0][:2] == ("qemu-img", "convert")
    push(chain / "web.qcow2", repository)
    pulling = PullRequest(repository, elsewhere / "web.qcow2").plan()
    assert [(os.path.basename(image.path)[:4], image.action) for image in pulling.images] == [
        ("base", "create"),
        ("web.", "create"),
    ]
    assert names(elsewhere) == []


def test_a_config_is_the_same_wherever_it_is_made(chain: Images, registry: RegistryServer, repository: str) -> None:
    pushed = push(chain / "web.qcow2", repository)
    manifest = registry_manifest(registry, pushed.digest)
    content = registry.blob_file(manifest["config"]["digest"]).read_bytes()
    import msgspec

    document = msgspec.json.decode(content, type=ImageConfig)
    config = document.image
    assert config is not None
    assert document.rootfs.diff_ids == tuple(layer.digest for layer in pushed.layers)
    assert [layer.digest for layer in config.layers] == [layer.digest for layer in pushed.layers]
    assert config.content_digest == pushed.content_digest
    assert str(chain.directory).encode() not in content


def test_verify_finds_nothing_wrong_with_a_pulled_folder(chain: Images, repository: str, elsewhere: Path) -> None:
    for name in ("web", "db"):
        push(chain / f"{name}.qcow2", f"{repository}:{name}")
        pull(f"{repository}:{name}", elsewhere / f"{name}.qcow2")
    found = verify([elsewhere])
    assert (found.images, found.defects) == (3, ())
