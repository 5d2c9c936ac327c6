"""Tells the ranks of this attempt from what an earlier attempt left in the store.

An elastic launcher keeps its store when it starts the processes again, with the addresses of the dead ones in it; a
rank that reads such an address cannot connect, and about half of all restarts fail. The launcher's count of restarts
does not help on several machines: only the machine whose process failed counts.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store


def agree_on_attempt(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A token that all ranks of this attempt share and no earlier attempt had.

    Each rank greets rank 0 with a random word. Rank 0 answers every greeting that it sees, stale ones too, under the
    word of the greeting: only a living rank reads its answer, and thanks for it.

    Raises:
        TimeoutError: on rank 0 if some ranks do not come; it names them. Elsewhere the store raises.
    """
    mine = uuid.uuid4().hex
    if rank > 0:
        store.set(f"evocore/hello/{rank}", mine)
        store.wait([f"evocore/answer/{mine}"], timeout)
        token = store.get(f"evocore/answer/{mine}").decode()
        store.set(f"evocore/thanks/{token}/{rank}", "1")
        return token
    answered: dict[int, bytes] = {}
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"evocore/hello/{other}"]):
                greeting = store.get(f"evocore/hello/{other}")
                if answered.get(other) != greeting:
                    store.set(f"evocore/answer/{greeting.decode()}", mine)
                    answered[other] = greeting
            if store.check([f"evocore/thanks/{mine}/{other}"]):
                missing.discard(other)
        if time.monotonic() > deadline:
            raise TimeoutError(f"ranks {sorted(missing)} of {world_size} did not come within {timeout}")
        time.sleep(0.005)
    return mine
