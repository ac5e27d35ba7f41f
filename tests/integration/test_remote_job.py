"""Jobs that outlive their connection, on real hosts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from blocks.cancellation import Cancellation, cancellation_scope
from blocks.errors import Cancelled, CommandFailed, Conflict, InvalidInput, TimedOut
from blocks.local_host import LocalHost
from blocks.ssh_connection import close_connections
from tests.integration.conftest import Connect
from tests.lab import LabHost

TALKER = ["sh", "-c", "echo 开始; sleep 2; echo 完成; exit 4"]


@pytest.mark.parametrize("sudo", [False, True])
def test_a_job_reports_its_output_and_exit_code(
    any_host: LabHost, connect: Connect, sudo: bool
) -> None:
    pieces: list[str] = []

    job = connect(any_host).start_job(TALKER, name="talker", sudo=sudo)
    result = job.wait(timeout=30, on_output=pieces.append)

    assert result.exit_code == 4
    assert "".join(pieces) == "开始\n完成\n" == result.log_tail


def test_a_job_outlives_its_connection_and_is_found_by_name(
    any_host: LabHost, connect: Connect
) -> None:
    connect(any_host).start_job(TALKER, name="talker")
    close_connections()

    job = connect(any_host).find_job("talker")

    assert job
    assert job.wait(timeout=30).exit_code == 4
    job.forget()
    assert connect(any_host).find_job("talker") is None


def test_a_cut_link_does_not_hide_the_outcome(any_host: LabHost, connect: Connect) -> None:
    pieces: list[str] = []
    job = connect(any_host).start_job(
        ["sh", "-c", "for n in 1 2 3 4 5 6; do echo $n; sleep 1; done"], name="counter"
    )
    threading.Timer(1, any_host.cut).start()
    threading.Timer(8, any_host.mend).start()

    assert job.wait(timeout=120, on_output=pieces.append).exit_code == 0
    assert "".join(pieces).split() == list("123456")


def test_a_killed_sshd_does_not_end_the_job(any_host: LabHost, connect: Connect) -> None:
    job = connect(any_host).start_job(["sh", "-c", "sleep 4; echo done"], name="sleeper")
    any_host.stop_sshd()
    threading.Timer(2, any_host.start_sshd).start()

    assert job.wait(timeout=60).log_tail == "done\n"


def test_a_name_is_taken_while_its_job_runs_and_free_afterwards(
    any_host: LabHost, connect: Connect
) -> None:
    host = connect(any_host)
    first = host.start_job(["sleep", "600"], name="one")

    with pytest.raises(Conflict, match="already running"):
        host.start_job(["true"], name="one")
    first.cancel()

    assert host.start_job(["true"], name="one").wait(timeout=20).exit_code == 0


@pytest.mark.parametrize("sudo", [False, True])
def test_cancelling_ends_everything_the_job_started(
    any_host: LabHost, connect: Connect, sudo: bool
) -> None:
    command = ["sh", "-c", "trap '' TERM; sleep 4713 & (sleep 4714; sleep 4715) & sleep 4716"]
    job = connect(any_host).start_job(command, name="tree", sudo=sudo)
    assert _running(any_host, "sleep 471")

    job.cancel()

    assert not _running(any_host, "sleep 471")
    assert job.look().state == "ended"


def test_a_cancelled_run_ends_the_job_it_waits_for(any_host: LabHost, connect: Connect) -> None:
    host = connect(any_host)
    cancellation = Cancellation()
    threading.Timer(2, cancellation.cancel).start()

    with cancellation_scope(cancellation), pytest.raises(Cancelled):
        host.start_job(["sleep", "4717"], name="waited").wait(timeout=60)

    _until_gone(any_host, "sleep 4717")


def test_a_run_cancelled_while_a_job_is_being_started_leaves_no_job(
    any_host: LabHost, connect: Connect
) -> None:
    host = connect(any_host)
    host.run(["true"], timeout=20)
    for delay in (0.02, 0.05, 0.1, 0.2):
        cancellation = Cancellation()
        timer = threading.Timer(delay, cancellation.cancel)
        timer.start()
        with cancellation_scope(cancellation), pytest.raises(Cancelled):
            host.start_job(["sleep", "4720"], name="early").wait(timeout=60)
        timer.join()

        _until_gone(any_host, "sleep 4720")


def test_a_job_over_its_deadline_is_ended(any_host: LabHost, connect: Connect) -> None:
    job = connect(any_host).start_job(["sleep", "4718"], name="slow")

    with pytest.raises(TimedOut, match="did not end within 1 s"):
        job.wait(timeout=1)

    assert not _running(any_host, "sleep 4718")


def test_a_job_that_was_killed_is_not_taken_for_ended(any_host: LabHost, connect: Connect) -> None:
    job = connect(any_host).start_job(["sleep", "600"], name="victim")
    any_host.run(["sh", "-c", f"kill -9 -$(cut -d' ' -f1 {job.folder}/pid)"])

    with pytest.raises(CommandFailed, match="gone without an exit code") as gone:
        job.wait(timeout=30)

    assert gone.value.retryable


def test_a_process_id_that_another_process_has_now_is_not_the_job(
    any_host: LabHost, connect: Connect
) -> None:
    job = connect(any_host).start_job(["sleep", "600"], name="reused")
    any_host.run(["sh", "-c", f"kill -9 -$(cut -d' ' -f1 {job.folder}/pid)"])
    boot = any_host.run(["cat", "/proc/sys/kernel/random/boot_id"]).strip()
    any_host.write_file(f"{job.folder}/pid", f"1 12345 {boot}\n".encode(), 0o644)

    assert job.look().state == "vanished"
    job.cancel()  # and process 1 lives on
    assert any_host.run(["id", "-u"]) == "0\n"


def test_a_long_log_comes_whole_and_once(any_host: LabHost, connect: Connect) -> None:
    size = 0

    def count(text: str) -> None:
        nonlocal size
        size += len(text)

    job = connect(any_host).start_job(
        ["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo"], name="long"
    )
    job.wait(timeout=60, on_output=count)

    assert size == 3_000_001


def test_a_job_of_root_leaves_the_users_folder_to_the_user(bare: LabHost, connect: Connect) -> None:
    host = connect(bare)

    host.start_job(["true"], name="root-first", sudo=True).wait(timeout=20)

    assert host.start_job(["true"], name="user-next").wait(timeout=20).exit_code == 0


def test_names_that_are_paths_are_refused(plain: LabHost, connect: Connect) -> None:
    with pytest.raises(InvalidInput, match="cannot name a job"):
        connect(plain).start_job(["true"], name="../../etc")


def test_this_machine_runs_jobs_like_any_host(tmp_path: Path) -> None:
    host = LocalHost(work_dir=str(tmp_path))

    job = host.start_job(TALKER, name="talker")

    assert job.wait(timeout=30).log_tail == "开始\n完成\n"


def _running(host: LabHost, command: str) -> bool:
    return any(command in cmdline for _, cmdline in host.processes())


def _until_gone(host: LabHost, command: str) -> None:
    for _ in range(150):
        if not _running(host, command):
            return
        time.sleep(0.1)
    raise AssertionError(f"{command} still runs")
