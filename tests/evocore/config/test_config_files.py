"""Config files: InternEvo's form loads as it is, bases are found beside the file, and mistakes name their line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evocore.config import load_config
from evocore.errors import UserError

BASE = """
import os
model_type = "INTERNLM2_PUBLIC"
VOCAB_SIZE = 92544
HIDDEN_SIZE = 4096
model = dict(
    num_layers=32, hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE, num_attention_heads=32,
    num_kv_attention_heads=8, mlp_ratio=3.5, checkpoint=0.2, adapt_hf=False, dtype="torch.bfloat16",
)
hybrid_zero_optimizer = dict(zero_overlap_communication=True, reduce_bucket_size=512 * 1024 * 1024)
parallel = dict(zero1=dict(size=8, fsdp=False), tensor=1, pipeline=dict(size=1), sequence_parallel=False)
"""

FILE = """
from internlm.utils.utils import read_base

with read_base():
    from configs._base_.models.internlm2_7B import *

JOB_NAME = "7b_train"
DO_ALERT = False
SEQ_LEN = 2048
CHECKPOINT_EVERY = 50
TENSOR_SHAPE = (1, 2)

ckpt = dict(
    enable_save_ckpt=False,
    save_ckpt_folder="local:" + "ckpts",
    load_ckpt_info=dict(path=None, content=("model",), ckpt_type="internevo"),
    checkpoint_every=CHECKPOINT_EVERY,
    oss_snapshot_freq=int(CHECKPOINT_EVERY / 2),
    async_upload=True,
)
data = dict(
    seq_len=SEQ_LEN, micro_num=4, micro_bsz=2, packed_length=1, total_steps=50000, skip_batches="",
    rampup_batch_size=None, train_folder=None, valid_folder=None,
)
model.update(checkpoint=True)
lr_scheduler = dict(total_steps=data["total_steps"], init_steps=0)
beta2_scheduler = dict(init_beta2=0.95, c=0, cur_iter=-1)
monitor = dict(
    alert=dict(enable_feishu_alert=DO_ALERT, alert_file_path=f"llm_alter/{JOB_NAME}.log"),
    tensorboard=dict(queue_max_length=10),
)
generation = dict(eos_id=[2, 0], bos_id=1)
"""


@pytest.fixture
def internevo_file(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("configs/_base_/models/internlm2_7B.py", BASE)
    return write("configs/mine.py", FILE)


def test_a_file_in_internevos_form_loads_as_it_is(internevo_file):
    config = load_config(internevo_file).config

    assert config.JOB_NAME == "7b_train"
    assert config.model_type == "INTERNLM2"
    assert config.data.packed_length == 4096
    assert config.data.rampup_batch_size == ""
    assert config.model.checkpoint == 1.0
    assert config.model.num_kv_attention_heads == 8
    assert config.model.qk_interleaved is True
    assert config.parallel.tensor.size == 1
    assert config.parallel.zero1.size == 8
    assert config.hybrid_zero_optimizer.overlap_sync_grad is True
    assert config.ckpt.load_ckpt_info is None
    assert config.ckpt.checkpoint_every is None
    assert config.ckpt.save_ckpt_folder == "local:ckpts"
    assert config.monitor.alert.alert_file_path == "llm_alter/7b_train.log"
    assert config.generation.eos_id == [2, 0]


def test_every_value_has_the_source_that_set_it(internevo_file):
    base, file = "configs/_base_/models/internlm2_7B.py", "configs/mine.py"

    sources = load_config("configs/mine.py", ["adam.lr=1e-3"], {"backend": "cpu", "seed": None}).sources

    assert sources["model.num_layers"] == base
    assert sources["model.checkpoint"] == file
    assert sources["data.seq_len"] == file
    assert sources["data.packed_length"] == "derived"
    assert sources["model.head_dim"] == "derived"
    assert sources["parallel.tensor.size"] == "legacy: parallel.tensor=1"
    assert sources["parallel.zero1.size"] == base
    assert sources["model.qk_interleaved"] == "legacy: model.adapt_hf=False"
    assert sources["model_type"] == "legacy: model_type='INTERNLM2_PUBLIC'"
    assert sources["adam.lr"] == "--set"
    assert sources["backend"] == "command line"
    assert sources["seed"] == "default"
    assert sources["adam.weight_decay"] == "default"


def test_notes_name_helpers_legacy_spellings_and_overwritten_values(internevo_file):
    notes = load_config("configs/mine.py").notes

    file, base = "configs/mine.py", "configs/_base_/models/internlm2_7B.py"
    for expected in (
        f"SEQ_LEN=2048 ({file}) is ignored: a helper constant",
        f"HIDDEN_SIZE=4096 ({base}) is ignored: a helper constant",
        f"TENSOR_SHAPE=(1, 2) ({file}) is ignored: a helper constant",
        f"parallel.tensor=1 ({base}) is read as parallel.tensor.size=1",
        f"model.adapt_hf=False ({base}) is read as model.qk_interleaved=True",
        f"data.packed_length=1 ({file}) is overwritten with 4096: data.seq_len * data.micro_bsz",
        f"ckpt.oss_snapshot_freq=25 ({file}) is overwritten with None: nothing is saved",
        f"ckpt.load_ckpt_info.path=None ({file}): no checkpoint is loaded",
    ):
        assert notes.count(expected) == 1, (expected, notes)
    assert not any("JOB_NAME" in note for note in notes)


def test_a_base_is_found_from_any_folder_and_leaves_no_trace(internevo_file, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = list(sys.path), set(sys.modules)

    loaded = load_config("../configs/mine.py")

    assert loaded.config.model.hidden_size == 4096
    assert (list(sys.path), set(sys.modules)) == before


def test_a_restated_block_belongs_to_the_file_and_an_extended_one_keeps_its_history(write):
    write(
        "_base_/b.py", "model = dict(num_layers=2, hidden_size=32, vocab_size=128, num_attention_heads=4)\nseed = 7\n"
    )
    rest = "\nmodel_type = 'INTERNLM2'\ndata = dict(seq_len=8, micro_bsz=1, total_steps=1)\n"
    head = "with read_base():\n    from ._base_.b import *\n"
    extended = write("extended.py", head + "model = dict(**model, mlp_ratio=2.0)" + rest)
    restated = write(
        "restated.py",
        head
        + "model = dict(num_layers=2, hidden_size=32, vocab_size=128, num_attention_heads=4, mlp_ratio=2.0)"
        + rest,
    )

    of_extended, of_restated = load_config(extended).sources, load_config(restated).sources

    base = str(extended.parent / "_base_/b.py")
    assert of_extended["model.num_layers"] == of_extended["seed"] == base
    assert of_extended["model.mlp_ratio"] == str(extended)
    assert of_restated["model.num_layers"] == str(restated)


def test_read_base_may_come_from_evocore_and_a_base_may_have_a_base(write):
    write("_base_/first.py", "seed = 1\nJOB_NAME = 'first'\n")
    write("_base_/second.py", "with read_base():\n    from .first import *\nJOB_NAME = 'second'\n")
    path = write(
        "top.py",
        "from evocore.config import read_base\nwith read_base():\n    from _base_.second import JOB_NAME, seed\n"
        "data = dict(seq_len=8, micro_bsz=1, total_steps=1)\n"
        "model = dict(num_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=8, mlp_ratio=1.0)\n",
    )

    loaded = load_config(path)

    assert (loaded.config.seed, loaded.config.JOB_NAME) == (1, "second")
    assert loaded.sources["seed"].endswith("first.py")


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("seed = 1\nx = 1 / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("seed = 1\n\ndata = dict(\n", 3, "SyntaxError: '(' was never closed"),
        ("import no_such_module\n", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f():\n    raise KeyError('a')\n\nf()\n", 2, "KeyError: 'a'"),
        ("seed = 1\nraise SystemExit(3)\n", 2, "SystemExit: 3"),
    ],
)
def test_a_file_that_does_not_run_names_its_line(write, text, line, cause):
    path = write("broken.py", text)

    with pytest.raises(UserError) as caught:
        load_config(path)

    assert caught.value.wrong == f"{path}:{line}: {cause}"
    assert text.splitlines()[line - 1].strip() in caught.value.fix


def test_a_base_that_does_not_run_names_the_base(write):
    base = write("base.py", "x = 1\ny = z\n")
    path = write("top.py", "with read_base():\n    from .base import *\n")

    with pytest.raises(UserError, match=rf"^{base}:2: NameError: name 'z' is not defined"):
        load_config(path)


def test_an_absent_base_and_a_circle_are_explained(write):
    absent = write("absent.py", "with read_base():\n    from configs._base_.models.nothing import *\n")
    circle = write("circle.py", "with read_base():\n    from .circle import *\n")

    with pytest.raises(UserError, match=r"inherits from configs._base_.models.nothing, which does not exist"):
        load_config(absent)
    with pytest.raises(UserError, match=r"inherits from itself: \S*circle.py -> \S*circle.py"):
        load_config(circle)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "weights.py").write_bytes(b"\x80\xff")

    with pytest.raises(UserError, match=r"weights.py is no text"):
        load_config(tmp_path / "weights.py")


def test_an_absent_file_suggests_a_similar_one(write):
    path = write("demo.py", "")

    with pytest.raises(UserError) as caught:
        load_config(path.with_name("dem.py"))

    assert caught.value.fix == f"did you mean {path}?"


def test_loading_needs_no_torch(internevo_file):
    script = (
        "import sys; from evocore.config import load_config; load_config(sys.argv[1]); print('torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(internevo_file)], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "False"


def test_a_torch_dtype_is_read_as_its_name(write):
    path = write(
        "with_torch.py",
        "import torch\n"
        "data = dict(seq_len=8, micro_bsz=1, total_steps=1)\n"
        "model = dict(num_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=8, mlp_ratio=1.0, "
        "dtype=torch.bfloat16)\n",
    )

    assert load_config(path).config.model.dtype == "torch.bfloat16"
