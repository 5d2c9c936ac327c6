"""Under the real torchrun: ranks find one another, and again after some of them were killed."""

import os
import re
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("parallel_torchrun_worker.py")


def test_every_restart_of_killed_ranks_succeeds():
    restarts = 2
    command = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command, str(WORKER), str(restarts)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    assert done.returncode == 0, done.stderr  # a restart that failed to connect would have used up one of the two
    told = re.findall(r"rank \d attempt \d sum 3\.0", done.stdout)  # the ranks share a line now and then
    assert sorted(told) == [f"rank {rank} attempt {restarts} sum 3.0" for rank in range(2)]
