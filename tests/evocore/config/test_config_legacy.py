"""Spellings of older InternEvo versions: mapped with one note each, refused where they contradict the present one."""

from __future__ import annotations

import pytest
from config_samples import smallest

from evocore.config import load_values
from evocore.config.settings import flatten, nest, overlay
from evocore.errors import UserError


def _load(**settings):
    values = flatten(smallest(), "mine.py")
    for key, value in settings.items():
        overlay(values, flatten({key.replace("__", "."): value}, "mine.py"))
    return load_values(nest(values), name="mine.py")


def _at(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("old", "value", "new", "modern"),
    [
        ("parallel.zero1", 8, "parallel.zero1.size", 8),
        ("parallel.tensor", 4, "parallel.tensor.size", 4),
        ("parallel.pipeline", 2, "parallel.pipeline.size", 2),
        ("parallel.weight", 2, "parallel.weight.size", 2),
        ("parallel.expert", 2, "parallel.expert.size", 2),
        ("parallel.expert_weight", 2, "parallel.expert_weight.size", 2),
        ("parallel.expert_zero1", 2, "parallel.expert_zero1.size", 2),
        ("parallel.sequence_parallel", True, "parallel.tensor.mode", "msp"),
        ("parallel.pipeline.zero_bubble", True, "parallel.pipeline.mode", "ZBH1"),
        ("hybrid_zero_optimizer.zero_overlap_communication", True, "hybrid_zero_optimizer.overlap_sync_grad", True),
        ("alert_address", "http://x", "monitor.alert.feishu_alert_address", "http://x"),
        ("model_type", "INTERNLM2_PUBLIC", "model_type", "INTERNLM2"),
        ("model_type", "LLAMA", "model_type", "LLAMA2"),
        ("model.adapt_hf", True, "model.qk_interleaved", False),
        ("model.dtype", "torch.half", "model.dtype", "torch.float16"),
        ("model.moe_type", "MegaBlock-D", "model.moe_type", "MegaBlock-Dropless"),
        ("model.moe_use_residual", True, "model.num_shared_experts", 1),
        ("model.moe_use_residual", False, "model.num_shared_experts", 0),
        ("moe.top_k", 4, "model.top_k", 4),
        ("moe.capacity_factor", 1.5, "model.moe_layer_kwargs.capacity_factor", 1.5),
        ("data.type", "hf", "data.type", "streaming"),
        ("ckpt.load_given_ckpt", True, "ckpt.auto_resume", False),
    ],
)
def test_an_old_spelling_is_read_as_the_present_one(old, value, new, modern):
    loaded = _load(**{old.replace(".", "__"): value})

    assert _at(loaded.config, new) == modern
    assert loaded.sources[new] == f"legacy: {old}={value!r}"
    assert loaded.notes.count(f"{old}={value!r} (mine.py) is read as {new}={modern!r}") == 1


@pytest.mark.parametrize(
    ("settings", "path", "content"),
    [
        ({"ckpt__load_ckpt_folder": "local:a"}, "local:a", ["model", "sampler", "optimizer"]),
        ({"ckpt__load_ckpt_folder": "local:a", "ckpt__load_optimizer": False}, "local:a", ["model", "sampler"]),
        ({"ckpt__load_model_only_folder": "local:a", "ckpt__load_ckpt_folder": None}, "local:a", ["model"]),
        (
            {"ckpt__load_ckpt_folder": {"path": "b", "content": ["model"], "ckpt_type": "normal"}},
            "b",
            ["model"],
        ),
    ],
)
def test_old_keys_of_loading_become_load_ckpt_info(settings, path, content):
    info = _load(**settings).config.ckpt.load_ckpt_info

    assert (info.path, info.content, info.ckpt_type) == (path, content, "internevo")


def test_load_ckpt_info_wins_over_a_folder_that_a_template_left_there():
    loaded = _load(
        ckpt__load_ckpt_folder="local:left", ckpt__load_ckpt_info={"path": "local:right", "content": ("model",)}
    )

    assert loaded.config.ckpt.load_ckpt_info.path == "local:right"
    assert "ckpt.load_ckpt_folder='local:left' (mine.py) is ignored: ckpt.load_ckpt_info is given" in loaded.notes


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (
            {"model__adapt_hf": True, "model__qk_interleaved": True},
            r"^model.adapt_hf=True \(mine.py\) contradicts model.qk_interleaved=True",
        ),
        (
            {"parallel__tensor__mode": "mtp", "parallel__sequence_parallel": True},
            r"^parallel.sequence_parallel=True \(mine.py\) contradicts parallel.tensor.mode='mtp'",
        ),
        ({"ckpt__load_ckpt_folder": "a", "ckpt__load_model_only_folder": "b"}, "^two checkpoints: .*'a'.*'b'"),
    ],
)
def test_contradicting_spellings_are_refused(settings, wrong):
    with pytest.raises(UserError, match=wrong):
        _load(**settings)


def test_agreeing_spellings_are_accepted():
    loaded = _load(model__adapt_hf=True, model__qk_interleaved=False)

    assert loaded.config.model.qk_interleaved is False
    assert loaded.sources["model.qk_interleaved"] == "mine.py"


def test_keys_without_a_meaning_left_are_dropped_with_a_note():
    loaded = _load(parallel__weight__memory_pool=True, parallel__sequence_parallel=False)

    assert "parallel.weight.memory_pool=True (mine.py) is ignored: buffers are the backend's business" in loaded.notes
    assert any(note.startswith("parallel.sequence_parallel=False (mine.py) is ignored") for note in loaded.notes)


def test_an_override_in_either_spelling_wins_over_the_file_in_the_other():
    values = smallest() | {"parallel": {"zero1": 8, "tensor": {"size": 2, "mode": "fsp"}}}

    assert load_values(values, ["parallel.zero1.size=4"]).config.parallel.zero1.size == 4
    loaded = load_values(values, ["parallel.zero1=4", "parallel.tensor=1", "model.adapt_hf=True"])
    assert loaded.config.parallel.zero1.size == 4
    assert (loaded.config.parallel.tensor.size, loaded.config.parallel.tensor.mode) == (1, "fsp")
    assert loaded.config.model.qk_interleaved is False
    assert {loaded.sources[key] for key in ("parallel.zero1.size", "model.qk_interleaved")} == {"--set"}
