"""Databases for tests: each test has its own, cloned from one that was migrated once."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from registry.postgres import PostgresCommandRegistry

__all__ = ["Databases"]


class Databases:
    """Makes databases on a server: empty ones, and ones with a registry's schema.

    `server_dsn`: of a user who may create databases (and, on a server that had no registry before, roles). Made by one
    process, and not for threads.
    """

    def __init__(self, server_dsn: str) -> None:
        self.server_dsn = server_dsn
        self._template: str | None = None

    def dsn(self, name: str) -> str:
        """Give the DSN of a database."""
        return make_conninfo(self.server_dsn, dbname=name)

    def create(self, template: str = "template0") -> str:
        """Make a database with nothing in it, or as its template is, and give its name."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8'", name, template)
        return name

    def migrated(self) -> str:
        """Make a database with an empty registry in it, and give its name."""
        if self._template is None:
            self._template = self.create()
            PostgresCommandRegistry.open(self.dsn(self._template), migrate=True).close()
        return self.create(self._template)

    @contextmanager
    def one(self) -> Iterator[str]:
        """Make a database with an empty registry in it for a while, and give its DSN."""
        name = self.migrated()
        try:
            yield self.dsn(name)
        finally:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def close(self) -> None:
        """Drop what this made for itself."""
        if self._template is not None:
            self.drop(self._template)

    def execute(self, statement: LiteralString, *names: str) -> None:
        """Execute a statement on the server; `{}` stands for a name."""
        with psycopg.connect(self.server_dsn, autocommit=True) as connection:
            connection.execute(SQL(statement).format(*map(Identifier, names)))
