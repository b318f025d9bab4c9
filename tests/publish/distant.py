"""Images on servers of the tests' own, as QEMU's https and ssh drivers read them."""

from __future__ import annotations

import http.server
import json
import os
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.publish.registries import Certificates
from tests.publish.sshd import SshServer


def json_name(place: Mapping[str, Any]) -> str:
    """The qcow2 at `place`, as an overlay names its backing file."""
    return "json:" + json.dumps({"driver": "qcow2", "file": place})


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as QEMU's curl driver asks for them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.translate_path(self.path)
        size = os.path.getsize(path)
        first, last = 0, size - 1
        wanted = self.headers.get("Range")
        if wanted is not None:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            with open(path, "rb") as file:
                file.seek(first)
                self.wfile.write(file.read(last + 1 - first))

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def on_https(image: Path, certificates: Certificates) -> Iterator[dict[str, Any]]:
    """Within, where QEMU's curl driver finds `image`. It trusts the system's CAs: this server's certificate, made
    here, is let pass in the reference itself, as who has such a server writes it."""

    def handler(*words: Any) -> _Ranges:
        return _Ranges(*words, directory=str(image.parent))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    # each handshake in its connection's thread: a slow one does not keep others waiting
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"https://127.0.0.1:{server.server_port}/{image.name}"
        yield {"driver": "https", "url": url, "sslverify": "off"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def on_ssh(image: Path, sshd: SshServer) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Within, where QEMU's ssh driver finds `image`, and the environment it needs: it takes keys from an agent."""
    with tempfile.TemporaryDirectory(prefix="it-", dir="/tmp") as short:
        env = {"SSH_AUTH_SOCK": os.path.join(short, "agent")}
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", env["SSH_AUTH_SOCK"]], stdout=subprocess.DEVNULL)
        try:
            while subprocess.run(["ssh-add", "-q", sshd.key], env={**os.environ, **env}, check=False).returncode == 2:
                assert agent.poll() is None  # it does not listen yet
            server = {"host": "127.0.0.1", "port": str(sshd.port)}
            user = os.environ.get("USER") or subprocess.check_output(["id", "-un"], text=True).strip()
            place = {"driver": "ssh", "path": str(image), "user": user, "server": server}
            yield {**place, "host-key-check": {"mode": "none"}}, env
        finally:
            agent.terminate()
            agent.wait(30)
