"""The block ``model``: sizes, dialect and initialisation of the decoder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from evocore.config.schema_base import Block, Count, DType, NonNegative, Ratio


class MoELayerKwargs(Block):
    """Router and dispatch options of a mixture-of-experts layer."""

    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """Tokens an expert takes, relative to an even share; None is 1 for GShard and MegaBlock, no limit for others."""
    eval_capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """As capacity_factor, in validation; None is the same, and 1 for GShard and MegaBlock."""
    min_capacity: NonNegative = 4
    """Least number of tokens that an expert takes."""
    drop_tokens: bool = True
    """Whether tokens beyond the capacity are dropped."""
    drop_and_pad: bool = False
    """Whether every expert is padded to its capacity."""
    drop_policy: Literal["probs", "position"] = "probs"
    """Which tokens are dropped first: the least probable or the last."""
    use_rts: bool = True
    """Random token selection (GShard) when tokens are dropped."""
    noisy_gate_policy: Literal["None", "Jitter", "RSample"] | None = None
    """Noise at the router's input or logits in training."""
    use_fused_gating: bool = False
    """Fused router kernel."""
    token_dispatch_policy: Literal["alltoall", "allgather"] = "alltoall"
    """Collective that carries tokens to their experts."""
    enable_fused_permute: bool = True
    """Fused permutation kernel."""
    use_grouped_mlp: bool = True
    """All local experts in one grouped matrix product."""
    deterministic_mode: bool = False
    """Count tokens per expert in a deterministic way."""
    aux_loss_by_layer: bool = True
    """Load-balancing loss per layer instead of over all layers at once."""
    normalize_expert_weights: bool = True
    """Whether the chosen experts' weights are scaled to sum to one."""
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    """Function from router logits to expert scores."""
    routed_scaling_factor: float = 1.0
    """Factor on the routed experts' output."""
    num_expert_groups: Count = 1
    """Groups of neighbouring experts of which a token may use top_k_groups (DeepSeek-V3)."""
    top_k_groups: Count | None = None
    """Groups that a token may use; None for all."""
    bias_update_rate: Annotated[float, Field(ge=0)] = 0.0
    """Step by which loads are balanced by a bias on the scores instead of a loss (DeepSeek-V3); 0 for no bias."""
    shared_expert_gate: bool = False
    """Shared experts' output is scaled by a sigmoid of the token (Qwen2-MoE)."""
    parallel_mode: Literal["tensor", "weight"] | None = None
    """How MegaBlock-Dropless splits an expert."""


class Model(Block):
    """The decoder."""

    num_layers: Count
    """Decoder layers."""
    hidden_size: Count
    """Width of the residual stream."""
    num_attention_heads: Count
    """Query heads."""
    num_kv_attention_heads: Count
    """Key-value heads (grouped-query attention); derived: num_attention_heads."""
    head_dim: Count
    """Width of one head; derived: hidden_size // num_attention_heads."""
    vocab_size: Count
    """Rows of the embedding; every token id must be smaller."""
    mlp_ratio: float
    """Feed-forward width is int(hidden_size * mlp_ratio), rounded up to multiple_of."""
    multiple_of: Count = 256
    """Granularity of the feed-forward width."""
    max_position_embeddings: Count = 2048
    """Positions for which the rotary cache is built in advance."""
    checkpoint: Ratio = 0.0
    """Activation recomputation: True, False or the share of the first layers that are recomputed."""
    dtype: DType = "torch.float16"
    """Parameter and activation type; "auto" is bfloat16 where the backend computes it fast, otherwise float32."""
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation layer."""
    layer_norm_epsilon: float = 1e-5
    """Added to the mean square in the normalisation."""
    apply_post_layer_norm: bool = False
    """Post-norm instead of pre-norm."""
    add_unit_offset: bool = False
    """Norm weight is stored minus one (Gemma)."""
    residual_in_fp32: bool = False
    """Residual stream kept in float32."""
    norm_head: bool = False
    """Rows of the output head are L2-normalised at each forward (InternLM2, Baichuan2)."""
    no_bias: bool | None = None
    """No linear layer has a bias; None leaves it to the family."""
    qkv_bias: bool | None = None
    """Bias of the query, key and value projections; None leaves it to the family."""
    o_bias: bool | None = None
    """Bias of the attention's output projection; None leaves it to the family."""
    mlp_bias: bool | None = None
    """Bias of the feed-forward layers; None leaves it to the family."""
    use_swiglu: bool = True
    """SwiGLU feed-forward; False is GeGLU."""
    use_glu: bool | None = None
    """Gated feed-forward; None leaves it to the family."""
    use_flash_attn: bool = True
    """InternEvo's switch between attention kernels; evocore resolves kernels per device."""
    qk_interleaved: bool = True
    """Rotary pairs are neighbours (2i, 2i+1); False pairs i with i + head_dim/2, as Hugging Face does."""
    enable_qkv_fusion: bool = True
    """One matrix for query, key and value."""
    mlp_layer_fusion: bool = False
    """One matrix for the gate and up projections."""
    rope_base: float = 10000
    """Base of the rotary frequencies."""
    rope_type: str | None = None
    """Rotary scaling scheme."""
    rope_scaling_factor: float = 1.0
    """Factor of the rotary scaling."""
    use_dynamic_ntk_rope: bool = False
    """NTK-aware rotary scaling that grows with the sequence."""
    use_sliding_window: bool = False
    """Sliding-window attention."""
    sliding_window: Count | None = None
    """Tokens that a sliding window spans."""
    max_window_layers: NonNegative | None = None
    """Layers below this one attend to everything."""
    use_logn_attn: bool = False
    """Queries scaled by the logarithm of their position."""
    scale_attn_weights: bool = True
    """Attention logits divided by sqrt(head_dim)."""
    embed_grad_scale: float = 1
    """Embedding gradient factor s: x*s + detach(x)*(1-s)."""
    embed_split_hidden: bool = True
    """Tensor parallelism splits the embedding along hidden instead of along the vocabulary."""
    parallel_output: bool = True
    """Logits stay split along the vocabulary."""
    drop_rate: float = 0.0
    """Dropout on the residual branches."""
    attn_drop_rate: float = 0.0
    """Dropout on the attention weights."""
    dropout_selective_checkpoint: bool = True
    """Dropout stays outside recomputed regions."""
    use_scaled_init: bool = True
    """Output projections initialised smaller with depth."""
    init_type: Literal["normal", "uniform"] = "normal"
    """Distribution of the initial weights."""
    embedding_init_std: float = 0.02
    """Standard deviation of the initial embedding."""
    attn_wqkv_init_std: float = 0.02
    """Standard deviation of the initial query, key and value projections."""
    attn_other_init_std: float = 0.02
    """Standard deviation of the other initial attention weights."""
    ffn_uplayer_init_std: float = 0.02
    """Standard deviation of the initial gate and up projections."""
    ffn_other_init_std: float = 0.02
    """Standard deviation of the other initial feed-forward weights."""
    out_head_init_std: float = 0.02
    """Standard deviation of the initial output head."""
    num_chunks: Count = 1
    """Model chunks per pipeline stage; more than one is the interleaved schedule."""
    device: str | None = None
    """Device of initialisation; "meta" defers it."""
    is_reward: bool = False
    """Reward model: a head with one output."""
    extra_pred_tokens: NonNegative = 0
    """Additional tokens predicted per position."""
    inject_info: dict[str, Any] | None = None
    """Modules to swap inside an imported Hugging Face model."""
    num_experts: Count = 1
    """Experts per mixture-of-experts layer; 1 is a dense model."""
    top_k: Count = 2
    """Experts that each token visits."""
    num_shared_experts: NonNegative = 0
    """Experts that every token visits."""
    moe_type: Literal["GShard", "MegaBlock", "MegaBlock-Dropless", "Dropless"] = "GShard"
    """Mixture-of-experts implementation."""
    moe_layer_kwargs: MoELayerKwargs = MoELayerKwargs()
    """Router and dispatch options."""
    first_k_dense_replace: NonNegative | None = None
    """First layers that stay dense in a mixture-of-experts model."""
