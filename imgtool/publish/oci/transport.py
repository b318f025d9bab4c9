"""HTTP to one registry: TLS, time limits, logging in when asked to, and trying again when the network fails."""

from __future__ import annotations

import random
import re
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from imgtool.image.names import printable
from imgtool.publish.oci import http
from imgtool.publish.oci.errors import RegistryAuthError, RegistryError, RegistryNotFoundError
from imgtool.publish.oci.login import Login
from imgtool.publish.oci.reference import Reference

if TYPE_CHECKING:
    import ssl

    import requests

T = TypeVar("T")

RETRIES = 5
"""How often a request is tried again before a broken network is the user's to mend."""

_PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that may be others in a moment."""

_LONGEST_WAIT = 30.0
"""Seconds between two tries; a registry that asks for more is not waited for."""

_AGAIN = "run it again: it resumes where it stopped"

_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""


class BrokenConnection(Exception):  # noqa: N818 - what `retrying` makes a RegistryError of
    """The network failed in the middle of an answer, or the registry did.

    `wait`: seconds until it is worth trying again. `tries`: how often it is, where that is less than ever so often.
    `hint`: what to do when it was in vain, where that is not to wait for the network.
    """

    def __init__(
        self, message: str, *, wait: float | None = None, tries: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.wait, self.tries, self.hint = wait, tries, hint


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
        self._certificates = http.certificate_folders(reference.host, certificates)
        self._context: ssl.SSLContext | None = None
        self._scheme = "http" if plain_http or (reference.is_loopback and not self._speaks_tls()) else "https"
        self.base = f"{self._scheme}://{reference.api_host}"
        self._login = Login(reference, self._session(), plain_http=self._scheme == "http")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            if self._context is None:
                self._context = http.tls(self._certificates)
            session = self._local.session = http.make_session(self._context)
        return session

    def _speaks_tls(self) -> bool:
        """Whether there is TLS at the registry on this machine; a certificate that is not trusted counts too."""
        import ssl

        parts = urlsplit(f"//{self.reference.api_host}")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with (
                socket.create_connection((parts.hostname, parts.port or 443), timeout=http.CONNECT_TIMEOUT) as raw,
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
        a proxy may not know that it is reached by HTTPS. RegistryError for what is no URL."""
        try:
            url = urljoin(self.base, location)
            ours = urlsplit(url).netloc == urlsplit(self.base).netloc
        except ValueError as error:
            raise self._misled(error) from None
        if ours:
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
            except requests.exceptions.Timeout as error:
                raise self._silent(error, http.limits(method)) from error
            except ValueError as error:  # of ours, or of a redirect
                raise self._misled(error) from error
            except requests.exceptions.RequestException as error:
                inner = _innermost(error)
                self._reached = self._reached or not isinstance(inner, ConnectionRefusedError | socket.gaierror)
                raise _broke(inner) from error
            self._reached = True
            challenge = response.headers.get("WWW-Authenticate", "")
            if response.status_code == 401 and ours and attempt < 2 and self._login.answer(challenge, said):
                response.close()
                continue
            break
        if response.status_code in expect:
            return response
        if response.status_code in _PASSING:
            raise self._failed(response)
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
                most = self._retries if broken.tries is None else min(broken.tries, self._retries)
                if tries > most or not self._reached or self.halted.is_set():
                    raise RegistryError(
                        f"{what}: {broken.args[0]}",
                        hint=(broken.hint or "run it again when the network is back: it resumes where it stopped")
                        if self._reached
                        else f"is there a registry at {self.base}?",
                    ) from broken
                wait = broken.wait or 0.25 * 2**tries * (0.5 + random.random() / 2)
                self.halted.wait(min(wait, _LONGEST_WAIT))

    def broken_off(self, error: Exception) -> BrokenConnection:
        """What an answer is that ended too early, or stood still."""
        inner = _innermost(error)
        return self._silent(error, http.limits("GET")) if isinstance(inner, TimeoutError) else _broke(inner)

    def _silent(self, error: Exception, limits: tuple[float, float]) -> BrokenConnection:
        """What a time-out is: tried again once, for each takes as long."""
        import requests

        host = self.reference.host
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return BrokenConnection(f"{host} did not take a connection within {limits[0]:g} seconds", tries=1)
        self._reached = True
        return BrokenConnection(
            f"{host} took the connection, and said nothing for {limits[1]:g} seconds",
            tries=1,
            hint=f"the registry, or a proxy before it, hangs; when it answers, {_AGAIN}",
        )

    def _failed(self, response: requests.Response) -> BrokenConnection:
        """What a status is that may be another in a moment."""
        said, wait, host = _said(response), _wait_of(response), self.reference.host
        status = response.status_code
        response.close()
        if status == 429:
            hint = f"{host} limits how much it is asked: wait {f'{wait:g} s' if wait else 'a while'}, then {_AGAIN}"
        else:
            hint = f"{host} itself failed, not the network: its log says why; when it is mended, {_AGAIN}"
        return BrokenConnection(said, wait=wait, tries=0 if wait and wait > _LONGEST_WAIT else None, hint=hint)

    def _untrusted(self, error: Exception) -> RegistryError:
        import ssl

        folder = f"/etc/docker/certs.d/{self.reference.host}"
        inner, hint = _innermost(error), "its CA's certificate belongs"
        said = str(inner)
        if isinstance(inner, ssl.SSLCertVerificationError):
            said = inner.verify_message
            if inner.verify_code == _EXPIRED:
                hint = "the registry's certificate, or its CA's, has to be renewed; a new CA's belongs"
        return RegistryError(
            f"{self.reference.host}: no trusted connection: {printable(said)}",
            hint=f"{hint} into {folder}/ca.crt, or into a folder given with --cert-dir",
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

    def _misled(self, error: ValueError) -> RegistryError:
        return RegistryError(f"{self.reference.host} leads us to what is no address: {printable(str(error))}")


def _innermost(error: BaseException) -> BaseException:
    """The first cause, which is the one that says something."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _broke(error: BaseException) -> BrokenConnection:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return BrokenConnection(f"the connection broke: {printable(text or type(error).__name__)}")


def _said(response: requests.Response) -> str:
    """What the registry says, in the form of the specification's error documents or else its status."""
    words = []
    try:
        for error in response.json()["errors"]:
            detail = f" ({error['detail']})" if isinstance(error.get("detail"), str) and error["detail"] else ""
            words.append(f"{error.get('message') or error.get('code')}{detail}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        words = []
    text = "; ".join(words) or response.reason or "no reason given"
    return f"{printable(text)} ({response.status_code})"


def _wait_of(response: requests.Response) -> float | None:
    return number(response.headers.get("Retry-After", ""))


def number(text: str) -> int | None:
    """The number in a header; None for what is none, or none that counts anything."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None
