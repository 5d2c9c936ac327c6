"""Values that follow from others: filled in where they are absent, and a few that are always overwritten.

Works on the flat settings, before types are checked, so that the schema can require what everything after it reads.
A rule whose inputs are absent or of the wrong type does nothing: those inputs are errors of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evocore.config.schema import Config
from evocore.config.schema_keys import schema_keys
from evocore.config.settings import Setting, Settings, nest, put, under


@dataclass(frozen=True)
class Rule:
    """``key`` is ``value(*needs)``.

    Attributes:
        text: the formula, for people.
        overwrites: whether it replaces a value that was given; otherwise only an absent or None one.
        applies: whether the rule holds for these inputs.
    """

    key: str
    needs: tuple[str, ...]
    value: Callable[..., Any]
    text: str
    overwrites: bool = False
    applies: Callable[..., bool] = lambda *inputs: True


def _same(value: Any) -> Any:
    return value


def _nothing(value: Any) -> Any:
    return None


_SAVES = ("ckpt.enable_save_ckpt",)

RULES = (
    Rule(
        "data.packed_length",
        ("data.seq_len", "data.micro_bsz"),
        lambda seq_len, micro_bsz: seq_len * micro_bsz,
        "data.seq_len * data.micro_bsz",
        overwrites=True,
    ),
    Rule("data.batch_size", ("data.micro_num",), _same, "data.micro_num", overwrites=True),
    Rule("data.gradient_accumulation", ("data.micro_num",), _same, "data.micro_num"),
    Rule("data.valid_micro_num", ("data.micro_num",), _same, "data.micro_num"),
    Rule(
        "data.diag_outlier_ratio",
        ("data.diag_outlier_ratio",),
        lambda ratio: 1.0,
        "at least 1",
        overwrites=True,
        applies=lambda ratio: ratio < 1,
    ),
    Rule(
        "data.type",
        ("data.type", "data.train_folder", "data.raw"),
        lambda *inputs: "random",
        "there is no data.train_folder",
        overwrites=True,
        applies=lambda kind, folder, raw: kind == "tokenized" and folder is None and raw is None,
    ),
    Rule("model.num_kv_attention_heads", ("model.num_attention_heads",), _same, "model.num_attention_heads"),
    Rule(
        "model.head_dim",
        ("model.qk_nope_head_dim", "model.qk_rope_head_dim"),
        lambda nope, rope: nope + rope,
        "model.qk_nope_head_dim + model.qk_rope_head_dim",
        overwrites=True,
    ),
    Rule(
        "model.head_dim",
        ("model.hidden_size", "model.num_attention_heads"),
        lambda hidden, heads: hidden // heads,
        "model.hidden_size // model.num_attention_heads",
    ),
    Rule(
        "model.num_chunks",
        ("parallel.pipeline.mode",),
        lambda mode: 2,
        "ZBV runs two chunks per stage",
        overwrites=True,
        applies=lambda mode: mode.upper() == "ZBV",
    ),
    Rule("lr_scheduler.total_steps", ("data.total_steps",), _same, "data.total_steps"),
    Rule("beta2_scheduler.init_beta2", ("adam.adam_beta2",), _same, "adam.adam_beta2"),
    Rule("beta2_scheduler.c", ("adam.adam_beta2_c",), _same, "adam.adam_beta2_c"),
    *(
        Rule(key, _SAVES, value, "nothing is saved", overwrites=True, applies=lambda saves: saves is False)
        for key, value in (
            ("ckpt.checkpoint_every", _nothing),
            ("ckpt.oss_snapshot_freq", _nothing),
            ("ckpt.async_upload", lambda saves: False),
        )
    ),
)

ALWAYS_DERIVED = frozenset(rule.key for rule in RULES if schema_keys()[rule.key].required)
"""Keys that the schema requires and that nobody has to write."""


def derive(settings: Settings) -> list[str]:
    """Fill in ``settings``; returns one note per value that was set or overwritten."""
    notes = [*_no_checkpoint(settings), *_class_of_transformers(settings)]
    for rule in RULES:
        if rule.key.rpartition(".")[0] in settings:
            continue  # the block is no dict, which the schema reports
        given = settings.get(rule.key)
        if given is not None and given.value is not None and not rule.overwrites:
            continue
        try:
            inputs = [_value(settings, key) for key in rule.needs]
            if not rule.applies(*inputs):
                continue
            value = rule.value(*inputs)
        except (LookupError, TypeError, AttributeError, ZeroDivisionError):
            continue  # an input is missing or wrong, which the schema reports by its own name
        if given is None:
            if value == _default(rule.key):
                continue
            notes.append(f"{rule.key}={value!r} is derived: {rule.text}")
        elif given.value == value and type(given.value) is type(value):
            continue
        else:
            notes.append(f"{rule.key}={given.value!r} ({given.source}) is overwritten with {value!r}: {rule.text}")
        put(settings, rule.key, Setting(value, "derived"))
    return notes


def _no_checkpoint(settings: Settings) -> list[str]:
    """InternEvo's templates keep ``load_ckpt_info`` with ``path=None`` when there is nothing to load."""
    key = "ckpt.load_ckpt_info"
    path = settings.get(f"{key}.path")
    if path is None or path.value is not None:
        return []
    for name in list(under(settings, key)):
        del settings[name]
    settings[key] = Setting(None, path.source)
    return [f"{key}.path=None ({path.source}): no checkpoint is loaded"]


def _class_of_transformers(settings: Settings) -> list[str]:
    """A class of transformers has its sizes in a config of its own."""
    hf: Any = nest({key: settings[key] for key in settings if key.partition(".")[0] == "hf"}).get("hf")
    if not isinstance(hf, dict) or not hf:
        return []
    from evocore.hugging_face_class import model_sizes

    notes = []
    found = {"model_type": "hf"} | {f"model.{key}": value for key, value in model_sizes(hf).items()}
    other = [key for key in under(settings, "model") if key not in found and key not in _OF_A_CLASS]
    if other:
        notes.append(f"{', '.join(other)}: without effect, a class of transformers has its own config")
    for key, value in found.items():
        given = settings.get(key)
        if given is not None and given.value != value:
            notes.append(f"{key}={given.value!r} ({given.source}) is overwritten with {value!r}: what hf names")
        put(settings, key, Setting(value, "derived"))
    return notes


_OF_A_CLASS = ("model.dtype", "model.checkpoint", "model.num_chunks", "model.residual_in_fp32")
"""Keys that are read, or refused, where a class of transformers is trained."""


def _value(settings: Settings, key: str) -> Any:
    if key in settings:
        return settings[key].value
    if any(under(settings, key)):
        return {name: settings[name].value for name in under(settings, key)}
    return _default(key, required=True)


def _default(key: str, required: bool = False) -> Any:
    """The schema's default of a key; LookupError for a key without one, if it is required."""
    kind: Any = Config
    *blocks, last = key.split(".")
    for name in blocks:
        kind = kind.model_fields[name].annotation
    field = kind.model_fields[last]
    if field.is_required():
        if required:
            raise LookupError(key)
        return None
    return field.default
