"""Short runs on a tiny model: what is written is sound, the same for the same seed, and
means to Quern what it means to transformers."""

import csv
import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rows as table
import train


def trained(rows: Path, model: Path, out: Path, *more: str) -> Path:
    words = [str(rows), "--base", str(model), "--out", str(out), "--device", "cpu", "--held-back", "0.2"]
    assert train.main([*words, *more]) == 0
    return out


def ran(quern: str, *words) -> str:
    done = subprocess.run([quern, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_classifier_learns_and_is_whole(rows, model, tmp_path):
    out = trained(rows, model, tmp_path / "classifier", "--dtype", "f32", "--epochs", "20", "--learning-rate", "5e-3")
    names = {path.name for path in out.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "labels.json", "held-back.csv",
                     "reference.csv", "training.json"}
    labels = json.loads((out / "labels.json").read_text())["id2label"]
    assert labels == {"0": "balance", "1": "report_lost_card", "2": "transfer"}
    account = json.loads((out / "training.json").read_text())
    assert account["rows"] == 48 and account["held_back"] == 12 and account["steps"] == 60
    assert account["held_back_accuracy"] > 0.8, account
    tensors = load_file(out / "adapter_model.safetensors")
    assert tensors["base_model.model.score.weight"].shape == (3, 64)
    assert sum("lora_B" in name for name in tensors) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["classifier"], "nothing is left beside it"


def test_the_same_seed_gives_the_same_adapter(rows, model, tmp_path):
    few = ["--max-steps", "3", "--dropout", "0.1"]
    one, same = (trained(rows, model, tmp_path / name, *few) for name in ("one", "same"))
    other = trained(rows, model, tmp_path / "other", *few, "--seed", "2")
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, same, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert (one / "held-back.csv").read_text() == (same / "held-back.csv").read_text()
    assert (one / "held-back.csv").read_text() != (other / "held-back.csv").read_text()


def test_mistakes_are_said_and_leave_nothing(rows, model, tmp_path, capsys):
    out = tmp_path / "out"

    def told(csv_path, base, *more):
        code = train.main([str(csv_path), "--base", str(base), "--out", str(out), "--device", "cpu", *more])
        assert code == 64 and not out.exists() and not list(tmp_path.glob(".out*"))
        return capsys.readouterr().err

    assert "there is no column 'intent'" in told(rows, model, "--label-column", "intent")
    assert "no such file or folder" in told(rows, tmp_path / "none")
    assert "neither a GGUF file" in told(rows, rows)
    assert "at least two labels" in told(one_label(tmp_path), model)
    out.mkdir()
    with pytest.raises(SystemExit):
        train.main([str(rows), "--base", str(model), "--out", str(out)])
    assert "--overwrite" in capsys.readouterr().err


def one_label(folder: Path) -> Path:
    path = folder / "one.csv"
    path.write_text("text,label\na,b\nc,b\n")
    return path


def test_held_back_rows_are_some_of_each_label(rows):
    every = table.read(rows, "text", "label")
    kept, held = table.split(every, 0.25, 1)
    assert len(kept) + len(held) == len(every) == 60
    assert [sum(row.label == label for row in held) for label in table.labels_of(every)] == [5, 5, 5]
    kept, held = table.split(every[:4], 0.9, 1)
    assert table.labels_of(kept) == table.labels_of(every[:4]), "no label is held back as a whole"


def agreement(quern: str, model: Path, adapter: Path) -> dict:
    words = ["eval", model, "--adapter", adapter, "--csv", adapter / "held-back.csv"]
    report = json.loads(ran(quern, *words, "--reference", adapter / "reference.csv", "--json"))
    return report["models"][0]


@pytest.fixture(scope="session")
def gguf(quern, model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "qwen2-tiny.gguf"
    ran(quern, "quantize", model, path, "F32")
    return path


def test_quern_says_what_transformers_says(rows, model, gguf, quern, tmp_path):
    more = ["--epochs", "8", "--learning-rate", "5e-3", "--dtype", "bf16"]
    out = trained(rows, model, tmp_path / "classifier", *more)
    assert "sequence classification" in ran(quern, "adapter", "inspect", out, "--base", gguf)
    found = agreement(quern, gguf, out)
    assert found["by"] == "head"
    assert found["agreement"]["num_same_label"] == found["agreement"]["num_rows"] == 12
    # Keys and values are 16-bit here and the base was bf16 there.
    assert found["agreement"]["largest_difference"] < 0.02, found["agreement"]
    accuracy = json.loads((out / "training.json").read_text())["held_back_accuracy"]
    assert found["accuracy"]["mean"] == pytest.approx(accuracy)
    ran(quern, "eval", gguf, "--adapter", out, "--calibrate", out / "held-back.csv")
    assert json.loads((out / "calibration.json").read_text())["temperature"] > 0


def test_a_gguf_base_is_the_same_base(rows, model, gguf, quern, tmp_path):
    few = ["--max-steps", "4", "--dtype", "f32", "--dropout", "0"]
    from_folder = trained(rows, model, tmp_path / "from-folder", *few)
    from_gguf = trained(rows, gguf, tmp_path / "from-gguf", *few)
    # Adam makes whole steps of the last bits' differences, so losses are compared and not weights.
    one, other = (json.loads((folder / "training.json").read_text()) for folder in (from_folder, from_gguf))
    assert one["last_loss"] == pytest.approx(other["last_loss"], rel=1e-3)
    assert load_file(from_folder / "adapter_model.safetensors").keys() \
        == load_file(from_gguf / "adapter_model.safetensors").keys()
    assert agreement(quern, gguf, from_gguf)["agreement"]["num_close"] == 12


def test_a_generator_learns_to_answer(rows, model, gguf, quern, tmp_path):
    system = "Name the intent."
    out = trained(rows, model, tmp_path / "generator", "--kind", "generator", "--system", system,
                  "--epochs", "30", "--learning-rate", "1e-2", "--dtype", "f32", "--rank", "32")
    assert not (out / "reference.csv").exists()
    assert "causal LM" in ran(quern, "adapter", "inspect", out, "--base", gguf)
    words = ["eval", gguf, "--adapter", out, "--csv", out / "held-back.csv", "--system", system, "--json"]
    found = json.loads(ran(quern, *words))["models"][0]
    assert found["by"] == "spoken"
    said = json.loads((out / "training.json").read_text())["held_back_accuracy"]
    # What is likeliest as a whole is at least as often right as what is drawn token by token.
    assert found["accuracy"]["mean"] >= said - 1e-9 and found["accuracy"]["mean"] > 0.6, (found["accuracy"], said)
    with open(out / "held-back.csv") as file:
        assert len(list(csv.DictReader(file))) == 12
