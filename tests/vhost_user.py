"""A switch for vhost-user networks, in a thread of the test."""

from __future__ import annotations

import socket
import struct
import threading
from typing import ClassVar


class Switch(threading.Thread):
    """As much of a vhost-user switch as QEMU needs to start. QEMU docs: interop/vhost-user."""

    ANSWERED: ClassVar = {1: 1 << 32 | 1 << 30, 15: 1, 17: 4}
    """GET_FEATURES (virtio 1, protocol features), GET_PROTOCOL_FEATURES (MQ), GET_QUEUE_NUM."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.heard: set[int] = set()

    def run(self) -> None:
        with self.listener:
            connection, _ = self.listener.accept()
        with connection:
            while header := connection.recv(12, socket.MSG_WAITALL):
                request, flags, size = struct.unpack("<III", header)
                connection.recv(size, socket.MSG_WAITALL) if size else b""
                self.heard.add(request)
                if request in self.ANSWERED:
                    connection.sendall(struct.pack("<IIIQ", request, 5, 8, self.ANSWERED[request]))
                elif flags & 8:
                    connection.sendall(struct.pack("<IIIQ", request, 5, 8, 0))
