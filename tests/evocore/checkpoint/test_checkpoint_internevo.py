"""InternEvo's checkpoints in every spelling and division of its versions, each cut here as it cuts them itself."""

import sys
import types

import foreign_models as tiny
import pytest
import torch
from foreign_models import refused

from evocore.checkpoint.foreign.compose import compose
from evocore.checkpoint.internevo.config import saved_settings
from evocore.checkpoint.internevo.export import Division, write_internevo
from evocore.checkpoint.internevo.folder import InternEvoFolder
from evocore.nn.weight_map import to_theirs

HEADS, KV_HEADS, SIZE = 8, 4, 4
MOE = dict(num_experts=4, top_k=2)


class Case:
    """A model with its weights under InternEvo's later names, undivided, as ``whole``."""

    def __init__(self, model_type, **model):
        self.family, self.model, self.shapes, config = tiny.family_and_model(model_type, **model)
        self.settings = config.model.model_dump()
        self.weights = self.family.internevo_weights(self.model)
        self.match = self.weights.match(self.shapes)
        self.ours = tiny.values_of(self.shapes)
        self.whole = to_theirs(self.match, self.ours)

    def read(self, path):
        return InternEvoFolder(path, self.weights, self.shapes, self.settings)

    def assert_read(self, path):
        folder = self.read(path)
        assert folder.tensors.keys() == self.whole.keys()
        for name, tensor in self.whole.items():
            columns = range(tensor.shape[1] if tensor.dim() > 1 else 1)
            found = folder.read(name, range(len(tensor)), columns)
            assert torch.equal(found.reshape(tensor.shape), tensor), name
        assert folder.bytes_read == 4 * sum(tensor.numel() for tensor in self.whole.values())


def columns(name):
    return name.endswith(("wo.weight", "out_proj.weight", "w2.weight"))


def rows(name):
    return any(f".{part}." in name for part in ("wq", "wk", "wv", "wqkv", "Wqkv", "w1", "w3")) or name in (
        "output.weight",
        "head.weight",
    )


def tensor_rank(whole, rank, ranks, *, embedding=1):
    """What a tensor rank has of the later modules, whose fused weights are still in one piece per group of heads."""
    found = {}
    for name, tensor in whole.items():
        if columns(name):
            found[name] = tensor.chunk(ranks, 1)[rank]
        elif rows(name):
            found[name] = tensor.chunk(ranks)[rank]
        elif "embed" in name:
            found[name] = tensor.chunk(ranks, embedding)[rank]
        elif name.endswith("out_proj.bias") and rank:
            continue
        else:
            found[name] = tensor
    return {name: tensor.clone() for name, tensor in found.items()}


def weight_rank(whole, rank, ranks):
    """What a weight rank (isp) has: slices of rows of everything but norms, and of the embedding's width."""
    found = {}
    for name, tensor in whole.items():
        if "norm" in name:
            found[name] = tensor
        else:
            found[name] = tensor.chunk(ranks, 1 if "embed" in name else 0)[rank]
    return {name: tensor.clone() for name, tensor in found.items()}


def stage(whole, first, last, layers, *, prefix=""):
    """What a pipeline stage has, its layers numbered from 0."""
    found = {}
    for name, tensor in whole.items():
        stack, number, rest = (name.split(".", 2) + ["", ""])[:3]
        if stack in ("layers", "blocks"):
            if first <= int(number) < last:
                found[f"{prefix}{stack}.{int(number) - first}.{rest}"] = tensor
        elif (first == 0) if "embed" in name else (last == layers):
            found[prefix + name] = tensor
    return found


def fuse_groups(whole):
    """InternLM2's wqkv: of each key-value head its queries, the key, the value."""
    found = dict(whole)
    for name in whole:
        if name.endswith("wq.weight"):
            q, k, v = (found.pop(name.replace("wq", part)) for part in ("wq", "wk", "wv"))
            q, k, v = q.view(KV_HEADS, -1, SIZE, 32), k.view(KV_HEADS, 1, SIZE, 32), v.view(KV_HEADS, 1, SIZE, 32)
            found[name.replace("wq", "wqkv")] = torch.cat([q, k, v], 1).flatten(0, 2)
    return found


def swap(whole):
    """The names that earlier versions had for up and down."""
    other = {"w2": "w3", "w3": "w2"}

    def renamed(name):
        parts = name.split(".")
        return ".".join(other.get(part, part) for part in parts)

    return {renamed(name): tensor for name, tensor in whole.items()}


def test_internlm2_of_tensor_ranks_in_a_pipeline(tmp_path):
    case = Case("INTERNLM2")
    whole = fuse_groups(case.whole)
    for pp, (first, last) in enumerate([(0, 2), (2, 4)]):
        for tp in range(2):
            part = stage(whole, first, last, 4, prefix="model.")
            torch.save(tensor_rank(part, tp, 2), tmp_path / f"model_tp{tp}_pp{pp}.pt")
    case.assert_read(tmp_path)


def test_llama_of_one_rank_with_queries_apart_and_of_an_uneven_pipeline(tmp_path):
    case = Case("LLAMA2", num_layers=3)
    torch.save(case.whole, tmp_path / "model_tp0_pp0.pt")
    torch.save({}, tmp_path / "optimizer_tp0_pp0_zo0.pt")
    case.assert_read(tmp_path)
    for pp, (first, last) in enumerate([(0, 1), (1, 3)]):
        torch.save(stage(case.whole, first, last, 3), tmp_path / f"model_tp0_pp{pp}.pt")
    case.assert_read(tmp_path)


def test_gate_up_and_down_of_earlier_versions_are_told_by_their_shapes(tmp_path):
    case = Case("INTERNLM2")
    for rank in range(2):
        part = swap(weight_rank(fuse_groups(case.whole), rank, 2))
        torch.save(part, tmp_path / f"model_tp{rank}_wp{rank}_pp0.pt")
    case.assert_read(tmp_path)


def test_the_first_internlm(tmp_path):
    case = Case("INTERNLM", num_kv_attention_heads=8)
    for tp in range(2):
        part = tensor_rank(case.whole, tp, 2, embedding=0)
        for name in list(part):
            for kind in ("weight", "bias"):
                if name.endswith(f"mixer.wq.{kind}"):
                    qkv = [part.pop(name.replace("wq", one)) for one in ("wq", "wk", "wv")]
                    part[name.replace("wq", "Wqkv")] = torch.cat(qkv)  # (3, heads, size) of this rank's heads
        part["embedding.word_embeddings.weight"] = part.pop("embedding.weight")
        part["blocks.0.mixer.rotary_emb.inv_freq"] = torch.ones(2)
        torch.save(
            {f"model.{name}": tensor for name, tensor in swap(part).items()}, tmp_path / f"model_tp{tp}_pp0.pt"
        )
    case.assert_read(tmp_path)


def test_slices_that_were_cut_in_halves_when_they_were_saved(tmp_path):
    """With ``mlp_layer_fusion``, isp's ranks have slices of [gate, up], and save their halves as w1 and w3."""
    case = Case("LLAMA2")
    for rank in range(4):
        part = weight_rank(case.whole, rank, 4)
        for layer in range(4):
            name = f"layers.{layer}.feed_forward"
            both = torch.cat([case.whole[f"{name}.w1.weight"], case.whole[f"{name}.w3.weight"]])
            part[f"{name}.w1.weight"], part[f"{name}.w3.weight"] = both.chunk(4)[rank].clone().chunk(2)
        torch.save(part, tmp_path / f"model_wp{rank}_pp0.pt")
    torch.save({"mlp_layer_fusion": True, "qk_interleaved": False}, tmp_path / "model_config.pt")
    case.assert_read(tmp_path)


@pytest.mark.parametrize("as_one", [True, False])
def test_baichuan2_of_weight_ranks(as_one, tmp_path):
    case = Case("BAICHUAN2", num_kv_attention_heads=8)
    for rank in range(2):
        part = weight_rank(case.whole, rank, 2)
        for layer in range(4):
            name = f"layers.{layer}.attention"
            packed = torch.cat([case.whole[f"{name}.w{one}.weight"] for one in "qkv"]).chunk(2)[rank].clone()
            for one, third in zip("qkv", packed.chunk(3), strict=True):
                part[f"{name}.w{one}.weight"] = third.clone()
                if as_one:
                    del part[f"{name}.w{one}.weight"]
            if as_one:
                part[f"{name}.wqkv.weight"] = packed
        torch.save(part, tmp_path / f"model_wp{rank}_pp0.pt")
    torch.save({"enable_qkv_fusion": True, "qk_interleaved": False}, tmp_path / "model_config.pt")
    case.assert_read(tmp_path)


@pytest.mark.parametrize("shape", ["interleaved", "V"])
def test_chunks_of_a_pipeline(shape, tmp_path):
    case = Case("LLAMA2")
    order = {"interleaved": [(0, 0), (1, 0), (0, 1), (1, 1)], "V": [(0, 0), (1, 0), (1, 1), (0, 1)]}[shape]
    files = [{}, {}]
    for layer, (pp, chunk) in enumerate(order):
        files[pp] |= stage(case.whole, layer, layer + 1, 4, prefix=f"{chunk}.model.")
    for pp, file in enumerate(files):
        torch.save(file, tmp_path / f"model_tp0_pp{pp}.pt")
    case.assert_read(tmp_path)


def experts_apart(part):
    return {name: tensor for name, tensor in part.items() if "experts" not in name}


@pytest.mark.parametrize("old", [True, False])
def test_internlm_moe_with_a_file_for_each_expert(old, tmp_path):
    case = Case("INTERNLM_MoE", num_kv_attention_heads=8, **MOE)
    for pp, (first, last) in enumerate([(0, 2), (2, 4)]):
        for tp in range(2):
            part = stage(tensor_rank(case.whole, tp, 2), first, last, 4)
            part = swap(part) if old else part
            torch.save(experts_apart(part), tmp_path / f"model_tp{tp}_pp{pp}.pt")
            for layer in range(first, last):
                for expert in range(4):
                    own = f"blocks.{layer - first}.mlp.moe_layer.experts.wrapped_experts.{expert}."
                    state = {name: tensor for name, tensor in part.items() if name.startswith(own)}
                    assert len(state) == 3
                    torch.save(state, tmp_path / f"model_moe_layer{layer}_expert{expert}_tp{tp}.pt")
    case.assert_read(tmp_path)


def test_experts_that_are_multiplied_as_a_group_are_stacked_and_transposed(tmp_path):
    case = Case("MIXTRALMOE", **MOE)
    torch.save(experts_apart(case.whole), tmp_path / "model_wp0_pp0.pt")
    for layer in range(4):
        for group in range(2):
            own = f"layers.{layer}.feed_forward.moe_layer.experts.wrapped_experts."
            stacks = {
                f"{own}{group}.{one}.weight": torch.stack(
                    [case.whole[f"{own}{2 * group + expert}.{one}.weight"].T for expert in range(2)]
                )
                for one in ("w1", "w2", "w3")
            }
            torch.save(stacks, tmp_path / f"model_moe_layer{layer}_expert{group}_wp0.pt")
    case.assert_read(tmp_path)


DIVISIONS = [
    ("INTERNLM2", Division()),
    ("INTERNLM2", Division(tensor=4)),
    ("INTERNLM2", Division(tensor=2, pipeline=3)),
    ("INTERNLM2", Division(weight=2)),
    ("INTERNLM", Division(tensor=2)),
    ("INTERNLM", Division(weight=4)),
    ("LLAMA2", Division(weight=4, pipeline=2)),
    ("MIXTRALMOE", Division(tensor=2, pipeline=2)),
]


@pytest.mark.parametrize(("model_type", "division"), DIVISIONS, ids=str)
def test_what_is_written_is_divided_as_internevo_divides_it(model_type, division, tmp_path):
    more = dict(num_kv_attention_heads=8) if model_type == "INTERNLM" else MOE if "MOE" in model_type else {}
    case = Case(model_type, **more)
    source = tiny.InMemory(case.ours)

    files = write_internevo(
        tmp_path, case.weights, case.match, source, torch.float32, division, case.settings, step=7
    )

    case.assert_read(tmp_path)
    assert source.bytes_read >= 4 * sum(tensor.numel() for tensor in case.ours.values())
    assert (tmp_path / "7.step").exists() and saved_settings(tmp_path)["num_layers"] == 4
    axis = "wp" if division.weight else "tp"
    assert f"model_{axis}{division.ranks - 1}_pp{division.pipeline - 1}.pt" in files
    first = torch.load(tmp_path / f"model_{axis}0_pp0.pt", weights_only=True)
    if model_type == "INTERNLM2" and not division.weight:
        expected = tensor_rank(fuse_groups(case.whole), 0, division.tensor)
        for name, tensor in first.items():
            assert torch.equal(tensor, expected[name]), name


def test_normalised_heads_are_written_as_they_are(tmp_path):
    case = Case("INTERNLM2", norm_head=True)
    found = compose(case.match, tiny.InMemory(case.ours), "output.weight", range(64), range(32), torch.float32)
    assert torch.equal(found, case.ours["output.weight"])


# --- what can be wrong --------------------------------------------------------------------------------------------


def test_a_missing_rank_and_a_folder_without_any(tmp_path):
    case = Case("LLAMA2")
    refused(lambda: case.read(tmp_path), "there is no InternEvo checkpoint in", "model_tp0_pp0.pt")
    for tp in (0, 2):
        torch.save(tensor_rank(case.whole, tp, 4), tmp_path / f"model_tp{tp}_pp0.pt")
    refused(lambda: case.read(tmp_path), "has no file of pipeline stage 0 and tp rank 1")


def test_another_size_names_the_differences(tmp_path):
    torch.save(Case("LLAMA2", hidden_size=64).whole, tmp_path / "model_tp0_pp0.pt")
    refused(
        lambda: Case("LLAMA2").read(tmp_path), "does not fit", "tok_embeddings.weight is [64, 64] there, [64, 32]"
    )


def test_a_pickle_is_never_run(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return exec, ("open('executed', 'w')",)

    monkeypatch.chdir(tmp_path)
    case = Case("LLAMA2")
    torch.save(case.whole | {"evil": Evil()}, tmp_path / "model_tp0_pp0.pt")
    refused(lambda: case.read(tmp_path), "model_tp0_pp0.pt is not read")
    torch.save(case.whole, tmp_path / "model_tp0_pp0.pt")
    torch.save({"evil": Evil()}, tmp_path / "model_config.pt")
    refused(lambda: case.read(tmp_path), "model_config.pt is not read")
    assert not (tmp_path / "executed").exists()


def test_pieces_of_internevos_old_fsdp_are_refused(tmp_path):
    torch.save({}, tmp_path / "model_tp0_pp0_dp0.pt")
    refused(lambda: Case("LLAMA2").read(tmp_path), "old FSDP checkpoints", "without zero1.fsdp")


def test_rows_in_another_order_are_refused(tmp_path):
    case = Case("LLAMA2")
    torch.save(case.whole, tmp_path / "model_tp0_pp0.pt")
    torch.save({"adapt_hf": False}, tmp_path / "model_config.pt")
    refused(lambda: case.read(tmp_path), "model.qk_interleaved=False", "was trained with True", "--set")


def test_square_weights_need_to_be_told_apart(tmp_path):
    case = Case("LLAMA2", mlp_ratio=1, multiple_of=32)
    torch.save(swap(case.whole), tmp_path / "model_tp0_pp0.pt")
    refused(lambda: case.read(tmp_path), "w2 and w3 of one shape", "mlp_layout = 1")
    torch.save({"mlp_layout": 1}, tmp_path / "model_config.pt")
    case.assert_read(tmp_path)
    torch.save(case.whole, tmp_path / "model_tp0_pp0.pt")
    torch.save({"qk_interleaved": False}, tmp_path / "model_config.pt")
    case.assert_read(tmp_path)


def test_the_models_settings_are_read_from_internevos_own_class_without_it(tmp_path, monkeypatch):
    name = "internlm.core.context.parallel_context"
    module = types.ModuleType(name)
    module.Config = type("Config", (dict,), {"__module__": name})
    for part in ("internlm", "internlm.core", "internlm.core.context"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    torch.save(module.Config({"num_layers": 4, "dtype": torch.bfloat16}), tmp_path / "model_config.pt")
    for part in ("internlm", "internlm.core", "internlm.core.context", name):
        monkeypatch.delitem(sys.modules, part)

    assert saved_settings(tmp_path) == {"num_layers": 4, "dtype": torch.bfloat16}


def test_a_division_that_does_not_fit_is_refused(tmp_path):
    case = Case("LLAMA2")
    for division, told in (
        (Division(tensor=3), "model.hidden_size = 32 cannot be divided over 3 tensor ranks"),
        (Division(pipeline=5), "model.num_layers = 4 cannot be divided over 5 stages"),
    ):
        refused(
            lambda division=division: write_internevo(
                tmp_path,
                case.weights,
                case.match,
                tiny.InMemory(case.ours),
                torch.float32,
                division,
                case.settings,
                0,
            ),
            told,
        )
