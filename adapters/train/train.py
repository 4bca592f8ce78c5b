#!/usr/bin/env python3
"""Trains a LoRA adapter from a CSV file of texts and labels: a classifier with a head, or a
generator that answers with the label. Runs on the CPU and on CUDA; see README.md.

What it writes appears whole or not at all.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Nothing is fetched; a base that is not here is a mistake and no reason to look for it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# cuBLAS is the same from run to run only with a workspace of a fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from tqdm import tqdm

import base
import judge
import rows as table
from base import BadBase
from batches import Answers, Texts, shuffled
from rows import BadRows, Row

USAGE = 64
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("csv", type=Path, help="rows to train on, with a header")
    add("--base", type=Path, required=True, help="a GGUF file, or a folder of Hugging Face's")
    add("--out", type=Path, required=True, help="the folder to write")
    add("--kind", choices=["classifier", "generator"], default="classifier",
        help="a head over the labels, or the label as the model's answer (default: classifier)")
    add("--overwrite", action="store_true", help="replace the folder if it is there")
    add("--text-column", default="text")
    add("--label-column", default="label")
    add("--system", help="a generator's system message before each text")
    add("--base-name", help="what to call the base in the adapter (default: its file's name)")
    add("--held-back", type=float, default=0.1, help="the part of each label's rows not to train on (0.1)")
    add("--epochs", type=int, default=3)
    add("--max-steps", type=int, help="end after so many steps, whatever is left")
    add("--batch", type=int, default=16, help="rows a step (16)")
    add("--learning-rate", type=float, default=4e-4, help="the largest; it falls to 0 in a line (4e-4)")
    add("--rank", type=int, default=16)
    add("--alpha", type=int, help="twice the rank without it")
    add("--dropout", type=float, default=0.05)
    add("--targets", default="q_proj,k_proj,v_proj,o_proj", help="modules to adapt (q, k, v and o)")
    add("--seed", type=int, default=1)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=list(DTYPES), help="what the base computes in while training: bf16 where the device "
        "has instructions for it, else f32")
    args = parser.parse_args(words)
    if not 0 <= args.held_back < 1:
        parser.error("--held-back is a part from 0 to below 1")
    if args.out.exists() and not args.overwrite:
        parser.error(f"{args.out} is there already; --overwrite replaces it")
    args.alpha = args.alpha or 2 * args.rank
    args.dtype = args.dtype or ("bf16" if has_bf16(args.device) else "f32")
    return args


def has_bf16(device: str) -> bool:
    """Whether bf16 is faster than f32; on a CPU without instructions for it, it is many times slower."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def seeded(seed: int) -> None:
    transformers.set_seed(seed)
    # Where an operation has no deterministic form, this says so instead of ending.
    torch.use_deterministic_algorithms(True, warn_only=True)


def adapted(model, args: argparse.Namespace):
    """The base with fresh pairs of matrices; only they and a head are trained, in f32."""
    is_classifier = args.kind == "classifier"
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if is_classifier else TaskType.CAUSAL_LM,
        r=args.rank,
        lora_alpha=args.alpha,
        lora_dropout=args.dropout,
        target_modules=args.targets.split(","),
    )
    model = get_peft_model(model, config)
    model.peft_config["default"].base_model_name_or_path = args.base_name or args.base.stem
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.to(args.device)


def train(model, batches, rows: list[Row], args: argparse.Namespace) -> list[float]:
    """Trains in place and gives the loss of each step."""
    per_epoch = -(-len(rows) // args.batch)
    num_steps = min(args.epochs * per_epoch, args.max_steps or sys.maxsize)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
    num_warm_up = max(1, num_steps // 20)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, num_warm_up, num_steps)
    every = (batch for epoch in range(args.epochs) for batch in shuffled(rows, args.batch, args.seed, epoch))
    losses: list[float] = []
    model.train()
    with tqdm(total=num_steps, unit="step", desc="training") as progress:
        for batch in every:
            if len(losses) == num_steps:
                break
            tensors = {name: value.to(model.device) for name, value in batches(batch).items()}
            with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
                loss = model(**tensors).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
            progress.update()
    model.eval()
    return losses


def judged(model, batches, rows: list[Row], labels: list[str], args, folder: Path) -> float | None:
    """The accuracy on rows that were held back, computed in f32; a classifier's probabilities are kept."""
    if not rows:
        return None
    model = model.float()
    if args.kind == "classifier":
        probabilities = judge.classify(model, batches, rows, args.batch)
        judge.write_reference(folder / "reference.csv", rows, labels, probabilities)
        said = [labels[idx] for idx in probabilities.argmax(dim=-1).tolist()]
    else:
        longest = max(len(batches.answer(label)) for label in labels)
        said = judge.answer(model, batches, rows, longest, args.batch)
    return sum(answer == row.label for answer, row in zip(said, rows)) / len(rows)


def write_labels(folder: Path, labels: list[str]) -> None:
    named = {"id2label": {str(idx): label for idx, label in enumerate(labels)}}
    (folder / "labels.json").write_text(json.dumps(named, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_account(folder: Path, args, losses: list[float], counts: dict, accuracy: float | None) -> None:
    """What was done, so that it can be done again."""
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    for name in ("out", "overwrite"):
        del chosen[name]
    for name in ("csv", "base"):
        chosen[name] = Path(chosen[name]).name
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    account = {"settings": chosen, "versions": versions, **counts, "steps": len(losses),
               "last_loss": losses[-1] if losses else None, "held_back_accuracy": accuracy}
    (folder / "training.json").write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")


def put_in_place(finished: Path, out: Path) -> None:
    """Gives the finished folder its name; what was there is gone only then."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        out.rename(old / out.name)
        finished.rename(out)
        shutil.rmtree(old)
    else:
        finished.rename(out)


def run(args: argparse.Namespace) -> float | None:
    """Trains, judges and writes; gives the accuracy on the rows that were held back."""
    rows = table.read(args.csv, args.text_column, args.label_column)
    labels = table.labels_of(rows)
    kept, held_back = table.split(rows, args.held_back, args.seed)
    tokenizer = base.tokenizer_of(args.base)
    model = base.causal(args.base, DTYPES[args.dtype])
    # Loading may draw numbers, and not as many from every kind of file.
    seeded(args.seed)
    if args.kind == "classifier":
        batches = Texts(tokenizer, labels)
        model = base.with_head(model, labels, tokenizer.pad_token_id)
    else:
        batches = Answers(tokenizer, args.system)
    model = adapted(model, args)
    print(f"{len(kept)} rows to train on, {len(held_back)} held back, {len(labels)} labels", file=sys.stderr)
    losses = train(model, batches, kept, args)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{args.out.name}-", dir=args.out.parent))
    try:
        model.save_pretrained(folder)
        # PEFT puts an empty form for a description there.
        (folder / "README.md").unlink(missing_ok=True)
        accuracy = judged(model, batches, held_back, labels, args, folder)
        write_labels(folder, labels)
        table.write(folder / "held-back.csv", held_back)
        write_account(folder, args, losses, {"rows": len(kept), "held_back": len(held_back)}, accuracy)
        # Temporary folders and safetensors' files are their writer's alone; whoever serves must read them.
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o644)
        put_in_place(folder, args.out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return accuracy


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    try:
        accuracy = run(args)
    except (BadRows, BadBase) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    print(f"{args.out}: {args.kind}")
    if accuracy is not None:
        print(f"accuracy on the rows held back: {accuracy:.4f}")
        print(f"they lie in {args.out / 'held-back.csv'}, for quern eval --calibrate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
