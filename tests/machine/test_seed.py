from __future__ import annotations

import gzip
import io
import json
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pycdlib
import pytest

from imgtool.errors import ConfigError
from imgtool.machine.seed import Seed, iso, login, seed
from imgtool.machine.values.devices import CloudInit

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJmV9cdB me@here"


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "id.pub"
    path.write_text(f"# mine\n{KEY}\n")
    return str(path)


def test_the_image_is_a_cidata_disc_with_the_names_cloud_init_looks_for() -> None:
    content = iso(Seed(b"#cloud-config\n", b"{}\n", b"version: 2\n"))
    disc = pycdlib.PyCdlib()
    disc.open_fp(io.BytesIO(content))
    assert disc.pvd.volume_identifier.rstrip() == b"cidata"
    for view in ("rr_path", "joliet_path"):
        found = {}
        for name in ("user-data", "meta-data", "network-config"):
            target = io.BytesIO()
            disc.get_file_from_iso_fp(target, **{view: f"/{name}"})
            found[name] = target.getvalue()
        assert found == {"user-data": b"#cloud-config\n", "meta-data": b"{}\n", "network-config": b"version: 2\n"}
    disc.close()


def test_a_key_alone_makes_a_user_that_may_log_in(key: str) -> None:
    made = seed(CloudInit(ssh_keys=(key,), user="ann", hostname="web1"), "web")
    head, _, body = made.user_data.partition(b"\n")
    config = json.loads(body)
    assert head == b"#cloud-config"
    assert config["hostname"] == "web1"
    assert config["users"][0] == "default"
    assert config["users"][1]["name"] == "ann"
    assert config["users"][1]["ssh_authorized_keys"] == [KEY]
    assert json.loads(made.meta_data)["local-hostname"] == "web1"


def test_the_users_own_data_is_kept_as_it_is_and_comes_last_beside_ours(tmp_path: Path, key: str) -> None:
    own = tmp_path / "user-data"
    own.write_text("#!/bin/sh\necho hello\n")
    assert seed(CloudInit(user_data=str(own)), "web").user_data == own.read_bytes()
    both = message_from_bytes(seed(CloudInit(user_data=str(own), ssh_keys=(key,)), "web").user_data)
    parts = both.get_payload()
    assert isinstance(parts, list)
    kinds = [part.get_content_type() for part in parts if not isinstance(part, str)]
    assert kinds == ["text/cloud-config", "text/x-shellscript"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("#!/bin/sh\necho Grüße\n".encode("latin-1"), "text/x-shellscript"),
        (gzip.compress(b"#cloud-config\n", mtime=0), "application/gzip"),
    ],
    ids=["latin-1", "gzip"],
)
def test_the_users_own_data_may_be_other_than_utf_8(tmp_path: Path, key: str, content: bytes, kind: str) -> None:
    own = tmp_path / "user-data"
    own.write_bytes(content)
    both = message_from_bytes(seed(CloudInit(user_data=str(own), ssh_keys=(key,)), "web").user_data)
    parts = both.get_payload()
    assert isinstance(parts, list)
    assert isinstance(parts[1], Message)
    assert (parts[1].get_content_type(), parts[1].get_payload(decode=True)) == (kind, content)


def test_the_instance_changes_with_the_content_and_only_then(key: str) -> None:
    first, again = seed(CloudInit(ssh_keys=(key,)), "web"), seed(CloudInit(ssh_keys=(key,)), "web")
    other = seed(CloudInit(ssh_keys=(key,), hostname="other"), "web")
    assert first == again
    assert json.loads(first.meta_data)["instance-id"] != json.loads(other.meta_data)["instance-id"]


def test_the_users_meta_data_and_network_are_taken(tmp_path: Path) -> None:
    meta, network = tmp_path / "meta", tmp_path / "net"
    meta.write_bytes(b"instance-id: mine\n")
    network.write_bytes(b"version: 2\n")
    made = seed(CloudInit(meta_data=str(meta), network_config=str(network)), "web")
    assert (made.meta_data, made.network_config) == (b"instance-id: mine\n", b"version: 2\n")


def test_root_is_never_the_login_that_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    assert login(CloudInit()) == "admin"
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    assert login(CloudInit()) == "ann"
    assert login(CloudInit(user="bob")) == "bob"


def test_a_user_without_a_name_logs_in_as_admin(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert login(CloudInit()) == "admin"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key"),
        ("", "no public SSH key"),
        ("x\n", "no public"),
        ("QFI\xfb some words of a disk\n", "no public"),
        (f"{KEY}\nand a line of another file\n", "no public"),
    ],
)
def test_a_file_that_is_no_public_key_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "id"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        seed(CloudInit(ssh_keys=(str(path),)), "web")


def test_options_may_stand_before_a_key(tmp_path: Path) -> None:
    path = tmp_path / "id"
    path.write_text(f'from="10.0.0.0/8",no-pty {KEY}\nsk-ssh-ed25519@openssh.com AAAAGnNr me\n')
    assert json.dumps(KEY)[1:-1].encode() in seed(CloudInit(ssh_keys=(str(path),)), "web").user_data


def test_a_file_that_is_missing_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--cloud-init: No such file"):
        seed(CloudInit(user_data=str(tmp_path / "none")), "web")
