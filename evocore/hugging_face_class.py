"""Classes of ``transformers`` that a config names in its block ``hf``, found without running anybody's code.

A folder's ``config.json`` may point to Python files beside it; they are never run. Modules are those of
``transformers`` itself: a config that came with a checkpoint cannot name another. Imports no other room.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from evocore.errors import UserError

_FORMS = "path='FOLDER' with a config.json, or cfg and cfg_cls, mod and mod_cls"


def read_config(hf: Mapping[str, Any]) -> Any:
    """The ``PretrainedConfig`` that the block names.

    Raises:
        UserError: there is none, or ``transformers`` itself does not have its model.
    """
    extra = dict(hf.get("cfg_extra_kwargs") or {})
    path = hf.get("path")
    classes = [hf.get(key) for key in ("cfg", "cfg_cls", "mod", "mod_cls")]
    if (path is None) == (None in classes) or (path is not None and any(classes)):
        given = ", ".join(f"{key}={value!r}" for key, value in hf.items() if value)
        raise UserError(f"hf={{{given}}} does not name a model", _FORMS, "name one of the two in hf")
    if path is None:
        return _member("cfg", hf["cfg"], "cfg_cls", hf["cfg_cls"])(**extra)
    if not (Path(path) / "config.json").is_file():
        raise UserError(
            f"hf.path={path!r}: there is no config.json in it",
            "a folder as `save_pretrained` of transformers writes it",
            "mend hf.path, or download the model",
        )
    try:
        return _transformers().AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **extra
        )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"hf.path={path!r}: transformers cannot read its config.json: {str(error).splitlines()[0]}",
            "a model that transformers itself has: code that comes with a model is not run",
            "install a newer transformers, or write a model family in a plug-in (docs/plugin-guide.md)",
        ) from None


def make_model(hf: Mapping[str, Any], **options: Any) -> Any:
    """A ``PreTrainedModel`` of the class that the block names, with initial weights where its parameters are.

    Raises:
        UserError: as ``read_config``.
    """
    config = read_config(hf)
    if hf.get("attn_implementation") is not None:
        options["attn_implementation"] = hf["attn_implementation"]
    if hf.get("path") is None:
        made = _member("mod", hf["mod"], "mod_cls", hf["mod_cls"])
        return made._from_config(config, **options)
    try:
        return _transformers().AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except ValueError as error:
        raise UserError(
            f"hf.path={hf['path']!r}: {str(error).splitlines()[0]}",
            "a model that predicts the next token, of a class that transformers itself has",
            "name another model, or another hf.attn_implementation",
        ) from None


def model_sizes(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the block ``model`` that follow from the class's own config."""
    config = read_config(hf).get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    longest = getattr(config, "max_position_embeddings", None)
    return {
        "num_layers": config.num_hidden_layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_kv_attention_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or hidden // heads,
        "vocab_size": config.vocab_size,
        "mlp_ratio": width / hidden,
        **({} if longest is None else {"max_position_embeddings": longest}),
    }


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "model_type='hf' needs the package transformers, which is not installed",
            "the package whose class is trained",
            "pip install evocore[hub]",
        ) from error
    return transformers


def _member(module_key: str, module: str, key: str, name: str) -> Any:
    _transformers()
    if module.split(".")[0] != "transformers":
        raise UserError(
            f"hf.{module_key}={module!r} is no module of transformers",
            "transformers, or a module in it: other people's code is not imported by name",
            "write a model family in a plug-in (docs/plugin-guide.md)",
        )
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(
            f"hf.{key}={name!r}: there is no such class in {module}",
            "a class of the installed transformers",
            "correct it, or install a newer transformers",
        ) from None
