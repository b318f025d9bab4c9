"""What steps say: secrets masked however the stream is cut, and the last lines kept."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from imgtool.build.output import MASK, TAIL, Log, Masked


@given(
    parts=st.lists(st.sampled_from(["hunter2", "hunt", "er2", "h", "x", "\n", "tok-", "tok-en", "n"]), max_size=30),
    cuts=st.lists(st.integers(min_value=0, max_value=40), max_size=20),
)
def test_no_secret_gets_through_however_the_stream_is_cut(parts: list[str], cuts: list[int]) -> None:
    secrets = ["hunter2", "tok-en"]
    data = "".join(parts).encode()
    seen = bytearray()
    masked = Masked(secrets, seen.extend)
    at = 0
    for cut in cuts:
        masked.feed(data[at : at + cut])
        at += cut
    masked.feed(data[at:])
    masked.flush()
    for secret in secrets:
        assert secret.encode() not in seen
    assert bytes(seen) == _masked_at_once(data, secrets)


def _masked_at_once(data: bytes, secrets: list[str]) -> bytes:
    for secret in secrets:
        data = data.replace(secret.encode(), MASK)
    return data


def test_what_cannot_become_a_secret_is_not_held_back() -> None:
    seen: list[bytes] = []
    masked = Masked(["geheim"], seen.append)
    masked.feed(b"prompt> ")
    assert seen == [b"prompt> "]
    masked.feed(b"gehe")
    assert seen == [b"prompt> "]
    masked.feed(b"n")
    assert b"".join(seen) == b"prompt> gehen"


def test_an_empty_secret_masks_nothing() -> None:
    seen = bytearray()
    masked = Masked(["", "\n"], seen.extend)
    masked.feed(b"a\nb")
    assert bytes(seen) == b"a\nb"


def test_the_log_keeps_all_and_the_tail_is_the_last_step_s() -> None:
    file, watched = io.BytesIO(), bytearray()
    log = Log(file, ["geheim"], watched.extend)
    log.begin_step()
    log.heading("first")
    log.feed(b"of the first\n")
    log.begin_step()
    log.heading("second")
    for number in range(100):
        log.feed(f"line {number} geheim\n".encode())
    log.feed(b"no newline \x1b[2J")
    tail = log.tail()
    assert len(tail) == TAIL
    assert tail[-2:] == ["line 99 ***", "no newline \\x1b[2J"]
    whole = file.getvalue()
    assert whole.startswith(b"==> first\nof the first\n==> second\nline 0 ***\n")
    assert b"geheim" not in whole + bytes(watched)
