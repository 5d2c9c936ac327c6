"""``default_runtime`` for mixtures of experts: expert parallel as wide as data and experts allow."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

hybrid_zero_optimizer = dict(overlap_sync_grad=False, clip_grad_norm=1.0)

parallel = dict(
    zero1=dict(size=-1),
    tensor=dict(size=1, mode="mtp"),
    pipeline=dict(size=1, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
    expert=dict(size=-1, no_tp=False),
    expert_weight=dict(size=1, overlap=True),
)
