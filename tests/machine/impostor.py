"""What says it is a guest agent, and answers as a hostile guest likes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def impostor(answers: Mapping[str, bytes], name: str = "agent.sock") -> Iterator[str]:
    """A folder in which the socket `name` answers each command that `answers` has with these bytes."""
    with tempfile.TemporaryDirectory(prefix="it-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        server.bind(os.path.join(folder, name))
        server.listen()
        thread = threading.Thread(target=_serve, args=(server, answers))
        thread.start()
        try:
            yield folder
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(server: socket.socket, answers: Mapping[str, bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as requests:
                for line in requests:
                    request = json.loads(line.lstrip(b"\xff"))
                    if request["execute"] == "guest-sync-delimited":
                        connection.sendall(b'\xff{"return": %d}\n' % request["arguments"]["id"])
                    else:
                        connection.sendall(answers[request["execute"]] + b"\n")
