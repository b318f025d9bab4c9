"""Registries that fail, limit, hang or cannot be trusted: small servers of the tests' own say so."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from imgtool.publish.oci import http
from imgtool.publish.oci.connection import Connection
from imgtool.publish.oci.errors import RegistryError
from imgtool.publish.oci.pull import pull
from imgtool.publish.oci.push import push
from tests.conftest import Images
from tests.publish.registries import make_certificates


class Server(ThreadingHTTPServer):
    daemon_threads = True

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that speaks TLS to it, or goes, is no news."""


class Ailing(Server):
    """A registry with one answer to everything."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.headers, self.asked = status, headers, 0
        self.stops_short = False
        """Whether an answer ends after its first byte, once `gone` is set."""
        self.gone = threading.Event()


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


Answer = tuple[int, dict[str, str], Iterable[bytes]]


class Hostile(Server):
    """A registry with an answer of the test's to each request."""

    def __init__(self, answer: Callable[[str, str, str], Answer]) -> None:
        """`answer` gives, for method, path and host, status, headers and the body's pieces: as many as it likes."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                status, headers, body = answer(self.command, self.path, self.headers["Host"])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in body:
                    self.wfile.write(piece)

            do_HEAD = do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


AnyServer = TypeVar("AnyServer", bound=Server)


@contextlib.contextmanager
def serving(server: AnyServer) -> Iterator[AnyServer]:
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
    monkeypatch.setattr(http, "CONNECT_TIMEOUT", 0.25)
    monkeypatch.setattr(http, "ANSWER_TIMEOUT", 0.25)
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
    monkeypatch.setattr(http, "ANSWER_TIMEOUT", 0.25)
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


ENDLESS = itertools.repeat(bytes(1 << 16))
DEEP = (b"[" * 1_000_000,)


@pytest.mark.parametrize("body", [ENDLESS, DEEP], ids=["endless", "deep"])
@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {}, r"no manifest of \S+: Not Found \(404\)"),
        (302, {"Location": "http://["}, "leads us to what is no address"),
        (302, {"Location": "gopher://x/"}, "leads us to what is no address"),
        (200, {}, "is larger than|cannot be understood"),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_the_registry(
    status: int, headers: dict[str, str], said: str, body: Iterable[bytes], home: Path, elsewhere: Path
) -> None:
    with serving(Hostile(lambda *_: (status, headers, body))) as server:
        assert re.search(said, str(refusal(server.host, elsewhere, Connection(plain_http=True))))


@pytest.mark.parametrize(
    "body", [ENDLESS, DEEP, [b"[]"], [b'{"token": 1}'], ['{"token": "ü"}'.encode()], [b'{"token": "a\\nb"}']]
)
def test_an_answer_that_is_no_token_is_said_to_be_none(body: Iterable[bytes], home: Path, elsewhere: Path) -> None:
    def answer(_: str, path: str, host: str) -> Answer:
        asked = f'Bearer realm="http://{host}/token",service="x"'
        return (200, {}, body) if path.startswith("/token") else (401, {"WWW-Authenticate": asked}, [])

    with serving(Hostile(answer)) as server:
        error = refusal(server.host, elsewhere, Connection(plain_http=True))
    assert str(error).startswith(f"http://{server.host}/token gave no token for {server.host}: ")


def test_a_token_is_not_asked_of_what_is_no_address(home: Path, elsewhere: Path) -> None:
    asked = {"WWW-Authenticate": 'Bearer realm="http://[",service="x"'}
    with serving(Hostile(lambda *_: (401, asked, []))) as server:
        error = refusal(server.host, elsewhere, Connection(plain_http=True))
    assert str(error) == f"{server.host} sends us to http://[ for a token, which is not HTTPS"


PLACE = {"Location": "/v2/web/blobs/uploads/1"}


@pytest.mark.parametrize(
    ("method", "answered", "said"),
    [
        ("POST", (202, {}, []), "the registry does not say where to"),
        ("POST", (202, {"Location": "//["}, []), "leads us to what is no address"),
        ("PATCH", (202, {**PLACE, "Range": "0-0"}, []), "bytes and says that none came"),
        ("PATCH", (202, {**PLACE, "Range": "0-" + "9" * 5000}, ENDLESS), "has forgotten the upload"),
        ("HEAD", (200, {"Content-Length": "²"}, []), "is not taken: Not Found"),
        ("HEAD", (200, {"Content-Length": "9" * 5000}, []), "is not taken: Not Found"),
    ],
)
def test_a_push_to_a_registry_that_talks_nonsense_ends(
    method: str, answered: Answer, said: str, home: Path, images: Images
) -> None:
    def answer(asked: str, path: str, host: str) -> Answer:
        if asked == method:
            return answered
        if asked in ("POST", "PATCH"):
            return 202, PLACE, []
        return 404, {}, []

    images.base("web.qcow2", "1M")
    with serving(Hostile(answer)) as server, pytest.raises(RegistryError, match=said):
        push(images / "web.qcow2", f"{server.host}/web:1", connection=Connection(plain_http=True, retries=0))


@pytest.mark.parametrize(
    ("listed", "hint"),
    [
        ((404, {}, []), "nothing is there as {}: is the name right, and was it pushed?"),
        ((200, {}, [b'{"name": "web", "tags": ["2", "\\u001b[2J", "latest"]}']), "{} has the tags 2, latest"),
        ((200, {}, [b'{"name": "web", "tags": null}']), "{} has no tags"),
        (
            (200, {}, [b'{"tags": ["%s"]}' % b'","'.join(b"%d" % tag for tag in range(900, 930))]),
            "{} has other tags, such as 921, 919, 918, 917, 916, 915, 914, 913",
        ),
        ((200, {}, [b"?"]), None),
        ((403, {}, []), None),
    ],
)
def test_whoever_asks_for_a_tag_that_is_not_there_learns_which_are(
    listed: Answer, hint: str | None, home: Path, elsewhere: Path
) -> None:
    def answer(_: str, path: str, host: str) -> Answer:
        return listed if path.startswith("/v2/web/tags/list") else (404, {}, [])

    with serving(Hostile(answer)) as server:
        error = refusal(server.host, elsewhere, Connection(plain_http=True))
    assert error.hint == (None if hint is None else hint.format(f"{server.host}/web"))
