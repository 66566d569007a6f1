"""Homes for the embedded Postgres to be tried in."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.embedded import start
from tests.test_embedded.servers import SETTINGS, processes_of


@pytest.fixture
def parent() -> Iterator[Path]:
    """A directory with a short path that the server's account may pass through; nothing runs on it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="emb-", dir="/tmp")).resolve()  # short, for a socket's path
    directory.chmod(0o711)
    yield directory
    left = processes_of(directory)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(directory)
    assert left == []


@pytest.fixture
def fresh(parent: Path) -> Path:
    """A home that does not exist yet."""
    return parent / "home"


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A home that was used and left, to copy from: initdb takes most of a first start."""
    directory = Path(tempfile.mkdtemp(prefix="emb-", dir="/tmp")).resolve()
    directory.chmod(0o711)
    start(directory / "home", settings=SETTINGS).close()
    yield directory / "home"
    shutil.rmtree(directory)


@pytest.fixture
def home(fresh: Path, made: Path) -> Path:
    """A home that holds a stopped cluster."""
    subprocess.run(["cp", "-a", made, fresh], check=True)
    return fresh
