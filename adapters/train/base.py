"""Opens the model that an adapter is trained on: a GGUF file, or a folder of Hugging Face's.

A GGUF file is dequantised in memory by transformers, with the package `gguf`; nothing is
fetched in either case.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


# Qwen's own for all matrices; not every kind of file tells it.
HEAD_DEVIATION = 0.02


class BadBase(Exception):
    """The base cannot be used; says why."""


def place(path: Path) -> dict:
    """What transformers wants to be told to find the model."""
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BadBase(f"{path}: the folder has no config.json, so it is no model of Hugging Face's")
        return {"pretrained_model_name_or_path": str(path)}
    if not path.is_file():
        raise BadBase(f"{path}: there is no such file or folder")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise BadBase(f"{path}: this is neither a GGUF file nor a folder of Hugging Face's")
    return {"pretrained_model_name_or_path": str(path.parent or "."), "gguf_file": path.name}


def tokenizer_of(path: Path):
    """The base's tokenizer, with a token to fill rows up with."""
    tokenizer = AutoTokenizer.from_pretrained(**place(path), local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def causal(path: Path, dtype: torch.dtype):
    """The base as it is: it goes on with text."""
    return AutoModelForCausalLM.from_pretrained(**place(path), dtype=dtype, local_files_only=True)


def with_head(base, labels: list[str], pad_token_id: int):
    """The base with a head of its own for these labels, whose weights are random."""
    config = base.config
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: idx for idx, label in enumerate(labels)}
    # The last token that is no filling is what the head sees.
    config.pad_token_id = pad_token_id
    # All but the head comes from the base, so no memory is spent on it.
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
    model.model = base.model
    model.score = torch.nn.Linear(config.hidden_size, len(labels), bias=False, dtype=base.dtype)
    torch.nn.init.normal_(model.score.weight, std=HEAD_DEVIATION)
    return model
