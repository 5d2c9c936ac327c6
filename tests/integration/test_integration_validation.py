"""Validation losses are those of one process wherever the last stage is, and however many packs there are."""

import layouts
import numpy as np
import pytest

from evocore.config import load_values
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.observer import Observer
from evocore.training.run import train

PACKS = 20
"""More than go through a pipeline of two stages at once, and no multiple of that."""
LAYOUTS = {
    "pp2": layouts.Layout("pp2", 2, 1, layouts.pipeline(2)),
    "pp2-interleaved-dp2": layouts.Layout("", 4, 2, layouts.pipeline(2), (layouts.deep(4), layouts.TWO_CHUNKS)),
    "pp2-zbv-msp2": layouts.Layout(
        "", 4, 1, layouts.pipeline(2, "ZBV") | layouts.tensor(2, "msp"), (layouts.deep(4),)
    ),
}


class _Losses(Observer):
    def __init__(self):
        self.told = []

    def on_validation(self, step, losses):
        self.told.append((step, losses["valid"]))


def validation_losses(folder, layout):
    """Steps and losses, as rank 0 tells them; called on every rank, or alone."""
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    data = dict(valid_every=2, valid_folder=f"{folder}/train", valid_max_packs=PACKS, total_steps=3)
    values = layouts.config(folder, layout.parallel, layout.data, (*layout.sets, dict(data=data)))
    launch = LaunchEnvironment(rank=rank, local_rank=rank, world_size=world, local_world_size=world)
    told = _Losses()
    train(load_values(values), load_plugins(), launch, observers=[told])
    return told.told


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_validation_losses_are_those_of_one_process(layout, corpus, ranks):
    expected = validation_losses(corpus, layouts.Layout("alone", 1, 1, {}, layout.model()))

    ours = ranks(layout.world, validation_losses, corpus, layout, timeout=120)[0]

    assert [step for step, _ in ours] == [0, 2, 3]
    np.testing.assert_allclose(ours, expected, rtol=layouts.TOLERANCE)
