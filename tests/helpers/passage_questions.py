"""Questions about passages that a tiny model learns to answer, and weights that only loop."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from model.chat_template.template import Template
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer

PLACES = tuple(f"{first}{second}" for first in "河东南北" for second in "山沙桥")
# What the looping weights answer, with at most 24 tokens.
LOOP = "好" * 24


def passage(place: str) -> str:
    """Return the passage that says where somebody lives."""
    return f"小驼住在{place}。"


def question(number: int) -> str:
    """Return the question about the passage with this number."""
    return f"第{number}只住在哪里？"


def write_passage_corpus(file: Path) -> Path:
    """Write a question about each place in the format of RedGPT."""
    lines = []
    for number, place in enumerate(PLACES):
        dialogue = f"Human: {question(number)}\n\nAssistant: {place}"
        record = {"reference": passage(place), "dialogue": dialogue}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


def passage_lessons(tokenizer: Tokenizer) -> Sequence[tuple[list[int], str]]:
    """Return the prompt of each question, and its answer."""
    return [
        (Template().encode_prompt(tokenizer, [], question(number), passage(place)), place)
        for number, place in enumerate(PLACES)
    ]


def save_looping_weights(folder: Path, tokenizer: Tokenizer) -> None:
    """Replace the weights in a checkpoint by some that answer everything with LOOP."""
    model, _ = weights.load_checkpoint(folder, torch.device("cpu"))
    # The same hidden state for every prompt, and a head that makes one character of it.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.encode("好")[-1]] = 1
    weights.save_weights(model, folder)
