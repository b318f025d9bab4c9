"""Registries that want to know who we are, and that have to show who they are."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from imgtool.errors import ConfigError
from imgtool.publish.oci.connection import Connection
from imgtool.publish.oci.errors import RegistryAuthError, RegistryError
from imgtool.publish.oci.http import certificate_folders
from imgtool.publish.oci.login import Login, read_config
from imgtool.publish.oci.pull import pull
from imgtool.publish.oci.push import push
from imgtool.publish.oci.reference import parse_reference
from tests.conftest import Images
from tests.publish.conftest import Forget
from tests.publish.registries import PASSWORD, USER, Certificates, RegistryServer, docker_config
from tests.publish.tokens import token_registry


def test_tls_and_a_password_as_docker_has_them(
    chain: Images, trusted: RegistryServer, elsewhere: Path, forget: Forget
) -> None:
    pushed = push(chain / "web.qcow2", f"{trusted.host}/web:1")
    forget()
    pulled = pull(f"{trusted.host}/web:1", elsewhere / "web.qcow2")
    assert pulled.digest == pushed.digest
    chain.qemu_img("compare", elsewhere / "web.qcow2", chain / "web.qcow2")


def test_a_ca_can_be_named(
    chain: Images, home: Path, safe_registry: RegistryServer, certificates: Certificates
) -> None:
    docker_config(home / "docker", safe_registry.host)
    connection = Connection(certificates=(str(certificates.ca.parent),))
    push(chain / "base.qcow2", f"{safe_registry.host}/named-ca", connection=connection)


def test_a_ca_that_nobody_knows_is_not_trusted(chain: Images, home: Path, safe_registry: RegistryServer) -> None:
    docker_config(home / "docker", safe_registry.host)
    with pytest.raises(RegistryError, match="no trusted connection") as caught:
        push(chain / "base.qcow2", f"{safe_registry.host}/web")
    assert f"certs.d/{safe_registry.host}" in (caught.value.hint or "")


def test_a_registry_with_tls_is_not_spoken_to_in_the_open(chain: Images, trusted: RegistryServer) -> None:
    with pytest.raises(RegistryError):
        push(chain / "base.qcow2", f"{trusted.host}/web", connection=Connection(plain_http=True, retries=0))


def test_nobody_is_let_in_without_a_password(chain: Images, home: Path, trusted: RegistryServer) -> None:
    (home / "docker" / "config.json").unlink()
    with pytest.raises(RegistryAuthError) as caught:
        push(chain / "base.qcow2", f"{trusted.host}/web")
    assert f"docker login {trusted.host}" in (caught.value.hint or "")


def test_a_wrong_password_is_said_and_not_tried_for_ever(chain: Images, home: Path, trusted: RegistryServer) -> None:
    docker_config(home / "docker", trusted.host, password="wrong")
    since = len(trusted.log)
    with pytest.raises(RegistryAuthError):
        push(chain / "base.qcow2", f"{trusted.host}/web")
    assert sum(trusted.requests(since).values()) <= 3


def test_a_credential_helper_is_asked(
    chain: Images, home: Path, trusted: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "bin"
    folder.mkdir()
    helper = folder / "docker-credential-tests"
    answer = json.dumps({"ServerURL": trusted.host, "Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\nread host\n[ \"$1 $host\" = 'get {trusted.host}' ] && echo '{answer}'\n")
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for config in ({"credHelpers": {trusted.host: "tests"}}, {"credsStore": "tests"}):
        (home / "docker" / "config.json").write_text(json.dumps(config))
        push(chain / "base.qcow2", f"{trusted.host}/helped")


def test_a_token_is_fetched_where_the_registry_says(
    chain: Images, home: Path, tmp_path: Path, certificates: Certificates, elsewhere: Path, forget: Forget
) -> None:
    with token_registry(tmp_path / "tokens", certificates) as (server, tokens):
        docker_config(home / "docker", server.host)
        pushed = push(chain / "web.qcow2", f"{server.host}/web:1")
        assert tokens.asked, "the token server was asked"
        assert all(one.user == USER for one in tokens.asked)
        wanted = {tuple(sorted(one.scope.rpartition(":")[2].split(","))) for one in tokens.asked}
        assert wanted == {("pull",), ("pull", "push")}
        assert all(one.scope.startswith("repository:web:") for one in tokens.asked)
        forget()
        assert pull(f"{server.host}/web:1", elsewhere / "web.qcow2").digest == pushed.digest
        (home / "docker" / "config.json").write_text(json.dumps({"auths": {server.host: {"identitytoken": "it"}}}))
        push(chain / "db.qcow2", f"{server.host}/web:2")
        assert tokens.asked[-1].user == "identity token it"
        docker_config(home / "docker", server.host, password="wrong")
        with pytest.raises(RegistryAuthError):
            push(chain / "db.qcow2", f"{server.host}/other:2")


@pytest.mark.parametrize("realm", ["http://tokens.example.org/", "ftp://127.0.0.1/", "", "tokens"])
def test_a_password_is_not_sent_in_the_open(realm: str, home: Path) -> None:
    import requests

    docker_config(home / "docker", "registry.example.org")
    login = Login(parse_reference("registry.example.org/web"), requests.Session(), plain_http=False)
    with pytest.raises(RegistryAuthError, match="not HTTPS"):
        login.answer(f'Bearer realm="{realm}",service="x"', None)


def test_every_form_of_credentials_is_read(home: Path) -> None:
    import requests

    auth = base64.b64encode(b"me:it").decode()
    folder = home / "docker"
    folder.mkdir(parents=True)
    for entry in ({"auth": auth}, {"username": "me", "password": "it"}):
        for key in ("r.example.org", "https://r.example.org", "https://r.example.org/v1/", "r.example.org/team"):
            (folder / "config.json").write_text(json.dumps({"auths": {key: entry}}))
            login = Login(parse_reference("r.example.org/web"), requests.Session(), plain_http=False)
            assert login.answer('Basic realm="x"', None)
            assert login.header == f"Basic {auth}"
    (folder / "config.json").write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": auth}}}))
    login = Login(parse_reference("docker.io/library/web"), requests.Session(), plain_http=False)
    assert login.answer('Basic realm="x"', None)
    stranger = Login(parse_reference("other.example.org/web"), requests.Session(), plain_http=False)
    assert not stranger.answer('Basic realm="x"', None)


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": []}', '{"auths": {"127.0.0.1:1": {"auth": "%%%"}}}'])
def test_a_broken_configuration_is_said(text: str, home: Path) -> None:
    import requests

    folder = home / "docker"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    login = Login(parse_reference("127.0.0.1:1/web"), requests.Session(), plain_http=True)
    with pytest.raises(ConfigError, match=r"config\.json"):
        login.answer('Basic realm="x"', None)


def test_no_configuration_is_an_empty_one(home: Path) -> None:
    assert read_config(str(home / "gone.json"))["auths"] == {}


def test_certificates_are_looked_for_where_docker_and_podman_have_them(home: Path) -> None:
    for name in ("docker", "containers"):
        (home / "config" / name / "certs.d" / "r:5000").mkdir(parents=True)
    found = certificate_folders("r:5000", ["/"])
    assert found == [
        str(home / "config" / "docker" / "certs.d" / "r:5000"),
        str(home / "config" / "containers" / "certs.d" / "r:5000"),
        "/",
    ]


def test_what_is_no_certificate_is_said(chain: Images, home: Path, trusted: RegistryServer) -> None:
    (home / "config" / "docker" / "certs.d" / trusted.host / "zz.crt").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"zz\.crt cannot be used"):
        push(chain / "base.qcow2", f"{trusted.host}/web")
