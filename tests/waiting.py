"""Waiting for a condition, for a bounded time."""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg

__all__ = ["until", "until_waiting_for_lock"]

T = TypeVar("T")

PATIENCE: Final = 20.0
PAUSE: Final = 0.005


def until(condition: Callable[[], T], what: str = "") -> T:
    """Return the first true answer of a condition; fail when it has none for 20 seconds."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain for {what or condition}"
        time.sleep(PAUSE)
    return answer


def until_waiting_for_lock(observer: psycopg.Connection[Any], pid: int) -> None:
    """Wait until the backend `pid` waits for a lock."""
    sql = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
    until(lambda: observer.execute(sql, (pid,)).fetchall(), f"backend {pid} to wait for a lock")
