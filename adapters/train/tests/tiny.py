"""A tiny Qwen2 with a tokenizer of its own, made on the spot, and rows that it can learn."""

import csv
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

# Qwen2's own way to cut a text into words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SAID = {
    "balance": ["how much money is in my account", "what is my balance", "tell me what i have left"],
    "transfer": ["send {} dollars to {}", "move {} dollars to {} please", "transfer {} to {}"],
    "report_lost_card": ["i lost my card in {}", "my card is gone", "i can not find my card since {}"],
}
FILLINGS = ["ten", "fifty", "anna", "my son", "paris", "monday", "the bank", "savings"]


def write_rows(path: Path, each: int) -> None:
    """So many rows of each label."""
    generator = random.Random(5)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        for _ in range(each):
            for label, texts in SAID.items():
                text = generator.choice(texts)
                while "{}" in text:
                    text = text.replace("{}", generator.choice(FILLINGS), 1)
                writer.writerow([text, label])


def write_model(folder: Path) -> None:
    """A folder of Hugging Face's: two layers, random weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special
    )
    tokenizer.train_from_iterator([text for texts in SAID.values() for text in texts] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
        # Weights near 1 in effect, so that attention looks at something.
        initializer_range=0.12,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
