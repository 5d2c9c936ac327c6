"""What a run tells of its routers, and what a checkpoint keeps of them."""

import math

import pytest
import torch
from training_runs import logged, run, values, write_corpus

from evocore.config import load_values
from evocore.observe.progress import Log
from evocore.observe.trackers import JSONLines
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.run import train

MIXTURE = dict(num_experts=4, top_k=2, moe_type="Dropless", mlp_ratio=1)


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "train")
    return tmp_path


def mixture(corpus, *, steps=4, coefficient=0.0, z=0.0, options=None, **blocks):
    return values(
        corpus,
        model_type="INTERNLM_MoE",
        data=dict(total_steps=steps),
        model=MIXTURE | dict(moe_layer_kwargs=options or {}),
        loss=dict(moe_loss_coeff=coefficient, moe_z_loss_coeff=z),
        **blocks,
    )


def test_each_step_tells_loads_drops_entropy_and_loss(corpus):
    options = dict(capacity_factor=0.75, min_capacity=1)

    _, _, seen = run(mixture(corpus, coefficient=0.1, options=options))

    for step in seen.steps:
        for layer in (0, 1):
            load = step[f"moe/load/{layer}"]
            assert sum(load) == 2 * 2 * 64  # micro-batches, choices of a token, tokens
            assert step[f"moe/load_max/{layer}"] == max(load) / (sum(load) / 4)
            # 24 of 32 for each expert in each of two micro-batches, and not less where more wanted to come
            assert sum(max(0, n - 48) for n in load) <= step[f"moe/dropped/{layer}"] < sum(load)
            assert 0 < step[f"moe/entropy/{layer}"] <= math.log(4)
        assert 0.2 <= step["moe_loss"] < 0.3  # 0.1 for each of two layers, where all is even


def test_the_coefficients_weigh_the_losses(corpus):
    plain, weighed, only_z = (
        run(mixture(corpus, steps=1, coefficient=c, z=z))[2].steps[0] for c, z in ((0, 0), (3.0, 0.5), (0, 0.5))
    )

    assert plain["moe_loss"] == 0
    assert weighed["moe_loss"] == pytest.approx(only_z["moe_loss"] + 3.0 * 2, rel=0.05)
    assert only_z["moe_loss"] == pytest.approx(0.5 * 2 * math.log(4) ** 2, rel=0.05)
    assert plain["loss"] == weighed["loss"] and plain["grad_norm"] != weighed["grad_norm"]


def test_a_checkpoint_holds_the_bias(corpus):
    def config(steps, folder):
        saved = dict(save_ckpt_folder=f"{corpus}/{folder}", checkpoint_every=3)
        options = dict(scoring_func="sigmoid", bias_update_rate=0.05)
        return mixture(
            corpus, steps=steps, options=options, ckpt=saved, lr_scheduler=dict(total_steps=6, warmup_ratio=0.1)
        )

    _, _, straight = run(config(6, "straight"))
    run(config(3, "halved"))
    _, _, resumed = run(config(6, "halved"))

    assert [step["step"] for step in resumed.steps] == [4, 5, 6]
    assert resumed.steps == [
        {**mine, **{name: value for name, value in theirs.items() if name.startswith(("moe", "loss", "grad_norm"))}}
        for mine, theirs in zip(resumed.steps, straight.steps[3:], strict=True)
    ]


def test_lines_of_the_log_leave_out_what_each_layer_has(corpus):
    observers = [JSONLines(), Log(echo=False)]
    _, folder = train(load_values(mixture(corpus, steps=1)), load_plugins(), LaunchEnvironment(), observers=observers)

    (step,) = logged(folder)
    assert len(step["moe/load/1"]) == 4 and isinstance(step["moe/dropped/0"], int)
    text = (folder / "log.txt").read_text()
    assert "moe_loss=" in text and "moe/" not in text


def test_a_dense_model_tells_nothing_of_experts(corpus):
    _, _, seen = run(values(corpus, data=dict(total_steps=1)))

    assert not any(name.startswith("moe") for name in seen.steps[0])


def test_routers_stay_in_float32_in_a_model_that_is_not(corpus):
    config = mixture(corpus, steps=1)
    config["model"]["dtype"] = "torch.bfloat16"

    _, _, seen = run(config)

    assert torch.isfinite(torch.tensor(seen.steps[0]["grad_norm"]))
