"""Small random models of ``transformers``, each as a line, and the same models as evocore reads them from disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from evocore.checkpoint.hugging_face.folder import read_config
from evocore.checkpoint.hugging_face.load import load_hugging_face, model_shapes
from evocore.config import load_values
from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.family import ModelFamily, Numerics
from evocore.nn.weight_map import WeightMatch
from evocore.ops.attention import CuSeqlens
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins

VOCAB, LENGTH, ROWS = 96, 24, 2
SMALL: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.1,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)


@dataclass(frozen=True)
class Case:
    """A model of ``transformers``.

    Attributes:
        name: of the test.
        model_type: of its ``config.json``.
        more: what its config has beside ``SMALL``.
        ours: ``model_type`` of our config, if another family than the one that reads such files.
        settings: keys of our ``model`` block on top of what the file says.
    """

    name: str
    model_type: str
    more: dict[str, Any]
    ours: str | None = None
    settings: dict[str, Any] | None = None


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=1000.0, **options))


LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(factor=4.0, original_max_position_embeddings=8)
YARN_OPTIONS = dict(beta_fast=4.0, beta_slow=0.5, truncate=False, mscale=0.7, mscale_all_dim=1.3)
DYNAMIC = rope("dynamic", factor=2.0) | dict(max_position_embeddings=10)
WIDE = dict(head_dim=32)
TIED = dict(tie_word_embeddings=True)
BIASED = dict(attention_bias=True, mlp_bias=True)
WINDOW = dict(use_sliding_window=True, sliding_window=7)
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA2 = WIDE | dict(
    sliding_window=7, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
)
PLAIN_SCORES = dict(attn_logit_softcapping=None, final_logit_softcapping=None, layer_types=["full_attention"] * 3)
FUSED = dict(mlp_layer_fusion=True, qk_interleaved=True)
SMALL_EXPERTS = dict(num_experts=4, num_experts_per_tok=3, moe_intermediate_size=40)
SHARED = dict(shared_expert_intermediate_size=80)
SPARSE = dict(decoder_sparse_step=2, norm_topk_prob=True)
SOME_DENSE = dict(mlp_only_layers=[1], attention_bias=True)
DEEPSEEK = dict(
    num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12,
    n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3, moe_intermediate_size=40, n_shared_experts=2,
    first_k_dense_replace=1, rms_norm_eps=1e-5, num_mtp_layers=0,
)  # fmt: skip
HALVES = dict(rope_interleave=False, attention_bias=True)
PLAIN_QUERIES = dict(q_lora_rank=None, norm_topk_prob=False, n_group=1, topk_group=1)

CASES = [
    Case("llama2", "llama", {}),
    Case("llama2-biased", "llama", BIASED | WIDE),
    Case("llama2-interleaved-fused", "llama", {}, settings=FUSED),
    Case("llama2-linear", "llama", rope("linear", factor=3.0)),
    Case("llama2-dynamic", "llama", DYNAMIC),
    Case("llama2-yarn", "llama", rope("yarn", **YARN)),
    Case("llama2-yarn-options", "llama", rope("yarn", **YARN, **YARN_OPTIONS)),
    Case("llama2-yarn-attention-factor", "llama", rope("yarn", **YARN, attention_factor=1.5)),
    Case("llama3", "llama", LLAMA3, ours="LLAMA3"),
    Case("llama3-tied", "llama", LLAMA3 | TIED | WIDE, ours="LLAMA3"),
    Case("internlm3", "internlm3", DYNAMIC | WIDE),
    Case("internlm3-biased", "internlm3", BIASED | WIDE),
    Case("qwen2", "qwen2", {}),
    Case("qwen2-tied-window", "qwen2", TIED | WINDOW | dict(max_window_layers=1)),
    Case("qwen2-layer-types", "qwen2", WINDOW | dict(layer_types=KINDS)),
    Case("qwen3", "qwen3", WIDE),
    Case("qwen3-tied-biased-window", "qwen3", WIDE | TIED | WINDOW | dict(attention_bias=True, max_window_layers=2)),
    Case("qwen3-interleaved-fused", "qwen3", WIDE, settings=FUSED),
    Case("gemma", "gemma", WIDE),
    Case("gemma-untied", "gemma", WIDE | dict(tie_word_embeddings=False)),
    Case("gemma2", "gemma2", GEMMA2),
    Case("gemma2-plain-scores", "gemma2", GEMMA2 | PLAIN_SCORES),
    Case("mixtral", "mixtral", dict(num_local_experts=4)),
    Case("mixtral-window", "mixtral", dict(num_local_experts=4, num_experts_per_tok=3, sliding_window=7) | WIDE),
    Case("qwen2-moe", "qwen2_moe", SMALL_EXPERTS | SHARED),
    Case("qwen2-moe-sparse", "qwen2_moe", SMALL_EXPERTS | SHARED | SPARSE | WINDOW, settings=FUSED),
    Case("qwen3-moe", "qwen3_moe", SMALL_EXPERTS | WIDE | dict(norm_topk_prob=True)),
    Case("qwen3-moe-some-dense", "qwen3_moe", SMALL_EXPERTS | WIDE | WINDOW | SOME_DENSE),
    Case("deepseek-v3", "deepseek_v3", DEEPSEEK),
    Case("deepseek-v3-yarn-halves", "deepseek_v3", DEEPSEEK | rope("yarn", **YARN, **YARN_OPTIONS) | HALVES),
    Case("deepseek-v3-no-query-latent", "deepseek_v3", DEEPSEEK | PLAIN_QUERIES),
]


@dataclass(frozen=True)
class Pair:
    """One model twice.

    Attributes:
        config: the values of our ``model`` block.
        match: which of our rows are which of theirs.
    """

    case: Case
    folder: Path
    theirs: Any
    ours: Any
    family: ModelFamily
    config: dict[str, Any]
    match: WeightMatch


def make(case: Case, folder: Path) -> Pair:
    """Let ``transformers`` make the model and save it, then read it."""
    torch.manual_seed(3)
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(case.model_type, **(SMALL | case.more)), attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:  # norms start as ones or zeros, biases as zeros
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in theirs.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.1)
    theirs.save_pretrained(folder)
    return read(case, folder, theirs.eval())


def read(case: Case, folder: Path, theirs: Any) -> Pair:
    """The pair for a folder."""
    registry = load_plugins()
    families = registry.models()
    if case.ours is None:
        family = next(family for family in families if case.model_type in family.hugging_face)
    else:
        family = next(family for family in families if family.name == case.ours)
    settings = family.from_hugging_face(read_config(folder)) | (case.settings or {})
    config = model_block(family.name, settings)
    ours = family.build(config, Numerics(torch.float32, torch.float32, torch.float32))
    bind_kernels(ours.to_empty(device="cpu"), resolve(model_requests(ours), registry.kernels(), "cpu"))
    if ours.spec.tied:
        ours.output.weight = ours.tok_embeddings.weight
    load_hugging_face(folder, family, ours)
    return Pair(case, folder, theirs, ours.eval(), family, config, family.weights(ours).match(model_shapes(ours)))


def model_block(model_type: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The ``model`` block as a config has it after its types and constraints were checked."""
    data = dict(seq_len=8, micro_bsz=1, total_steps=1)
    config = load_values(dict(model_type=model_type, model=settings | {"dtype": "torch.float32"}, data=data)).config
    return config.model.model_dump()


def as_saved(model: Any, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Tensors of a model of ``transformers`` by the names and in the shapes that they have in its files."""
    model.save_pretrained(folder, state_dict=tensors)
    return load_file(folder / "model.safetensors")


def batch() -> tuple[torch.Tensor, torch.Tensor, CuSeqlens]:
    """``ROWS`` documents of ``LENGTH`` tokens: tokens, positions, documents."""
    tokens = torch.randint(VOCAB, (ROWS * LENGTH,), generator=torch.Generator().manual_seed(5))
    return tokens, torch.arange(LENGTH).repeat(ROWS), CuSeqlens.of([LENGTH * row for row in range(ROWS + 1)])
