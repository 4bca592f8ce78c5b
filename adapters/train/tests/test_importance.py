"""What `quern importance` measures is what goes into the matrices in transformers."""

import subprocess
from pathlib import Path

import gguf as reader
import numpy as np
import torch

import base

TEXT = "how much money is in my account and what is my balance. i lost my card in paris, tell me what i have left. "
CONTEXT, CHUNKS = 64, 2
NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def by_transformers(folder: Path, text: str) -> dict[str, np.ndarray]:
    """The sums of squares of each matrix's inputs, by the matrix's name in GGUF."""
    model, tokens = base.causal(folder, torch.float32), base.tokenizer_of(folder)(text)["input_ids"]
    sums: dict[str, torch.Tensor] = {}

    def adding(name: str):
        def add(_module, inputs, _output):
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0) + (rows * rows).sum(0)

        return add

    for layer_idx, layer in enumerate(model.model.layers):
        for name, module in layer.named_modules():
            if name.split(".")[-1] in NAMES:
                module.register_forward_hook(adding(f"blk.{layer_idx}.{NAMES[name.split('.')[-1]]}.weight"))
    with torch.no_grad():
        for chunk in range(CHUNKS):
            model(torch.tensor([tokens[chunk * CONTEXT : (chunk + 1) * CONTEXT]]))
    return {name: values.numpy() for name, values in sums.items()}


def test_every_matrix_agrees(model, quern, tmp_path):
    path, text, out = tmp_path / "model.gguf", tmp_path / "text.txt", tmp_path / "imatrix.gguf"
    text.write_text(TEXT * 6)
    sizes = ["--context", str(CONTEXT), "--chunks", str(CHUNKS)]
    for words in (["quantize", model, path, "F32"], ["importance", path, "--text", text, "--out", out, *sizes]):
        done = subprocess.run([quern, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    found = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in reader.GGUFReader(out).tensors}
    expected = by_transformers(model, TEXT * 6)
    assert len(expected) == 14 and len(found) == 28
    for name, sums in expected.items():
        assert found[f"{name}.counts"] == [CONTEXT * CHUNKS], name
        # Keys and values are 16-bit there.
        assert np.abs(found[f"{name}.in_sum2"] - sums).max() < 1e-3 * sums.max(), name
