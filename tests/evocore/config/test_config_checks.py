"""What keeps a config from running: every constraint by one config that violates it, and all at once."""

from __future__ import annotations

import pytest
from config_samples import smallest

from evocore.config import check, load_values, require_runnable, schema_keys
from evocore.config.checks_parallel import size_problems
from evocore.config.unsupported import NOT_YET, inert_reason
from evocore.errors import UserError

FAMILIES = {"INTERNLM2", "LLAMA2"}
LATENT = [
    "model.kv_lora_rank=8",
    "model.qk_nope_head_dim=8",
    "model.qk_rope_head_dim=4",
    "model.v_head_dim=8",
    "model.num_kv_attention_heads=4",
]

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


def _problems(load, sets, world_size=1):
    return check(load(*sets).config, world_size=world_size, families=FAMILIES)


def test_every_key_is_honoured_or_inert_or_an_error_until_it_is_supported():
    leaf_keys = {key.name for key in schema_keys().values() if not key.is_block}
    blocks_as_a_whole = {"fp8"}
    covered = {key for key in leaf_keys if key.partition(".")[0] in blocks_as_a_whole}
    rest = leaf_keys - covered - set(NOT_YET) - {key for key in leaf_keys if inert_reason(key)}

    assert rest == set(HONOURED)
    assert set(NOT_YET) <= set(schema_keys())
    assert blocks_as_a_whole <= set(NOT_YET)


def test_the_defaults_of_unsupported_keys_are_neutral(load):
    assert _problems(load, []) == []
    assert _problems(load, [], world_size=8) == []
    assert _problems(load, ["parallel.zero1.size=2"], world_size=8) == []


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
def test_what_the_runtime_honours_or_may_ignore_is_no_problem(load, sets):
    assert _problems(load, sets) == []


@pytest.mark.parametrize(
    "sets",
    [
        ["model.num_chunks=2", "model.num_layers=4"],  # without interleaved_overlap, which InternEvo wants here
        ["model.num_chunks=2", "model.num_layers=7", "data.micro_num=3"],
        ["parallel.pipeline.mode=ZBH1", "hybrid_zero_optimizer.overlap_sync_grad=True"],
        ["parallel.pipeline.mode=ZBH1", "parallel.tensor.mode=isp", "parallel.weight={'size':2,'overlap':True}"],
        ["parallel.pipeline.mode=ZBV", "model.num_layers=5", "parallel.pipeline.layers=[1,2,1,1]"],
        ["data.gradient_accumulation=1"],
    ],
)
def test_pipelines_are_free_of_constraints_that_have_lost_their_reason(load, sets):
    assert _problems(load, ["parallel.pipeline.size=2", *sets], world_size=4) == []


@pytest.mark.parametrize(
    ("sets", "world_size", "wrong"),
    [
        (
            [
                "model.num_experts=4",
                "model.moe_layer_kwargs={'noisy_gate_policy':'RSample','scoring_func':'sigmoid'}",
            ],
            1,
            "model.moe_layer_kwargs.noisy_gate_policy='RSample' with scoring_func='sigmoid'",
        ),
        (["model.norm_type=layernorm"], 1, "model.norm_type='layernorm': layernorm in the decoder"),
        (["model.drop_rate=0.1"], 1, "model.drop_rate=0.1: dropout is not supported yet"),
        (
            ["model.use_dynamic_ntk_rope=True", "model.rope_type=yarn"],
            1,
            "model.use_dynamic_ntk_rope=True with model.rope_type='yarn'",
        ),
        (["model.rope_scaling_factor=2"], 1, "model.rope_scaling_factor=2.0 without a rotary scaling scheme"),
        (
            ["model.rope_type=llama3", "model.rope_kwargs.beta_fast=16"],
            1,
            "model.rope_kwargs.beta_fast=16.0 with model.rope_type='llama3', which does not read it",
        ),
        (
            ["model.rope_type=yarn", "model.rope_kwargs.mscale=1.0"],
            1,
            "model.rope_kwargs.mscale=1.0 with mscale_all_dim=None",
        ),
        (
            ["model.rope_type=llama3", "model.rope_kwargs.low_freq_factor=4"],
            1,
            "model.rope_kwargs.low_freq_factor=4.0 is not below high_freq_factor=4.0",
        ),
        (
            ["model.rope_type=dynamic", "model.head_dim=2"],
            1,
            "model.head_dim=2 with dynamic rotary scaling",
        ),
        (["model.use_sliding_window=True"], 1, "model.use_sliding_window=True without model.sliding_window"),
        (
            ["model.use_sliding_window=True", "model.sliding_window=4", "model.layer_types=['full_attention']"],
            1,
            "model.layer_types has 1 entries for model.num_layers=2",
        ),
        (
            ["model.layer_types=['full_attention','sliding_attention']"],
            1,
            "model.layer_types names sliding_attention with model.use_sliding_window=False",
        ),
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
        (["parallel.zero1.size=8"], 1, "parallel.zero1.size=8 does not divide the 1 data-parallel ranks"),
        (["parallel.zero1.size=3"], 8, "parallel.zero1.size=3 does not divide the 8 data-parallel ranks"),
        (
            ["parallel.tensor.size=2"],
            3,
            "parallel.tensor.size=2 times parallel.pipeline.size=1 does not divide 3 ranks",
        ),
        (
            ["parallel.tensor.mode=isp", "parallel.weight.size=4"],
            6,
            "parallel.weight.size=4 times parallel.pipeline.size=1 does not divide 6 ranks",
        ),
        (["parallel.weight.size=2"], 2, "parallel.weight.size=2 with parallel.tensor.mode='mtp'"),
        (["parallel.expert_weight.size=2"], 2, "parallel.expert_weight.size=2 with parallel.tensor.mode='mtp'"),
        (["parallel.expert.size=2"], 2, "parallel.expert.size=2 for a dense model (model.num_experts=1)"),
        (["model.hidden_size=30"], 1, "model.hidden_size=30 is not divisible by model.num_attention_heads=4"),
        (["model.num_kv_attention_heads=3"], 1, "model.num_attention_heads=4 is not divisible by model.num_kv_att"),
        (["model.head_dim=7"], 1, "model.head_dim=7 is odd"),
        (["parallel.tensor.size=3"], 3, "model.vocab_size=128 is not divisible by parallel.tensor.size=3"),
        (["parallel.tensor.size=8"], 8, "model.num_attention_heads=4 is not divisible by parallel.tensor.size=8"),
        (
            [
                "parallel.tensor.size=4",
                "model.hidden_size=48",
                "model.num_attention_heads=12",
                "model.num_kv_attention_heads=6",
            ],
            4,
            "model.num_kv_attention_heads=6 is not divisible by parallel.tensor.size=4",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':16}",
                "parallel.sequence_2D={'enable':True,'head_size':8,'context_size':2}",
            ],
            16,
            "model.num_attention_heads=4 is not divisible by parallel.sequence_2D.head_size=8",
        ),
        (
            ["parallel.tensor.mode=isp", "parallel.weight.size=4", "parallel.zero1.size=4"],
            8,
            "parallel.zero1.size=4 does not divide the 2 weight-data ranks",
        ),
        (
            ["parallel.tensor.mode=isp", "parallel.weight.size=3"],
            3,
            "model.vocab_size=128 is not divisible by parallel.weight.size=3",
        ),
        (
            ["parallel.tensor={'mode':'msp','size':4}", "data.seq_len=7", "data.micro_bsz=1"],
            4,
            "data.packed_length=7 is not divisible by parallel.tensor.size=4",
        ),
        (["parallel.pipeline.size=4"], 4, "model.num_layers=2 is less than parallel.pipeline.size=4 times"),
        (
            ["parallel.pipeline.size=2", "data.micro_num=1"],
            2,
            "data.micro_num=1 is less than parallel.pipeline.size=2",
        ),
        (
            ["parallel.pipeline.size=2", "parallel.pipeline.layers=[2]"],
            2,
            "parallel.pipeline.layers=[2] for model.num_layers=2 in 2 chunks",
        ),
        (["parallel.pipeline.layers=[3]"], 1, "parallel.pipeline.layers=[3] for model.num_layers=2 in 1 chunk"),
        (
            ["parallel.pipeline.mode=ZBH1", "model.num_chunks=2"],
            1,
            "model.num_chunks=2 with parallel.pipeline.mode='ZBH1'",
        ),
        (["data.gradient_accumulation=2"], 1, "data.gradient_accumulation=2 differs from data.micro_num=4"),
        (
            ["parallel.fsdp.enable=True", "parallel.tensor.mode=isp"],
            1,
            "parallel.tensor.mode='isp' with fully sharded data parallelism",
        ),
        (
            ["parallel.fsdp.enable=True", "parallel.zero1.size=1"],
            2,
            "parallel.zero1.size=1 with fully sharded data parallelism",
        ),
        (
            ["parallel.sequence_2D={'enable':True,'head_size':2,'context_size':2}"],
            1,
            "parallel.sequence_2D: head_size=2 times context_size=2 is not parallel.tensor.size=1",
        ),
        (
            ["parallel.tensor.size=2", "parallel.sequence_2D={'enable':True,'context_size':2}"],
            2,
            "parallel.sequence_2D.enable=True with parallel.tensor.mode='mtp'",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':4}",
                "parallel.sequence_2D={'enable':True,'context_size':4}",
                "data.seq_len=12",
                "data.micro_bsz=1",
            ],
            4,
            "data.packed_length=12 is not divisible by 8, twice parallel.sequence_2D.context_size=4",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':2}",
                "parallel.sequence_2D={'enable':True,'context_size':2}",
                "model.use_sliding_window=True",
                "model.sliding_window=4",
            ],
            2,
            "model.use_sliding_window=True with parallel.sequence_2D.context_size=2",
        ),
        (
            ["parallel.sequence_2D={'enable':True,'context_size':4,'window_size':3}"],
            1,
            "parallel.sequence_2D: window_size=3 does not divide context_size=4",
        ),
        (
            [
                "parallel.sequence_2D={'enable':True,'head_size':2}",
                "parallel.sequence_2D.device_placement_strategy.interleaved=True",
            ],
            1,
            "parallel.sequence_2D.device_placement_strategy: interleaved=True with head_first=True",
        ),
        (["model.num_experts=2", "model.top_k=4"], 1, "model.top_k=4 is more than model.num_experts=2"),
        (
            ["model.num_experts=4", "parallel.expert.size=3"],
            3,
            "model.num_experts=4 is not divisible by parallel.expert.size=3",
        ),
        (
            ["model.num_experts=4", "parallel.expert.size=4"],
            6,
            "parallel.expert.size=4 times parallel.expert_weight.size=1 times 1 for tensor parallelism does not "
            "divide the 6 ranks",
        ),
        (
            ["model.num_experts=4", "model.moe_layer_kwargs.num_expert_groups=3"],
            1,
            "model.num_experts=4 is not divisible by model.moe_layer_kwargs.num_expert_groups=3",
        ),
        (
            ["model.num_experts=4", "model.moe_layer_kwargs={'num_expert_groups':4,'top_k_groups':1}"],
            1,
            "model.moe_layer_kwargs.top_k_groups=1 of 4 groups of 1 experts, with model.top_k=2",
        ),
        (
            ["model.num_experts=4", "model.first_k_dense_replace=3"],
            1,
            "model.first_k_dense_replace=3 is more than model.num_layers=2",
        ),
        (
            ["model.num_experts=4", "model.moe_layer_kwargs.aux_loss_by_layer=False", "parallel.pipeline.size=2"],
            2,
            "model.moe_layer_kwargs.aux_loss_by_layer=False with parallel.pipeline.size=2",
        ),
        (["model.qk_nope_head_dim=8"], 1, "model.qk_rope_head_dim=None with other sizes of latent attention"),
        (["model.q_lora_rank=8"], 1, "model.qk_nope_head_dim=None with other sizes of latent attention"),
        ([*LATENT, "model.qk_rope_head_dim=3"], 1, "model.qk_rope_head_dim=3 is odd"),
        ([*LATENT, "model.v_head_dim=13"], 1, "model.v_head_dim=13 is more than qk_nope_head_dim + qk_rope_head_dim"),
        ([*LATENT, "model.num_kv_attention_heads=2"], 1, "model.num_kv_attention_heads=2 with model.kv_lora_rank"),
        (
            ["model.num_experts=4", "model.mlp_only_layers=[1,2]"],
            1,
            "model.mlp_only_layers names layer 2 of model.num_layers=2",
        ),
        (
            ["model.num_experts=4", "model.multiple_of=1", "model.mlp_ratio=0.3", "parallel.tensor.size=2"],
            2,
            "the width of an expert, 9, is not divisible by parallel.tensor.size=2",
        ),
        (
            [
                "model.num_experts=4",
                "parallel.expert.no_tp=True",
                "parallel.tensor.size=2",
                "data.seq_len=7",
                "data.micro_bsz=1",
            ],
            2,
            "data.packed_length=7 is not divisible by parallel.tensor.size=2 with parallel.expert.no_tp=True",
        ),
        (
            ["model.num_experts=4"],
            3,
            "parallel.expert.size=-1 means 3 ranks, and model.num_experts=4 is not divisible",
        ),
        (
            ["model.num_experts=4", "parallel.expert.size=2", "parallel.expert_zero1.size=3"],
            8,
            "parallel.expert_zero1.size=3 does not divide the 4 expert-data ranks",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':6}",
                "parallel.sequence_2D={'enable':True,'context_size':6,'window_size':2}",
                "parallel.sequence_2D.device_placement_strategy={'head_first':False,'interleaved':True}",
            ],
            6,
            "parallel.sequence_2D.device_placement_strategy.interleaved=True with 3 windows",
        ),
        (["selective_checkpoint_offload=True"], 1, "selective_checkpoint_offload=True without selective_checkpoint"),
        (["cpu_offloading.num_layers=1"], 1, "cpu_offloading.num_layers=1 with enable=False and model.num_layers=2"),
        (
            ["cpu_offloading={'enable':True,'num_layers':3}"],
            1,
            "cpu_offloading.num_layers=3 with enable=True and model.num_layers=2",
        ),
        (["cpu_offloading.enable=True"], 1, "cpu_offloading.num_layers=0 with enable=True and model.num_layers=2"),
        (
            ["model.dtype=torch.float32", "reduce_comm_dtype=torch.bfloat16"],
            1,
            "reduce_comm_dtype='torch.bfloat16' with model.dtype='torch.float32'",
        ),
        (["data.raw.sources=['x']"], 1, "data.raw is given and data.train_folder is not"),
        (["data.raw.sources=['x']"], 1, "data.raw is given and data.tokenizer_path is not"),
        (["data.raw.sources=['x']"], 1, "data.raw.valid_fraction=0.01 and data.valid_folder is None"),
        (["data.raw.sources=['x']"], 1, "data.raw.vocab_size=1024 is more than model.vocab_size=128"),
        (["data.rampup_batch_size=1 1"], 1, "data.rampup_batch_size='1 1'"),
        (["data.rampup_batch_size=1 0 3"], 1, "data.rampup_batch_size='1 0 3'"),
        (["data.rampup_batch_size=8 1 3"], 1, "data.rampup_batch_size='8 1 3'"),
        (["data.skip_batches=4-2"], 1, "data.skip_batches='4-2': '4-2' does not fit"),
        (["data.skip_batches=1-4,4"], 1, "data.skip_batches='1-4,4': '4' does not fit"),
        (["data.skip_batches=a"], 1, "data.skip_batches='a': 'a' does not fit"),
        (["ckpt.enable_save_ckpt=True"], 1, "ckpt.checkpoint_every is missing while ckpt.enable_save_ckpt=True"),
        (
            ["ckpt.enable_save_ckpt=True", "ckpt.checkpoint_every=1", "ckpt.save_ckpt_folder=boto3:s3://b/x"],
            1,
            "ckpt.save_ckpt_folder='boto3:s3://b/x': remote storage is not supported yet",
        ),
        (
            ["ckpt.load_ckpt_info.path=oss2:x"],
            1,
            "ckpt.load_ckpt_info.path='oss2:x': remote storage is not supported",
        ),
        (
            ["ckpt.load_ckpt_info={'path':'x','content':('all',),'ckpt_type':'hf'}"],
            1,
            "ckpt.load_ckpt_info.content=['all'] from ckpt_type='hf'",
        ),
        (
            ["lr_scheduler.init_steps=10"],
            1,
            "lr_scheduler.init_steps=10 leaves nothing of lr_scheduler.total_steps=10",
        ),
    ],
)
def test_each_constraint_is_reported(load, sets, world_size, wrong):
    problems = _problems(load, sets, world_size)

    matching = [one for one in problems if one.wrong.startswith(wrong)]
    assert len(matching) == 1, [one.wrong for one in problems]
    assert matching[0].expected and matching[0].fix


def test_sizes_that_divide_are_no_problem_before_they_are_supported(load):
    config = load("model.drop_rate=0.1", "model.num_experts=4", "parallel.pipeline.size=2").config

    assert size_problems(config, 8) == []
    assert check(config, world_size=8, families=FAMILIES)


@pytest.mark.parametrize(
    "two",
    [
        "{'enable':True,'head_size':4,'context_size':2}",
        "{'enable':True,'head_size':2,'context_size':4,'window_size':2}",
        "{'enable':True,'head_size':1,'context_size':8,'window_size':2,"
        "'device_placement_strategy':{'head_first':False,'interleaved':True}}",
    ],
)
def test_two_dimensional_sequence_parallelism_takes_packed_documents(load, two):
    sets = ["parallel.tensor={'mode':'isp','size':8}", f"parallel.sequence_2D={two}", "data.use_packed_dataset=True"]

    assert _problems(load, sets, world_size=8) == []


def test_a_family_that_nobody_offers_lists_those_that_are_offered(load):
    (problem,) = check(load("model_type=QWEN2").config, world_size=1, families=FAMILIES)

    assert problem.wrong == "model_type='QWEN2': this model family is not supported yet"
    assert problem.expected == "one of INTERNLM2, LLAMA2"


def test_require_runnable_raises_everything_at_once(load):
    config = load("model.drop_rate=0.1", "data.skip_batches=x", "model_type=QWEN2").config

    with pytest.raises(UserError) as caught:
        require_runnable(config, world_size=1, families=FAMILIES)

    assert caught.value.wrong.startswith("AnonymousJob cannot run on 1 rank: 3 mistakes\n  1. model_type='QWEN2'")
    assert "model.drop_rate=0.1" in caught.value.wrong and "data.skip_batches='x'" in caught.value.wrong
    require_runnable(load().config, world_size=1, families=FAMILIES)


def test_a_fix_for_an_unsupported_key_is_an_override_that_works(load):
    config = load("model.drop_rate=0.1").config
    (problem,) = check(config, world_size=1, families=FAMILIES)

    override = problem.fix.removeprefix("--set ")
    mended = load_values(smallest(), ["model.drop_rate=0.1", override]).config
    assert check(mended, world_size=1, families=FAMILIES) == []
