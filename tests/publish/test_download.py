"""Files of the web: as they are, once, and what a server may do on the way. Real connections, to a server of ours."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from imgtool.build.base import fetching
from imgtool.errors import ConfigError, ImageError, UsageError
from imgtool.publish.download import DownloadError, download, name_of
from imgtool.publish.oci.fetch import fetch
from tests.build.conftest import Bench

CONTENT = bytes(range(256)) * 20_000
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
SHA512 = f"sha512:{hashlib.sha512(CONTENT).hexdigest()}"


class Web(ThreadingHTTPServer):
    """Has one file, under every name. Breaks off after so many bytes of each answer in `breaks`; answers those in
    `says` by that status alone."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content = CONTENT
        self.breaks: list[int] = []
        self.says: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []
        """The ranges that were asked for."""

    def url(self, name: str = "disk.qcow2") -> str:
        return f"http://127.0.0.1:{self.server_port}/images/{name}"


class _Answer(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.says:
            self.send_error(self.server.says.pop(0))
            return
        start = 0
        if wanted is not None and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks.pop(0)] if self.server.breaks else body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr("imgtool.publish.download._PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Web()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("digest", [SHA256, SHA512])
def test_a_file_comes_whole_and_read_only(web: Web, tmp_path: Path, digest: str) -> None:
    path = tmp_path / "disk.qcow2"
    shown: list[float] = []
    download(web.url(), digest, str(path), progress=shown.append)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o444
    assert os.listdir(tmp_path) == ["disk.qcow2"]
    assert shown == sorted(shown)
    assert shown[-1] == 100


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_goes_on_where_it_stopped(web: Web, tmp_path: Path, ranges: bool) -> None:
    web.ranges = ranges
    web.breaks = [1000, 0, 2_000_000 if ranges else 3_000_000]
    web.says = [503]
    download(web.url(), SHA256, str(tmp_path / "disk.qcow2"))
    assert (tmp_path / "disk.qcow2").read_bytes() == CONTENT
    if ranges:
        assert web.asked == [None, None, "bytes=1000-", "bytes=1000-", "bytes=2001000-"]


def test_the_next_attempt_goes_on_too(web: Web, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    web.breaks = [5000, 0]
    with pytest.raises(DownloadError, match="the connection ended too early") as caught:
        download(web.url(), SHA256, str(path), tries=1)
    assert "resumes" in (caught.value.hint or "")
    assert os.listdir(tmp_path) == ["disk.qcow2.part"]
    download(web.url(), SHA256, str(path))
    assert web.asked[-1] == "bytes=5000-"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("before", [b"x" * 5000, b"x" * len(CONTENT), CONTENT])
def test_what_is_there_of_another_file_is_fetched_anew(web: Web, tmp_path: Path, before: bytes) -> None:
    (tmp_path / "disk.qcow2.part").write_bytes(before)
    download(web.url(), SHA256, str(tmp_path / "disk.qcow2"))
    assert (tmp_path / "disk.qcow2").read_bytes() == CONTENT


def test_another_file_is_not_taken(web: Web, tmp_path: Path) -> None:
    web.content = b"another"
    with pytest.raises(DownloadError, match=r"disk\.qcow2 is not the file that sha512 pins") as caught:
        download(web.url(), SHA512, str(tmp_path / "disk.qcow2"))
    assert caught.value.hint == f"its sha512 is {hashlib.sha512(b'another').hexdigest()}"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", [64 << 10, len(CONTENT) - 1])
def test_where_there_is_no_room_nothing_is_asked_for_again(room: int, web: Web, tmp_path: Path) -> None:
    """A write that a full disk takes in part is not taken for one of all bytes, of the last ones either."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(ImageError, match=r"disk\.qcow2\.part cannot be written: File too large") as caught:
            download(web.url(), SHA256, str(tmp_path / "disk.qcow2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "make room and run it again" in (caught.value.hint or "")
    assert len(web.asked) == 1
    assert os.listdir(tmp_path) == ["disk.qcow2.part"]
    download(web.url(), SHA256, str(tmp_path / "disk.qcow2"))
    assert web.asked[1] == f"bytes={room}-"
    assert (tmp_path / "disk.qcow2").read_bytes() == CONTENT


def test_what_cannot_be_had_says_why(web: Web, tmp_path: Path) -> None:
    web.says = [404]
    with pytest.raises(DownloadError, match="cannot be fetched: the server says 404 Not Found"):
        download(web.url(), SHA256, str(tmp_path / "disk.qcow2"))
    assert len(web.asked) == 1, "that passes for nobody"
    with pytest.raises(DownloadError, match="refused"):
        download("http://127.0.0.1:1/disk.qcow2", SHA256, str(tmp_path / "disk.qcow2"))
    for digest in ("sha256:12", f"md5:{'0' * 32}", SHA256.upper()):
        with pytest.raises(UsageError, match="is not a digest"):
            download(web.url(), digest, str(tmp_path / "disk.qcow2"))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.example/b/disk.qcow2", "disk-0123456789ab.qcow2"),
        ("https://a.example/b/disk%2F..%2f%20x.img?token=secret#1", "x-0123456789ab.img"),
        ("https://a.example/", "image-0123456789ab"),
        ("https://a.example/.hidden", "hidden-0123456789ab"),
    ],
)
def test_the_file_keeps_its_name_but_for_what_no_name_should_have(url: str, name: str) -> None:
    assert name_of(url, f"sha256:0123456789abcdef{'0' * 48}") == name


RECIPE = """\
[image]
name = "web"
from = "URL"
sha512 = "DIGEST"

[[layer]]
name = "one"
run = ["make a"]

[output]
path = "web-1.qcow2"
"""


def test_a_recipe_starts_from_a_file_of_the_web(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(bench.folder / "web-cache"))
    web.content = (bench.folder / "base.qcow2").read_bytes()
    digest = hashlib.sha512(web.content).hexdigest()
    recipe = RECIPE.replace("URL", web.url()).replace("DIGEST", digest.upper())
    with fetching(fetch):
        built = bench.builder().build(bench.recipe(recipe))
        assert built.output_made
        again = bench.builder().build(bench.recipe(recipe))
    assert ([layer.cached for layer in again.layers], again.output_made) == ([True], False)
    assert len(web.asked) == 1
    local = bench.recipe(recipe.replace(web.url(), "base.qcow2"))
    assert [layer.cached for layer in bench.builder().build(local).layers] == [True]
    with pytest.raises(ConfigError, match=r"web\.toml:3: .*its digest is not pinned"):
        bench.builder().build(bench.recipe(recipe.replace("sha512", "# sha512")))
    with pytest.raises(ConfigError, match=r"web\.toml:4: image\.sha512 is not 128 hexadecimal digits"):
        bench.recipe(recipe.replace(digest.upper(), "0" * 64))
    with pytest.raises(ConfigError, match=r"web\.toml:4: .*base\.qcow2 is not the file that sha512 pins"):
        bench.builder().build(
            bench.recipe(recipe.replace(web.url(), "base.qcow2").replace(digest.upper(), "0" * 128))
        )
