"""Whole runs through the door that the command line uses."""

import json
import math

import pytest
import torch
from training_runs import VOCAB, figures, run, values, write_corpus

from evocore import hookimpl
from evocore.backends.cpu.device import CPUBackend
from evocore.config import load_values
from evocore.errors import UserError
from evocore.ops.collectives import Collectives
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.run import train
from evocore.training.trainer import Ending

EXACT = ("step", "loss", "grad_norm", "lr", "num_consumed_tokens", "acc")


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "train")
    write_corpus(tmp_path / "valid" / "held_out", documents=10, seed=1)
    return tmp_path


def test_run_learns_and_leaves_an_explained_folder(corpus):
    config = values(
        corpus,
        data=dict(total_steps=60, valid_every=30, valid_folder=str(corpus / "valid")),
        model=dict(checkpoint=0.5),
        ckpt=dict(checkpoint_every=25, keep_last=2),
    )

    ending, folder, seen = run(config)

    assert ending is Ending.FINISHED
    assert [step for step, _ in seen.validations] == [0, 30, 60]
    first, last = (losses["held_out"] for _, losses in (seen.validations[0], seen.validations[-1]))
    assert first == pytest.approx(math.log(VOCAB), rel=0.02)
    assert last < 0.65 * first
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["50", "60"]
    saved = json.loads((folder / "config.json").read_text())
    assert saved["values"]["data"]["total_steps"] == 60 and saved["sources"]["adam.lr"] == "values"
    kernels = json.loads((folder / "kernels.json").read_text())
    assert {choice["op"] for choice in kernels["choices"]} >= {"attention", "add_rms_norm", "adamw"}
    assert json.loads((folder / "environment.json").read_text())["backend"] == "cpu"
    assert json.loads((folder / "status.json").read_text()) == {"state": "finished", "step": 60}


def test_each_step_reports_the_known_figures(corpus):
    _, _, seen = run(values(corpus))
    step = seen.steps[-1]

    assert step["step"] == 8 and step["micro_num"] == 2 and step["loss_scale"] == 1.0
    assert step["num_consumed_tokens"] == 8 * 2 * 2 * 32
    assert step["perplexity"] == pytest.approx(math.exp(step["loss"]))
    assert step["tgs"] == pytest.approx(128 / step["fwd_bwd_time"])
    assert step["tgs/tgs_all"] == pytest.approx(8 * 128 / sum(s["fwd_bwd_time"] for s in seen.steps))
    assert step["tgs/tgs_avg"] == pytest.approx(sum(s["tgs"] for s in seen.steps) / 8)
    assert 0 < step["mfu"] == step["hfu"] < 1
    assert step["largest_length"] <= 32 and step["num_samples_in_batch"] >= 4
    assert 0 <= step["acc"] <= 1 and step["inf_nan_skip_batches"] == 0
    assert 1 < step["tflops"] * 1e12 * step["fwd_bwd_time"] / (6 * 128 * matmul_weights()) < 1.1  # and attention


def matmul_weights():
    attention = 32 * (4 + 2 * 2) * 8 + 32 * 32
    return 2 * (attention + 3 * 32 * 64) + 32 * VOCAB


def test_stopped_run_resumes_with_identical_figures(corpus):
    whole = run(values(corpus, JOB_NAME="whole"))[2]
    stop = corpus / "stop"
    stop.write_text("5")
    config = values(corpus, JOB_NAME="parts", ckpt=dict(stop_file_path=str(stop)))

    ending, folder, first = run(config)
    assert ending is Ending.STOPPED and len(first.steps) == 5
    assert (folder / "checkpoints" / "5").is_dir()
    stop.write_text("0")
    ending, again, second = run(config)

    assert ending is Ending.FINISHED and again == folder
    assert any("resumed from" in line and "after step 5" in line for line in second.report)
    assert figures(first, *EXACT) + figures(second, *EXACT) == figures(whole, *EXACT)


def test_negative_stop_file_saves_and_goes_on(corpus):
    (corpus / "stop").write_text("-4")
    ending, folder, seen = run(values(corpus, ckpt=dict(stop_file_path=str(corpus / "stop"), checkpoint_every=100)))
    assert ending is Ending.FINISHED and len(seen.steps) == 8
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "8"]


def test_damaged_checkpoint_is_passed_over_and_the_user_is_told(corpus):
    config = values(corpus, ckpt=dict(save_ckpt_folder=f"local:{corpus}/saved"))
    whole = run(values(corpus, JOB_NAME="whole"))[2]
    run(config)
    for cut in ("6", "8"):
        victim = max((corpus / "saved" / cut).glob("tensors-*"), key=lambda path: path.stat().st_size)
        victim.write_bytes(victim.read_bytes()[:-100])

    _, _, seen = run(config)

    assert sum("passed over" in line for line in seen.report) == 2
    assert any("after step 3" in line for line in seen.report)
    assert figures(seen, *EXACT) == figures(whole, *EXACT)[3:]


def test_loading_the_model_only_starts_a_new_schedule(corpus):
    _, folder, _ = run(values(corpus, JOB_NAME="first"))
    config = values(
        corpus,
        JOB_NAME="second",
        ckpt=dict(
            load_ckpt_info=dict(path=str(folder / "checkpoints" / "8"), content=("model",), ckpt_type="evocore")
        ),
    )
    fresh = run(values(corpus, JOB_NAME="third"))[2]

    _, _, seen = run(config)

    assert figures(seen, "step", "lr") == figures(fresh, "step", "lr")
    assert seen.steps[0]["loss"] < fresh.steps[0]["loss"] - 0.1


def test_micro_batches_and_batch_size_are_only_a_matter_of_memory(corpus):
    one = run(values(corpus, JOB_NAME="one", data=dict(micro_num=4, micro_bsz=1)))[2]
    weighted = run(values(corpus, JOB_NAME="two", data=dict(micro_num=4, micro_bsz=1), model=dict(checkpoint=True)))[
        2
    ]
    assert [step["loss"] for step in one.steps] == [step["loss"] for step in weighted.steps]
    assert [step["grad_norm"] for step in one.steps] == [step["grad_norm"] for step in weighted.steps]


def test_skipped_batches_are_consumed_but_not_trained_on(corpus):
    _, _, seen = run(values(corpus, data=dict(skip_batches="2-4,6")))
    assert [step["step"] for step in seen.steps] == [1, 2, 3, 4]
    assert [message for message in seen.messages if "skipped:" in message] == [
        f"batch {number} skipped: named by data.skip_batches" for number in (2, 3, 4, 6)
    ]


def test_batch_ramps_up(corpus):
    _, _, seen = run(values(corpus, data=dict(micro_num=4, rampup_batch_size="2 2 3")))
    assert [step["micro_num"] for step in seen.steps] == [2, 2, 2, 4, 4, 4, 4, 4]


def test_float16_overflow_is_skipped_counted_and_named(corpus):
    config = values(
        corpus,
        model=dict(dtype="torch.float16"),
        data=dict(total_steps=12),
        grad_scaler=dict(fp16=dict(initial_scale=2.0**24), hysteresis=1),
    )

    _, _, seen = run(config)

    bad = [step for step in seen.steps if not math.isfinite(step["grad_norm"])]
    assert bad and seen.steps[-1]["inf_nan_skip_batches"] == len(bad) < 12
    for step in seen.steps:  # each bad step before it halved the scale
        assert step["loss_scale"] == 2.0 ** (24 - sum(earlier["step"] < step["step"] for earlier in bad))
    assert sum("not applied: gradient not finite, first in" in message for message in seen.messages) == len(bad)


def test_bfloat16_follows_float32(corpus):
    wide = run(values(corpus, JOB_NAME="wide"))[2]
    narrow = run(values(corpus, JOB_NAME="narrow", model=dict(dtype="torch.bfloat16"), use_fp32_norm=True))[2]
    for a, b in zip(wide.steps, narrow.steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.01)


def test_token_beyond_the_vocabulary_is_refused_with_its_place(corpus):
    with pytest.raises(UserError, match="vocab_size") as told:
        run(values(corpus, model=dict(vocab_size=32)))
    assert "token id 63" in str(told.value) and "32" in str(told.value)


def test_everything_that_cannot_run_is_named_before_anything_is_written(corpus):
    config = values(
        corpus, parallel=dict(zero1=dict(size=4), tensor=dict(size=2, mode="isp")), model=dict(drop_rate=0.1)
    )
    with pytest.raises(UserError) as told:
        run(config)
    for key in ("parallel.tensor.size", "model.drop_rate"):
        assert key in str(told.value)
    assert not (corpus / "runs").exists()


def test_a_backend_that_cannot_add_up_gradients_is_refused_before_any_rank_waits(corpus):
    class Integers(Collectives):
        def dtypes(self):
            return frozenset({torch.int64})

    class Poor(CPUBackend):
        name, priority = "poor", 1000

        def collectives(self):
            return Integers()

    class Plugin:
        evocore_backends = staticmethod(hookimpl(lambda: [Poor]))

    registry = load_plugins()
    registry.register(Plugin, "poor")
    config = load_values(values(corpus))

    with pytest.raises(UserError, match="the collectives of backend poor cannot reduce float32"):
        train(config, registry, LaunchEnvironment(rank=0, world_size=2), observers=[])
    assert not (corpus / "runs").exists()
