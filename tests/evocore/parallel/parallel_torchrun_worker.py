"""One rank under torchrun: in its first attempts a rank kills itself; the last one adds up all ranks."""

import os
import signal
import sys

import torch

from evocore.backends.cpu.device import CPUBackend
from evocore.parallel.launch import destroy, detect_launch, init_process_group

if __name__ == "__main__":
    failures = int(sys.argv[1])
    launch = detect_launch()
    init_process_group(launch, CPUBackend())
    total = torch.tensor([float(launch.rank + 1)])
    CPUBackend().collectives().all_reduce(total)
    if launch.attempt < failures:
        if launch.rank == launch.attempt % launch.world_size:
            os.kill(os.getpid(), signal.SIGKILL)
        CPUBackend().collectives().barrier()  # with the dead one: breaks
    print(f"rank {launch.rank} attempt {launch.attempt} sum {total.item()}", flush=True)
    destroy()
