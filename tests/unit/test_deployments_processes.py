"""Background processes end with all their descendants, also those of a killed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.processes import Background

# A descendant in a session of its own, as Prefect's flow runs are.
WITH_DESCENDANT = "setsid sleep 300 & echo $! > {file}; exec sleep 300"
DEAF = "trap '' TERM; echo ready > {file}; while :; do sleep 1; done"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Background]:
    background = Background("program", tmp_path / "state")
    yield background
    background.stop(grace=0)


def start(program: Background, script: str, cwd: Path) -> None:
    program.start(["sh", "-c", script], env=dict(os.environ), cwd=cwd)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in 20 s"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def written_number(file: Path) -> int:
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


def test_output_goes_to_the_log_and_the_exit_code_is_known(program: Background, tmp_path: Path):
    start(program, "echo first; echo last >&2; exit 3", tmp_path)
    wait_for(lambda: program.exit_code is not None)
    assert program.exit_code == 3
    assert program.log_tail() == "first\nlast"
    assert program.log_tail(lines=1) == "last"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_stopping_ends_descendants_that_opened_their_own_session(
    program: Background, tmp_path: Path
):
    file = tmp_path / "descendant"
    start(program, WITH_DESCENDANT.format(file=file), tmp_path)
    descendant = written_number(file)
    assert runs(descendant)
    program.stop()
    assert not runs(descendant)
    assert program.exit_code == -signal.SIGTERM


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(
    program: Background, tmp_path: Path
):
    file = tmp_path / "ready"
    start(program, DEAF.format(file=file), tmp_path)
    wait_for(file.exists)
    program.stop(grace=0.3)
    assert program.exit_code == -signal.SIGKILL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_killed_run_left_is_ended_by_the_next_start(tmp_path: Path):
    file = tmp_path / "descendant"
    folder = tmp_path / "state"
    starter = (
        "import os, sys; from pathlib import Path; from deployments.processes import Background;"
        "Background('program', Path(sys.argv[1])).start("
        "['sh', '-c', sys.argv[2]], env=dict(os.environ), cwd=Path('/'))"
    )
    subprocess.run(
        [sys.executable, "-c", starter, str(folder), WITH_DESCENDANT.format(file=file)], check=True
    )
    descendant = written_number(file)
    leader = int((folder / "program.pid").read_text().split()[0])
    assert runs(leader)
    assert runs(descendant)

    program = Background("program", folder)
    start(program, "exec sleep 300", tmp_path)
    assert not runs(leader)
    assert not runs(descendant)
    assert program.exit_code is None
    program.stop()


def test_a_stranger_with_a_recorded_process_id_is_left_alone(tmp_path: Path):
    folder = tmp_path / "state"
    folder.mkdir()
    with subprocess.Popen(["sleep", "300"]) as stranger:
        (folder / "program.pid").write_text(f"{stranger.pid} 12345\n")
        Background("program", folder).stop(grace=0)
        assert stranger.poll() is None
        stranger.kill()
    assert not (folder / "program.pid").exists()


def test_stopping_what_never_ran_does_nothing(program: Background):
    program.stop()
    assert program.exit_code is None
    assert program.log_tail() == ""
