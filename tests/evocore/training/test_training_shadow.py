"""Shadow mode in whole runs: what it finds, and that it changes nothing."""

import json
import sys
from collections import Counter

import pytest
import shadow_plugin
import torch
from shadow_plugin import run_with_plugin
from training_runs import Recorder, figures, run, values, write_corpus

from evocore.config import load_values
from evocore.errors import UserError
from evocore.nn.binding import UsesOps, model_requests
from evocore.ops.accuracy import LIMIT
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan
from evocore.training.shadow import Shadow, shadow

EXACT = ("step", "loss", "grad_norm", "acc")
OPS = {"adamw", "add_rms_norm", "attention", "linear_cross_entropy", "rms_norm", "rotary", "swiglu"}


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "train")
    return tmp_path


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_sound_kernels_are_within_the_limit_and_losses_are_the_same_to_the_bit(corpus):
    plain = run(values(corpus, JOB_NAME="plain"))[2]

    _, folder, seen = run(values(corpus, JOB_NAME="checked", kernels_check=dict(every=3)))

    assert figures(seen, *EXACT) == figures(plain, *EXACT)
    found = lines(folder, "kernels_check.jsonl")
    assert {row["step"] for row in found} == {1, 3, 6}
    assert {row["op"] for row in found} == OPS
    # Two micro-batches: two blocks, of which each turns queries and keys; a norm more than twice the blocks.
    passes = Counter((row["op"], row["direction"]) for row in found if row["step"] == 6)
    assert passes.pop(("adamw", "forward")) == 1
    assert passes == {
        (op, direction): 2 * calls
        for direction in ("forward", "backward")
        for op, calls in dict(
            add_rms_norm=4, attention=2, linear_cross_entropy=1, rms_norm=1, rotary=4, swiglu=2
        ).items()
    }
    assert 0 < max(row["ratio"] for row in found) <= LIMIT
    summaries = [message for message in seen.messages if "kernels check" in message]
    assert len(summaries) == 3 and all(f"{op} " in line for op in OPS for line in summaries)
    assert any("oracle in float64" in line for line in seen.report)


def test_recomputed_layers_are_recorded_once_and_alike(corpus):
    cases = dict(kept={}, half=dict(model=dict(checkpoint=0.5)), again=dict(model=dict(checkpoint=1.0)))
    cases["but for attention"] = cases["again"] | dict(selective_checkpoint=True)
    folders = [
        run(values(corpus, JOB_NAME=name, kernels_check=dict(every=4), **blocks))[1] for name, blocks in cases.items()
    ]

    for file in ("fingerprints.jsonl", "kernels_check.jsonl"):
        kept, *others = (lines(folder, file) for folder in folders)
        assert all(other == kept for other in others)


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float16"])
def test_low_precision(corpus, dtype):
    sizes = dict(data=dict(total_steps=2, micro_num=1), model=dict(dtype=dtype))
    plain = run(values(corpus, JOB_NAME="plain", **sizes))[2]

    _, folder, seen = run(values(corpus, JOB_NAME="checked", **sizes, kernels_check=dict(every=2)))

    assert figures(seen, *EXACT) == figures(plain, *EXACT)
    found = lines(folder, "kernels_check.jsonl")
    assert {row["op"] for row in found} >= OPS - {"adamw"}  # which is not called if float16 overflows
    assert max(row["ratio"] for row in found) <= LIMIT


def test_a_device_without_float64(corpus, monkeypatch):
    monkeypatch.setattr(shadow, "oracle_dtype", lambda device: torch.float32)

    _, folder, seen = run(values(corpus, data=dict(total_steps=1), kernels_check={"every": 5}))

    assert max(row["ratio"] for row in lines(folder, "kernels_check.jsonl")) <= LIMIT
    assert any("oracle in float32" in line for line in seen.report)


def test_a_wrong_gradient_is_named_with_its_op_provider_layer_and_step(corpus):
    seen = Recorder()
    config = values(corpus, kernels=dict(swiglu="wrong"), data=dict(total_steps=3), kernels_check=dict(every=2))

    folder = run_with_plugin(config, shadow_plugin, seen)

    warnings = [message for message in seen.messages if message.startswith("WARNING")]
    assert len(warnings) == 2  # steps 1 and 2
    assert warnings[0].startswith("WARNING kernels check, step 1: swiglu of provider wrong in layers.")
    assert ".feed_forward, backward: gradient of gate_TF has" in warnings[0]
    assert "which 4 of 8 passes exceed" in warnings[0]  # of each call the backward alone
    beyond = [row for row in lines(folder, "kernels_check.jsonl") if row["ratio"] > LIMIT]
    assert {(row["op"], row["direction"], row["result"]) for row in beyond} == {
        ("swiglu", "backward", "gradient of gate_TF")
    }
    assert {row["layer"] for row in beyond} == {"layers.0.feed_forward", "layers.1.feed_forward"}


def test_chosen_ops_and_no_fingerprints(corpus):
    _, folder, _ = run(
        values(corpus, data=dict(total_steps=1), kernels_check=dict(ops=["swiglu", "adamw"], fingerprints=False))
    )
    assert {row["op"] for row in lines(folder, "kernels_check.jsonl")} == {"swiglu", "adamw"}
    assert not (folder / "fingerprints.jsonl").exists()


def test_a_resumed_run_goes_on_in_its_files(corpus):
    stop = corpus / "stop"
    check = dict(kernels_check=dict(every=2))
    whole = run(values(corpus, JOB_NAME="whole", **check))[1]
    stop.write_text("5")
    run(values(corpus, JOB_NAME="parts", ckpt=dict(stop_file_path=str(stop)), **check))
    stop.write_text("0")

    _, folder, _ = run(values(corpus, JOB_NAME="parts", ckpt=dict(stop_file_path=str(stop)), **check))

    for name in ("kernels_check.jsonl", "fingerprints.jsonl"):
        assert lines(folder, name) == lines(whole, name)


def test_off_the_layers_hold_the_kernels_own_functions(corpus):
    plan = make_plan(load_values(values(corpus)).config, load_plugins())
    model = plan.materialise(torch.device("cpu"), 0)

    held = [
        (getattr(layer, name), plan.resolution.function(request))
        for layer in model.modules()
        if isinstance(layer, UsesOps)
        for name, request in layer.requests().items()
    ]
    assert len(held) > 10 and all(bound is own for bound, own in held)


def test_between_samples_a_call_goes_straight_to_the_kernel(corpus):
    config = load_values(values(corpus, kernels_check=dict(every=2))).config
    plan = make_plan(config, load_plugins())
    watching = Shadow(config.kernels_check, plan.resolution)
    (request,) = (request for request in model_requests(plan.model) if request.op == "swiglu")
    frames = []

    def kernel(gate, up, *, option):
        frames.append(sys._getframe(1).f_code.co_qualname)
        return gate, up, option

    bound = watching.wrap(kernel, request, "layers.0.feed_forward")
    assert bound(1, 2, option=3) == (1, 2, 3) and frames == ["Watched.__call__"]


@pytest.mark.parametrize(
    ("check", "wrong", "expected"),
    [
        (dict(every=0), "kernels_check.every=0 (values) does not fit", "greater than 0"),
        (dict(every=-5), "kernels_check.every=-5 (values) does not fit", "greater than 0"),
        (dict(ops="some"), "kernels_check.ops='some' (values) does not fit", "'all' or a valid list"),
        (dict(ops=["swiglo"]), "kernels_check.ops names 'swiglo': there is no such op", "swiglu"),
        (dict(ops=["geglu"]), "kernels_check.ops names 'geglu': the model does not use it", "swiglu"),
        (dict(ops=["moe_permute"]), "kernels_check.ops names 'moe_permute': it cannot be checked", "swiglu"),
    ],
)
def test_mistakes_in_the_config(corpus, check, wrong, expected):
    with pytest.raises(UserError) as caught:
        run(values(corpus, kernels_check=check))

    assert caught.value.wrong.startswith(wrong) and expected in caught.value.expected and caught.value.fix
    assert not (corpus / "runs").exists()
