"""What keeps a config from running: constraints that no block has to itself, and all mistakes at once."""

import pytest
from config_samples import FAMILIES, reported

from evocore.config import check, require_runnable
from evocore.errors import UserError


@pytest.mark.parametrize(
    ("sets", "world_size", "wrong"),
    [
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
def test_each_constraint_is_reported(problems_of, sets, world_size, wrong):
    reported(problems_of(sets, world_size), wrong)


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
