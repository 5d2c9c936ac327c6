"""A run that starts from weights of another house trains the same whatever its layout, and from whichever house."""

import layouts
import numpy as np
import pytest
import torch

LLAMA = dict(
    model_type="LLAMA2",
    model=dict(qk_interleaved=False),
    data=dict(total_steps=2),
    lr_scheduler=dict(total_steps=layouts.STEPS),
)
LAYOUTS = [
    layouts.Layout("isp-zero", 4, 2, layouts.isp(2, 2, overlap=True) | layouts.zero(-1), (layouts.OVERLAP,)),
    layouts.Layout("fsdp", 2, 2, layouts.FSDP),
    layouts.Layout("pipeline-msp", 4, 1, layouts.pipeline(2, "ZBH1") | layouts.tensor(2, "msp")),
]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A random model as ``transformers`` saves it, with the sizes of the config that all layouts train."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from evocore.config import load_values
    from evocore.plugins.manager import load_plugins
    from evocore.training.assembly import find_family

    folder = tmp_path_factory.mktemp("released")
    model = load_values(layouts.config("x", {}, 1, (LLAMA,))).config.model
    config = find_family("LLAMA2", load_plugins()).to_hugging_face(model.model_dump())
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(LlamaConfig(**config, pad_token_id=None)).save_pretrained(
        folder, max_shard_size="50KB"
    )
    return folder


@pytest.fixture(scope="module")
def expected(released, corpus):
    return layouts.figures(corpus, {}, 1, (LLAMA, start_from(released)))


def start_from(path, ckpt_type="hf"):
    return dict(ckpt=dict(load_ckpt_info=dict(path=str(path), content=("model",), ckpt_type=ckpt_type)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_any_layout_starts_from_hugging_face(layout, released, expected, corpus, ranks):
    sets = LLAMA, *layout.sets, start_from(released)
    told = ranks(layout.world, layouts.figures, corpus, layout.parallel, layout.data, sets, timeout=120)[0]

    assert len(told) == 2 and told[0][0] != told[1][0]
    np.testing.assert_allclose(told, expected, rtol=layouts.TOLERANCE)


def test_internevo_and_evocores_own_format_hold_the_same_start(released, expected, corpus, ranks, tmp_path):
    from evocore.checkpoint.internevo.export import Division
    from evocore.conversion.hugging_face import hugging_face_to_evocore
    from evocore.conversion.internevo import evocore_to_internevo
    from evocore.plugins.manager import load_plugins

    registry = load_plugins()
    hugging_face_to_evocore(released, tmp_path / "own", registry)
    evocore_to_internevo(tmp_path / "own", tmp_path / "internevo", registry, division=Division(tensor=2, pipeline=2))

    own = layouts.figures(corpus, {}, 1, (LLAMA, start_from(tmp_path / "own", "evocore")))
    sets = LLAMA, start_from(tmp_path / "internevo", "internevo")
    theirs = ranks(2, layouts.figures, corpus, layouts.isp(2, 2), 1, sets, timeout=120)[0]

    np.testing.assert_allclose(own, expected, rtol=1e-7)
    np.testing.assert_allclose(theirs, expected, rtol=layouts.TOLERANCE)
