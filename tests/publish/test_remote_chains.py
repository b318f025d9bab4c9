"""Chains whose base is on a server: shown, verified, read and booted where the policy allows it, and never else."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imgtool.chain.verify import verify
from imgtool.errors import PolicyError
from imgtool.image.policy import Policy, in_force
from imgtool.publish.serve import ServeRequest
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg
from tests.cli.conftest import Imgtool, Result, imgtool
from tests.conftest import Images
from tests.publish.registries import Certificates
from tests.publish.sshd import SshServer
from tests.publish.test_serve import nbd_digest, raw_digest, served

__all__ = ["imgtool"]
NBD = Policy(protocols=frozenset({"nbd"}))


@contextmanager
def on_nbd(images: Images) -> Iterator[str]:
    """base.qcow2 on an NBD server; net.qcow2 is an overlay on it."""
    with served(images / "base.qcow2", socket=images / "base.sock") as export:
        images.qemu_img("create", "-q", "-f", "qcow2", "-b", export.uri, "-F", "raw", images / "net.qcow2")
        images.run_io(images / "net.qcow2", "write -P 9 2M 64k")
        yield export.uri


@pytest.fixture
def net(images: Images) -> Images:
    images.base("base.qcow2", "4M")
    images.run_io(images / "base.qcow2", "write -P 3 0 1M")
    return images


def test_a_base_on_nbd_is_shown_and_not_connected_to(net: Images, imgtool: Imgtool) -> None:
    with on_nbd(net) as uri:
        pass
    shown = imgtool("chain", "show", "--trust", "nbd", net / "net.qcow2")
    assert shown.status == 0
    assert uri in shown.stdout
    assert "remote-parent" in shown.stdout


def test_a_base_on_nbd_is_verified_where_the_policy_allows_it(net: Images) -> None:
    with on_nbd(net) as uri:
        with in_force(NBD):
            found = verify([net / "net.qcow2"], deep=QemuImg())
        assert (found.defects, found.images) == ((), 2)
        found = verify([net / "net.qcow2"], deep=QemuImg())
        assert "remote-parent" in [one.code for one in found.defects]
    with in_force(NBD):
        (defect,) = [one for one in verify([net / "net.qcow2"], deep=QemuImg()).defects if one.severity == "error"]
    assert defect.code == "remote-unusable"
    assert uri in defect.message


def test_the_disk_is_the_same_through_nbd_and_back(net: Images) -> None:
    with on_nbd(net):
        net.qemu_img("convert", "-O", "qcow2", net / "net.qcow2", net / "plain.qcow2")
        with pytest.raises(PolicyError, match="wants the backing file"):
            ServeRequest(net / "net.qcow2", Programs())
        with in_force(NBD), served(net / "net.qcow2") as export:
            assert nbd_digest(export.uri) == raw_digest(net, "plain.qcow2")


def paused(imgtool: Imgtool, image: Path, trust: str, env: dict[str, str]) -> Result:
    """Boots it as far as QEMU opens its disks, and ends it."""
    words = ("--accel", "tcg", "--detach", "--display", "none", "--network", "none", "--name", "it-remote")
    done = imgtool("boot", "--trust", trust, *words, image, **env)  # type: ignore[arg-type]
    if done.status == 0:
        imgtool("vm", "kill", "it-remote", **env)  # type: ignore[arg-type]
    return done


def test_a_guest_starts_from_a_base_on_nbd(net: Images, imgtool: Imgtool, tmp_path: Path) -> None:
    with on_nbd(net), tempfile.TemporaryDirectory(prefix="it-", dir="/tmp") as short:
        env = {"XDG_RUNTIME_DIR": short, "XDG_DATA_HOME": str(tmp_path / "data")}
        refused = imgtool("boot", "--accel", "tcg", "--detach", net / "net.qcow2", **env)  # type: ignore[arg-type]
        assert refused.status == 1
        assert "--trust nbd" in refused.stderr
        done = paused(imgtool, net / "net.qcow2", "nbd", env)
        assert done.status == 0, done.stderr


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as QEMU's curl driver asks for them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()
        first, last = 0, len(content) - 1
        wanted = self.headers.get("Range")
        if wanted is not None:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self.wfile.write(content[first : last + 1])

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def on_https(folder: Path, certificates: Certificates) -> Iterator[str]:
    def handler(*words: Any) -> _Ranges:
        return _Ranges(*words, directory=str(folder))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    # each handshake in its connection's thread: a slow one does not keep others waiting
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_base_on_https_is_read_and_verified(net: Images, imgtool: Imgtool, certificates: Certificates) -> None:
    """QEMU's curl driver trusts the system's CAs: this server's certificate, made here, is let pass in the reference
    itself, as who has such a server writes it."""
    with on_https(net.directory, certificates) as url:
        tree = {"driver": "qcow2", "file": {"driver": "https", "url": f"{url}/base.qcow2", "sslverify": "off"}}
        backing = "json:" + json.dumps(tree)
        net.qemu_img("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", net / "web.qcow2")
        shown = imgtool("chain", "show", "--trust", "https", net / "web.qcow2")
        assert (shown.status, url in shown.stdout) == (0, True)
        refused = imgtool("convert", "-O", "raw", net / "web.qcow2", net / "no.raw")
        assert (refused.status, "--trust https" in refused.stderr) == (1, True)
        # QEMU 10.0's curl driver stops for ever in one of thirty runs, plain qemu-img's too: then it is asked again
        words = ("convert", "--trust", "https", "--timeout", "20", "-O", "raw", net / "web.qcow2", net / "web.raw")
        runs = (imgtool(*words) for _ in range(5))
        done = next(run for run in runs if "was stopped after" not in run.stderr)
        assert done.status == 0, done.stderr
    assert hashlib.sha256((net / "web.raw").read_bytes()).hexdigest() == raw_digest(net, "base.qcow2")


def test_a_base_on_ssh_is_read(net: Images, imgtool: Imgtool, sshd: SshServer, tmp_path: Path) -> None:
    """QEMU's ssh driver takes keys from an agent."""
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        env = {"SSH_AUTH_SOCK": str(socket)}
        while subprocess.run(["ssh-add", "-q", sshd.key], env={**os.environ, **env}, check=False).returncode == 2:
            assert agent.poll() is None  # it does not listen yet
        user = os.environ.get("USER") or subprocess.check_output(["id", "-un"], text=True).strip()
        tree = {
            "driver": "qcow2",
            "file": {
                "driver": "ssh",
                "path": str(net / "base.qcow2"),
                "user": user,
                "server": {"host": "127.0.0.1", "port": str(sshd.port)},
                "host-key-check": {"mode": "none"},
            },
        }
        backing = "json:" + json.dumps(tree)
        words = ("-b", backing, "-F", "qcow2", net / "web.qcow2", "4M")
        net.qemu_img("create", "-q", "-u", "-f", "qcow2", *words)
        done = imgtool("convert", "--trust", "ssh", "-O", "raw", net / "web.qcow2", net / "web.raw", **env)  # type: ignore[arg-type]
        assert done.status == 0, done.stderr
    finally:
        agent.terminate()
        agent.wait(30)
    assert hashlib.sha256((net / "web.raw").read_bytes()).hexdigest() == raw_digest(net, "base.qcow2")
