"""Write texts of the training part with questions and answers, to train on."""

import json
import random
from pathlib import Path

import torch

from common.files import write_atomic
from common.progress import progress_bar
from evaluate.load_model import load_checkpoint
from evaluate.needle.cases import Case
from evaluate.needle.options import NeedleOptions
from evaluate.needle.setup import Setup, resolve_setup

# A text has one question for so many tokens, and at most one for each of --depths.
_TOKENS_PER_QUESTION = 128


def export_texts(options: NeedleOptions, path: Path) -> None:
    """Write `--count` texts of all lengths in turn, a line of JSON each; print what was written.

    Raises UserError if a length has too little room.
    """
    # The model gives the tokenizer, the chat template and the default lengths.
    loaded = load_checkpoint(options.checkpoint, options, torch.device("cpu"))
    setup = resolve_setup(options, loaded, "training")
    lines = []
    with progress_bar("writing", options.count, "texts") as bar:
        for number in range(options.count):
            length = setup.lengths[number % len(setup.lengths)]
            case = build_example(setup, length, number)
            row = setup.frame.build_row(case.text, case.questions)
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            bar.update(1)
    write_atomic(path, "".join(lines))
    kind, command = "documents", "train.pretrain"
    if setup.form == "chat":
        kind, command = "conversations", "train.sft"
    lengths = ", ".join(f"{length:,}" for length in setup.lengths)
    print(f"{path}: {len(lines):,} {kind} of up to {lengths} tokens, without a fact of the tests")
    print(f"train on it:  python -m {command} --data {path} --base {options.checkpoint}")


def build_example(setup: Setup, length: int, number: int) -> Case:
    """Return a case whose text with all its questions and answers has at most `length` tokens.

    The questions are in random order.
    """
    num_questions = min(max(length // _TOKENS_PER_QUESTION, 1), setup.num_depths)
    room = length
    while True:
        case = setup.build_case(room, number, num_questions)
        random.Random(number).shuffle(case.questions)
        excess = setup.frame.count_example_tokens(case.text, case.questions) - length
        if excess <= 0:
            return case
        room -= max(excess, 8)
