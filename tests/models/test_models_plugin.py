"""A stranger's model family, from a plug-in: trained, divided among ranks, listed, and found by name."""

import models_hf_runs as runs
import models_stranger
import numpy as np
import pytest

from evocore.config import load_values
from evocore.released import Catalogue, count_parameters

LAYOUTS = {
    "mtp2": dict(tensor=dict(size=2, mode="mtp"), zero1=dict(size=1)),
    "fsdp2": dict(fsdp=dict(enable=True), zero1=dict(size=-1)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    runs.write_corpus(folder / "train")
    return folder


def config(root, ranks=1, **blocks):
    found = runs.values(root, ranks, model_type="PAIRS", **blocks)
    del found["hf"], found["ckpt"]["load_ckpt_info"]
    found["model"] |= models_stranger.SIZES["pairs-tiny"]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_strangers_model_is_trained_and_divided_like_ours(layout, root, ranks):
    expected = models_stranger.figures(config(root))
    parallel = LAYOUTS[layout]

    sharing = 1 if "tensor" in parallel else 2
    ours = ranks(2, models_stranger.figures, config(root, sharing, parallel=parallel), timeout=120)[0]

    assert expected[-1][0] < expected[0][0] - 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_its_released_sizes_are_found_by_name():
    catalogue = Catalogue.of(models_stranger.registry())
    tiny = catalogue.find("pairs-tiny")

    assert count_parameters(tiny).total == 3 * 64 * 32 + 2 * (3 * 32 * 64 + 32) + 32
    assert catalogue.failed == {} and len(catalogue.models) > 30
    data = dict(seq_len=8, micro_bsz=1, total_steps=1)
    loaded = load_values(dict(data=data, model_type="LLAMA2"), released=tiny.model)
    assert (loaded.config.model_type, loaded.config.model.hidden_size) == ("PAIRS", 32)


def test_a_family_that_fails_to_import_leaves_the_others(monkeypatch):
    registry = models_stranger.registry()
    monkeypatch.setattr("evocore.nn.family.ModelFamily.sizes", _sizes_but_of_pairs)

    catalogue = Catalogue.of(registry)

    assert catalogue.failed == {"PAIRS": "ImportError: no module of a vendor"}
    assert catalogue.find("llama2-7b").family.name == "LLAMA2"


def _sizes_but_of_pairs(family):
    if family.name == "PAIRS":
        raise ImportError("no module of a vendor")
    return {"llama2-7b": {}} if family.name == "LLAMA2" else {}
