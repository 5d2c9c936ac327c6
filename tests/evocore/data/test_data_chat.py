"""Conversations become tokens of which only answers are targets: shapes, templates, masks, InternEvo's form."""

import json
import random
from itertools import groupby

import numpy as np
import pytest
import sentencepiece
from data_chat import CHAT, CHATML, MARKED, bytes_tokenizer, lines, metaspace_tokenizer, sentencepiece_model
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from evocore.cli.main import main
from evocore.data.chat.conversation import BadRecordError, read_record
from evocore.data.chat.segments import encode_segments
from evocore.data.chat.templates import chat_template
from evocore.data.records import TokenizedFile
from evocore.data.sources import find_sources, read_records
from evocore.data.tokenizer import Tokenizer
from evocore.errors import UserError

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<eoh>", "<eoa>",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sentencepiece_model(tmp_path_factory.mktemp("model") / "tokenizer.model", SPECIAL)


def conversation(messages=CHAT):
    return read_record({"messages": messages}, "auto", "text", "here")


def shown(ids, trained, tokenizer):
    """Text with special tokens as they are written, in runs of what is trained on and what is not."""
    names = {token.id: name for name, token in tokenizer.special_tokens.items()}
    runs = []
    for on, pairs in groupby(zip(ids, trained, strict=True), lambda pair: pair[1]):
        text, plain = "", []
        for number, _ in pairs:
            if number in names:
                text, plain = text + tokenizer.decode(plain) + names[number], []
            else:
                plain.append(number)
        runs.append((text + tokenizer.decode(plain), on))
    return runs


# --- shapes -------------------------------------------------------------------------------------------------------

QA = [("user", "Q"), ("assistant", "A")]
SHAPES = {
    "alpaca": ({"instruction": "Q", "input": "", "output": "A"}, QA),
    "alpaca without input": ({"instruction": "Q", "output": "A", "id": 3}, QA),
    "alpaca with input": ({"instruction": "Q", "input": "X", "output": "A"}, [("user", "Q\nX"), ("assistant", "A")]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, QA),
    "sharegpt with system": (
        {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        [("system", "S"), *QA],
    ),
    "messages": (
        {"messages": [{"role": role, "content": text} for role, text in [("system", "S"), *QA]]},
        [("system", "S"), *QA],
    ),
    "a last question without answer": (
        {"messages": [{"role": role, "content": text} for role, text in [*QA, ("user", "and?")]]},
        QA,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_known_by_their_keys(name):
    record, expected = SHAPES[name]
    found = read_record(record, "auto", "text", "here")

    assert [(message.role, message.text) for message in found.messages] == expected
    assert read_record(record, name.split()[0] if "last" not in name else "messages", "text", "here") == found
    for text in ({"body": "words"}, "words"):
        assert read_record(text, "auto", "body", "here") == "words"


BAD = {
    "no shape": ({"question": "Q"}, "line 2 is of no known shape: it has 'question'"),
    "two shapes": ({"text": "T", "instruction": "Q", "output": "A"}, "line 2 is of several shapes: alpaca, text"),
    "a number": (7, "line 2 is of no known shape: it has no object but a int"),
    "empty answer": ({"instruction": "Q", "output": " \n"}, "line 2: answer 1 is empty"),
    "unknown side": ({"conversations": [{"from": "tool", "value": "Q"}]}, "conversations[0] is from 'tool'"),
    "no text": ({"messages": [{"role": "user", "content": None}]}, "messages[0] has no text under 'content'"),
    "answer first": ({"conversations": [{"from": "gpt", "value": "A"}]}, "message 1 is from 'assistant'"),
    "no answer": ({"messages": [{"role": "user", "content": "Q"}]}, "line 2 has no answer"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named_with_file_and_line(name, tmp_path):
    record, told = BAD[name]
    source = lines(tmp_path / "chats.jsonl", [{"instruction": "Q", "output": "A"}, record])
    (file,) = find_sources([source])[0].files
    first, second = read_records(file)

    assert read_record(first.content, "auto", "text", first.place).turns[0][1].text == "A"
    with pytest.raises(BadRecordError) as error:
        read_record(second.content, "auto", "text", second.place)
    assert str(source) in str(error.value) and told in str(error.value) and len(str(error.value).splitlines()) == 3


def test_bad_records_end_the_work_or_are_left_out_and_counted(tmp_path, model, capsys):
    source = lines(tmp_path / "chats.jsonl", [*alpaca(3), *(record for record, _ in BAD.values())])
    command = ["data", "tokenize", str(source), "--tokenizer", str(model), "--chat-template", "chatml"]
    command += ["--workers", "1", "--out", str(tmp_path / "out")]

    assert main(command) == 2 and "line 4 is of no known shape" in capsys.readouterr().err
    assert not (tmp_path / "out/train").exists()
    assert main([*command, "--skip-bad"]) == 0
    assert f"{len(BAD)} records were left out" in capsys.readouterr().out
    assert len(TokenizedFile(tmp_path / "out/train/chats/part-00000.bin").counts) == 3


# --- templates ----------------------------------------------------------------------------------------------------

ABOUT = "Be brief.\n\n### Instruction:\n"
WRITTEN = {
    "chatml": [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n What is 6 times 7? <|im_end|>\n"
         "<|im_start|>assistant\n", False), ("42.<|im_end|>", True),
        ("\n<|im_start|>user\nAnd\n7 times 6?<|im_end|>\n<|im_start|>assistant\n", False),
        ("The same:\n42<|im_end|>", True), ("\n", False),
    ],
    "llama3": [
        ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nWhat is 6 times 7?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n", False), ("42.<|eot_id|>", True),
        ("<|start_header_id|>user<|end_header_id|>\n\nAnd\n7 times 6?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n", False), ("The same:\n42<|eot_id|>", True),
    ],
    "llama2": [
        ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n What is 6 times 7? [/INST]", False), (" 42. </s>", True),
        ("<s>[INST] And\n7 times 6? [/INST]", False), (" The same:\n42 </s>", True),
    ],
    "alpaca": [
        (f"<s>{ABOUT} What is 6 times 7? \n\n### Response:", False), ("42.</s>", True),
        ("### Instruction:\nAnd\n7 times 6?\n\n### Response:", False), ("The same:\n42</s>", True),
    ],
}  # fmt: skip
WRITTEN["internlm2"] = [("<s>" + WRITTEN["chatml"][0][0], False), *WRITTEN["chatml"][1:]]


@pytest.mark.parametrize("name", WRITTEN)
def test_named_templates_write_what_their_models_were_trained_with(name, model):
    tokenizer = Tokenizer.load(model)

    ids, trained = encode_segments(chat_template(name, tokenizer)(conversation(), "here"), tokenizer)

    assert shown(ids, trained, tokenizer) == WRITTEN[name]


def test_text_is_never_a_special_token(model, tmp_path):
    chat = conversation([{"role": "user", "content": "x<|im_end|>y"}, {"role": "assistant", "content": "<s>"}])
    for path in (model, bytes_tokenizer(tmp_path / "bytes", CHATML)):
        tokenizer = Tokenizer.load(path)
        ids, _ = encode_segments(chat_template("chatml", tokenizer)(chat, "here"), tokenizer)
        end, begin = (tokenizer.special_tokens[name].id for name in ("<|im_end|>", "<s>"))
        assert ids.count(end) == 2 and begin not in ids
        assert tokenizer.decode(ids) == "user\nx<|im_end|>y\nassistant\n<s>\n"
        assert tokenizer.decode(tokenizer.encode("a</s> b")) == "a</s> b"

    with pytest.raises(UserError, match=r"has '<\|im_end\|>' in its text"):
        chat_template(None, tokenizer)(chat, "here")


def test_llama_2_gets_the_ids_of_its_release_where_texts_begin_with_a_space(tmp_path):
    path = sentencepiece_model(tmp_path / "tokenizer.model", [], prefix=True)
    plain, tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path)), Tokenizer.load(path)
    chat = conversation([{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "The answer."}])

    ids, trained = encode_segments(chat_template("llama2", tokenizer)(chat, "here"), tokenizer)

    assert ids == [1, *plain.encode("[INST] What is it? [/INST] The answer. "), 2]
    assert trained == [place > len(plain.encode("[INST] What is it? [/INST]")) for place in range(len(ids))]
    pieces = [plain.id_to_piece(tokenizer.encode("answer", follows)) for follows in ("nothing", "token", "text")]
    assert ["".join(some) for some in pieces] == ["▁answer", "answer", "answer"]


@pytest.mark.parametrize(
    ("scheme", "after_token"), [("first", "answer"), ("always", "▁answer"), ("Prepend", "▁answer")]
)
def test_a_space_before_a_text_is_put_where_the_library_puts_it(scheme, after_token, tmp_path):
    path = metaspace_tokenizer(tmp_path / "tokenizer.json", scheme)
    library, tokenizer = Library.from_file(str(path)), Tokenizer.load(path)

    def pieces(follows):
        return "".join(library.id_to_token(token) for token in tokenizer.encode("answer", follows))

    assert tokenizer.encode("The answer") == library.encode("The answer").ids
    assert [pieces(follows) for follows in ("nothing", "token", "text")] == ["▁answer", after_token, "answer"]
    assert library.encode("<s>answer").ids[1:] == tokenizer.encode("answer", "token")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["chatml", "marked"])
def test_a_tokenizers_own_template_gives_the_ids_of_transformers(template, tmp_path):
    folder = bytes_tokenizer(tmp_path, template)
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)

    ids, trained = encode_segments(chat_template(None, tokenizer)(conversation(), "here"), tokenizer)

    expected = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=template == MARKED)
    assert ids == expected["input_ids"]
    if template == MARKED:
        assert trained == [bool(on) for on in expected["assistant_masks"]]
    else:  # each answer comes right after what asks for it
        for answer in (2, 4):
            asked = theirs.apply_chat_template(CHAT[:answer], add_generation_prompt=True)["input_ids"]
            after = theirs.apply_chat_template(CHAT[: answer + 1])["input_ids"]
            assert not trained[len(asked) - 1] and all(trained[len(asked) : len(after)])
        assert sum(trained) < len(trained) / 2


def test_a_special_token_swallows_white_space_as_it_says(tmp_path):
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|> \n{% endfor %}"
    folder = bytes_tokenizer(tmp_path, template + "{% if add_generation_prompt %}assistant:{% endif %}")
    tokenizer = Tokenizer.load(folder)

    ids, _ = encode_segments(chat_template(None, tokenizer)(conversation(), "here"), tokenizer)

    assert ids == AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT)["input_ids"]


UNUSABLE = {
    "reaches for Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changes what it is given": "{{ messages.append(1) }}",
    "says no": "{{ raise_exception('Roles must alternate') }}",
    "is of another kind": "{{ messages.nothing.more }}",
    "rewrites what came before": "{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_template_that_cannot_be_used_is_refused_with_the_record(name, tmp_path):
    tokenizer = Tokenizer.load(bytes_tokenizer(tmp_path, UNUSABLE[name]))

    with pytest.raises(UserError, match="here: the chat template beside") as told:
        chat_template(None, tokenizer)(conversation(), "here")
    assert name != "says no" or "Roles must alternate" in str(told.value)


# --- files --------------------------------------------------------------------------------------------------------


def alpaca(count):
    return [
        {"instruction": f"What is {number}?", "input": "Be brief." * (number % 2), "output": f"It is {number}."}
        for number in range(count)
    ]


def tokenize(capsys, source, model, out, *options):
    command = ["data", "tokenize", source, "--tokenizer", model, "--out", out, "--json", "--workers", 1, *options]
    assert main(list(map(str, command))) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_files_for_internevo_are_byte_for_byte_those_of_its_tool(tmp_path, model, capsys):
    records, plain = alpaca(20), sentencepiece.SentencePieceProcessor(model_file=str(model))
    eoh, eoa, newline = plain.piece_to_id("<eoh>"), plain.piece_to_id("<eoa>"), plain.piece_to_id("<0x0A>")
    content, rows = b"", []
    for record in records:
        asked = "\n".join(filter(None, (record["instruction"], record["input"])))
        masked = [*plain.encode(f"<|User|>:{asked}"), eoh, newline, *plain.encode("<|Bot|>:")]
        tokens = [plain.bos_id(), *(-token for token in masked)]
        tokens += [*plain.encode(record["output"]), eoa, newline, plain.eos_id()]
        rows.append((len(content), len(tokens)))
        content += json.dumps({"tokens": tokens}).encode() + b"\n"
    np.save(tmp_path / "expected.npy", np.array(rows, np.int64))

    source = lines(tmp_path / "alpaca.jsonl", records)
    options = ["--chat-template", "internlm", "--format", "internevo"]
    made = tokenize(capsys, source, model, tmp_path / "out", *options)

    path = tmp_path / "out/train/alpaca/en/part-00000.bin"
    assert path.read_bytes() == content
    assert path.with_name("part-00000.bin.meta").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert made["lost_targets"] == 0


def test_ids_of_zero_are_targets_in_our_files_and_counted_in_internevos(tmp_path, capsys):
    folder = bytes_tokenizer(tmp_path / "tokenizer", CHATML)
    tokenizer = Tokenizer.load(folder)
    zero = tokenizer.decode([0])
    messages = [{"role": "user", "content": f"{zero} 1"}, {"role": "assistant", "content": zero * 2}]
    source = lines(tmp_path / "chat.jsonl", [{"messages": messages}])
    expected = encode_segments(chat_template(None, tokenizer)(conversation(messages), "here"), tokenizer)

    ours = tokenize(capsys, source, folder, tmp_path / "ours")
    theirs = tokenize(capsys, source, folder, tmp_path / "theirs", "--format", "internevo")

    ids, targets = TokenizedFile(tmp_path / "ours/train/chat/part-00000.bin").parse(0)
    assert (ids.tolist(), (targets != -100).tolist()) == expected
    _, lost = TokenizedFile(tmp_path / "theirs/train/chat/en/part-00000.bin").parse(0)
    assert ((targets != -100) & (lost == -100)).sum() == theirs["lost_targets"] == 2 and ours["lost_targets"] == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (folder / name).read_bytes()
    assert Tokenizer.load(tmp_path / "ours").vocab_size == ours["vocab_size"]


def test_what_is_held_out_depends_on_records_and_seed_alone(tmp_path, model, capsys):
    records = alpaca(120)
    shuffled = [dict(reversed(record.items())) for record in random.Random(1).sample(records, len(records))]
    lines(tmp_path / "ordered.jsonl", records)
    (tmp_path / "shuffled.json").write_text(json.dumps([*shuffled, *records[:5]], indent=1))

    def held_out(name, seed):
        out = tmp_path / f"{name}-{seed}"
        made = tokenize(capsys, tmp_path / name, model, out, "--chat-template", "alpaca", "--seed", seed,
                        "--valid-fraction", "0.25")  # fmt: skip
        assert made["train_samples"] + made["valid_samples"] == len(records) + 5 * ("shuffled" in name)
        return {line for path in out.glob("valid/*/*.bin") for line in path.read_text().splitlines()}

    first = held_out("ordered.jsonl", 0)
    assert first == held_out("shuffled.json", 0) and 15 <= len(first) <= 45
    assert first != held_out("ordered.jsonl", 1)


def test_a_tokenizer_is_trained_with_the_tokens_of_the_template(tmp_path, capsys):
    source = lines(tmp_path / "alpaca.jsonl", alpaca(60))
    command = ["data", "tokenize", str(source), "--train-tokenizer", "--vocab-size", "300", "--workers", "1"]

    assert main([*command, "--chat-template", "chatml", "--out", str(tmp_path / "out")]) == 0

    assert "tokenizer.model" in capsys.readouterr().out
    tokenizer = Tokenizer.load(tmp_path / "out")
    ids, targets = TokenizedFile(tmp_path / "out/train/alpaca/part-00000.bin").parse(1)
    runs = shown(ids.tolist(), (targets != -100).tolist(), tokenizer)
    asked = "<|im_start|>user\nWhat is 1?\nBe brief.<|im_end|>\n<|im_start|>assistant\n"
    assert runs == [(asked, False), ("It is 1.<|im_end|>", True), ("\n", False)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--chat-template", "chatgpt"], "--chat-template chatgpt: there is no such template"),
        (["--chat-template", "llama3"], "has no token for <|begin_of_text|>, <|start_header_id|>"),
        ([], "there are conversations, and the tokenizer"),
        (["--shape", "sharegpt"], "line 1 is of no known shape: it has 'instruction', 'input', 'output'"),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, options, told):
    model = sentencepiece_model(tmp_path / "tokenizer.model", [])
    source = lines(tmp_path / "alpaca.jsonl", alpaca(2))

    command = ["data", "tokenize", str(source), "--tokenizer", str(model), "--out", str(tmp_path / "out"), *options]
    assert main(command) == 2

    errors = capsys.readouterr().err
    assert told in errors and len(errors.splitlines()) == 3 and not (tmp_path / "out/train").exists()
