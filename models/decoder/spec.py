"""Everything that tells one decoder from another, as plain numbers and switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

from evocore.models.decoder.mixture_spec import MixtureSpec, read_mixture
from evocore.models.decoder.rope import PLAIN, RopeScaling
from evocore.nn.family import Numerics

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class InitialStd:
    """Standard deviations of the initial weights, by what they belong to.

    With ``scaled``, the projections that write to the residual stream (attention output, MLP down) are divided by
    ``sqrt(2 * (layer + 1))``, layer counting from 0: a block's own depth, not the model's.
    """

    embedding: float = 0.02
    qkv: float = 0.02
    attention_out: float = 0.02
    mlp_in: float = 0.02
    mlp_out: float = 0.02
    head: float = 0.02
    scaled: bool = True

    def residual(self, std: float, layer: int) -> float:
        """``std`` of a projection that writes to the residual stream in block ``layer``."""
        return std / sqrt(2 * (layer + 1)) if self.scaled else std


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention: see ``evocore.models.decoder.latent_attention``.

    Attributes:
        q_rank: width of the latent of queries; 0 if they have none.
        kv_rank: width of the latent of keys and values.
        nope, rope: features of a query or key that have no position, and that are rotated.
        value: features of a value.
        norm_eps: of the norms of latents, which DeepSeek has not made an option.
    """

    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        fused_qkv: one weight with rows ``(kv_heads, heads / kv_heads + 2, head_dim)``: for each key-value head its
            query heads, then the key, then the value (InternLM2). Otherwise wq, wk, wv.
        fused_gate_up: gate and up projections in one weight, gate rows first.
        rope_interleaved: pairs of rotary features lie side by side instead of half a head apart.
        norm_head: the rows of the head are scaled to length one in every forward pass (InternLM2, Baichuan2).
        embed_grad_scale: factor of the embedding's gradient (GLM-130B, section 3.1).
        tied: the head's weight is the embedding's, and starts as one.
        rope: how the rotary angles are stretched.
        activation: of the MLP's gate: SiLU, or GELU in its tanh form (Gemma).
        unit_offset: norms multiply by one plus their weight (Gemma).
        post_norms: what attention and MLP compute is normalised before it is added (Gemma 2).
        head_norms: queries and keys are normalised head by head before they are rotated (Qwen3).
        embedding_scale: factor of the embedding, rounded to the dtype of the activations (Gemma).
        attention_scale: factor of the scores; None for ``1 / sqrt(head_dim)``.
        attention_softcap, head_softcap: soft caps of attention scores and of the head's; None for none (Gemma 2).
        windows: for each layer how many tokens back it sees, itself included, or None for all; () if all see all.
        recompute_layers: the first so many blocks drop their activations and compute them again in backward.
        mixture: experts in the place of the MLP; None for a dense model.
        predictors: blocks behind the last one that predict further tokens in training.
        latent: keys and values come from a latent; None for those of the plain kind.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    numerics: Numerics
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_interleaved: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norm_head: bool = False
    embed_grad_scale: float = 1.0
    recompute_layers: int = 0
    mixture: MixtureSpec | None = None
    latent: LatentSpec | None = None
    predictors: int = 0
    tied: bool = False
    rope: RopeScaling = PLAIN
    activation: Activation = "silu"
    unit_offset: bool = False
    post_norms: bool = False
    head_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    head_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    init: InitialStd = InitialStd()

    def window(self, layer: int) -> int | None:
        """That of one layer; predictors have the last one's."""
        return self.windows[min(layer, self.layers - 1)] if self.windows else None

    @property
    def rotary_dim(self) -> int:
        """Rotated features of a head."""
        return self.head_dim if self.latent is None else self.latent.rope


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def from_settings(settings: Mapping[str, Any], numerics: Numerics, **quirks: Any) -> DecoderSpec:
    """Read InternEvo's ``model`` keys, which all families share; ``quirks`` are what a family fixes itself."""
    heads, layers = settings["num_attention_heads"], settings["num_layers"]
    hidden = settings["hidden_size"]
    std = {name: settings.get(f"{name}_init_std") for name in _INIT_KEYS}
    scalar = settings.get("query_pre_attn_scalar")
    latent = _latent(settings) if settings.get("kv_lora_rank") else None
    head_dim = settings.get("head_dim") or hidden // heads
    feed_forward = round_up(int(hidden * settings["mlp_ratio"]), settings.get("multiple_of") or 256)
    common: dict[str, Any] = dict(
        vocab=settings["vocab_size"],
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=settings.get("num_kv_attention_heads") or heads,
        head_dim=head_dim if latent is None else latent.nope + latent.rope,
        feed_forward=feed_forward,
        numerics=numerics,
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        rope_base=settings.get("rope_base", 10000),
        rope_interleaved=bool(settings.get("qk_interleaved", False)),
        fused_gate_up=bool(settings.get("mlp_layer_fusion", False)),
        qkv_bias=_bias(settings, "qkv_bias"),
        out_bias=_bias(settings, "o_bias"),
        mlp_bias=bool(settings.get("mlp_bias")),
        norm_head=bool(settings.get("norm_head")),
        embed_grad_scale=settings.get("embed_grad_scale", 1),
        recompute_layers=int(float(settings.get("checkpoint", 0)) * layers),
        mixture=read_mixture(settings, feed_forward) if settings.get("num_experts", 1) > 1 else None,
        latent=latent,
        predictors=settings.get("extra_pred_tokens") or 0,
        tied=bool(settings.get("tie_word_embeddings")),
        rope=_rope(settings),
        activation="gelu_tanh" if settings.get("use_swiglu") is False else "silu",
        unit_offset=bool(settings.get("add_unit_offset")),
        attention_scale=None if scalar is None else scalar**-0.5,
        attention_softcap=settings.get("attn_logit_softcapping"),
        head_softcap=settings.get("final_logit_softcapping"),
        windows=read_windows(settings),
        init=InitialStd(
            **{_INIT_KEYS[name]: value for name, value in std.items() if value is not None},
            scaled=bool(settings.get("use_scaled_init", True)),
        ),
    )
    return DecoderSpec(**(common | quirks))


def with_defaults(settings: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """The settings, with a family's own value for each key of ``defaults`` that is left to the family."""
    return {**settings, **{key: value for key, value in defaults.items() if settings.get(key) is None}}


def _rope(settings: Mapping[str, Any]) -> RopeScaling:
    kind: Any = "dynamic" if settings.get("use_dynamic_ntk_rope") else settings.get("rope_type") or "default"
    if kind == "default":
        return PLAIN
    options = {key: value for key, value in (settings.get("rope_kwargs") or {}).items() if value is not None}
    mscales = [options.pop(key, None) for key in ("mscale", "mscale_all_dim")]
    trained = options.pop("original_max_position_embeddings", None) or settings.get("max_position_embeddings", 2048)
    return RopeScaling(
        kind,
        settings.get("rope_scaling_factor", 1.0),
        trained,
        mscales=(mscales[0], mscales[1]) if all(mscales) else None,
        **{_ROPE_KEYS.get(key, key): value for key, value in options.items()},
    )


def read_windows(settings: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Of each layer: as ``layer_types`` says, or all layers from ``max_window_layers`` on."""
    if not settings.get("use_sliding_window"):
        return ()
    layers, kinds = settings["num_layers"], settings.get("layer_types")
    if kinds is None:
        first = settings.get("max_window_layers") or 0
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    return tuple(settings["sliding_window"] if kind == "sliding_attention" else None for kind in kinds)


def _latent(settings: Mapping[str, Any]) -> LatentSpec:
    return LatentSpec(
        settings.get("q_lora_rank") or 0,
        settings["kv_lora_rank"],
        settings["qk_nope_head_dim"],
        settings["qk_rope_head_dim"],
        settings["v_head_dim"],
    )


def _bias(settings: Mapping[str, Any], key: str) -> bool:
    """Whether an attention projection has a bias: by its own key, else by ``no_bias``; these families have none."""
    own = settings.get(key)
    return settings.get("no_bias") is False if own is None else bool(own)


_ROPE_KEYS = {"low_freq_factor": "low_frequency", "high_freq_factor": "high_frequency"}
_INIT_KEYS = {
    "embedding": "embedding",
    "attn_wqkv": "qkv",
    "attn_other": "attention_out",
    "ffn_uplayer": "mlp_in",
    "ffn_other": "mlp_out",
    "out_head": "head",
}
