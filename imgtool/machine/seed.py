"""A cloud-init seed: the NoCloud data source as an ISO 9660 image labelled `cidata`, made in-process.

Source: cloud-init's documentation of the NoCloud data source. YAML is written as JSON, which it contains.
"""

from __future__ import annotations

import getpass
import hashlib
import io
import json
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.values.devices import CloudInit

if TYPE_CHECKING:
    from email.message import Message

_KINDS = {
    b"#cloud-config": "text/cloud-config",
    b"#!": "text/x-shellscript",
    b"#include": "text/x-include-url",
    b"#cloud-boothook": "text/cloud-boothook",
    b"## template: jinja": "text/jinja2",
    b"\x1f\x8b": "application/gzip",
}
"""How a user-data begins, and the MIME type cloud-init has for it."""


_KEY = re.compile(r"(?:^|\s)(?:ssh-|ecdsa-|sk-)[a-z0-9@.-]+ AAAA[A-Za-z0-9+/]*={0,2}(?:\s|$)")
"""A public key in a line of an authorized_keys file, which may begin with options."""


class Seed(NamedTuple):
    """The files of the seed."""

    user_data: bytes
    meta_data: bytes
    network_config: bytes | None


def login(wanted: CloudInit) -> str:
    """The user that `vm ssh` logs in as: the named one, else the one who runs imgtool, but never root."""
    if wanted.user is not None:
        return wanted.user
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no variable says so, and no line of /etc/passwd: a container with any user id
        return "admin"
    return "admin" if name == "root" else name


def seed(wanted: CloudInit, name: str) -> Seed:
    """The seed for the VM `name`. ConfigError when a file it names cannot be read.

    The instance id changes with the content: cloud-init runs again when the seed says something else, and only then.
    """
    given = _read(wanted.user_data, "--cloud-init") if wanted.user_data else None
    ours = _cloud_config(wanted)
    if given is None:
        user_data = _document(ours)
    elif ours:
        user_data = _both(_document(ours), given)
    else:
        user_data = given
    network = _read(wanted.network_config, "--network-config") if wanted.network_config else None
    if wanted.meta_data:
        return Seed(user_data, _read(wanted.meta_data, "--meta-data"), network)
    digest = hashlib.sha256(user_data + b"\0" + (network or b"")).hexdigest()
    hostname = wanted.hostname or name
    meta = {"instance-id": f"imgtool-{name}-{digest[:16]}", "local-hostname": hostname}
    return Seed(user_data, json.dumps(meta, indent=2).encode() + b"\n", network)


def iso(content: Seed) -> bytes:
    """The seed as an image."""
    import pycdlib

    files = {"user-data": content.user_data, "meta-data": content.meta_data}
    if content.network_config is not None:
        files["network-config"] = content.network_config
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    try:
        for name, data in files.items():
            short = "/" + name.upper().replace("-", "_") + ".;1"
            disc.add_fp(io.BytesIO(data), len(data), short, rr_name=name, joliet_path=f"/{name}")
        target = io.BytesIO()
        disc.write_fp(target)
    finally:
        disc.close()
    return target.getvalue()


def public_keys(paths: tuple[str, ...]) -> list[str]:
    """The keys in the public key files `paths`. ConfigError when one holds none, or a private key."""
    keys = []
    for path in paths:
        text = _read(path, "--ssh-key").decode(errors="replace")
        if "PRIVATE KEY" in text:
            raise ConfigError(
                f"{printable(path)} is a private key", hint=f"give the public one: {printable(path)}.pub", path=path
            )
        found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not found or not all(_KEY.search(key) for key in found):
            raise ConfigError(f"{printable(path)} holds no public SSH key", path=path)
        keys += found
    return keys


def _cloud_config(wanted: CloudInit) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if wanted.ssh_keys or wanted.user is not None:
        name = login(wanted)
        user: dict[str, Any] = {"name": name, "lock_passwd": False}
        if name == "root":
            config["disable_root"] = False  # or cloud-init tells whoever comes as root to come as another
        else:
            user |= {
                "groups": ["sudo"],
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
            }
        if wanted.ssh_keys:
            user["ssh_authorized_keys"] = public_keys(wanted.ssh_keys)
        config["users"] = ["default", user]
    if wanted.hostname is not None:
        config["hostname"] = wanted.hostname
    return config


def _document(config: dict[str, Any]) -> bytes:
    return b"#cloud-config\n" + json.dumps(config, indent=2).encode() + b"\n"


def _both(ours: bytes, given: bytes) -> bytes:
    """Two parts that cloud-init merges, what the user wrote last, so that it counts."""
    from email import message_from_bytes
    from email.mime.multipart import MIMEMultipart

    whole = MIMEMultipart(boundary="==imgtool==")
    parts: list[Message] = [_part(ours)]
    if given.startswith((b"Content-Type:", b"MIME-Version:")):
        parts.append(message_from_bytes(given))
    else:
        parts.append(_part(given))
    for part in parts:
        if not part.is_multipart():
            part.add_header("Merge-Type", "list(append)+dict(no_replace,recurse_list)+str()")
        whole.attach(part)
    return whole.as_bytes()


def _part(content: bytes) -> Message:
    """Any bytes, base64 on the way; text is UTF-8 where nothing else is said."""
    from email.encoders import encode_base64
    from email.mime.nonmultipart import MIMENonMultipart

    kind = next((kind for start, kind in _KINDS.items() if content.startswith(start)), "text/cloud-config")
    part = MIMENonMultipart(*kind.split("/"))
    part.set_payload(content)
    encode_base64(part)
    return part


def _read(path: str, option: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{option}: {error.strerror}", path=os.fspath(path)) from error
