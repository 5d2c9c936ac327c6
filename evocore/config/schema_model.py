"""The block ``model``: sizes, dialect and initialisation of the decoder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from evocore.config.schema_base import Block, Count, DType, NonNegative, Ratio, as_list

Layers = Annotated[list[NonNegative], BeforeValidator(as_list)]
LayerTypes = Annotated[list[Literal["full_attention", "sliding_attention"]], BeforeValidator(as_list)]


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
    """In training, which tokens a full expert drops is left to chance (GShard with top_k=1)."""
    noisy_gate_policy: Literal["None", "Jitter", "RSample"] | None = None
    """Noise in training: Jitter at the router's input, RSample at the logits by which experts are chosen."""
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
    """Load-balancing loss per layer; False is Hugging Face's over all layers at once, times moe_loss_coeff."""
    normalize_expert_weights: bool | None = None
    """Whether the chosen experts' weights are scaled to sum to one; None leaves it to the family, most do."""
    scoring_func: Literal["softmax", "sigmoid"] | None = None
    """Function from router logits to expert scores; None leaves it to the family, most have softmax."""
    routed_scaling_factor: float = 1.0
    """Factor on the routed experts' output."""
    num_expert_groups: Count = 1
    """Groups of neighbouring experts of which a token may use top_k_groups (DeepSeek-V3)."""
    top_k_groups: Count | None = None
    """Groups that a token may use; None for all."""
    bias_update_rate: Annotated[float, Field(ge=0)] | None = None
    """Step of a bias on scores that balances loads without a loss; None leaves it to the family, most have none."""
    shared_expert_gate: bool | None = None
    """Shared experts' output is scaled by a sigmoid of the token; None leaves it to the family (Qwen2-MoE does)."""
    parallel_mode: Literal["tensor", "weight"] | None = None
    """How MegaBlock-Dropless splits an expert."""


class RopeKwargs(Block):
    """Options of rope_type; each belongs to the schemes named with it."""

    original_max_position_embeddings: Count | None = None
    """Length of sequences that the model was trained on before (llama3, yarn); max_position_embeddings if None."""
    low_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """Pairs with fewer turns in that length are slowed down by the whole factor (llama3); None is 1."""
    high_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """Pairs with more turns in that length stay as they are (llama3); None is 4."""
    beta_fast: Annotated[float, Field(gt=0)] | None = None
    """Turns in that length from which on pairs stay as they are (yarn); None is 32."""
    beta_slow: Annotated[float, Field(gt=0)] | None = None
    """Turns in that length below which pairs are slowed down by the whole factor (yarn); None is 1."""
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    """Factor of cosines and sines (yarn); None computes it from rope_scaling_factor, mscale and mscale_all_dim."""
    mscale: Annotated[float, Field(gt=0)] | None = None
    """Weight of the logarithm in the numerator of that factor (yarn, DeepSeek); only together with mscale_all_dim."""
    mscale_all_dim: Annotated[float, Field(gt=0)] | None = None
    """Weight of the logarithm in the denominator of that factor."""
    truncate: bool | None = None
    """Let the pairs between which yarn changes be whole numbers; None is True."""


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
    """Longest sequence that the model is made for; rope_type "dynamic" stretches what is longer."""
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
    add_unit_offset: bool | None = None
    """Norm weight is stored minus one (Gemma); None leaves it to the family."""
    residual_in_fp32: bool = False
    """Residual stream kept in float32."""
    norm_head: bool | None = None
    """Rows of the output head are L2-normalised at each forward (Baichuan2); None leaves it to the family."""
    tie_word_embeddings: bool | None = None
    """The output head's weight is the embedding's; None leaves it to the family."""
    no_bias: bool | None = None
    """No linear layer has a bias; None leaves it to the family."""
    qkv_bias: bool | None = None
    """Bias of the query, key and value projections; None leaves it to the family."""
    o_bias: bool | None = None
    """Bias of the attention's output projection; None leaves it to the family."""
    mlp_bias: bool | None = None
    """Bias of the feed-forward layers; None leaves it to the family."""
    use_swiglu: bool | None = None
    """SwiGLU feed-forward; False is GeGLU in its tanh form; None leaves it to the family."""
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
    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn"] | None = None
    """Rotary scaling scheme; None is "default", none."""
    rope_scaling_factor: Annotated[float, Field(ge=1)] = 1.0
    """Factor of the rotary scaling."""
    rope_kwargs: RopeKwargs = RopeKwargs()
    """Further options of the rotary scaling."""
    use_dynamic_ntk_rope: bool = False
    """NTK-aware rotary scaling that grows with the sequence: InternEvo's word for rope_type "dynamic"."""
    use_sliding_window: bool = False
    """Sliding-window attention."""
    sliding_window: Count | None = None
    """Tokens that a sliding window spans, the token itself included."""
    max_window_layers: NonNegative | None = None
    """Layers below this one attend to everything; None for no layer."""
    layer_types: LayerTypes | None = None
    """Which layers have the window, one by one; None leaves it to max_window_layers, or to the family (Gemma 2)."""
    use_logn_attn: bool = False
    """Queries scaled by the logarithm of their position."""
    scale_attn_weights: bool = True
    """Attention logits divided by sqrt(head_dim)."""
    query_pre_attn_scalar: Annotated[float, Field(gt=0)] | None = None
    """Attention logits are divided by the square root of this (Gemma 2); None is head_dim."""
    attn_logit_softcapping: Annotated[float, Field(gt=0)] | None = None
    """Soft cap c of attention logits: c * tanh(x / c) (Gemma 2); None for none."""
    final_logit_softcapping: Annotated[float, Field(gt=0)] | None = None
    """Soft cap of the output head's logits (Gemma 2); None for none."""
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
    """Tokens beyond the next one that are predicted in training, each by one more block (DeepSeek-V3)."""
    inject_info: dict[str, Any] | None = None
    """Modules to swap inside an imported Hugging Face model."""
    kv_lora_rank: Count | None = None
    """Width of the latent from which keys and values are made (DeepSeek's attention); None for plain attention."""
    q_lora_rank: Count | None = None
    """Width of the latent from which queries are made, with kv_lora_rank; None for none."""
    qk_nope_head_dim: Count | None = None
    """Features of a query or key without a position, with kv_lora_rank; head_dim is this and qk_rope_head_dim."""
    qk_rope_head_dim: Count | None = None
    """Rotated features of a query or key, with kv_lora_rank."""
    v_head_dim: Count | None = None
    """Features of a value, with kv_lora_rank."""
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
    moe_intermediate_size: Count | None = None
    """Width of one expert; None is the feed-forward width."""
    first_k_dense_replace: NonNegative | None = None
    """First layers that stay dense in a mixture-of-experts model."""
    decoder_sparse_step: Count | None = None
    """n: of a mixture-of-experts model only every n-th layer has experts (Qwen2-MoE); None is 1."""
    mlp_only_layers: Layers | None = None
    """Further layers that stay dense in a mixture-of-experts model, counted from 0 (Qwen2-MoE)."""
