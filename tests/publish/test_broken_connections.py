"""Connections that break, wherever they do, and what is there when it is tried again."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.chain.content import digest_of
from imgtool.errors import ImageInUseError
from imgtool.publish.oci import transfer
from imgtool.publish.oci.connection import Connection
from imgtool.publish.oci.errors import RegistryError
from imgtool.publish.oci.pull import PullRequest, pull
from imgtool.publish.oci.push import push
from imgtool.publish.oci.registry import Registry, Session
from tests.conftest import Images
from tests.publish.conftest import Forget
from tests.publish.registries import Proxy, RegistryServer, spoiling_proxy

PLACES = 10
BYTES = 3 << 20
"""What goes over the wire for the base and one overlay, at least."""

_DOCUMENTS = 32 << 10
"""Bytes of manifests, configs, and HTTP's own."""

ONCE = Connection(retries=0, jobs=2)


@pytest.fixture
def proxy(registry: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(transfer, "CHUNK", 256 << 10)
    with spoiling_proxy(registry) as proxy:
        yield proxy


def places(seed: int) -> list[int]:
    """Ten places all over a transfer, the first among its first requests."""
    chosen = random.Random(seed)
    return [chosen.randrange(200, 2000), *(chosen.randrange(2000, BYTES) for _ in range(PLACES - 1))]


@pytest.fixture
def random_chain(images: Images) -> Images:
    """A chain that no other test pushes: about 2.5 MiB and 1 MiB."""
    images.base("base.qcow2", "16M")
    images.overlay("web.qcow2", "base.qcow2")
    noise = images / "noise"
    for name, size in (("base", 5 << 19), ("web", 1 << 20)):
        noise.write_bytes(os.urandom(size))
        images.run_io(images / f"{name}.qcow2", f"write -s {noise} 1M {size}")
    return images


@pytest.mark.parametrize("place", range(PLACES))
def test_a_push_that_was_cut_goes_on_when_it_is_repeated(
    place: int, random_chain: Images, registry: RegistryServer, proxy: Proxy, elsewhere: Path, forget: Forget
) -> None:
    reference = f"{proxy.host}/cut-push/{place}:1"
    proxy.cut_after = places(14)[place]
    with contextlib.suppress(RegistryError):  # where nothing was lost it goes on
        push(random_chain / "web.qcow2", reference, connection=ONCE)
    assert proxy.cuts == 1
    pushed = push(random_chain / "web.qcow2", reference, connection=ONCE)
    assert proxy.cuts == 1
    forget()
    pulled = pull(reference.replace(proxy.host, registry.host), elsewhere / "web.qcow2", deep=True)
    assert pulled.digest == pushed.digest
    random_chain.qemu_img("compare", elsewhere / "web.qcow2", random_chain / "web.qcow2")


@pytest.mark.parametrize("place", range(PLACES))
def test_a_pull_that_was_cut_goes_on_when_it_is_repeated(
    place: int, random_chain: Images, registry: RegistryServer, proxy: Proxy, elsewhere: Path, forget: Forget
) -> None:
    pushed = push(random_chain / "web.qcow2", f"{registry.host}/cut-pull/{place}:1")
    forget()
    reference = f"{proxy.host}/cut-pull/{place}:1"
    proxy.cut_after = places(15)[place]
    with contextlib.suppress(RegistryError):
        pull(reference, elsewhere / "web.qcow2", connection=ONCE)
    assert proxy.cuts == 1
    came, passed = sum(path.stat().st_size for path in elsewhere.iterdir()), proxy.passed
    pulled = pull(reference, elsewhere / "web.qcow2", connection=ONCE, deep=True)
    total = sum(layer.size for layer in pushed.layers)
    assert proxy.passed - passed < total - came + _DOCUMENTS, "what had come was fetched again"
    assert pulled.digest == pushed.digest
    assert len(os.listdir(elsewhere)) == 2
    random_chain.qemu_img("compare", elsewhere / "web.qcow2", random_chain / "web.qcow2")


def test_a_push_that_was_stopped_between_two_chunks_sends_the_rest_only(
    random_chain: Images, registry: RegistryServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{registry.host}/stopped-push:1"
    real = Registry.append
    sent: list[int] = []

    def counted(self: Registry, session: Session, data: bytes) -> Session:
        if len(sent) == 6:
            raise KeyboardInterrupt
        sent.append(len(data))
        return real(self, session, data)

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "append", counted)
        with pytest.raises(KeyboardInterrupt):
            push(random_chain / "web.qcow2", reference, connection=Connection(jobs=1))
    sent.clear()
    since = len(registry.log)
    pushed = push(random_chain / "web.qcow2", reference, connection=Connection(jobs=1))
    chunks = sum(-(-layer.size // transfer.CHUNK) for layer in pushed.layers)
    assert registry.requests(since)["PATCH uploads"] == chunks - 6 + 1, "the rest, and the config"
    assert registry.blob_file(pushed.layers[0].digest).read_bytes() == (random_chain / "base.qcow2").read_bytes()


def test_broken_connections_are_gone_on_with_by_themselves(
    random_chain: Images, proxy: Proxy, elsewhere: Path, forget: Forget
) -> None:
    proxy.cut_after = 700 << 10
    pushed = push(random_chain / "web.qcow2", f"{proxy.host}/by-itself:1")
    assert proxy.cuts == 1
    forget()
    proxy.cut_after = proxy.passed + (700 << 10)
    pulled = pull(f"{proxy.host}/by-itself:1", elsewhere / "web.qcow2")
    assert proxy.cuts == 2
    assert pulled.digest == pushed.digest
    assert digest_of(elsewhere / "web.qcow2") == pushed.content_digest


def test_a_half_that_is_not_what_it_should_be_is_fetched_anew(
    random_chain: Images, registry: RegistryServer, proxy: Proxy, elsewhere: Path, forget: Forget
) -> None:
    push(random_chain / "web.qcow2", f"{registry.host}/half:1")
    forget()
    proxy.cut_after = 2 << 20
    with pytest.raises(RegistryError):
        pull(f"{proxy.host}/half:1", elsewhere / "web.qcow2", connection=Connection(retries=0, jobs=1))
    parts = [path for path in elsewhere.iterdir() if path.stat().st_size]
    assert parts
    for part in parts:
        with open(part, "r+b") as file:
            file.write(b"garbage")
    pulled = pull(f"{registry.host}/half:1", elsewhere / "web.qcow2", deep=True)
    assert [layer.state for layer in pulled.layers] == ["fetched", "fetched"]
    assert len(os.listdir(elsewhere)) == 2


def test_a_pull_that_was_stopped_before_a_layer_got_its_name_fetches_nothing_again(
    random_chain: Images, registry: RegistryServer, elsewhere: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(random_chain / "web.qcow2", f"{registry.host}/stopped:1")
    forget()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("imgtool.publish.oci.pull.place", stop)
        with pytest.raises(KeyboardInterrupt):
            pull(f"{registry.host}/stopped:1", elsewhere / "web.qcow2")
    since = len(registry.log)
    pull(f"{registry.host}/stopped:1", elsewhere / "web.qcow2", deep=True)
    assert registry.requests(since)["GET blobs"] == 1, "the config"
    assert len(os.listdir(elsewhere)) == 2


def test_two_pulls_of_one_image_do_not_write_the_same_file(
    random_chain: Images, registry: RegistryServer, elsewhere: Path, forget: Forget
) -> None:
    push(random_chain / "web.qcow2", f"{registry.host}/twice:1")
    forget()
    first = PullRequest(f"{registry.host}/twice:1", elsewhere / "web.qcow2")
    inside, go_on = threading.Event(), threading.Event()

    def show(_: float) -> None:
        inside.set()
        go_on.wait(60)

    from imgtool.qemu.qemu_img import QemuImg

    thread = threading.Thread(target=lambda: first.make(QemuImg(), progress=show))
    thread.start()
    try:
        assert inside.wait(60)
        with pytest.raises(ImageInUseError, match="another imgtool"):
            pull(f"{registry.host}/twice:1", elsewhere / "web.qcow2")
    finally:
        go_on.set()
        thread.join()
    assert len(os.listdir(elsewhere)) == 2
