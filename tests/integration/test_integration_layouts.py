"""Every layout trains as one process does: loss and gradient norm of each step to 1e-5."""

import layouts
import numpy as np
import pytest


@pytest.mark.parametrize("layout", layouts.layouts(), ids=lambda layout: layout.name)
def test_a_layout_trains_as_one_process(layout, corpus, one_process, ranks):
    expected = one_process(layout.model())

    ours = ranks(layout.world, layouts.figures, corpus, layout.parallel, layout.data, layout.sets, timeout=120)[0]

    assert len(ours) == layouts.STEPS and expected[0][0] > expected[-1][0] + 0.2
    np.testing.assert_allclose(ours, expected, rtol=layouts.TOLERANCE)
