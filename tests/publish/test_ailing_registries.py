"""Registries that fail, limit, hang or cannot be trusted: small servers of the tests' own say so."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imgtool.publish.oci import transport
from imgtool.publish.oci.connection import Connection
from imgtool.publish.oci.errors import RegistryError
from imgtool.publish.oci.pull import pull
from tests.publish.registries import make_certificates


class Ailing(ThreadingHTTPServer):
    """A registry with one answer to everything."""

    daemon_threads = True

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.headers, self.asked = status, headers, 0
        self.host = f"127.0.0.1:{self.server_port}"
        self.stops_short = False
        """Whether an answer ends after its first byte, once `gone` is set."""
        self.gone = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that speaks TLS to it, or goes, is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Ailing

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "1000" if self.server.stops_short else "0")
        self.end_headers()
        if self.server.stops_short and "manifests" in self.path:
            self.wfile.write(b"{")
            self.server.gone.wait()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: Ailing) -> Iterator[Ailing]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refusal(host: str, folder: Path, connection: Connection) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        pull(f"{host}/web:1", folder / "web.qcow2", connection=connection)
    assert list(folder.iterdir()) == []
    return caught.value


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_registry_that_fails_is_asked_again_and_then_said_to_have_failed(
    status: int, home: Path, elsewhere: Path
) -> None:
    with serving(Ailing(status, {})) as server:
        error = refusal(server.host, elsewhere, Connection(retries=1))
        assert server.asked == 2
        assert f"({status})" in str(error)
        assert f"{server.host} itself failed, not the network" in (error.hint or "")


def test_a_limit_is_waited_for_a_few_times_and_then_said(home: Path, elsewhere: Path) -> None:
    with serving(Ailing(429, {"Retry-After": "1"})) as server:
        error = refusal(server.host, elsewhere, Connection(retries=1))
        assert server.asked == 2
        assert "(429)" in str(error)
        assert f"{server.host} limits how much it is asked: wait 1 s" in (error.hint or "")


def test_a_limit_that_lasts_is_said_at_once(home: Path, elsewhere: Path) -> None:
    with serving(Ailing(429, {"Retry-After": "3600"})) as server:
        error = refusal(server.host, elsewhere, Connection())
        assert server.asked == 1
        assert "wait 3600 s" in (error.hint or "")


def test_a_registry_that_hangs_is_named_with_the_time_it_was_given(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.25)
    monkeypatch.setattr(transport, "ANSWER_TIMEOUT", 0.25)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        error = refusal(host, elsewhere, Connection(plain_http=True))
        silent.setblocking(False)
        connections = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                connections += 1
    assert f"{host} took the connection, and said nothing for 0.25 seconds" in str(error)
    assert "hangs" in (error.hint or "")
    assert connections == 2, "it was tried again once"


def test_an_answer_that_breaks_off_is_asked_for_again(home: Path, elsewhere: Path) -> None:
    server = Ailing(200, {})
    server.stops_short = True
    server.gone.set()
    with serving(server):
        error = refusal(server.host, elsewhere, Connection(retries=1, plain_http=True))
    assert server.asked == 2
    assert re.search(r"web:1: the connection broke: [^(]", str(error))


def test_an_answer_that_stands_still_is_a_registry_that_hangs(
    home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ANSWER_TIMEOUT", 0.25)
    server = Ailing(200, {})
    server.stops_short = True
    with serving(server):
        error = refusal(server.host, elsewhere, Connection(plain_http=True))
        server.gone.set()
    assert server.asked == 2, "it was tried again once"
    assert "said nothing for 0.25 seconds" in str(error)
    assert "hangs" in (error.hint or "")


@pytest.mark.parametrize(
    ("expired", "known", "said", "hint"),
    [
        (True, True, "certificate has expired", "has to be renewed"),
        (False, False, "unable to get local issuer certificate", "its CA's certificate belongs into"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_said_in_a_line(
    expired: bool, known: bool, said: str, hint: str, home: Path, elsewhere: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    made = make_certificates(folder, expired=expired)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    server = Ailing(200, {})
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        certificates = (str(folder),) if known else ()
        (folder / "server.crt").unlink()
        error = refusal(server.host, elsewhere, Connection(certificates=certificates))
        assert server.asked == 0
    assert re.fullmatch(rf"{server.host}: no trusted connection: {said}", str(error))
    assert hint in (error.hint or "")
    assert f"/etc/docker/certs.d/{server.host}/ca.crt" in (error.hint or "")
