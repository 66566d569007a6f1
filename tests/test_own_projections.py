"""docs/projections-of-your-own.md does what it says, from the class to the query."""

import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from projections.memory import MemoryProjection
from projections.postgres import Projector, rebuild_table
from projections.table import Table
from projections.testing import replay_equals_incremental
from registry import CommandState, PostgresCommandRegistry
from registry.testing import command_logs
from tests.test_cli import CommandLine

ROOT = Path(__file__).parent.parent
CODE = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs/projections-of-your-own.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


def of_the_document() -> ModuleType:
    """All the code of the document, as a module: pasted together as they stand."""
    module = ModuleType("of_the_document")
    exec(compile("\n".join(CODE), "docs/projections-of-your-own.md", "exec"), module.__dict__)  # noqa: S102
    return module


DOCUMENT = of_the_document()
test_the_one_liner_of_the_document = DOCUMENT.test_errors_by_code
test_the_unit_test_of_the_document = DOCUMENT.test_errors_are_counted_by_their_code


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import errors_by_code  # type: ignore[import-not-found]

    return errors_by_code.ErrorsByCode()


def test_the_example_is_the_same_replayed_and_page_by_page(example: Any) -> None:
    replay_equals_incremental(example, command_logs())()


def fail(registry: PostgresCommandRegistry, *codes: str | None) -> list[str]:
    ids = [registry.create_command("dep", "sync").command_id for _ in codes]
    for command_id, code in zip(ids, codes, strict=True):
        registry.complete_command(command_id, CommandState.FAILED, datetime.now(UTC), error={"code": code})
    return ids


def test_the_example_is_followed_and_rebuilt_alike(example: Any, dsn: str, connection: psycopg.Connection[Any]) -> None:
    table = Table(example)
    query = "SELECT code, errors, last_command_id FROM command_registry.errors_by_code"
    with PostgresCommandRegistry.open(dsn) as registry:
        ids = fail(registry, "A", "B", "A", None)
        with Projector(registry.database, [table]) as projector:
            ids += fail(registry, "B", "A")
            projector.wait_until()
        rows = connection.execute(query).fetchall()
        assert rows == [("A", 3, ids[5]), ("B", 2, ids[4]), ("(none)", 1, ids[3])]
        twin = MemoryProjection(example)
        twin.apply(registry.export())
        stored = {row[0]: row for row in connection.execute("SELECT * FROM command_registry.errors_by_code")}
        assert twin.rows == stored
        connection.execute("DROP VIEW command_registry.errors_by_code")
        connection.execute("DROP TABLE command_registry.errors_by_code_v1")
        connection.execute("DELETE FROM command_registry.projections WHERE name = 'errors_by_code'")
        connection.execute("DELETE FROM command_registry.projectors WHERE name = 'errors_by_code'")
        rebuild_table(registry.database, table, verify="full")
        assert connection.execute(query).fetchall() == rows


def test_the_command_of_the_document_runs_it(
    dsn: str, connection: psycopg.Connection[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"mymodule_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(CODE[0])
    with PostgresCommandRegistry.open(dsn) as registry:
        fail(registry, "A", "B", "A")
    options = ("errors_by_code", "--once", "--projections", f"{name}:ErrorsByCode")
    assert CommandLine(dsn).call("projections", "run", *options).exit_code == 0
    rows = connection.execute("SELECT * FROM command_registry.errors_by_code").fetchall()
    assert rows == [("A", 2), ("B", 1)]


def test_a_class_that_cannot_be_a_table_is_told_what_is_wrong_with_it(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"wrong_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(CODE[0].replace('"errors_by_code"', '"Errors; DROP TABLE events"'))
    error = CommandLine(dsn).error("projections", "run", "--once", "--projections", f"{name}:ErrorsByCode")
    assert "ErrorsByCode.name: must be at most 50 of a-z, 0-9 and _" in error
