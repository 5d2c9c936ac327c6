"""``evocore generate``: text from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def generate(
    checkpoint: Annotated[
        Path, typer.Option(help="A checkpoint, a folder of checkpoints or of a run, or one of Hugging Face.")
    ],
    prompt: Annotated[list[str], typer.Option(help="Text to continue; may be given several times.")],
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens per prompt.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Choose among the k most likely tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among the most likely tokens up to this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws, if the temperature is not 0.")] = 0,
    backend: Annotated[str | None, typer.Option(help="The device to run on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue one or several prompts."""
    from evocore.generation import Sampling, load_model
    from evocore.generation import generate as continue_prompts
    from evocore.plugins.manager import load_plugins

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    loaded = load_model(checkpoint, load_plugins(), backend=backend)
    tokenizer = loaded.tokenizer
    ids = [tokenizer.prompt(text) for text in prompt]
    new = continue_prompts(loaded.model, ids, sampling, loaded.device, stop_ids=loaded.stop_ids)
    texts = [tokenizer.decode(tokens) for tokens in new]
    if as_json:
        pairs = zip(prompt, texts, new, strict=True)
        print(
            json.dumps(
                [{"prompt": before, "text": text, "tokens": len(ids)} for before, text, ids in pairs], indent=1
            )
        )
        return
    for before, text in zip(prompt, texts, strict=True):
        print(before + text)
