"""Several ranks on one machine: what they are told, and the one exit code that they come to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from evocore.parallel.processes import run_processes


def script(text):
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{text}"]


def test_ranks_are_told_who_they_are(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    write = f"open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names!r}))"
    assert run_processes(script(write), 2, {**os.environ, "OMP_NUM_THREADS": "3"}) == 0

    first, second = ((tmp_path / str(rank)).read_text().split() for rank in range(2))
    assert first[:4] == ["0", "0", "2", "2"] and second[:4] == ["1", "1", "2", "2"]
    assert first[4:] == second[4:] and first[4] == "127.0.0.1" and first[6] == "3"


def test_cores_are_shared_out(tmp_path):
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    write = f"open({str(tmp_path / 'threads')!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"
    assert run_processes(script(write), 2, environ) == 0
    assert (tmp_path / "threads").read_text() == str(max(1, len(os.sched_getaffinity(0)) // 2))


@pytest.mark.parametrize(
    "text, code",
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", 75),
        ("time.sleep(0.2 * rank); sys.exit(75 if rank else 0)", 75),
        ("sys.exit(2) if rank == 1 else time.sleep(30)", 2),
        ("sys.exit(75) if rank == 1 else time.sleep(0.3) or sys.exit(1)", 1),
        ("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(30)", 1),
    ],
)
def test_exit_codes(text, code, capfd):
    start = time.monotonic()
    assert run_processes(script(text), 2) == code
    assert time.monotonic() - start < 5
    assert ("rank 1 was ended by SIGKILL" in capfd.readouterr().err) == ("kill" in text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("catches", [True, False])
def test_a_signal_reaches_every_rank_and_they_take_their_time(number, catches, tmp_path):
    rank = (
        "import signal\n"
        "def stop(number, frame):\n"
        "    time.sleep(0.3)\n    open(folder + f'/saved{rank}', 'w').close()\n    sys.exit(75)\n"
        f"folder = {str(tmp_path)!r}\n"
        f"signal.signal({int(number)}, {'stop' if catches else 'signal.SIG_DFL'})\n"
        "open(folder + f'/ready{rank}', 'w').close()\n"
        "time.sleep(30)"
    )
    code = (
        f"from evocore.parallel.processes import run_processes\nraise SystemExit(run_processes({script(rank)!r}, 2))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as parent:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.send_signal(number)
        _, told = parent.communicate(timeout=30)
    assert (parent.returncode, told) == (75 if catches else 128 + number, "")
    assert len(list(tmp_path.glob("saved*"))) == (2 if catches else 0)
