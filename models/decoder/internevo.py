"""Rules between the decoder's parameters and the tensors of InternEvo's checkpoints, whose rows have the same order.

Names are those of its later versions, with query, key and value, and gate and up, as tensors of their own; what it
may store as one is said beside them. Earlier names are the reader's business (``evocore.checkpoint.internevo``).
"""

from __future__ import annotations

from evocore.errors import UserError
from evocore.models.decoder.spec import DecoderSpec
from evocore.models.decoder.weights import OURS, feed_forward, our_heads
from evocore.nn.weight_map import Fused, Rule, WeightMap
from evocore.nn.weight_rules import Heads, experts, projections, same, separate


def internevo_names(
    spec: DecoderSpec,
    *,
    packed: bool = False,
    ends: tuple[str, str] = ("tok_embeddings", "output"),
    out: str = "wo",
) -> WeightMap:
    """The map of most families.

    Args:
        packed: one weight for query, key and value holds all queries, then all keys, then all values. Otherwise it
            has the queries, the key and the value of each key-value head together.
        ends: names of embedding and head.
        out: name of the attention's output projection.
    """
    layer = "layers.{layer}"
    norms = [same(f"{OURS}.{norm}.weight", f"{layer}.{norm}.weight") for norm in ("attention_norm", "ffn_norm")]
    return _map(spec, ends, norms, layer, f"{layer}.attention", "wqkv", out, f"{layer}.feed_forward", packed)


def internlm_names(spec: DecoderSpec) -> WeightMap:
    """The map of the first InternLM and of InternLM-MoE, which call everything otherwise."""
    layer = "blocks.{layer}"
    norms = [
        same(f"{OURS}.attention_norm.weight", f"{layer}.norm1.weight"),
        same(f"{OURS}.ffn_norm.weight", f"{layer}.norm2.weight"),
    ]
    ends = ("embedding", "head")
    return _map(spec, ends, norms, layer, f"{layer}.mixer", "Wqkv", "out_proj", f"{layer}.mlp", True)


def _map(
    spec: DecoderSpec,
    ends: tuple[str, str],
    norms: list[Rule],
    layer: str,
    attention: str,
    fused: str,
    out: str,
    mlp: str,
    packed: bool,
) -> WeightMap:
    if spec.tied:
        raise UserError(
            "the model's head is tied to its embedding, and InternEvo's checkpoints have a head of its own",
            "a model with tie_word_embeddings=False",
            "--set model.tie_word_embeddings=False",
        )
    names = [f"{attention}.w{name}.{{kind}}" for name in "qkv"]
    # Rows are in our order on both sides, whatever this is.
    heads = Heads(spec.heads, spec.kv_heads, spec.head_dim)
    rules = [
        same("tok_embeddings.weight", f"{ends[0]}.weight"),
        same("norm.weight", "norm.weight"),
        same("output.weight", f"{ends[1]}.weight"),
        *norms,
        *projections(heads, our_heads(spec), separate(*names)),
        *(same(f"{OURS}.attention.{norm}.weight", f"{attention}.{norm}.weight") for norm in ("q_norm", "k_norm")),
        same(f"{OURS}.attention.wo.{{kind}}", f"{attention}.{out}.{{kind}}"),
        *feed_forward("feed_forward", mlp, "w1", "w3", "w2"),
    ]
    if spec.mixture is not None:
        one = f"{mlp}.moe_layer.experts.wrapped_experts.{{expert}}"
        count = spec.mixture.rule.experts
        rules += [
            same(f"{OURS}.feed_forward.gate.weight", f"{mlp}.moe_layer.gate.wg.weight"),
            experts(f"{OURS}.feed_forward.experts.w13.weight", count, f"{one}.w1.weight", f"{one}.w3.weight"),
            experts(f"{OURS}.feed_forward.experts.w2.weight", count, f"{one}.w2.weight"),
            *feed_forward("feed_forward.shared", f"{mlp}.residual_mlp", "w1", "w3", "w2"),
            same(f"{OURS}.feed_forward.shared_gate.weight", f"{mlp}.coefficient.weight"),
        ]
    q, k, v = zip(names, (spec.heads, spec.kv_heads, spec.kv_heads), strict=True)
    rows = [(name, count * spec.head_dim) for name, count in (q, k, v)]
    group = [(name, count // spec.kv_heads) for name, count in rows]
    halves = [(f"{mlp}.{name}.{{kind}}", spec.feed_forward) for name in ("w1", "w3")]
    return WeightMap(
        tuple(rules),
        fused=(
            Fused(
                f"{attention}.{fused}.{{kind}}",
                tuple(rows if packed else group * spec.kv_heads),
                written=packed or spec.fused_qkv,
            ),
            Fused(f"{mlp}.fused_w1_w3.{{kind}}", tuple(halves)),
        ),
    )
