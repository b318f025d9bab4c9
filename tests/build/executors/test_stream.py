from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from imgtool.build.executors.stream import RS, Frame, Frames, Redactor, overlap, redact

TOKEN = "0123456789ab"


def frame(id: str, status: int, payload: bytes) -> bytes:
    return RS + f"{TOKEN}:{id}:{status}:".encode() + payload + RS + TOKEN.encode() + RS


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(at)]


# Nothing in a guest knows the token, so no payload holds it; output may, for all that the parser cares, but for what
# begins a frame.
PAYLOAD = st.binary(max_size=40).filter(lambda payload: TOKEN.encode() not in payload)
NEARLY = st.sampled_from([RS, RS + TOKEN.encode(), RS + TOKEN.encode()[:4], TOKEN.encode(), RS + RS, b"\n", b":"])
OUTPUT = (
    st.lists(st.one_of(st.binary(max_size=20), NEARLY), max_size=6)
    .map(b"".join)
    .filter(lambda output: RS + TOKEN.encode() + b":" not in output)
)


@given(parts=st.lists(st.tuples(OUTPUT, st.integers(0, 255), PAYLOAD), max_size=4), places=st.lists(st.integers(0)))
def test_a_stream_is_taken_apart_wherever_it_is_cut(parts: list[tuple[bytes, int, bytes]], places: list[int]) -> None:
    frames = Frames(TOKEN)
    stream = b"".join(output + frame("q1", status, payload) for output, status, payload in parts)
    events = [event for piece in cut(stream, places) for event in frames.feed(piece)]
    output = b"".join(event for event in events if isinstance(event, bytes))
    assert [event for event in events if isinstance(event, Frame)] == [
        Frame("q1", status, payload) for _, status, payload in parts
    ]
    assert output == b"".join(output for output, _, _ in parts)
    assert frames.flush() == b""


def test_output_is_handed_on_at_once_when_it_cannot_be_a_frame() -> None:
    frames = Frames(TOKEN)
    assert frames.feed(b"a prompt: ") == [b"a prompt: "]
    assert frames.feed(b"a line\n") == [b"a line\n"]
    assert frames.feed(b"x" + RS + TOKEN.encode()) == [b"x"]
    assert frames.feed(b"!") == [RS + TOKEN.encode() + b"!"]


def test_what_begins_as_a_frame_and_is_none_is_output() -> None:
    frames = Frames(TOKEN)
    odd = RS + TOKEN.encode() + b":no status" + RS + TOKEN.encode() + RS
    assert frames.feed(odd) == [odd]


SECRETS = ["s3cret", "s3cret-longer", "ab", "line one\nline two", "ü€"]


@given(
    words=st.lists(st.sampled_from([*SECRETS, "s3cre", "a", "b", "line one", " ", "\n", "x"])),
    places=st.lists(st.integers(0)),
)
def test_no_secret_is_seen_however_the_output_is_cut(words: list[str], places: list[int]) -> None:
    said: list[bytes] = []
    redactor = Redactor(SECRETS, said.append)
    data = "".join(words).encode()
    for piece in cut(data, places):
        redactor(piece)
    redactor.close()
    whole: list[bytes] = []
    at_once = Redactor(SECRETS, whole.append)
    at_once(data)
    at_once.close()
    assert b"".join(said) == b"".join(whole)
    assert not any(secret.encode() in b"".join(said) for secret in SECRETS)


def test_the_longer_of_two_secrets_is_hidden_whole() -> None:
    said: list[bytes] = []
    redactor = Redactor(SECRETS, said.append)
    redactor(b"<s3cret-lo")
    redactor(b"nger><s3cret>")
    redactor.close()
    assert b"".join(said) == b"<***><***>"


def test_without_secrets_nothing_is_held_back() -> None:
    said: list[bytes] = []
    redactor = Redactor(["", ""], said.append)
    redactor(b"anything")
    assert said == [b"anything"]


def test_overlap_is_the_longest_beginning_at_the_end() -> None:
    assert overlap(b"xxaba", b"abab") == 3
    assert overlap(b"abab", b"abab") == 2
    assert overlap(b"", b"ab") == 0


def test_redacting_keeps_the_length() -> None:
    assert redact(b"a s3cret-longer, a s3cret", SECRETS) == b"a " + b"*" * 13 + b", a " + b"*" * 6
