"""What all runs in layouts share: the data, and what one process makes of it."""

import json

import layouts
import numpy as np
import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Documents that count upwards by a step of their own, modulo the vocabulary."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "train").mkdir()
    draw, offset, meta = np.random.default_rng(0), 0, []
    with (folder / "train" / "part.bin").open("wb") as file:
        for _ in range(160):
            length, start, step = int(draw.integers(5, 60)), int(draw.integers(64)), int(draw.integers(1, 4))
            tokens = [(start + step * place) % 63 + 1 for place in range(length)]
            line = json.dumps({"tokens": tokens}).encode() + b"\n"
            meta.append((offset, length))
            offset += file.write(line)
    np.save((folder / "train" / "part.bin.meta").open("wb"), np.array(meta, dtype=np.int64))
    return str(folder)


@pytest.fixture(scope="session")
def one_process(corpus):
    """Figures of the same model in one process, computed once for each."""
    known = {}

    def run(sets):
        key = repr(sets)
        if key not in known:
            known[key] = layouts.figures(corpus, {}, 1, sets)
        return known[key]

    return run
