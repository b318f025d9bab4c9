"""Images served over NBD, read by libnbd's programs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import imgtool
from imgtool.errors import CommandError, ImageInUseError, MachineError, RefusedError, UsageError
from imgtool.publish.serve import Export, ServeRequest, serve_argv, uri_of
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.programs import Programs
from tests.conftest import Images
from tests.publish.held import held_for_writing
from tests.publish.registries import Certificates


@contextmanager
def served(image: Path, **options: Any) -> Iterator[Export]:
    with imgtool.serve(image, **options) as server:
        assert server.uri == server.export.uri
        yield server.export


def nbdinfo(uri: str, *words: str) -> Any:
    done = subprocess.run(["nbdinfo", "--json", *words, uri], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.decode(errors="replace"))  # what file(1) says of the disk is in it as it is


def nbd_digest(uri: str) -> str:
    done = subprocess.run(["nbdcopy", uri, "-"], stdout=subprocess.PIPE, check=True)
    return hashlib.sha256(done.stdout).hexdigest()


def raw_digest(images: Images, name: str) -> str:
    images.qemu_img("convert", "-O", "raw", images / name, images / "all.raw")
    return hashlib.sha256((images / "all.raw").read_bytes()).hexdigest()


def test_a_chain_is_served_as_one_disk(chain: Images) -> None:
    with served(chain / "web.qcow2", name="a web/ü") as export:
        (found,) = nbdinfo(export.uri)["exports"]
        assert (found["export-name"], found["export-size"], found["is_read_only"]) == ("a web/ü", 16 << 20, True)
        assert nbd_digest(export.uri) == raw_digest(chain, "web.qcow2")
        assert export.socket is not None
        assert os.path.exists(export.socket)
    assert not os.path.exists(export.socket)


def test_what_is_written_through_nbd_is_in_the_image(chain: Images) -> None:
    source = chain / "new.raw"
    source.write_bytes(os.urandom(16 << 20))
    with served(chain / "web.qcow2", writable=True) as export:
        subprocess.run(["nbdcopy", source, export.uri], check=True)
    assert raw_digest(chain, "web.qcow2") == hashlib.sha256(source.read_bytes()).hexdigest()
    assert raw_digest(chain, "base.qcow2") != hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_port_is_on_the_loopback_address_and_a_bitmap_is_shown(images: Images) -> None:
    images.base("disk.qcow2", "4M")
    images.qemu_img("bitmap", "--add", images / "disk.qcow2", "nightly")
    images.run_io(images / "disk.qcow2", "write 1M 64k")
    with served(images / "disk.qcow2", port=0, bitmap="nightly") as export:
        assert export.address == "127.0.0.1"
        dirty = nbdinfo(export.uri, "--map=qemu:dirty-bitmap:nightly")
        assert [(one["offset"], one["length"]) for one in dirty if one["type"]] == [(1 << 20, 65536)]


def test_tls_is_spoken_with_certificates(chain: Images, certificates: Certificates, tmp_path: Path) -> None:
    folder = tmp_path / "pki, with comma"
    folder.mkdir()
    for source, name in (
        (certificates.ca, "ca-cert.pem"),
        (certificates.certificate, "server-cert.pem"),
        (certificates.key, "server-key.pem"),
    ):
        shutil.copy(source, folder / name)
    client = tmp_path / "client"
    client.mkdir()
    shutil.copy(certificates.ca, client / "ca-cert.pem")
    with served(chain / "web.qcow2", port=0, tls_creds=folder, verify_peer=False) as export:
        assert export.uri.startswith("nbds://127.0.0.1:")
        assert nbdinfo(f"{export.uri}?tls-certificates={client}")["TLS"] is True
        plain = subprocess.run(["nbdinfo", export.uri.replace("nbds:", "nbd:")], capture_output=True, check=False)
        assert plain.returncode != 0


def test_images_in_use_and_those_that_others_stand_on_are_refused(chain: Images) -> None:
    with held_for_writing(chain / "web.qcow2"), pytest.raises(ImageInUseError):
        ServeRequest(chain / "web.qcow2", Programs())
    with pytest.raises(RefusedError, match="is the backing file of"):
        ServeRequest(chain / "base.qcow2", Programs(), writable=True)
    with (
        served(chain / "web.qcow2", writable=True),
        pytest.raises(ImageInUseError),
    ):
        ServeRequest(chain / "web.qcow2", Programs())
    with pytest.raises(RefusedError, match="whoever reaches"):
        ServeRequest(chain / "web.qcow2", Programs(), address="0.0.0.0", port=10809)
    with pytest.raises(UsageError, match="needs a port"):
        ServeRequest(chain / "web.qcow2", Programs(), address="::1")
    with pytest.raises(RefusedError, match="already exists"):
        ServeRequest(chain / "web.qcow2", Programs(), socket=chain / "db.qcow2")


def test_a_port_on_which_another_disk_is_served_is_not_taken_for_ones_own(chain: Images) -> None:
    with served(chain / "web.qcow2", port=0) as export:
        with pytest.raises(MachineError) as caught:
            imgtool.serve(chain / "db.qcow2", port=export.port)
        assert caught.value.message == f"tcp port {export.port} of 127.0.0.1 is in use: qemu-nbd cannot serve there"
        assert f"`ss -ap 'sport = :{export.port}'` shows who has this one" in (caught.value.hint or "")


def test_a_server_that_did_not_start_leaves_no_socket(chain: Images, tmp_path: Path) -> None:
    where = tmp_path / "web.sock"
    with pytest.raises(CommandError, match="nightly"):
        ServeRequest(chain / "web.qcow2", Programs(), socket=where, bitmap="nightly").start()
    assert not where.exists()


def start(chain: Images, *words: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "imgtool", "serve", chain / "web.qcow2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 0), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_the_server_ends_with_imgtool_however_that_ends(number: str, status: int, chain: Images) -> None:
    process, uri = start(chain, "--socket", str(chain / "s.sock"))
    assert uri == f"nbd+unix:///?socket={chain / 's.sock'}"
    assert nbd_digest(uri) == raw_digest(chain, "web.qcow2")
    process.send_signal(signal.Signals[number])
    process.communicate(timeout=30)
    assert process.returncode == status
    deadline = time.monotonic() + 30
    while (chain / "s.sock").exists() or str(chain / "s.sock") in commands():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def commands() -> str:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(line for line in found if "qemu-nbd" in line)


def test_it_ends_by_itself_when_the_only_client_has_left(chain: Images) -> None:
    process, uri = start(chain, "--once", "--output", "json")
    assert uri == "{"
    assert process.stdout is not None
    document = json.loads("{" + "".join(iter(process.stdout.readline, "}\n")) + "}")
    assert (document["writable"], document["path"]) == (False, str(chain / "web.qcow2"))
    assert nbd_digest(document["uri"]) == raw_digest(chain, "web.qcow2")
    assert process.wait(30) == 0
    process.communicate()


def test_the_command_line_is_what_it_should_be() -> None:
    source = ImageOpts("driver=raw,file.driver=file,file.filename=/a,,b")
    export = Export(path="/a,b", uri="", name="n", writable=True, address="::1", port=7, bitmap="b")
    options: dict[str, Any] = {"once": True, "clients": 2, "verify_peer": True}
    assert serve_argv("/qemu-nbd", source, None, export, tls="/p,q", **options) == [
        *("/qemu-nbd", "--bind", "::1", "--port", "7", "--export-name", "n", "--shared", "2", "--bitmap", "b"),
        *("--object", "tls-creds-x509,id=tls0,dir=/p,,q,endpoint=server,verify-peer=yes", "--tls-creds", "tls0"),
        *("--image-opts", source.text),
    ]
    export = Export(path="/a", uri="", name="", writable=False, socket="/s")
    options = {"once": False, "clients": 16, "verify_peer": True}
    assert serve_argv("/qemu-nbd", "/a", "raw", export, tls=None, **options) == [
        *("/qemu-nbd", "--socket", "/s", "--export-name", "", "--shared", "16", "--persistent", "--read-only"),
        *("--format", "raw", "/a"),
    ]
    assert uri_of("a b", socket="/x y") == "nbd+unix:///a%20b?socket=/x%20y"
    assert uri_of("", address="::1", port=1, tls=True) == "nbds://[::1]:1/"
