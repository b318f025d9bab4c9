"""A home of its own for each test, and images to push."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import Images
from tests.publish.registries import Certificates, RegistryServer, docker_config


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's configuration, certificates and what imgtool remembers are this test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / "docker"))
    return folder


@pytest.fixture
def trusted(home: Path, safe_registry: RegistryServer, certificates: Certificates) -> RegistryServer:
    """`safe_registry`, whose CA is known here, and where this test is logged in."""
    folder = home / "config" / "docker" / "certs.d" / safe_registry.host
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(certificates.ca.read_bytes())
    docker_config(home / "docker", safe_registry.host)
    return safe_registry


class Forget(Protocol):
    def __call__(self) -> None: ...


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def forget(home: Path, monkeypatch: pytest.MonkeyPatch) -> Forget:
    """Makes this another host: nothing is remembered of what was pushed and pulled so far."""
    count = iter(range(100))

    def act() -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / f"cache-{next(count)}"))

    return act


@pytest.fixture
def chain(images: Images) -> Images:
    """base.qcow2 (3 MiB of data), and on it web.qcow2 and db.qcow2 (512 KiB each)."""
    images.base("base.qcow2", "16M")
    images.run_io(images / "base.qcow2", "write -P 1 0 3M", "write -P 7 8M 64k")
    for name, pattern in (("web", 2), ("db", 3)):
        images.overlay(f"{name}.qcow2", "base.qcow2")
        images.run_io(images / f"{name}.qcow2", f"write -P {pattern} 1M 512k")
    return images
