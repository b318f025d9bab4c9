"""A token server for docker-registry: it knows one user, and signs what it is asked for.

Source: the distribution project's "Token Authentication Specification" and "Token Authentication Implementation".
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.publish.registries import PASSWORD, USER, Certificates, RegistryServer, running_registry

_SERVICE, _ISSUER = "tests", "token tests"


class Asked(NamedTuple):
    user: str
    scope: str


class Tokens(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, certificates: Certificates) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Asked] = []
        certificate = x509.load_pem_x509_certificate(certificates.certificate.read_bytes())
        self._chain = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        key = serialization.load_pem_private_key(certificates.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/token"

    def token(self, user: str, scope: str) -> str:
        """A signed token that allows what `scope` asks."""
        kind, name, actions = scope.split(":")
        now = int(time.time())
        claims = {
            "iss": _ISSUER,
            "sub": user,
            "aud": _SERVICE,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        head = {"typ": "JWT", "alg": "ES256", "x5c": [self._chain]}
        signed = f"{_coded(json.dumps(head).encode())}.{_coded(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_coded(r.to_bytes(32) + s.to_bytes(32))}"


class _Handler(BaseHTTPRequestHandler):
    server: Tokens

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(given).decode().partition(":")
        self._answer(user if (user, password) == (USER, PASSWORD) else None, query)

    def do_POST(self) -> None:
        query = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        assert query["grant_type"] == ["refresh_token"]
        self._answer(f"identity token {query['refresh_token'][0]}", query)

    def _answer(self, user: str | None, query: dict[str, list[str]]) -> None:
        assert query["service"] == [_SERVICE]
        (scope,) = query["scope"]
        body = b"{}"
        if user is not None:
            self.server.asked.append(Asked(user, scope))
            body = json.dumps({"token": self.server.token(user, scope)}).encode()
        self.send_response(401 if user is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextlib.contextmanager
def token_registry(folder: Path, certificates: Certificates) -> Iterator[tuple[RegistryServer, Tokens]]:
    """Within, a registry that lets in whoever has a token, and the server that gives them."""
    tokens = Tokens(certificates)
    thread = threading.Thread(target=tokens.serve_forever, daemon=True)
    thread.start()
    auth = {
        "token": {
            "realm": tokens.realm,
            "service": _SERVICE,
            "issuer": _ISSUER,
            "rootcertbundle": str(certificates.ca),
        }
    }
    try:
        with running_registry(folder, auth=auth) as server:
            yield server, tokens
    finally:
        tokens.shutdown()
        tokens.server_close()
