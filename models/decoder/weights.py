"""Rules between the decoder's parameters and the names that many houses share; a family adds its own.

Ours are ``tok_embeddings``, ``layers.N.attention.{wqkv | wq, wk, wv, wo}``, ``layers.N.feed_forward.{w13 | w1, w3,
w2}`` (w1 is the gate, w3 goes up, w2 down), ``layers.N.{attention_norm, ffn_norm}``, ``norm`` and ``output``.
"""

from __future__ import annotations

from typing import Any

from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.weight_map import Part, Rule, WeightMap
from evocore.nn.weight_rules import Heads, Place, grouped, projections, same, separate, stacked

OURS, LLAMA = "layers.{layer}", "model.layers.{layer}"


def llama_names(
    spec: DecoderSpec,
    *more: Rule,
    heads: Place | None = None,
    ffn_norm: str = "post_attention_layernorm",
    normalised_head: bool | None = None,
) -> WeightMap:
    """The map to the tensor names of Llama in ``transformers``, which most families there share, and ``more``.

    Args:
        heads: where query, key and value are, if not where Llama has them.
        ffn_norm: name of the norm before the MLP.
        normalised_head: as ``normalised`` of ``ends``.
    """
    return WeightMap(
        (
            *ends(spec, "model.embed_tokens", "model.norm", "lm_head", normalised=normalised_head),
            same(f"{OURS}.attention_norm.weight", f"{LLAMA}.input_layernorm.weight"),
            same(f"{OURS}.ffn_norm.weight", f"{LLAMA}.{ffn_norm}.weight"),
            *attention(spec, heads or llama_heads()),
            same(f"{OURS}.attention.wo.{{kind}}", f"{LLAMA}.self_attn.o_proj.{{kind}}"),
            *feed_forward("feed_forward", f"{LLAMA}.mlp", "gate_proj", "up_proj", "down_proj"),
            *more,
        ),
        **head_options(spec, "model.embed_tokens", "lm_head"),
    )


def llama_heads(prefix: str = f"{LLAMA}.self_attn") -> Place:
    """Query, key and value as Llama in ``transformers`` has them."""
    return separate(*(f"{prefix}.{name}_proj.{{kind}}" for name in "qkv"))


def ends(spec: DecoderSpec, embedding: str, norm: str, head: str, *, normalised: bool | None = None) -> list[Rule]:
    """What comes before the first layer and after the last.

    Args:
        normalised: whether the head's rows are written scaled to length one: by default if the model scales them,
            because theirs does not.
    """
    return [
        same("tok_embeddings.weight", f"{embedding}.weight"),
        same("norm.weight", f"{norm}.weight"),
        same("output.weight", f"{head}.weight", normalised=spec.norm_head if normalised is None else normalised),
    ]


def head_options(spec: DecoderSpec, embedding: str, head: str) -> dict[str, Any]:
    """What a ``WeightMap`` says of a head that may be tied to the embedding, and of tables of angles."""
    ignored = ("*.rotary_emb.inv_freq", *((f"{head}.weight",) if spec.tied else ()))
    return {"ignored": ignored, "stand_ins": {} if spec.tied else {f"{head}.weight": f"{embedding}.weight"}}


def attention(spec: DecoderSpec, theirs: Place) -> list[Rule]:
    """Query, key and value, fused or separate on either side; theirs with rotary pairs half a head apart."""
    heads = Heads(spec.heads, spec.kv_heads, spec.head_dim, interleaved=spec.rope_interleaved)
    return projections(heads, our_heads(spec), theirs)


def head_norms(spec: DecoderSpec) -> list[Rule]:
    """Norms of queries and keys, whose features are in the order of the heads' rows."""
    size, pairs = spec.head_dim, spec.head_dim // 2
    apart = [(range(0, size, 2), range(pairs)), (range(1, size, 2), range(pairs, size))]
    rows = apart if spec.rope_interleaved else [(range(size), range(size))]

    def of(name: str) -> Rule:
        theirs = f"{LLAMA}.self_attn.{name}.weight"
        return Rule(f"{OURS}.attention.{name}.weight", lambda _: [Part(theirs, mine, yours) for mine, yours in rows])

    return [of("q_norm"), of("k_norm")]


def our_heads(spec: DecoderSpec) -> Place:
    """Query, key and value as the decoder has them."""
    prefix = f"{OURS}.attention"
    if spec.fused_qkv:
        return grouped(f"{prefix}.wqkv.{{kind}}")
    return separate(*(f"{prefix}.w{name}.{{kind}}" for name in "qkv"))


def feed_forward(ours: str, theirs: str, gate: str, up: str, down: str) -> list[Rule]:
    """A gated MLP, its gate and up projections in one weight or in two of ours.

    Args:
        ours: its name in a layer.
        theirs: the prefix of their names.
    """
    return [
        same(f"{OURS}.{ours}.w1.{{kind}}", f"{theirs}.{gate}.{{kind}}"),
        same(f"{OURS}.{ours}.w3.{{kind}}", f"{theirs}.{up}.{{kind}}"),
        stacked(f"{OURS}.{ours}.w13.{{kind}}", f"{theirs}.{gate}.{{kind}}", f"{theirs}.{up}.{{kind}}"),
        same(f"{OURS}.{ours}.w2.{{kind}}", f"{theirs}.{down}.{{kind}}"),
    ]
