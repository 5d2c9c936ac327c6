"""Every key is honoured, or inert and said to be, or an error that names what it asks for until that is supported."""

import pytest
from config_samples import FAMILIES, LATENT, reported, smallest

from evocore.config import check, load_values, schema_keys
from evocore.config.unsupported import NOT_YET, inert_reason

HONOURED = """
JOB_NAME model_type backend kernels seed run_folder use_fp32_norm cudnn_deterministic enable_tb
selective_checkpoint selective_checkpoint_offload cpu_offloading.enable cpu_offloading.num_layers
tensorboard_folder parallel.zero1.size parallel.zero1.fsdp parallel.fsdp.enable
kernels_check.every kernels_check.ops kernels_check.fingerprints
data.seq_len data.micro_bsz data.micro_num data.packed_length data.gradient_accumulation data.batch_size
data.total_steps data.valid_every data.valid_max_packs data.pack_sample_into_one data.use_packed_dataset
data.skip_batches data.rampup_batch_size data.min_length data.min_length_dict data.train_folder data.valid_folder
data.tokenizer_path data.seed data.num_worker data.fixed_random_dataset_seqlen
data.raw.sources data.raw.suffixes data.raw.exclude data.raw.vocab_size
data.raw.valid_fraction data.raw.num_workers data.raw.max_bytes
model.num_layers model.hidden_size model.num_attention_heads model.num_kv_attention_heads model.head_dim
model.vocab_size model.mlp_ratio model.multiple_of model.checkpoint
model.layer_norm_epsilon model.residual_in_fp32 model.norm_head model.no_bias model.qkv_bias model.o_bias
model.mlp_bias model.qk_interleaved model.enable_qkv_fusion model.mlp_layer_fusion model.rope_base
model.rope_type model.rope_scaling_factor model.use_dynamic_ntk_rope model.max_position_embeddings
model.rope_kwargs.original_max_position_embeddings model.rope_kwargs.low_freq_factor
model.rope_kwargs.high_freq_factor model.rope_kwargs.beta_fast model.rope_kwargs.beta_slow
model.rope_kwargs.attention_factor model.rope_kwargs.mscale model.rope_kwargs.mscale_all_dim
model.rope_kwargs.truncate model.use_sliding_window model.sliding_window model.max_window_layers model.layer_types
model.query_pre_attn_scalar model.attn_logit_softcapping model.final_logit_softcapping model.tie_word_embeddings
model.add_unit_offset model.use_swiglu
model.embed_grad_scale model.use_scaled_init model.embedding_init_std model.attn_wqkv_init_std
model.attn_other_init_std model.ffn_uplayer_init_std model.ffn_other_init_std model.out_head_init_std
hybrid_zero_optimizer.clip_grad_norm hybrid_zero_optimizer.overlap_sync_grad hybrid_zero_optimizer.overlap_sync_param
hybrid_zero_optimizer.reduce_bucket_size reduce_comm_dtype
parallel.tensor.size parallel.tensor.mode parallel.weight.size parallel.weight.overlap
parallel.weight.launch_allgather_before parallel.weight.forward_overlap_per parallel.weight.layer_fuse_isp_comm
parallel.weight.early_reduce_scatter_release
parallel.pipeline.size parallel.pipeline.mode parallel.pipeline.layers model.num_chunks
parallel.expert.size parallel.expert.no_tp parallel.expert_zero1.size parallel.expert_weight.size
parallel.expert_weight.overlap parallel.expert_weight.early_reduce_scatter_release
model.num_experts model.top_k model.num_shared_experts model.moe_type model.first_k_dense_replace
model.extra_pred_tokens loss.mtp_loss_coeff
model.kv_lora_rank model.q_lora_rank model.qk_nope_head_dim model.qk_rope_head_dim model.v_head_dim
model.moe_intermediate_size model.decoder_sparse_step model.mlp_only_layers
model.moe_layer_kwargs.capacity_factor model.moe_layer_kwargs.eval_capacity_factor model.moe_layer_kwargs.min_capacity
model.moe_layer_kwargs.drop_tokens model.moe_layer_kwargs.drop_policy model.moe_layer_kwargs.use_rts
model.moe_layer_kwargs.normalize_expert_weights model.moe_layer_kwargs.scoring_func
model.moe_layer_kwargs.routed_scaling_factor model.moe_layer_kwargs.num_expert_groups
model.moe_layer_kwargs.aux_loss_by_layer model.moe_layer_kwargs.noisy_gate_policy
model.moe_layer_kwargs.top_k_groups model.moe_layer_kwargs.bias_update_rate model.moe_layer_kwargs.shared_expert_gate
loss.moe_loss_coeff loss.moe_z_loss_coeff
parallel.sequence_2D.enable parallel.sequence_2D.head_size parallel.sequence_2D.context_size
parallel.sequence_2D.window_size parallel.sequence_2D.device_placement_strategy.head_first
parallel.sequence_2D.device_placement_strategy.interleaved
adam.lr adam.adam_beta1 adam.adam_beta2 adam.adam_beta2_c adam.adam_eps adam.weight_decay adam.no_decay
lr_scheduler.total_steps lr_scheduler.init_steps lr_scheduler.warmup_ratio lr_scheduler.eta_min
beta2_scheduler.init_beta2 beta2_scheduler.c
grad_scaler.fp16.initial_scale grad_scaler.fp16.min_scale grad_scaler.fp16.growth_interval grad_scaler.growth_factor
grad_scaler.backoff_factor grad_scaler.max_scale grad_scaler.hysteresis grad_scaler.bf16
loss.label_smoothing loss.z_loss
ckpt.enable_save_ckpt ckpt.save_ckpt_folder ckpt.checkpoint_every ckpt.keep_last ckpt.auto_resume ckpt.stop_file_path
ckpt.load_ckpt_info.path ckpt.load_ckpt_info.content
hf.path hf.cfg hf.cfg_cls hf.cfg_extra_kwargs hf.mod hf.mod_cls hf.attn_implementation
""".split()


def test_every_key_is_honoured_or_inert_or_an_error_until_it_is_supported():
    leaf_keys = {key.name for key in schema_keys().values() if not key.is_block}
    blocks_as_a_whole = {"fp8"}
    covered = {key for key in leaf_keys if key.partition(".")[0] in blocks_as_a_whole}
    rest = leaf_keys - covered - set(NOT_YET) - {key for key in leaf_keys if inert_reason(key)}

    assert rest == set(HONOURED)
    assert set(NOT_YET) <= set(schema_keys())
    assert blocks_as_a_whole <= set(NOT_YET)


@pytest.mark.parametrize(
    ("sets", "world_size", "wrong"),
    [
        (["model.norm_type=layernorm"], 1, "model.norm_type='layernorm': layernorm in the decoder"),
        (["model.drop_rate=0.1"], 1, "model.drop_rate=0.1: dropout is not supported yet"),
        (["model.dtype=torch.tf32"], 1, "model.dtype='torch.tf32': tf32 is not supported yet"),
        (["data.type=streaming"], 1, "data.type='streaming': this type of data is not supported yet"),
        (["hybrid_zero_optimizer.clip=group"], 1, "hybrid_zero_optimizer.clip='group': clipping per parameter group"),
        (
            ["ckpt.load_ckpt_info={'path':'x','ckpt_type':'llama'}"],
            1,
            "ckpt.load_ckpt_info.ckpt_type='llama': loading",
        ),
        (["fp8={'enable_float8_linear':True}"], 1, "fp8=Fp8("),
        (
            ["ckpt.enable_save_ckpt=True", "ckpt.checkpoint_every=4", "ckpt.oss_snapshot_freq=2"],
            1,
            "ckpt.oss_snapshot_freq=2: snapshots between checkpoints is not supported yet",
        ),
    ],
)
def test_each_constraint_is_reported(problems_of, sets, world_size, wrong):
    reported(problems_of(sets, world_size), wrong)


def test_the_defaults_of_unsupported_keys_are_neutral(problems_of):
    assert problems_of([]) == []
    assert problems_of([], world_size=8) == []
    assert problems_of(["parallel.zero1.size=2"], world_size=8) == []


@pytest.mark.parametrize(
    "sets",
    [
        ["parallel.zero1.size=-1"],
        ["parallel.tensor.mode=isp"],
        ["parallel.pipeline.mode=ZBH1", "parallel.pipeline.interleaved_overlap=True"],
        ["model.use_flash_attn=False", "loss.op_type=torch_naive", "data.use_packed_dataset=True"],
        ["model.dtype=auto"],
        ["ckpt.load_ckpt_info.path=local:x", "ckpt.load_ckpt_info.content=('all',)"],
        ["ckpt.enable_save_ckpt=True", "ckpt.checkpoint_every=5", "ckpt.save_ckpt_folder=local:x"],
        ["data.skip_batches=2-14,20", "data.rampup_batch_size=1 1 3"],
        ["hybrid_zero_optimizer.overlap_sync_grad=True", "generation.top_k=1"],
        ["model.hidden_size=33", "model.head_dim=16"],
        ["model.use_dynamic_ntk_rope=True", "model.rope_type=dynamic", "model.rope_scaling_factor=2"],
        ["model.rope_type=yarn", "model.rope_kwargs={'beta_fast':16,'mscale':1.0,'mscale_all_dim':0.5}"],
        ["model.sliding_window=8", "model.max_window_layers=1"],
        [*LATENT, "model.q_lora_rank=6"],
        ["model.use_sliding_window=True", "model.sliding_window=8", "model.add_unit_offset=True"],
        [
            "selective_checkpoint=True",
            "selective_checkpoint_offload=True",
            "cpu_offloading={'enable':True,'num_layers':2}",
            "parallel.weight.launch_allgather_before=w1",
        ],
    ],
)
def test_what_the_runtime_honours_or_may_ignore_is_no_problem(problems_of, sets):
    assert problems_of(sets) == []


def test_a_fix_for_an_unsupported_key_is_an_override_that_works(load):
    config = load("model.drop_rate=0.1").config
    (problem,) = check(config, world_size=1, families=FAMILIES)

    override = problem.fix.removeprefix("--set ")
    mended = load_values(smallest(), ["model.drop_rate=0.1", override]).config
    assert check(mended, world_size=1, families=FAMILIES) == []
