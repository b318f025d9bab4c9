"""Who we are to a registry, as docker's configuration says, and the tokens that come of it.

Read are `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`: `auths`, `credHelpers`, `credsStore`, identity
tokens. oras looks the credentials up, runs the credential helpers, and asks for tokens.
Source: docker's documentation of `docker login`, and the distribution project's of token authentication.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.publish.oci.errors import RegistryAuthError
from imgtool.publish.oci.reference import Reference, is_loopback

if TYPE_CHECKING:
    import requests

_HUB_KEY = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"
"""As whom credential helpers hand out an identity token."""


def config_path() -> str:
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return os.path.join(folder, "config.json")


def read_config(path: str) -> dict[str, Any]:
    """Docker's configuration, empty where there is none; the keys of `auths` are hosts. ConfigError when it is no
    such file."""
    try:
        with open(path, "rb") as file:
            config = json.load(file)
        auths, helpers = config.get("auths", {}), config.get("credHelpers", {})
        if not isinstance(auths, dict) or not isinstance(helpers, dict):
            raise TypeError
    except FileNotFoundError:
        return {"auths": {}, "credHelpers": {}, "credsStore": None}
    except OSError as error:
        raise ConfigError(f"{printable(path)}: {error.strerror}", path=path) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{printable(path)} is not a docker configuration", path=path) from error
    by_host = {_host_of(key): entry for key, entry in auths.items() if isinstance(entry, dict)}
    return {"auths": by_host, "credHelpers": helpers, "credsStore": config.get("credsStore")}


def _host_of(key: str) -> str:
    """`registry:5000` of `https://registry:5000/v2/`; Docker Hub keeps its key."""
    if key == _HUB_KEY:
        return key
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]


class Login:
    """What goes into the Authorization header of requests to one repository. Used by several threads."""

    def __init__(self, reference: Reference, session: requests.Session, *, plain_http: bool) -> None:
        self._reference = reference
        self._plain_http = plain_http
        self._lock = threading.Lock()
        self._header: str | None = None
        self._session = session
        self._auth: Any = None
        self._identity_token: str | None = None

    @property
    def header(self) -> str | None:
        return self._header

    def answer(self, challenge: str, refused: str | None) -> bool:
        """Has `header` answer the `WWW-Authenticate` of a response to a request that had `refused` for one. False
        when there is nothing else to say. RegistryAuthError when a token is not given."""
        with self._lock:
            if self._header != refused:
                return True  # another thread has found it meanwhile
            made = self._made(challenge)
            self._header = made or self._header
            return made is not None and (made != refused or not made.startswith("Basic"))

    def _made(self, challenge: str) -> str | None:
        auth = self._credentials()
        basic = getattr(auth, "_basic_auth", None)
        kind = challenge.partition(" ")[0].lower()
        if kind == "basic":
            return f"Basic {basic}" if basic else None
        if kind != "bearer":
            return None
        import requests
        from oras.auth.utils import parse_auth_header

        asked = parse_auth_header(challenge)
        self._check_realm(asked.realm)
        try:
            if self._identity_token is not None:
                token = self._exchanged(asked)
            else:
                token = auth.request_token(asked) if basic else auth.request_anonymous_token(asked)
            if token and not (isinstance(token, str) and token.isascii() and token.isprintable()):
                raise ValueError("what it gave is none")
        except (requests.RequestException, ValueError, AttributeError, RecursionError) as error:
            raise RegistryAuthError(
                f"{printable(str(asked.realm))} gave no token for {self._reference.host}: {printable(str(error))}"
            ) from error
        return f"Bearer {token}" if token else None

    def _credentials(self) -> Any:
        """oras's backend with what docker's configuration has for the host."""
        if self._auth is not None:
            return self._auth
        import oras.auth
        import oras.container
        from oras.logger import setup_logger

        setup_logger(quiet=True)
        auth = oras.auth.get_auth_backend("token", self._session, self._plain_http)
        config = read_config(config_path())
        auth._auth_config = config  # its own loader knows no DOCKER_CONFIG, and would merge both
        reference = self._reference
        hub = reference.api_host != reference.host
        container = oras.container.Container(f"registry.invalid/{reference.name}")
        for name in (_HUB_KEY, "docker.io", "index.docker.io") if hub else (reference.host,):
            entry = config["auths"].get(name, {})
            if entry.get("identitytoken"):
                self._identity_token = entry["identitytoken"]
                break
            if entry.get("username") and entry.get("password") and not entry.get("auth"):
                auth.set_basic_auth(entry["username"], entry["password"])
                break
            container.registry = name
            auth.load_configs(container)
            if hasattr(auth, "_basic_auth"):
                break
        self._take_identity_token(auth)
        self._auth = auth
        return auth

    def _take_identity_token(self, auth: Any) -> None:
        basic = getattr(auth, "_basic_auth", None)
        if basic is None:
            return
        try:
            user, _, secret = base64.b64decode(basic, validate=True).decode().partition(":")
        except ValueError:
            path = config_path()
            raise ConfigError(
                f"{printable(path)}: the `auth` of {self._reference.host} is not base64 of USER:PASSWORD", path=path
            ) from None
        if user == _TOKEN_USER:
            self._identity_token = secret

    def _exchanged(self, asked: Any) -> str | None:
        """A token for an identity token (OAuth 2)."""
        words = {
            "grant_type": "refresh_token",
            "service": asked.service or "",
            "scope": asked.scope or "",
            "client_id": "imgtool",
            "refresh_token": self._identity_token,
        }
        response = self._session.post(asked.realm, data=words)
        if response.status_code != 200:
            return None
        answer = response.json()
        token: str | None = answer.get("access_token") or answer.get("token")
        return token

    def _check_realm(self, realm: str | None) -> None:
        """RegistryAuthError when a password would go over the network in the open, or to nowhere."""
        try:
            parts = urlsplit(realm or "")
        except ValueError:
            parts = urlsplit("")
        if parts.scheme == "https" and parts.netloc:
            return
        if parts.scheme == "http" and (self._plain_http or is_loopback(parts.netloc)):
            return
        raise RegistryAuthError(
            f"{self._reference.host} sends us to {printable(realm or 'nowhere')} for a token, which is not HTTPS"
        )
