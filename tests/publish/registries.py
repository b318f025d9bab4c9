"""Registries for the tests: Debian's docker-registry on this machine, with or without TLS and a password, and a proxy
before one that spoils connections."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "builder", "s3cret:with colon"
_START_SECONDS = 60


class Certificates(NamedTuple):
    """A CA of the tests' own and what it signed for 127.0.0.1."""

    ca: Path
    certificate: Path
    key: Path


class RegistryServer:
    def __init__(self, folder: Path, port: int, *, tls: bool) -> None:
        self.folder = folder
        self.port = port
        self.tls = tls
        self.host = f"127.0.0.1:{port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def requests(self, since: int = 0) -> Counter[str]:
        """What was asked, by `METHOD kind`, in the log from its byte `since`."""
        found: Counter[str] = Counter()
        for line in self.log[since:].splitlines():
            match = re.search(r'"([A-Z]+) (/v2/[^ ]*) HTTP', line)
            if match is not None:
                path = match[2].partition("?")[0]
                kind = "uploads" if "/blobs/uploads/" in path else path.split("/")[-2] if path != "/v2/" else "v2"
                found[f"{match[1]} {kind}"] += 1
        return found

    def blob_file(self, digest: str) -> Path:
        """Where the registry keeps a blob."""
        hex_digits = digest.partition(":")[2]
        root = self.folder / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256"
        return root / hex_digits[:2] / hex_digits / "data"


def make_certificates(folder: Path, *, expired: bool = False) -> Certificates:
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2 if expired else 0)

    def name(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def build(subject: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("imgtool tests"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            # Python 3.13 refuses certificates without these
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .add_extension(_usage(ca=ca), critical=True)
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = build("imgtool tests", ca_key, ca=True).sign(ca_key, hashes.SHA256())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = build("127.0.0.1", key, ca=False).add_extension(names, critical=False).sign(ca_key, hashes.SHA256())
    made = Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    made.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=not ca,  # Ubuntu's QEMU 8.2 demands it
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextlib.contextmanager
def running_registry(
    folder: Path,
    *,
    certificates: Certificates | None = None,
    password: bool = False,
    auth: Mapping[str, object] | None = None,
) -> Iterator[RegistryServer]:
    """Within, a registry on a free port of 127.0.0.1 that keeps its data in `folder`. It asks for a `password`, or
    lets in whom `auth` (a part of its configuration) says."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    configuration = _configuration(folder, port, certificates)
    if password:
        auth = {"htpasswd": {"realm": "tests", "path": str(_password_file(folder))}}
    if auth is not None:
        configuration["auth"] = auth
    (folder / "config.yml").write_text(json.dumps(configuration))
    program = shutil.which("docker-registry")
    assert program is not None, "Debian's package docker-registry is missing"
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")],
            stdout=log,
            stderr=log,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
        try:
            _await_port(server, port)
            yield RegistryServer(folder, port, tls=certificates is not None)
        finally:
            server.terminate()
            server.wait(timeout=30)


def _configuration(folder: Path, port: int, certificates: Certificates | None) -> dict[str, object]:
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    if certificates is not None:
        http["tls"] = {"certificate": str(certificates.certificate), "key": str(certificates.key)}
    return {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": http,
    }


def _password_file(folder: Path) -> Path:
    """The one user, with a hash that takes little time."""
    argv = ["htpasswd", "-Bbn", "-C", "4", USER, PASSWORD]
    path = folder / "htpasswd"
    path.write_bytes(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    return path


def docker_config(folder: Path, host: str, user: str = USER, password: str = PASSWORD) -> Path:
    """A folder with a configuration as `docker login` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return folder


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _await_port(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the registry ended at once"
            assert time.monotonic() < deadline, "the registry does not listen"
            time.sleep(0.02)


class Proxy:
    """A TCP proxy before a registry. `cut_after` is how many bytes, both ways together, go through it until every
    connection is cut, once; `flip_at` is the byte sent by the registry that comes out as another one, once."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.passed = 0
        self.cut_after: int | None = None
        self.cuts = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(16384):
                with self._lock:
                    due = self.cut_after is not None and self.passed + len(piece) >= self.cut_after
                    if due:
                        assert self.cut_after is not None
                        piece = piece[: self.cut_after - self.passed]
                        self.cut_after = None
                        self.cuts += 1
                    self.passed += len(piece)
                sink.sendall(piece)
                if due:
                    self.cut()
                    return
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Resets every connection."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._server.close()
        self.cut()


@contextlib.contextmanager
def spoiling_proxy(server: RegistryServer) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry without TLS and without a password."""
    with running_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def safe_registry(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[RegistryServer]:
    """A registry with TLS, by a CA that nobody knows, and with a password."""
    folder = tmp_path_factory.mktemp("safe-registry")
    with running_registry(folder, certificates=certificates, password=True) as server:
        yield server
