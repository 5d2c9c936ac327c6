import pytest
import torch

from evocore.training.sums import ROW, sum_of_squares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(10_000_001,), (0,), (3,), (ROW,), (5, ROW // 2 + 1), ()])
def test_as_many_squares_as_there_are_add_up_to_float32s_last_digits(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(1e-3).to(dtype)

    total = sum_of_squares(x)

    assert total.dtype == torch.float32 and total.shape == ()
    torch.testing.assert_close(total.double(), x.double().square().sum(), rtol=1e-6, atol=0)


def test_elements_that_do_not_lie_side_by_side_count_as_others():
    x = torch.arange(12.0).view(3, 4)

    assert sum_of_squares(x.T[1:]).item() == pytest.approx(x[:, 1:].square().sum().item(), rel=1e-6)


def test_a_bad_element_is_seen():
    x = torch.ones(3 * ROW)
    x[ROW + 1] = torch.nan

    assert sum_of_squares(x).isnan()
