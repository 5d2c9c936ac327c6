"""Learning rate, beta2 and loss scale step by step."""

import math

import pytest

from evocore.training.schedules import Beta2Schedule, CosineWithWarmup, LossScale


def test_learning_rate_idles_warms_up_and_follows_a_cosine_to_the_end():
    lr = CosineWithWarmup(1.0, total_steps=100, init_steps=5, warmup_ratio=0.1, eta_min=0.2)

    assert [lr(step) for step in range(5)] == [0.0] * 5
    assert [lr(step) for step in range(5, 15)] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert lr(15) == 1.0
    assert lr(57) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 42 / 85)) / 2)
    assert lr(100) == lr(500) == pytest.approx(0.2)


def test_beta2_grows_once_it_passes_its_start():
    assert Beta2Schedule(0.95)(10**6) == 0.95
    beta2 = Beta2Schedule(0.95, c=0.8)
    assert beta2(0) == 0.95
    assert beta2(9999) == pytest.approx(1 - 10000**-0.8)


def test_loss_scale_tolerates_hysteresis_then_shrinks_and_grows_again():
    scale = LossScale(1024, growth_interval=3, hysteresis=2, minimum=256, maximum=2048)
    seen = []
    for overflow in [True, True, True, True, False, False, False, False, False, False, False, False, False]:
        scale.update(overflow=overflow)
        seen.append(scale.scale)

    assert seen == [1024, 512, 256, 256, 256, 256, 512, 512, 512, 1024, 1024, 1024, 2048]


def test_loss_scale_state_survives_a_restart():
    scale = LossScale(1024, growth_interval=3)
    scale.update(overflow=False)
    scale.update(overflow=False)
    again = LossScale(1.0, growth_interval=3)
    again.load_state_dict(scale.state_dict())
    again.update(overflow=False)
    assert again.scale == 2048


def test_fixed_scale_stays():
    scale = LossScale(1.0, dynamic=False)
    for _ in range(5):
        scale.update(overflow=True)
    assert scale.scale == 1.0
