"""InternLM 7B, InternEvo's basic example: ZeRO over all data-parallel ranks, random data until folders are given."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251
    from configs._base_.models.internlm_7B import *  # noqa: F403, TID251

JOB_NAME = "7b_train"

data = dict(
    seq_len=2048,
    micro_num=4,
    micro_bsz=2,
    valid_micro_num=4,
    valid_every=50,
    pack_sample_into_one=False,
    total_steps=50000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)
