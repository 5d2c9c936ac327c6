"""Generation for every family: prompts of many lengths in one batch, and folders of Hugging Face by command line."""

import json

import models_parity
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from evocore.cli.main import main
from evocore.generation import Sampling, generate, load_model
from evocore.plugins.manager import load_plugins

PROMPTS = [[3, 9, 27, 81, 2], [5], [8, 8, 8, 1, 4, 40, 6, 6, 6]]
NEW = 10


@pytest.mark.parametrize("case", models_parity.CASES, ids=lambda case: case.name)
def test_prompts_of_many_lengths_go_on_as_each_does_with_transformers(case, tmp_path):
    pair = models_parity.make(case, tmp_path)

    ours = generate(pair.ours, PROMPTS, Sampling(max_new_tokens=NEW), torch.device("cpu"))

    for prompt, new in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = pair.theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        assert new == theirs[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its tokenizer, as a download has them."""
    path = tmp_path_factory.mktemp("download")
    case = next(case for case in models_parity.CASES if case.name == "llama3-tied")
    pair = models_parity.make(case, path)
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(" ", "isolated"), decoders.Fuse()
    letters = list("?abcdefghijklmnopqrstuvwxyz ")
    tokenizer.train_from_iterator(
        ["ab cd ef"] * 3, trainers.BpeTrainer(initial_alphabet=letters, show_progress=False)
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>")
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path, pair.theirs


def test_a_download_generates_by_command_line(folder, capsys):
    path, theirs = folder
    told = AutoTokenizer.from_pretrained(path)("the cat", return_tensors="pt")
    expected = theirs.generate(**told, max_new_tokens=8, do_sample=False)[0, told["input_ids"].shape[1] :].tolist()
    names = AutoTokenizer.from_pretrained(path)

    command = ["generate", "--checkpoint", str(path), "--prompt", "the cat", "--prompt", "a", "--json"]
    assert main([*command, "--max-new-tokens", "8", "--backend", "cpu"]) == 0

    first, _ = json.loads(capsys.readouterr().out)
    assert first["tokens"] == 8 and first["text"] == names.decode(expected, skip_special_tokens=True)


def test_any_token_that_ends_a_text_ends_it(folder):
    path, _ = folder
    loaded = load_model(path, load_plugins(), backend="cpu")
    ids = loaded.tokenizer.prompt("the cat")
    (free,) = generate(loaded.model, [ids], Sampling(max_new_tokens=8), loaded.device)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [free[5], free[3]]}))

    stops = load_model(path, load_plugins(), backend="cpu").stop_ids

    assert stops == {free[5], free[3], loaded.tokenizer.eos_id}
    (stopped,) = generate(loaded.model, [ids], Sampling(max_new_tokens=8), loaded.device, stop_ids=stops)
    assert stopped == free[: min(free.index(token) for token in stops if token in free)]


def test_a_model_with_buffers_and_a_converted_checkpoint_generate(folder, tmp_path, capsys):
    path, _ = folder
    case = next(case for case in models_parity.CASES if case.name == "deepseek-v3")  # whose router has a bias
    pair = models_parity.make(case, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((path / name).read_bytes())

    assert main(["convert", "hf-to-evocore", str(tmp_path / "model"), str(tmp_path / "made")]) == 0
    capsys.readouterr()
    loaded = load_model(tmp_path / "made", load_plugins(), backend="cpu")

    (new,) = generate(loaded.model, PROMPTS[:1], Sampling(max_new_tokens=NEW), loaded.device)
    ids = torch.tensor(PROMPTS[:1])
    theirs = pair.theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    assert new == theirs[0, ids.shape[1] :].tolist()
