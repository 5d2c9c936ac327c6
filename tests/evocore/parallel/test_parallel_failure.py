"""A rank that fails ends the others: its error comes first and alone, and nobody waits for a time-out."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from failing_ranks import run_ranks

from evocore.parallel.failure import GRACE

HERE = Path(__file__).parent
LATE = 20  # seconds after which nobody may be left, on a busy machine

CONFIG = """
JOB_NAME = "failing"
model_type = "LLAMA2"
enable_tb = False
data = dict(seq_len=16, micro_bsz=1, micro_num=2, total_steps=5)
model = dict(vocab_size=32, hidden_size=16, num_layers=2, num_attention_heads=2, mlp_ratio=2, dtype="torch.float32")
parallel = dict(zero1=dict(size=1))
ckpt = dict(enable_save_ckpt=False)
"""
RAISED = [
    "evocore (rank 1) failed:",
    "evocore (rank 0): rank 1 failed first, see its traceback: ArithmeticError: told to fail",
]


def died(rank, *others):
    why = f"rank {rank} died without a word (killed, or out of memory?)"
    return [f"evocore (rank {other}): {why}" for other in others]


def test_ranks_that_do_not_fail_end_in_peace(tmp_path):
    ended = run_ranks(tmp_path / "log", "end", "end", "end")

    assert (ended.codes, ended.told) == ([0, 0, 0], [])


def test_traceback_of_the_failed_rank_comes_first_and_is_the_only_one(tmp_path):
    ended = run_ranks(tmp_path / "log", "end", "raise", "end")

    assert ended.codes == [1, 1, 1] and ended.seconds < GRACE
    assert ended.told[:2] == [RAISED[0], "Traceback (most recent call last):"]
    assert ended.told[-4:-2] == ["ArithmeticError: told to fail", "in two lines"]
    assert sorted(ended.told[-2:]) == [RAISED[1], RAISED[1].replace("(rank 0)", "(rank 2)")]
    assert "\n".join(ended.told).count("Traceback") == 1


@pytest.mark.parametrize("hows", [("end", "mistake"), ("mistake", "end"), ("mistake", "mistake")])
def test_mistake_is_told_once_and_is_a_mistake_to_all(tmp_path, hows):
    ended = run_ranks(tmp_path / "log", *hows)

    assert ended.codes == [2, 2] and ended.seconds < GRACE
    first = 0 if ended.told[0].startswith("evocore (rank 0)") else 1
    assert hows[first] == "mistake"
    assert ended.told == [
        f"evocore (rank {first}): a mistake",
        "  expected: none",
        "  to fix: do not make it",
        f"evocore (rank {1 - first}): rank {first} failed first, see its message: a mistake",
    ]


@pytest.mark.parametrize("how, code", [("kill", -9), ("exit", 3)])
@pytest.mark.parametrize("rank", [0, 1])  # rank 0 keeps the store, too
def test_rank_that_dies_in_a_collective_of_the_others(tmp_path, rank, how, code):
    hows, codes = ["end"] * 3, [1] * 3
    hows[rank], codes[rank] = how, code
    ended = run_ranks(tmp_path / "log", *hows)

    assert ended.codes == codes and ended.seconds < GRACE
    assert sorted(ended.told) == died(rank, *({0, 1, 2} - {rank}))


def test_ranks_that_hang_are_ended_after_a_grace_in_both_parts_of_a_ring_that_lost_two(tmp_path):
    ended = run_ranks(tmp_path / "log", "kill", "hang", "hang", "hang", "kill", "hang", "hang", "hang")

    assert ended.codes == [-9, 1, 1, 1, -9, 1, 1, 1] and GRACE < ended.seconds < LATE
    assert sorted(line[:16] for line in ended.told) == [f"evocore (rank {rank})" for rank in (1, 2, 3, 5, 6, 7)]
    assert all(re.search("rank [04] died without a word", line) for line in ended.told)


def test_ranks_on_machines_of_their_own(tmp_path):
    ended = run_ranks(tmp_path / "log", "end", "raise", "end", machines=True)

    assert ended.codes == [1, 1, 1] and ended.told[0] == RAISED[0] and RAISED[1] in ended.told


def test_interrupt_of_one_rank_ends_all(tmp_path):
    ended = run_ranks(tmp_path / "log", "end", "interrupt")

    assert ended.codes == [1, 1] and ended.seconds < GRACE
    assert "evocore (rank 0): rank 1 was interrupted" in ended.told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, and an installed plug-in."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "config.py").write_text(CONFIG)
    installed = folder / "site" / "failing-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[evocore]\nfailing = failing_plugin\n")
    return folder


def train(folder, how, *words):
    """Run ``evocore train`` with words before and behind it.

    Returns:
        The exit code, seconds from the failure to the end, what was told and the ranks' lines of it.
    """
    path = os.pathsep.join([str(folder / "site"), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"FAILURE": how, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=folder, env=environment, timeout=170
    )
    seconds = time.monotonic() - float((folder / "moment").read_text())
    return done.returncode, seconds, done.stderr, re.findall(r"^evocore \(.*", done.stderr, re.MULTILINE)


TRAIN = ("-m", "evocore", "train", "--config", "config.py")


def test_started_by_evocore(folder):
    ended, seconds, told, lines = train(folder, "mistake", *TRAIN, "--nproc", "2", "--traceback")

    assert ended == 2 and seconds < LATE
    assert lines == [
        "evocore (rank 1): a mistake",
        "evocore (rank 0): rank 1 failed first, see its message: a mistake",
    ]
    assert told.count("Traceback") == 1 and told.index("Traceback") < told.index(lines[0])


def test_started_by_torchrun(folder):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended, seconds, told, lines = train(folder, "raise", *launcher, *TRAIN)

    assert ended == 1 and seconds < LATE
    assert lines == RAISED
    assert told.index("told to fail") < told.index("ChildFailedError")
