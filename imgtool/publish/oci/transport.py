"""HTTP to one registry: TLS, time limits, logging in when asked to, and trying again when the network fails."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.publish.oci.errors import RegistryAuthError, RegistryError, RegistryNotFoundError
from imgtool.publish.oci.login import Login
from imgtool.publish.oci.reference import Reference

if TYPE_CHECKING:
    import ssl

    import requests

T = TypeVar("T")

RETRIES = 5
"""How often a request is tried again before a broken network is the user's to mend."""

_TIMEOUT = (20.0, 120.0)
"""Seconds to connect, and to wait for the next byte."""

_PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that may be others in a moment."""

_LONGEST_WAIT = 30.0


class BrokenConnection(Exception):  # noqa: N818 - what `retrying` makes a RegistryError of
    """The network failed in the middle of an answer."""


def certificate_folders(host: str, given: Sequence[str] = ()) -> list[str]:
    """Where CA certificates (`*.crt`) and client certificates (`NAME.cert` with `NAME.key`) for `host` may lie, as
    docker and podman have them; `given` is taken as it is."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    roots = ("/etc/docker", "/etc/containers", os.path.join(home, "docker"), os.path.join(home, "containers"))
    folders = [*(os.path.join(root, "certs.d", host) for root in roots), *given]
    return [folder for folder in folders if os.path.isdir(folder)]


def _tls(folders: Sequence[str]) -> ssl.SSLContext:
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


class Transport:
    """Requests to the registry of `reference`. Threads share it; each has connections of its own.

    Plain HTTP is spoken only with `plain_http` or to this very machine, where TLS is tried first.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        plain_http: bool = False,
        certificates: Sequence[str] = (),
        retries: int = RETRIES,
    ) -> None:
        self.reference = reference
        self._retries = retries
        self._local = threading.local()
        self._reached = False
        self.halted = threading.Event()
        """Set when another thread has failed: whoever works on is to stop."""
        self._certificates = certificate_folders(reference.host, certificates)
        self._context: ssl.SSLContext | None = None
        self._scheme = "http" if plain_http or (reference.is_loopback and not self._speaks_tls()) else "https"
        self.base = f"{self._scheme}://{reference.api_host}"
        self._login = Login(reference, self._session(), plain_http=self._scheme == "http")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            if self._context is None:
                self._context = _tls(self._certificates)
            session = self._local.session = _make_session(self._context)
        return session

    def _speaks_tls(self) -> bool:
        """Whether there is TLS at the registry on this machine; a certificate that is not trusted counts too."""
        import ssl

        parts = urlsplit(f"//{self.reference.api_host}")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with (
                socket.create_connection((parts.hostname, parts.port or 443), timeout=_TIMEOUT[0]) as raw,
                context.wrap_socket(raw, server_hostname=parts.hostname),
            ):
                return True
        except ssl.SSLError as error:
            return error.reason not in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
        except OSError:
            return False

    def url(self, *parts: str) -> str:
        return "/".join((f"{self.base}/v2/{self.reference.name}", *parts))

    def beside(self, location: str) -> str:
        """The absolute URL of a Location header. One of the same host is asked as the others are: a registry behind
        a proxy may not know that it is reached by HTTPS."""
        url = urljoin(self.base, location)
        if urlsplit(url).netloc == urlsplit(self.base).netloc:
            return url.replace("http://", "https://", 1) if self._scheme == "https" else url
        return url

    def request(
        self,
        method: str,
        url: str,
        *,
        expect: Collection[int],
        what: str,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
        params: dict[str, str] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """The response, whose status is one of `expect`; tried again when the network or the registry fails.
        RegistryError otherwise: `what` ends the sentence, and is what was wanted."""

        def once() -> requests.Response:
            return self.once(
                method, url, expect=expect, what=what, headers=headers, data=data, params=params, stream=stream
            )

        return self.retrying(once, what)

    def once(
        self,
        method: str,
        url: str,
        *,
        expect: Collection[int],
        what: str,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
        params: dict[str, str] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """As `request`, tried once: BrokenConnection when the network fails."""
        import requests

        sent = {"Accept-Encoding": "identity", **(headers or {})}
        ours = urlsplit(url).netloc == urlsplit(self.base).netloc
        for attempt in range(3):
            said = self._login.header if ours else None
            if said is not None:
                sent["Authorization"] = said
            try:
                response = self._session().request(
                    method, url, headers=sent, data=data, params=params, stream=stream, allow_redirects=True
                )
            except requests.exceptions.SSLError as error:
                raise self._untrusted(error) from error
            except requests.exceptions.RequestException as error:
                inner = _innermost(error)
                self._reached = self._reached or not isinstance(inner, ConnectionRefusedError | socket.gaierror)
                raise BrokenConnection(_reason(inner)) from error
            self._reached = True
            challenge = response.headers.get("WWW-Authenticate", "")
            if response.status_code == 401 and ours and attempt < 2 and self._login.answer(challenge, said):
                response.close()
                continue
            break
        if response.status_code in expect:
            return response
        if response.status_code in _PASSING:
            raise BrokenConnection(_said(response), _wait_of(response))
        raise self._refused(response, what)

    def retrying(self, work: Callable[[], T], what: str, *, moved: Callable[[], Any] = lambda: None) -> T:
        """What `work` returns; done again after a BrokenConnection, in growing intervals. A change of what `moved`
        returns is progress, and the count begins again."""
        tries, before = 0, moved()
        while True:
            try:
                return work()
            except BrokenConnection as broken:
                now = moved()
                tries = 1 if now != before else tries + 1
                before = now
                if tries > self._retries or not self._reached or self.halted.is_set():
                    raise RegistryError(
                        f"{what}: {broken.args[0]}",
                        hint="run it again when the network is back: it goes on where it stopped"
                        if self._reached
                        else f"is there a registry at {self.base}?",
                    ) from broken
                wait = broken.args[1] if len(broken.args) > 1 else None
                self.halted.wait(min(wait or 0.25 * 2**tries * (0.5 + random.random() / 2), _LONGEST_WAIT))

    def _untrusted(self, error: Exception) -> RegistryError:
        folder = f"/etc/docker/certs.d/{self.reference.host}"
        return RegistryError(
            f"{self.reference.host}: no trusted connection: {printable(str(error))}",
            hint=f"its CA's certificate belongs into {folder}/ca.crt, or into a folder given with --cert-dir",
        )

    def _refused(self, response: requests.Response, what: str) -> RegistryError:
        status, said = response.status_code, _said(response)
        response.close()
        message = f"{what}: {said}"
        if status in (401, 403):
            return RegistryAuthError(message, hint=f"`docker login {self.reference.host}` says who you are")
        if status == 404:
            return RegistryNotFoundError(message)
        return RegistryError(message)


def _make_session(context: ssl.SSLContext) -> requests.Session:
    import requests
    import requests.adapters

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, ssl_context=context, **kwargs)

    class Session(requests.Session):
        """One that never waits for ever, and brings no other credentials along than those it is told."""

        def request(self, *args: Any, **kwargs: Any) -> requests.Response:
            kwargs.setdefault("timeout", _TIMEOUT)
            return super().request(*args, **kwargs)

    session = Session()
    session.mount("https://", Adapter())
    session.auth = _no_netrc
    session.headers["User-Agent"] = "imgtool"
    return session


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Without an `auth`, requests would put what ~/.netrc says over our header."""
    return request


def _innermost(error: BaseException) -> BaseException:
    """The first cause, which is the one that says something."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"the connection broke: {printable(text or type(error).__name__)}"


def _said(response: requests.Response) -> str:
    """What the registry says, in the form of the specification's error documents or else its status."""
    words = []
    try:
        for error in response.json()["errors"]:
            detail = f" ({error['detail']})" if isinstance(error.get("detail"), str) and error["detail"] else ""
            words.append(f"{error.get('message') or error.get('code')}{detail}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        words = []
    text = "; ".join(words) or response.reason or "no reason given"
    return f"{printable(text)} ({response.status_code})"


def _wait_of(response: requests.Response) -> float | None:
    after = response.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None
