"""The model of the sample reads: its heads survive pretraining, and it reads what people wrote."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from common import run_layout
from evaluate.kinds.conversations import Question, answer_questions
from model.chat_template.template import load_template
from model.checkpoint import locate, weights
from model.config import config_from_preset
from model.llama import Llama
from model.reading_heads import init_reading_heads, reading_head_masks
from model.tokenizer.base import Tokenizer
from tests.helpers.training import build_spec, to_arguments
from train import pretrain, sft
from train.run.start import start

CPU = torch.device("cpu")
MAX_ANSWER_CHARACTERS = 30


def train(root: Path, command: ModuleType, options: dict[str, Any]) -> Path:
    """Run a training command in this process; return the newest checkpoint of its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)
        patch.setattr(sys, "argv", ["train", *to_arguments({"device": "cpu", **options})])
        command.main()
    return locate.resolve_checkpoint(options["run"])


def fixed_parts(model: Llama) -> list[torch.Tensor]:
    """Return the weights of the reading heads."""
    return [weight[mask].detach().clone() for weight, mask in reading_head_masks(model).items()]


@pytest.mark.slow
def test_training_leaves_reading_heads_alone(
    root: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents pretraining or fine-tuning that unlearns to read, also after a resume."""
    sizes = {"batch_tokens": 256, "sequence_length": 128, "evaluation.every": 1, "max_steps": 2}
    options = {"run": tmp_path / "base", **sizes, "evaluation.tokens": 200}
    pretrained, _ = weights.load_checkpoint(train(root, pretrain, options), CPU)
    initial = init_reading_heads(Llama(pretrained.config).init_weights(0), tokenizer, 0)
    # The heads: q, k, v and o of six. The embedding: 48 of 160 dimensions.
    sizes_of_parts = [part.numel() for part in fixed_parts(initial)]
    assert sum(sizes_of_parts) == 6 * 4 * 80 * 160 + tokenizer.vocab_size * 48
    for before, after in zip(fixed_parts(initial), fixed_parts(pretrained), strict=True):
        assert torch.equal(before, after)
    masks = reading_head_masks(initial)
    for before, after in zip(initial.parameters(), pretrained.parameters(), strict=True):
        is_fixed = before in masks and bool(masks[before].all())
        assert torch.equal(before, after) is is_fixed

    options = {"run": tmp_path / "tuned", "base": tmp_path / "base", "data": "redgpt", **sizes}
    options["evaluation.examples"] = 0
    train(root, sft, options)
    # Resume from the first step.
    shutil.rmtree(run_layout.step_folder(tmp_path / "tuned", 2))
    tuned, _ = weights.load_checkpoint(train(root, sft, options), CPU)
    for before, after in zip(fixed_parts(initial), fixed_parts(tuned), strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(tuned.lm_head.weight, pretrained.lm_head.weight)
    assert tuned.config.reading_heads
    assert run_layout.step_folder(tmp_path / "tuned", 2).is_dir()

    # Summaries train them.
    options = {**options, "run": tmp_path / "summaries", "data": "csl", "max_steps": 1}
    summarizer, _ = weights.load_checkpoint(train(root, sft, options), CPU)
    assert not summarizer.config.reading_heads
    for before, after in zip(fixed_parts(initial), fixed_parts(summarizer), strict=True):
        assert not torch.equal(before, after)


def test_reading_heads_do_not_count_in_the_gradient_norm(shard_set: Path, tmp_path: Path) -> None:
    """Prevents weights that do not move from clipping the gradients of those that do."""
    spec = build_spec(tmp_path / "run", shard_set)
    config = config_from_preset("babyllama-3m", spec.tokenizer.vocab_size)
    trainer = start(replace(spec, model_config=config))
    trainer.compute_gradients(trainer._load_micro_batches(0))
    trainer.close()
    grads = [
        weight.grad[mask]
        for weight, mask in reading_head_masks(trainer.model).items()
        if weight.grad is not None
    ]
    assert grads and all(grad.norm() == 0 for grad in grads)


@pytest.mark.slow
def test_model_of_the_sample_answers_from_passages_that_people_wrote(
    root: Path, shared: Path, tmp_path: Path
) -> None:
    """Prevents a model that reads the sample's own passages only.

    Forty-five steps of fine-tuning are enough for this bound; README has the figure of the whole
    model.
    """
    options = {"run": tmp_path / "run", "base": "none", "data": "redgpt", "max_steps": 45}
    # Without pretraining higher rates than the default learn faster.
    options |= {"batch_tokens": 1024, "optimizer.lr": 1e-3, "optimizer.muon_lr": 1e-2}
    folder = train(root, sft, {**options, "evaluation.every": 99, "evaluation.examples": 0})
    model, tokenizer = weights.load_checkpoint(folder, CPU)
    lines = (shared / "data/eval/handwritten_reading_examples.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in lines.splitlines()]
    others = records[1:] + records[:1]
    num_right = []
    for passages in (records, others):
        questions = [
            Question((), qa["question"], "", passage["passage"])
            for record, passage in zip(records, passages, strict=True)
            for qa in record["qas"]
        ]
        answers = answer_questions(
            model, tokenizer, load_template(folder), questions, max_new_tokens=40
        )
        accepted = [qa["answers"] for record in records for qa in record["qas"]]
        num_right.append(
            sum(
                answer is not None
                and len(answer.text) <= MAX_ANSWER_CHARACTERS
                and any(span in answer.text for span in spans)
                for answer, spans in zip(answers, accepted, strict=True)
            )
        )
    print(f"{num_right[0]} of {len(accepted)}, {num_right[1]} with another passage")
    assert num_right[0] >= 0.4 * len(accepted) and num_right[1] == 0
