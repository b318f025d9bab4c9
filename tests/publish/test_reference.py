"""Names of images in registries."""

from __future__ import annotations

import pytest

from imgtool.errors import UsageError
from imgtool.publish.oci.reference import Reference, is_loopback, parse_reference

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:5000/web", Reference("localhost:5000", "web", "latest", None)),
        ("registry.example.org/a/b_c:1.4", Reference("registry.example.org", "a/b_c", "1.4", None)),
        (f"r.example/web@sha256:{HEX}", Reference("r.example", "web", None, f"sha256:{HEX}")),
        (f"r.example/web:1@sha256:{HEX}", Reference("r.example", "web", "1", f"sha256:{HEX}")),
        ("[::1]:5000/web:x", Reference("[::1]:5000", "web", "x", None)),
        ("oci:127.0.0.1:5000/web:1", Reference("127.0.0.1:5000", "web", "1", None)),
        ("docker://docker.io/library/web:1", Reference("docker.io", "library/web", "1", None)),
    ],
)
def test_a_reference_is_taken_apart(text: str, expected: Reference) -> None:
    found = parse_reference(text)
    assert found == expected
    assert parse_reference(str(found)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web",
        "web:1",
        "library/web",
        "localhost:5000/",
        "localhost:5000/Web",
        "localhost:5000/web:",
        "localhost:5000/web:a b",
        "localhost:5000/web@sha256:12",
        "localhost:5000/../etc",
        "user@host:5000/web",
        "localhost:65536/web",
        "localhost:0/web",
        "localhost:5000/web:1/2",
        "http://localhost:5000/web",
        f"localhost:5000/{'a' * 300}",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert caught.value.hint


def test_a_digest_names_more_than_a_tag() -> None:
    assert parse_reference(f"r.example/web:1@sha256:{HEX}").version == f"sha256:{HEX}"
    assert parse_reference("r.example/web").version == "latest"


def test_docker_hub_answers_under_another_name() -> None:
    assert parse_reference("docker.io/library/web").api_host == "registry-1.docker.io"
    assert parse_reference("r.example/web").api_host == "r.example"


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:1", "127.8.9.1", "[::1]:5000", "[::1]"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1:5000", "localhost.example.org", "127.0.0.1.example.org"])
def test_other_machines_are_not_taken_for_it(host: str) -> None:
    assert not is_loopback(host)
