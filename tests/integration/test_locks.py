"""One flow run works on a host at a time."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from blocks.cancellation import Cancellation, cancellation_scope, current_cancellation
from blocks.errors import Cancelled, Conflict, ConnectionLost, Unreachable
from blocks.host import CommandResult, Host
from blocks.ssh_host import SSHHost
from tasks.common.host_limit import ensure_limit, limit_name
from tasks.common.host_lock import HostLock
from tasks.common.lock_owner import LockOwner, Machine, this_machine
from tasks.common.locks import LockedHosts, hosts_locked
from tasks.common.run_states import final_state
from tests.integration.test_host_lock import ShellHost
from tests.lab import LabHost

ELSEWHERE = Machine("worker9", "another-boot", "pid:[9]")


class NamedHost(ShellHost):
    """A shell host with a name, which may be cut off."""

    def __init__(self, name: str) -> None:
        super().__init__(["sh"])
        self.label = self.lock_name = name
        self.cut = False

    def run(self, argv: Sequence[str], **options: Any) -> CommandResult:
        """Run it, unless the host is cut off or the run cancelled."""
        current_cancellation().check(self.label)
        if self.cut:
            raise Unreachable("no answer", self.label, "Check the cable.")
        return super().run(argv, **options)


def named(name: str) -> Host:
    return cast("Host", NamedHost(name))


class OwnHost(NamedHost):
    """A shell host whose lock is its own: its name comes behind the path."""

    def run(self, argv: Sequence[str], **options: Any) -> CommandResult:
        """Run it with that path."""
        if argv[0] == "sh":
            argv = [*argv[:4], f"{argv[4]}-{self.label}", *argv[5:]]
        return super().run(argv, **options)


def own(name: str) -> Host:
    return cast("Host", OwnHost(name))


class Paths:
    """One lock folder for a host under test."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "lock")

    def owners(self) -> list[str]:
        return [file.name for file in Path(self.path).glob("owner.*")]


@pytest.fixture
def lock(tmp_path: Path) -> Paths:
    return Paths(tmp_path)


def taken_by(owner: LockOwner, path: str) -> HostLock:
    held = HostLock(named("gpu1"), owner, path)
    assert held.try_take(lambda _: None).outcome == "taken"
    return held


def stranger(run_id: str = "run-elsewhere") -> LockOwner:
    return LockOwner(run_id, "verify", "zhang", ELSEWHERE, 10, 1000)


def test_the_lock_lasts_as_long_as_the_body(lock: Paths) -> None:
    with hosts_locked([named("gpu1")], path=lock.path) as locked:
        assert [host.label for host in locked.hosts] == ["gpu1"]
        assert len(lock.owners()) == 1
    assert not Path(lock.path).exists()


def test_the_lock_is_given_back_when_the_body_fails(lock: Paths) -> None:
    with pytest.raises(KeyError), hosts_locked([named("gpu1")], path=lock.path):
        raise KeyError
    assert not Path(lock.path).exists()


def test_two_blocks_of_one_machine_are_one_lock_and_the_log_says_so(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = named("gpu1"), NamedHost("gpu1")
    second.label = "gpu1-again"
    with hosts_locked([first, cast("Host", second)], path=lock.path, wait=0) as locked:
        assert locked.hosts == (first,)
        assert locked.failures == ()
    assert "gpu1-again is the same machine as gpu1" in caplog.text


def test_capital_letters_and_blanks_in_an_address_make_no_other_machine() -> None:
    assert SSHHost(address=" GPU1.Lan ").lock_name == SSHHost(address="gpu1.lan").lock_name
    assert SSHHost(address="gpu1", port=23).lock_name != SSHHost(address="gpu1").lock_name


def test_a_block_that_is_named_twice_is_no_news(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    with hosts_locked([named("gpu1"), named("gpu1")], path=lock.path, wait=0) as locked:
        assert len(locked.hosts) == 1
    assert caplog.text == ""


@pytest.mark.timeout(60)
def test_a_machine_under_two_names_is_found_out_at_once_and_held_once(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = named("10.0.3.17-22"), named("gpu1-22")
    with hosts_locked([second, first], path=lock.path) as locked:
        assert locked.hosts == (first,)
        assert locked.failures == ()
        assert len(lock.owners()) == 1
    assert "gpu1-22 is the same machine as 10.0.3.17-22" in caplog.text
    assert not Path(lock.path).exists()


@pytest.mark.timeout(60)
def test_a_nested_call_may_use_another_name_of_the_machine(lock: Paths) -> None:
    other_name = named("10.0.3.17-22")
    with hosts_locked([named("gpu1-22")], path=lock.path):
        with hosts_locked([other_name], path=lock.path) as inner:
            assert inner.hosts == (other_name,)
            with hosts_locked([named("10.0.3.17-22")], path=lock.path) as innermost:
                assert len(innermost.hosts) == 1
        assert len(lock.owners()) == 1


class AtSentence(logging.Handler):
    """Does something when a sentence with these words is logged."""

    def __init__(self, words: str, act: Callable[[], None]) -> None:
        super().__init__()
        self._words = words
        self._act = act

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a sentence."""
        if self._words in record.getMessage():
            self._act()


@contextmanager
def at_sentence(words: str, act: Callable[[], None]) -> Iterator[None]:
    handler = AtSentence(words, act)
    logging.getLogger("crossgap").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("crossgap").removeHandler(handler)


def lock_of(name: str, path: str) -> HostLock:
    """Another run's lock on a host that is `own`."""
    held = HostLock(own(name), stranger(), path)
    assert held.try_take(lambda _: None).outcome == "taken"
    return held


def held_of(path: str) -> set[str]:
    """The names of the hosts under this path that are locked."""
    return {each.name.rsplit("-", 1)[1] for each in Path(path).parent.glob("lock-*")}


@pytest.mark.timeout(60)
def test_one_wait_serves_for_all_hosts_that_others_hold(
    lock: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    for module in ("host_hold", "host_holds"):
        monkeypatch.setattr(f"tasks.common.{module}.time", clock)

    def pause(self: Cancellation, seconds: float, where: str) -> None:
        now[0] += seconds

    monkeypatch.setattr(Cancellation, "pause", pause)
    for name in ("a", "c", "d"):
        lock_of(name, lock.path)
    with hosts_locked(
        [own(name) for name in "abcde"], path=lock.path, wait=3600, poll=300
    ) as locked:
        assert [host.label for host in locked.hosts] == ["b", "e"]
    assert [failure.where for failure in locked.failures] == ["a", "c", "d"]
    assert all("waited 1 h" in str(failure) for failure in locked.failures)
    assert 3600 <= now[0] < 4100


def test_who_waits_holds_only_what_comes_before_and_then_takes_all(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    others = {name: lock_of(name, lock.path) for name in "bd"}
    held: list[set[str]] = []

    def give_back() -> None:
        held.append(held_of(lock.path))
        for other in others.values():
            other.release()

    with (
        caplog.at_level("INFO", "crossgap"),
        at_sentence("Waiting for b: another run is at work", give_back),
        hosts_locked([own(name) for name in "abcd"], path=lock.path, wait=60, poll=0.05) as locked,
    ):
        assert [host.label for host in locked.hosts] == ["a", "b", "c", "d"]
        assert held_of(lock.path) == {"a", "b", "c", "d"}
    assert held == [{"a", "b", "d"}]
    assert "d: run run-elsewhere of verify" in caplog.text
    assert held_of(lock.path) == set()


def test_of_two_runs_that_hold_what_the_other_wants_both_get_all(lock: Paths) -> None:
    first_has_a, second_has_b = threading.Event(), threading.Event()
    results: list[list[str]] = []

    class LateHost(OwnHost):
        def run(self, argv: Sequence[str], **options: Any) -> CommandResult:
            if argv[0] == "sh":  # a was taken before
                first_has_a.set()
                assert second_has_b.wait(60)
            return super().run(argv, **options)

    class SeenHost(OwnHost):
        def run(self, argv: Sequence[str], **options: Any) -> CommandResult:
            done = super().run(argv, **options)
            if "outcome taken" in done.stdout:
                second_has_b.set()
            return done

    def work(*hosts: Host) -> None:
        with hosts_locked(hosts, path=lock.path, wait=120, poll=0.05) as locked:
            results.append([host.label for host in locked.hosts])

    first = threading.Thread(target=work, args=(own("a"), LateHost("b")))
    first.start()
    assert first_has_a.wait(60)
    work(own("a"), cast("Host", SeenHost("b")))
    first.join()
    assert results == [["a", "b"], ["a", "b"]]


def test_a_cancelled_wait_gives_everything_back_without_a_word(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    lock_of("b", lock.path)
    with cancellation_scope(Cancellation()) as cancellation:
        caplog.set_level("INFO", "crossgap")
        with (
            at_sentence("Waiting for b", cancellation.cancel),
            pytest.raises(Cancelled),
            hosts_locked([own(name) for name in "abc"], path=lock.path, wait=60),
        ):
            pytest.fail("the body ran")
    assert held_of(lock.path) == {"b"}
    assert "could not be given back" not in caplog.text


def test_a_nested_call_of_the_same_run_does_not_wait_for_itself(lock: Paths) -> None:
    with hosts_locked([named("gpu1")], path=lock.path):
        with hosts_locked([named("gpu1")], path=lock.path, wait=0) as inner:
            assert len(inner.hosts) == 1
        assert len(lock.owners()) == 1


def test_another_run_waits_and_the_error_says_whose_turn_it_is_and_what_to_do(
    lock: Paths,
) -> None:
    taken_by(stranger(), lock.path)
    with hosts_locked([named("gpu1")], path=lock.path, wait=0) as locked:
        assert locked.hosts == ()
    [failure] = locked.failures
    assert isinstance(failure, Conflict)
    for part in ("run-elsewhere", "verify", "zhang", "worker9", f"rm -r {lock.path}"):
        assert part in str(failure)
    assert len(lock.owners()) == 1


def test_a_waiting_run_goes_on_when_the_other_ends(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    other = taken_by(stranger(), lock.path)

    with (
        caplog.at_level("INFO", "crossgap"),
        at_sentence("another run is at work", other.release),
        hosts_locked([named("gpu1")], path=lock.path, wait=60, poll=0.05) as locked,
    ):
        assert len(locked.hosts) == 1
    assert "held by run run-elsewhere of verify" in caplog.text


def test_a_host_that_does_not_answer_does_not_stop_the_others(lock: Paths) -> None:
    down = NamedHost("gpu0")
    down.cut = True
    with hosts_locked([cast("Host", down), named("gpu1")], path=lock.path) as locked:
        assert [host.label for host in locked.hosts] == ["gpu1"]
    assert [failure.where for failure in locked.failures] == ["gpu0"]


def test_a_connection_that_is_dropped_once_is_tried_again(lock: Paths) -> None:
    class Dropping(NamedHost):
        dropped = False

        def run(self, argv: Sequence[str], **options: Any) -> CommandResult:
            done = super().run(argv, **options)
            if argv[0] == "sh" and not self.dropped:
                self.dropped = True  # it was done, but the answer is lost
                raise ConnectionLost("cut", self.label)
            return done

    host = cast("Host", Dropping("gpu1"))
    with hosts_locked([host], path=lock.path, wait=0) as locked:
        assert locked.hosts == (host,)
    assert not Path(lock.path).exists()


def test_a_lock_that_cannot_be_given_back_is_a_warning_and_the_next_run_takes_it(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    host = NamedHost("gpu1")
    with hosts_locked([cast("Host", host)], path=lock.path):
        host.cut = True
    assert "The next run will recognise it as stale" in caplog.text
    assert len(lock.owners()) == 1
    with hosts_locked([named("gpu1")], path=lock.path, wait=0) as locked:
        assert len(locked.hosts) == 1
    assert "this very process left it behind" in caplog.text


def test_another_run_in_this_process_is_not_taken_for_dead(lock: Paths) -> None:
    outcome: list[LockedHosts] = []

    def other_run() -> None:  # a thread starts with an empty context: a run of its own
        with hosts_locked([named("gpu1")], path=lock.path, wait=0) as locked:
            outcome.append(locked)

    with hosts_locked([named("gpu1")], path=lock.path):
        thread = threading.Thread(target=other_run)
        thread.start()
        thread.join()
    assert isinstance(outcome[0].failures[0], Conflict)


HOLDER = """
import sys, time
from tests.integration.test_locks import hosts_locked, named
with hosts_locked([named("gpu1")], path=sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_run_s_lock_is_taken_over_and_a_living_one_s_is_not(
    lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock.path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with hosts_locked([named("gpu1")], path=lock.path, wait=0) as locked:
            assert isinstance(locked.failures[0], Conflict)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with hosts_locked([named("gpu1")], path=lock.path, wait=0) as locked:
            assert len(locked.hosts) == 1
        assert f"its process {holder.pid} on" in caplog.text
        assert not Path(lock.path).exists()
    finally:
        holder.kill()
        holder.communicate()


def test_sigterm_gives_the_lock_back(lock: Paths) -> None:
    code = HOLDER.replace(
        "import sys,", "import signal, sys,"
    ).replace(
        "with hosts", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nwith hosts"
    )  # fmt: skip
    holder = subprocess.Popen(
        [sys.executable, "-c", code, lock.path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.terminate()
        assert holder.wait(timeout=60) == 3
        assert not Path(lock.path).exists()
    finally:
        holder.kill()
        holder.communicate()


@flow
def ended_run() -> str:
    return str(flow_run.id)


@flow
def ask_for_state() -> tuple[str, str | None]:
    return str(flow_run.id), final_state(str(flow_run.id))


def test_a_run_that_prefect_knows_as_ended_is_dead_and_a_running_or_unknown_one_is_not(
    prefect_api: None, lock: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, while_running = ask_for_state()
    assert while_running is None
    assert final_state(run_id) == "Completed"
    assert final_state(str(uuid4())) is None
    assert final_state("no id at all") is None
    taken_by(stranger(run_id), lock.path)
    with hosts_locked([named("gpu1")], path=lock.path, wait=0) as locked:
        assert len(locked.hosts) == 1
    assert "Prefect says that the run is Completed" in caplog.text


def slots(name: str) -> int:
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(limit_name(name))
    assert limit.limit == 1
    return int(limit.active_slots)


def test_a_flow_run_holds_the_limit_of_its_hosts_and_subflows_share_it(
    prefect_api: None, lock: Paths
) -> None:
    name = f"fe80::1%eth0-{uuid4().hex}"

    @flow
    def inner() -> int:
        with hosts_locked([named(name)], path=lock.path, wait=0) as locked:
            assert not locked.failures
            return slots(name)

    @flow
    def outer() -> tuple[int, int]:
        with hosts_locked([named(name)], path=lock.path, wait=0) as locked:
            assert not locked.failures
            return inner(), slots(name)

    assert outer() == (1, 1)
    assert slots(name) == 0


def test_a_second_flow_run_is_refused_by_the_limit_and_says_which(
    prefect_api: None, tmp_path: Path
) -> None:
    name = f"gpu-{uuid4().hex}"
    taken, ended = threading.Event(), threading.Event()

    @flow
    def first() -> None:
        with hosts_locked([named(name)], path=str(tmp_path / "one")):
            taken.set()
            ended.wait(60)

    @flow
    def second() -> str:
        with hosts_locked([named(name)], path=str(tmp_path / "two"), wait=0) as locked:
            return str(locked.failures)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert taken.wait(60)
        assert f"the Prefect limit host-{name}" in second()
    finally:
        ended.set()
        thread.join()
    assert slots(name) == 0


def test_two_runs_may_make_the_limit_at_once(prefect_api: None) -> None:
    name = f"host-{uuid4().hex}"
    errors: list[Exception] = []
    start = threading.Barrier(4)

    def make() -> None:
        start.wait()
        try:
            ensure_limit(name)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_server_that_is_away_leaves_the_lock_on_the_host(
    prefect_api: None, lock: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr("tasks.common.host_limit.ensure_limit", away)

    @flow
    def ship() -> list[str]:
        with hosts_locked([named("gpu1")], path=lock.path, wait=0) as locked:
            assert not locked.failures
            return lock.owners()

    assert len(ship()) == 1


def test_a_limit_that_vanished_meanwhile_does_not_fail_the_run(
    prefect_api: None, lock: Paths
) -> None:
    name = f"gpu-{uuid4().hex}"

    @flow
    def ship() -> str:
        with hosts_locked([named(name)], path=lock.path), get_client(sync_client=True) as client:
            client.delete_global_concurrency_limit_by_name(limit_name(name))
        return "done"

    assert ship() == "done"
    with pytest.raises(ObjectNotFound):
        slots(name)


@pytest.mark.parametrize("kind", ["plain", "bare"])
def test_hosts_of_both_kinds_are_locked_by_ssh(
    kind: str, request: pytest.FixtureRequest, connect: Callable[..., SSHHost]
) -> None:
    machine: LabHost = request.getfixturevalue(kind)
    block, again = connect(machine), connect(machine)
    # A stranger's lock, made by root: on the bare host the user is not root.
    machine.run(["mkdir", "-m", "755", HostLock.PATH])
    machine.run(
        ["sh", "-c", 'echo "$1" > "$2/owner.aa"', "sh", stranger().to_json(), HostLock.PATH]
    )
    with hosts_locked([block], wait=0) as locked:
        assert isinstance(locked.failures[0], Conflict)
        assert f"as root on {block.label}" in str(locked.failures[0])
    gone = LockOwner("run-0", "verify", "zhang", this_machine(), 2**22 + 1, 1)
    machine.run(["sh", "-c", 'echo "$1" > "$2/owner.aa"', "sh", gone.to_json(), HostLock.PATH])
    with hosts_locked([block, again], wait=0) as locked:
        assert locked.failures == ()
        assert len(locked.hosts) == 1
        assert machine.run(["ls", HostLock.PATH]).count("owner.") == 1
    assert "crossgap-lock" not in machine.run(["ls", "-A", "/tmp"])


def test_a_cancelled_wait_ends_the_run(lock: Paths) -> None:
    taken_by(stranger(), lock.path)
    with cancellation_scope(Cancellation()) as cancellation:
        cancellation.cancel()
        with pytest.raises(Cancelled), hosts_locked([named("gpu1")], path=lock.path, wait=60):
            pytest.fail("the body ran")
