"""An sshd of the tests' own, on the loopback address."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.publish.sync.ssh import Ssh


class SshServer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.key = folder / "key"
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def ssh(self) -> Ssh:
        return Ssh(port=self.port, identity=str(self.key), options=self.options)

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    @property
    def options(self) -> tuple[str, ...]:
        return ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes")

    @property
    def words(self) -> list[str | Path]:
        """Options of `imgtool sync`."""
        named: list[str | Path] = [word for option in self.options for word in ("--ssh-option", option)]
        return ["--port", str(self.port), "-i", self.key, *named]

    def start(self) -> None:
        for name in ("host", "key"):
            path = str(self.folder / name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        shutil.copy(self.folder / "key.pub", self.folder / "authorized")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (self.folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
        )
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where root's sshd locks itself up
        program = shutil.which("sshd") or "/usr/sbin/sshd"
        log = self.folder / "log"
        self._daemon = subprocess.Popen([program, "-D", "-f", self.folder / "config", "-E", log])
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._daemon.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(30)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    server = SshServer(tmp_path_factory.mktemp("sshd"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
