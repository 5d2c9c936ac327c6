"""Spellings of older InternEvo versions, turned into the present ones with one note each.

Every rule moves or drops a key of one layer (the file, or the command line), so that a later layer overrides what an
earlier one said in whichever spelling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evocore.config.settings import Setting, Settings, flatten, put, under
from evocore.errors import UserError

SIZES = ("zero1", "tensor", "pipeline", "weight", "expert", "expert_weight", "expert_zero1")

RENAMED = {
    "hybrid_zero_optimizer.zero_overlap_communication": "hybrid_zero_optimizer.overlap_sync_grad",
    "alert_address": "monitor.alert.feishu_alert_address",
    "moe.top_k": "model.top_k",
}

RESPELT: dict[tuple[str, str], str] = {
    ("model_type", "INTERNLM2_PUBLIC"): "INTERNLM2",
    ("model_type", "LLAMA"): "LLAMA2",
    ("model.moe_type", "MegaBlock-D"): "MegaBlock-Dropless",
    ("model.dtype", "torch.half"): "torch.float16",
    ("data.type", "hf"): "streaming",
    ("ckpt.load_ckpt_info.ckpt_type", "internlm"): "internevo",
    ("ckpt.load_ckpt_info.ckpt_type", "normal"): "internevo",
}

DROPPED = {
    "parallel.weight.memory_pool": "buffers are the backend's business",
    "parallel.expert_weight.memory_pool": "buffers are the backend's business",
}


def modernise(settings: Settings) -> tuple[Settings, list[str], list[UserError]]:
    """The settings in present spellings, a note for each that changed, and an error for each contradiction."""
    layer = _Layer(dict(settings))
    for rule in (_sizes, _renamed, _sequence_parallel, _zero_bubble, _rotary, _moe, _checkpoint_loading, _respelt):
        rule(layer)
    for key, reason in DROPPED.items():
        layer.drop(key, reason)
    return layer.settings, layer.notes, layer.problems


class _Layer:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.notes: list[str] = []
        self.problems: list[UserError] = []

    def get(self, key: str) -> Any:
        return self.settings[key].value if key in self.settings else None

    def move(self, old: str, new: str, change: Callable[[Any], Any] = lambda value: value) -> None:
        """Read ``old`` as ``new``; both may be given if they agree."""
        if old not in self.settings:
            return
        value, source = self.settings.pop(old)
        modern = change(value)
        if new in self.settings and old != new:
            given = self.settings[new].value
            if given != modern:
                self.problems.append(
                    UserError(
                        f"{old}={value!r} ({source}) contradicts {new}={given!r}, which is the present spelling",
                        f"{new}={modern!r} or no {old}",
                        f"remove {old}",
                    )
                )
            self.notes.append(f"{old}={value!r} ({source}) repeats {new}={given!r}")
            return
        self.notes.append(f"{old}={value!r} ({source}) is read as {new}={modern!r}")
        said = source if source in ("--set", "command line") else f"legacy: {old}={value!r}"
        put(self.settings, new, Setting(modern, said))

    def drop(self, key: str, reason: str) -> None:
        if key in self.settings:
            value, source = self.settings.pop(key)
            self.notes.append(f"{key}={value!r} ({source}) is ignored: {reason}")


def _sizes(layer: _Layer) -> None:
    for name in SIZES:
        value = layer.get(f"parallel.{name}")
        if isinstance(value, int) and not isinstance(value, bool):
            layer.move(f"parallel.{name}", f"parallel.{name}.size")


def _renamed(layer: _Layer) -> None:
    for old, new in RENAMED.items():
        layer.move(old, new)


def _respelt(layer: _Layer) -> None:
    for (key, old), new in RESPELT.items():
        if layer.get(key) == old:
            layer.move(key, key, lambda _, new=new: new)  # type: ignore[misc]


def _sequence_parallel(layer: _Layer) -> None:
    """A flag once; now every tensor mode but mtp splits the sequence."""
    key, mode = "parallel.sequence_parallel", layer.get("parallel.tensor.mode")
    if layer.get(key) is True and mode not in ("msp", "fsp", "isp"):
        layer.move(key, "parallel.tensor.mode", lambda _: "msp")
    else:
        layer.drop(key, "parallel.tensor.mode says whether the sequence is split")


def _zero_bubble(layer: _Layer) -> None:
    if layer.get("parallel.pipeline.zero_bubble") is True:
        layer.move("parallel.pipeline.zero_bubble", "parallel.pipeline.mode", lambda _: "ZBH1")
    else:
        layer.drop("parallel.pipeline.zero_bubble", "parallel.pipeline.mode names the schedule")


def _rotary(layer: _Layer) -> None:
    layer.move("model.adapt_hf", "model.qk_interleaved", lambda adapt_hf: not adapt_hf)


def _moe(layer: _Layer) -> None:
    layer.move("model.moe_use_residual", "model.num_shared_experts", lambda residual: 1 if residual else 0)
    for key in list(under(layer.settings, "moe")):
        layer.move(key, f"model.moe_layer_kwargs.{key.removeprefix('moe.')}")
    if layer.get("moe") in ({}, None):
        layer.drop("moe", "the block is empty")


def _checkpoint_loading(layer: _Layer) -> None:
    """Four keys once; now load_ckpt_info says what to load and auto_resume whether the run's own checkpoints win."""
    layer.move("ckpt.load_given_ckpt", "ckpt.auto_resume", lambda given: not given)
    folder, model_only = layer.get("ckpt.load_ckpt_folder"), layer.get("ckpt.load_model_only_folder")
    info = "ckpt.load_ckpt_info"
    given = info in layer.settings or any(under(layer.settings, info))
    if folder is not None and model_only is not None and not given:
        layer.problems.append(
            UserError(
                f"two checkpoints: ckpt.load_ckpt_folder={folder!r}, ckpt.load_model_only_folder={model_only!r}",
                "one checkpoint to start from",
                f"replace both by {info}=dict(path=..., content=('model',), ckpt_type=...)",
            )
        )
        for key in ("load_ckpt_folder", "load_model_only_folder", "load_optimizer"):
            layer.settings.pop(f"ckpt.{key}", None)
        return
    everything = (
        ["model", "sampler"] if layer.get("ckpt.load_optimizer") is False else ["model", "sampler", "optimizer"]
    )
    for key, content in (("ckpt.load_model_only_folder", ["model"]), ("ckpt.load_ckpt_folder", everything)):
        nested = [name.removeprefix(f"{key}.") for name in under(layer.settings, key)]
        if given or layer.get(key) is None and not nested:
            reason = f"{info} is given" if given else "it names no checkpoint"
            for name in [key, *(f"{key}.{part}" for part in nested)]:
                layer.drop(name, reason)
        elif nested:
            for part in nested:
                layer.move(f"{key}.{part}", f"{info}.{part}")
        else:
            source = layer.settings[key].source
            layer.move(key, f"{info}.path")
            layer.settings.update(flatten({f"{info}.content": content, f"{info}.ckpt_type": "internevo"}, source))
    layer.drop("ckpt.load_optimizer", f"{info}.content lists what is loaded")
