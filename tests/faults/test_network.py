"""Fault: a network that goes silent, crawls, resets, forgets one end of a connection, or cuts in mid-message.

Promise: no call outlives its deadline by more than a second; every call is resolved, or its caller is told that nothing
was written or that nobody knows; what is held meanwhile and arrives late does no harm; and service resumes by itself.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pytest

from eventstore import OutcomeUnknown, Unavailable
from eventstore.line import AsyncLine, Line
from tests.callers import KINDS, LONGEST, NOON, Call, callers, created, one, outcome
from tests.faults.clients import Timed, closed, timed_load
from tests.faults.network import Network, Way, network
from tests.load import ANY_OUTCOME, Load, chosen_seed
from tests.observing import by_request, types
from tests.soak import rounds
from tests.waiting import until

CALLERS: Final = {"threads": 8, "asyncio": 48}
TIMEOUT: Final = 1.0
GRACE: Final = 1.0
FAULTS: Final = rounds(14, 400)
LONGEST_CUT: Final = 1_500
"""Bytes: a statement of a few calls has so many."""


@pytest.fixture
def net(dsn: str) -> Iterator[Network]:
    with network(dsn) as opened:
        yield opened


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def healed_at_last(net: Network) -> Iterator[None]:
    """Heal the network when the block ends, whatever happens, so that nobody waits for ever."""
    try:
        yield
    finally:
        net.heal()


class Mischief:
    """Chooses what goes wrong, does it, and says when it has had its effect."""

    def __init__(self, net: Network, load: Load, seed: int) -> None:
        self._net, self._load = net, load
        self._dice = random.Random(f"{seed}/network")  # noqa: S311 - to be replayed
        self._next: list[Callable[[], None]] = []
        self.done: Counter[str] = Counter()

    def one(self) -> None:
        """Let something go wrong, heal, and wait until callers are served again."""
        if not self._next:
            self._next = [self._silence, self._silence, self._crawl, self._reset, self._half_open, self._half_open]
            self._next += [self._cut] * 8
            self._dice.shuffle(self._next)
        happens = self._next.pop()
        self.done[happens.__name__.lstrip("_")] += 1
        happens()
        self._net.heal()
        self.go_on()

    def go_on(self) -> None:
        """Wait until calls are answered that were made after now."""
        goal = self._load.answered + 2 * len(self._load.waiting) + 10
        until(lambda: self._load.answered >= goal, "calls to be answered again")

    def _half(self) -> bool:
        return self._dice.random() < 0.5

    def _ways(self) -> list[Way]:
        return self._dice.choice([[*Way], [Way.REQUESTS], [Way.REPLIES]])

    def _silence(self) -> None:
        told = sum(self._load.told.values())
        self._net.hold(*self._ways())
        if self._half():
            until(lambda: sum(self._load.told.values()) > told, "somebody to run out of time")
        else:
            until(lambda: self._load.waiting, "somebody to wait")

    def _crawl(self) -> None:
        self._net.slow(self._dice.uniform(0.001, 0.2), self._dice.uniform(10_000, 1_000_000))
        carried = self._net.carried[Way.REPLIES]
        until(lambda: self._net.carried[Way.REPLIES] > carried, "something to arrive")

    def _reset(self) -> None:
        self._net.reset(self._half if self._half() else lambda: True)

    def _half_open(self) -> None:
        self._net.half_open(self._dice.choice([*Way]), self._half if self._half() else lambda: True)
        if self._half():
            self.go_on()  # while the survivors wait

    def _cut(self) -> None:
        cuts = self._net.cuts
        self._net.cut_after(self._dice.choice([*Way]), self._dice.randrange(1, LONGEST_CUT))
        until(lambda: self._net.cuts > cuts, "a connection to be cut")


def check_durations(timed: Timed) -> None:
    longest, operation = timed.longest()
    print(f"{len(timed.durations)} calls, the longest {longest:.2f} s")
    assert longest <= TIMEOUT + GRACE, operation


def test_under_load_no_call_outlives_its_deadline_whatever_the_network_does(kind: str, dsn: str, net: Network) -> None:
    seed = chosen_seed()
    hasty = timed_load(kind, net.dsn(dsn), number=CALLERS[kind], seed=seed, tolerates=ANY_OUTCOME, timeout=TIMEOUT)
    with hasty as (load, timed), healed_at_last(net):
        mischief = Mischief(net, load, seed)
        for _ in range(FAULTS):
            mischief.one()
    load.check(dsn)
    print(f"{dict(mischief.done)}, {load.metrics.reconnections} reconnections, {load.metrics.unknown} unknown outcomes")
    check_durations(timed)


def test_under_load_a_black_hole_costs_each_call_its_time_and_no_more(kind: str, dsn: str, net: Network) -> None:
    seed = chosen_seed()
    hasty = timed_load(kind, net.dsn(dsn), number=CALLERS[kind], seed=seed, tolerates=ANY_OUTCOME, timeout=TIMEOUT)
    with hasty as (load, timed), healed_at_last(net):
        until(lambda: load.answered >= 100, "calls to be answered")
        net.hold()
        until(lambda: sum(load.told.values()) >= 2 * CALLERS[kind], "every caller to run out of time")
        net.heal()
        healed = time.monotonic()
        before = load.answered
        until(lambda: load.answered > before, "the first call to be answered again")
        resumed = time.monotonic() - healed
        until(lambda: load.answered >= before + 100, "calls to be answered again")
    load.check(dsn)
    print(f"served again after {resumed:.2f} s")
    check_durations(timed)


def test_a_slow_link_costs_time_and_no_answer(kind: str, dsn: str, net: Network) -> None:
    seed = chosen_seed()
    with (
        timed_load(kind, net.dsn(dsn), number=CALLERS[kind], seed=seed, timeout=20.0) as (load, timed),
        healed_at_last(net),
    ):
        until(lambda: load.answered >= 100, "calls to be answered")
        net.slow(0.02, 100_000)
        until(lambda: load.answered >= 100 + rounds(60, 2000), "calls to be answered over a slow link")
        net.heal()
    load.check(dsn)
    assert not load.told
    assert load.metrics.reconnections == 0
    print(f"{len(timed.durations)} calls, the longest {timed.longest()[0]:.2f} s")


def test_a_statement_that_arrives_after_its_callers_have_left_makes_nobody_a_liar(
    kind: str, dsn: str, net: Network, connection: psycopg.Connection[object]
) -> None:
    with callers(kind, net.dsn(dsn), timeout=TIMEOUT) as opened, healed_at_last(net):
        commands = created(opened, 32)
        net.hold(Way.REQUESTS)
        calls = [Call("increment_attempt", each, request_id=each) for each in commands]
        under_way = opened.at_once(calls)
        late = wait(under_way, TIMEOUT + GRACE).not_done
        told = [outcome(each) for each in under_way]
        before = by_request(connection)
        net.heal()
        again = opened.at_once([Call("increment_attempt", each, timeout=LONGEST) for each in commands])
        attempts = [each.result(LONGEST) for each in again]
        stored = by_request(connection)
    assert not late
    assert not before
    assert {type(error) for error in told} <= {OutcomeUnknown, Unavailable}
    unknown = {command for command, error in zip(commands, told, strict=True) if isinstance(error, OutcomeUnknown)}
    assert unknown, "no statement was on its way"
    assert set(stored) <= unknown, "written, and its caller was told that nothing was"
    assert {2, 3} >= set(attempts)
    print(f"{len(unknown)} of 32 unknown, of which {len(stored)} were written after all")


# Closing while nobody answers.


@pytest.mark.parametrize("name", ["increment_attempt", "get_command_status", "history", "expire_overdue"])
def test_a_call_under_way_in_a_black_hole_ends_with_its_deadline_also_when_the_registry_is_closed(
    kind: str, dsn: str, net: Network, name: str
) -> None:
    with callers(kind, net.dsn(dsn), timeout=TIMEOUT) as opened, healed_at_last(net):
        [command_id] = created(opened)
        net.hold(Way.REPLIES)
        argument = NOON if name == "expire_overdue" else command_id
        [call] = opened.at_once([Call(name, argument)])
        until(lambda: net.held[Way.REPLIES], "the call to wait for its answer")
        closing = closed(opened)
        late = wait([call], TIMEOUT + GRACE).not_done
        net.heal()
        told = outcome(call)
        closing.result(LONGEST)
    assert not late, f"it was held until the network healed, and then told {told!r}"
    assert isinstance(told, Unavailable | OutcomeUnknown), told


def test_a_reset_that_is_found_before_the_connection_knows_that_it_is_closed_is_a_lost_connection(
    kind: str, dsn: str, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an instant, the kernel tells of an error (POLLERR) and not yet of an end; then psycopg raises this."""
    line: Any = AsyncLine if kind == "asyncio" else Line
    ask, resets = line.ask, [psycopg.OperationalError("connection socket closed")]

    def reset_if_it_writes(rows: Any, statement: Any) -> Any:
        if resets and "INSERT INTO command_registry.events" in str(statement):
            raise resets.pop()
        return rows

    async def ask_and_wait(self: Any, statement: Any, params: Any) -> Any:
        return reset_if_it_writes(await ask(self, statement, params), statement)

    def ask_now(self: Any, statement: Any, params: Any) -> Any:
        return reset_if_it_writes(ask(self, statement, params), statement)

    with callers(kind, dsn, timeout=20.0) as opened:
        [command_id] = created(opened)
        monkeypatch.setattr(line, "ask", ask_and_wait if kind == "asyncio" else ask_now)
        assert one(opened, "increment_attempt", command_id) == 2
        assert opened.registry.stats().reconnections == 1
    assert not resets
    assert types(connection, command_id) == ["CommandCreated", "AttemptIncremented"]
