"""What it all runs on: figures of different machines, or of other settings, are not to be compared."""

import importlib.metadata
import os
import platform
from typing import Final

from pydantic import BaseModel, ConfigDict

from benchmarks.server import Server

__all__ = ["Machine", "look_at"]

_DURABILITY: Final = ("fsync", "synchronous_commit", "full_page_writes")


class Machine(BaseModel):
    """The machine, the programs and the server's settings that figures hang on.

    `memory`: bytes. `load`: the system's load average of the minute before.
    """

    model_config = ConfigDict(frozen=True)

    system: str
    cores: int
    memory: int
    load: float
    python: str
    psycopg: str
    postgres: str
    eventsourcing: str | None
    settings: dict[str, str]

    @property
    def not_durable(self) -> list[str]:
        """The settings that let a commit be lost: then nothing here tells of a registry that keeps what it is told."""
        return [name for name in _DURABILITY if self.settings[name] == "off"]


def look_at(server: Server) -> Machine:
    """Find out what this is."""
    names = (*_DURABILITY, "wal_sync_method", "shared_buffers", "max_wal_size", "max_connections")
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load=os.getloadavg()[0],
        python=platform.python_version(),
        psycopg=importlib.metadata.version("psycopg"),
        postgres=server.setting("server_version"),
        eventsourcing=_version("eventsourcing"),
        settings={name: server.setting(name) for name in names},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
