"""What an HTTP session to a registry waits for, reads and sends by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imgtool.errors import ConfigError
from imgtool.image.names import printable

if TYPE_CHECKING:
    import ssl

    import requests

CONNECT_TIMEOUT = 20.0
"""Seconds to connect."""

ANSWER_TIMEOUT = 30.0
"""Seconds to wait for the next byte."""

STORED_TIMEOUT = 120.0
"""The same after something was sent, which a registry may digest before it answers."""

_LONGEST = 1 << 20
"""Bytes that are read of an answer which is no document or blob."""


def limits(method: str) -> tuple[float, float]:
    """Seconds to connect, and to wait for the next byte."""
    return CONNECT_TIMEOUT, ANSWER_TIMEOUT if method.upper() in ("GET", "HEAD") else STORED_TIMEOUT


def certificate_folders(host: str, given: Sequence[str] = ()) -> list[str]:
    """Where CA certificates (`*.crt`) and client certificates (`NAME.cert` with `NAME.key`) for `host` may lie, as
    docker and podman have them; `given` is taken as it is."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    roots = ("/etc/docker", "/etc/containers", os.path.join(home, "docker"), os.path.join(home, "containers"))
    folders = [*(os.path.join(root, "certs.d", host) for root in roots), *given]
    return [folder for folder in folders if os.path.isdir(folder)]


def tls(folders: Sequence[str]) -> ssl.SSLContext:
    """The system's CAs and those of `folders`. ConfigError when a file there is no certificate."""
    import ssl

    context = ssl.create_default_context()
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            try:
                if name.endswith(".crt"):
                    context.load_verify_locations(path)
                elif name.endswith(".cert"):
                    context.load_cert_chain(path, path.removesuffix(".cert") + ".key")
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"{printable(path)} cannot be used: {error}", path=path) from error
    return context


def make_session(context: ssl.SSLContext) -> requests.Session:
    import requests
    import requests.adapters

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, ssl_context=context, **kwargs)

    class Session(requests.Session):
        """One that never waits for ever, and brings no other credentials along than those it is told."""

        def request(self, *args: Any, **kwargs: Any) -> requests.Response:
            kwargs.setdefault("timeout", limits(args[0] if args else kwargs["method"]))
            return super().request(*args, **kwargs)

    session = Session()
    session.mount("https://", Adapter())
    session.auth = _no_netrc
    session.headers["User-Agent"] = "imgtool"
    session.hooks["response"] = [_read]
    return session


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Without an `auth`, requests would put what ~/.netrc says over our header."""
    return request


def _read(response: requests.Response, **asked: Any) -> None:
    """The beginning of an answer that nobody streams is read, and the rest not waited for: requests itself reads
    redirects, errors and the like to their end, which a server need not have."""
    import requests

    if asked.get("stream") and response.ok and not response.is_redirect:
        return
    content = bytearray()
    try:
        for piece in response.iter_content(1 << 16):
            content += piece
            if len(content) > _LONGEST:
                response.close()
                break
    except requests.RequestException:
        if response.ok and not response.is_redirect:
            raise
    response._content = bytes(content)
