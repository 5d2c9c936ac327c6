"""Launch constraints on the model's dialect: options that belong together or contradict one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from evocore.config.problems import shown
from evocore.config.schema import Config
from evocore.errors import UserError

Problems = Iterator[UserError]

SCHEMES: dict[str, frozenset[str]] = {
    "llama3": frozenset({"original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
}
"""``rope_type`` -> the keys of ``rope_kwargs`` that it reads."""


def _rope(config: Config) -> Problems:
    model = config.model
    kind = model.rope_type or ("dynamic" if model.use_dynamic_ntk_rope else "default")
    if model.use_dynamic_ntk_rope and kind != "dynamic":
        yield UserError(
            f"model.use_dynamic_ntk_rope=True with model.rope_type={kind!r}",
            "one rotary scaling scheme",
            "remove one of the two",
        )
    if kind == "default" and model.rope_scaling_factor != 1:
        yield UserError(
            f"model.rope_scaling_factor={model.rope_scaling_factor} without a rotary scaling scheme",
            "model.rope_type: linear, dynamic, llama3 or yarn",
            "set model.rope_type, or remove the factor",
        )
    for key, value in model.rope_kwargs.model_dump().items():
        if value is not None and key not in SCHEMES.get(kind, ()):
            readers = " or ".join(repr(name) for name, keys in SCHEMES.items() if key in keys)
            yield UserError(
                f"model.rope_kwargs.{key}={shown(value)} with model.rope_type={kind!r}, which does not read it",
                f"model.rope_type={readers}",
                f"remove model.rope_kwargs.{key}",
            )
    if (model.rope_kwargs.mscale is None) != (model.rope_kwargs.mscale_all_dim is None):
        yield UserError(
            f"model.rope_kwargs.mscale={model.rope_kwargs.mscale} with "
            f"mscale_all_dim={model.rope_kwargs.mscale_all_dim}",
            "both or neither",
            "give both, or model.rope_kwargs.attention_factor instead",
        )
    low, high = model.rope_kwargs.low_freq_factor or 1.0, model.rope_kwargs.high_freq_factor or 4.0
    if low >= high:
        yield UserError(
            f"model.rope_kwargs.low_freq_factor={low} is not below high_freq_factor={high}",
            "slow pairs make fewer turns than fast ones",
            "swap or correct the two",
        )
    if kind == "dynamic" and model.head_dim == 2:
        yield UserError(
            "model.head_dim=2 with dynamic rotary scaling", "two pairs at least", "set model.head_dim to 4 or more"
        )


def _windows(config: Config) -> Problems:
    model = config.model
    if model.use_sliding_window and model.sliding_window is None:
        yield UserError(
            "model.use_sliding_window=True without model.sliding_window",
            "how many tokens a window spans",
            "--set model.sliding_window=4096, or set model.use_sliding_window=False",
        )
    if model.layer_types is not None and len(model.layer_types) != model.num_layers:
        yield UserError(
            f"model.layer_types has {len(model.layer_types)} entries for model.num_layers={model.num_layers}",
            "one for each layer",
            "correct model.layer_types, or remove it where a rule will do (model.max_window_layers)",
        )
    slides = model.layer_types is not None and "sliding_attention" in model.layer_types
    if slides and not model.use_sliding_window:
        yield UserError(
            "model.layer_types names sliding_attention with model.use_sliding_window=False",
            "model.use_sliding_window=True and model.sliding_window",
            "--set model.use_sliding_window=True",
        )


def _latent(config: Config) -> Problems:
    """Whether latent attention has all its sizes, and plain attention none of them."""
    model = config.model
    sizes = {
        key: getattr(model, key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    }
    missing = [key for key, size in sizes.items() if size is None]
    if model.q_lora_rank is not None and "kv_lora_rank" in missing or 0 < len(missing) < len(sizes):
        yield UserError(
            f"model.{missing[0]}=None with other sizes of latent attention",
            f"all of {', '.join(sizes)}, or none of them nor q_lora_rank",
            f"set model.{missing[0]}, or remove the others",
        )
    if missing:
        return
    if model.num_kv_attention_heads != model.num_attention_heads:
        yield UserError(
            f"model.num_kv_attention_heads={model.num_kv_attention_heads} with model.kv_lora_rank: latent attention "
            "has keys and values for each head",
            f"model.num_attention_heads={model.num_attention_heads}",
            "remove model.num_kv_attention_heads",
        )
    if sizes["qk_rope_head_dim"] % 2:
        yield UserError(
            f"model.qk_rope_head_dim={sizes['qk_rope_head_dim']} is odd",
            "an even width, as rotary embedding turns pairs",
            "change it",
        )
    if sizes["v_head_dim"] > model.head_dim:
        yield UserError(
            f"model.v_head_dim={sizes['v_head_dim']} is more than qk_nope_head_dim + qk_rope_head_dim = "
            f"{model.head_dim}",
            "values that are no wider than keys",
            "lower model.v_head_dim",
        )


def _class_of_transformers(config: Config) -> Problems:
    """What it takes to cut a model, or to reach into it, a class of transformers does not have."""
    if config.hf is None:
        if config.model_type == "hf":
            yield UserError(
                "model_type='hf' without a block hf",
                "hf=dict(path='FOLDER') with a config.json",
                "name the folder of a model, or another model_type",
            )
        return
    parallel, model = config.parallel, config.model
    sizes = {
        "parallel.tensor.size": parallel.tensor.size,
        "parallel.pipeline.size": parallel.pipeline.size,
        "parallel.weight.size": parallel.weight.size,
        "parallel.expert.size": parallel.expert.size,
    }
    if cut := [f"{key}={size}" for key, size in sizes.items() if size > 1]:
        yield UserError(
            f"{', '.join(cut)} with model_type='hf': a class of transformers cannot be cut into parts",
            "data parallelism alone, with ZeRO (parallel.zero1) or full sharding (parallel.fsdp)",
            "set the size to 1, or choose the model family that reads this model (`evocore models`)",
        )
    switches = {
        "model.checkpoint": model.checkpoint not in (0, 1),
        "model.residual_in_fp32": model.residual_in_fp32,
        "use_fp32_norm": config.use_fp32_norm,
        "selective_checkpoint": config.selective_checkpoint,
        "cpu_offloading.enable": config.cpu_offloading.enable,
    }
    if on := [key for key, value in switches.items() if value]:
        yield UserError(
            f"{', '.join(on)} with model_type='hf': a class of transformers runs its layers by itself, in one dtype",
            "recomputation of all layers or none (model.checkpoint=True or False)",
            "remove it, or choose the model family that reads this model (`evocore models`)",
        )


MODEL_RULES: tuple[Callable[[Config], Problems], ...] = (_class_of_transformers, _rope, _windows, _latent)
