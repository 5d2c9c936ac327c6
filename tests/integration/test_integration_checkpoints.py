"""A checkpoint is of no layout: a run that changes its layout half-way goes on as if nothing had happened."""

import layouts
import numpy as np
import pytest

HALF = 4
CHANGES = {
    "one process to isp": ("alone", "isp"),
    "isp to tensor parallel": ("isp", "msp"),
    "tensor parallel to fsdp": ("msp", "fsdp"),
    "fsdp to zero": ("fsdp", "zero"),
    "zero to a pipeline": ("zero", "pipeline"),
    "pipeline to fsdp in one that is cut elsewhere": ("pipeline", "fsdp and pipeline"),
    "fsdp and pipeline to one process": ("fsdp and pipeline", "alone"),
}
LAYOUTS = {
    "alone": layouts.Layout("alone", 1, 1, {}),
    "isp": layouts.Layout("isp", 4, 2, layouts.isp(2, 4, overlap=True) | layouts.zero(-1)),
    "msp": layouts.Layout("msp", 4, 1, layouts.tensor(4, "msp")),
    "fsdp": layouts.Layout("fsdp", 2, 2, layouts.FSDP),
    "zero": layouts.Layout("zero", 4, 4, layouts.zero(2), (layouts.OVERLAP,)),
    "pipeline": layouts.Layout("pipeline", 4, 2, layouts.pipeline(2, "ZBH1") | layouts.zero(2), (layouts.OVERLAP,)),
    "fsdp and pipeline": layouts.Layout("fsdp and pipeline", 4, 2, layouts.FSDP | layouts.pipeline(2, layers=[1, 2])),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_run_goes_on_in_another_layout(before, after, corpus, one_process, ranks, tmp_path):
    expected = one_process(())
    told = []
    for name, steps in ((before, HALF), (after, layouts.STEPS)):
        layout = LAYOUTS[name]
        saved = dict(enable_save_ckpt=True, save_ckpt_folder=f"{tmp_path}/saved", checkpoint_every=HALF)
        # The schedule stays that of the whole run, though the first part stops half-way.
        stop = dict(data=dict(total_steps=steps), lr_scheduler=dict(total_steps=layouts.STEPS), ckpt=saved)
        arguments = corpus, layout.parallel, layout.data, (*layout.sets, stop)
        if layout.world == 1:
            told += layouts.figures(*arguments)
        else:
            told += ranks(layout.world, layouts.figures, *arguments, timeout=120)[0]

    assert len(told) == layouts.STEPS
    np.testing.assert_allclose(told, expected, rtol=layouts.TOLERANCE)
