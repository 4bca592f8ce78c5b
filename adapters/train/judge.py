"""What a trained adapter makes of rows that it has not seen."""

import csv
from pathlib import Path

import torch

from batches import Answers, Texts
from rows import Row


@torch.no_grad()
def classify(model, texts: Texts, rows: list[Row], size: int) -> torch.Tensor:
    """Probabilities, [rows, labels], f32."""
    found = []
    for start in range(0, len(rows), size):
        batch = {name: value.to(model.device) for name, value in texts(rows[start : start + size]).items()}
        del batch["labels"]
        found.append(torch.softmax(model(**batch).logits.float(), dim=-1).cpu())
    return torch.cat(found)


@torch.no_grad()
def answer(model, answers: Answers, rows: list[Row], longest: int, size: int) -> list[str]:
    """What the model says to each text, drawn greedily, at most so many tokens."""
    tokenizer, said = answers.tokenizer, []
    for start in range(0, len(rows), size):
        prompts = [answers.prompt(row.text) for row in rows[start : start + size]]
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        tokens = model.generate(
            **batch,
            max_new_tokens=longest,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        new = tokens[:, batch["input_ids"].shape[1] :]
        said += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return said


def write_reference(path: Path, rows: list[Row], labels: list[str], probabilities: torch.Tensor) -> None:
    """Writes labels and probabilities as `quern eval --reference` reads them."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label", "predicted", *labels])
        for row, values in zip(rows, probabilities.tolist()):
            predicted = labels[max(range(len(labels)), key=values.__getitem__)]
            writer.writerow([row.text, row.label, predicted, *(f"{value:.6f}" for value in values)])
