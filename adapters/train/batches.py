"""Texts and labels become batches of tokens, for either kind of adapter."""

import random
from collections.abc import Iterator

import torch

from rows import Row

# What the loss passes over.
IGNORED = -100


class Texts:
    """For classifiers: the bare text, and the label's number."""

    def __init__(self, tokenizer, labels: list[str]):
        self.tokenizer = tokenizer
        self.number = {label: idx for idx, label in enumerate(labels)}

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer(
            [row.text for row in rows], return_tensors="pt", padding=True, padding_side="right"
        )
        labels = torch.tensor([self.number[row.label] for row in rows])
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


class Answers:
    """For generators: a conversation that ends with the label; only the label is learned."""

    def __init__(self, tokenizer, system: str | None):
        self.tokenizer = tokenizer
        self.system = system

    def prompt(self, text: str) -> list[int]:
        """The tokens up to where the answer begins."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": text})
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def answer(self, label: str) -> list[int]:
        """The label's tokens and the one that ends an answer."""
        tokens = self.tokenizer(label, add_special_tokens=False)["input_ids"]
        return tokens + [self.tokenizer.eos_token_id]

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        pairs = [(self.prompt(row.text), self.answer(row.label)) for row in rows]
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids, mask, labels = [], [], []
        for prompt, answer in pairs:
            filling = longest - len(prompt) - len(answer)
            ids.append(prompt + answer + [self.tokenizer.pad_token_id] * filling)
            mask.append([1] * (longest - filling) + [0] * filling)
            labels.append([IGNORED] * len(prompt) + answer + [IGNORED] * filling)
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor(values) for name, values in zip(names, (ids, mask, labels))}


def shuffled(rows: list[Row], size: int, seed: int, epoch: int) -> Iterator[list[Row]]:
    """An epoch's batches; the order follows from seed and epoch alone."""
    order = list(range(len(rows)))
    random.Random(seed * 1_000_003 + epoch).shuffle(order)
    for start in range(0, len(order), size):
        yield [rows[idx] for idx in order[start : start + size]]
