"""Fixtures of export, import and tokenizer tests: a trained run, real texts, two tokenizers."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.tokenizer import load_tokenizer
from model.tokenizer.base import METASPACE, Tokenizer
from train.sft import main

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def trained_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tune a small grouped-query model without a base on a few sample conversations."""
    folder = tmp_path_factory.mktemp("trained")
    group = SourceGroup(
        "redgpt", (str(root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"),)
    )
    prepare_groups(
        [group], folder / "redgpt", root / "assets/tokenizer", PrepareOptions(workers=1, limit=20)
    )
    options = {
        "base": "none",
        "data": folder / "redgpt",
        "run": folder / "run",
        "sequence_length": 256,
        "batch_tokens": 256,
        "max_steps": 12,
        "optimizer.name": "adamw",
        "optimizer.lr": 5e-2,
        "device": "cpu",
        "evaluation.examples": 0,
        "checkpoint.every": 100,
        **{f"model.{key}": value for key, value in SHAPE.items()},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        # Measuring the speed of the machine takes seconds, and only a log line shows it.
        patch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)
        patch.setattr(
            sys,
            "argv",
            [
                "train.sft",
                *(word for key, value in options.items() for word in (f"--{key}", str(value))),
            ],
        )
        main()
    return folder / "run"


@pytest.fixture(scope="session")
def stock(shared: Path) -> Tokenizer:
    """Return the tokenizer of Llama-Chinese, of 65,000 pieces."""
    return load_tokenizer(shared / "tokenizer" / "llama-chinese-65k.model")


@pytest.fixture(scope="session", params=["small", "stock"])
def either(request: pytest.FixtureRequest) -> Tokenizer:
    """Return the tokenizer of this project or that of Llama-Chinese."""
    name = "tokenizer" if request.param == "small" else "stock"
    tokenizer: Tokenizer = request.getfixturevalue(name)
    return tokenizer


@pytest.fixture(scope="session")
def real_texts(shared: Path) -> list[str]:
    """Return a thousand real texts: beginnings of articles, single lines, raw lines of files."""
    texts: list[str] = []
    for path in sorted((shared / "data" / "pretrain").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line, _ in zip(file, range(20), strict=False)]
        for row in rows:
            text = (
                row.get("text")
                or row.get("答")
                or "\n".join(part["内容"] for part in row.get("段落", []))
            )
            texts += [
                text[:700],
                text[:150].strip().replace("\n", "  "),
                *text[700:].split("\n")[:3],
            ]
    for name in ("csl_ts/dev.tsv", "lcsts/PART_III.txt"):
        texts += (shared / "data" / "summary" / name).read_text(encoding="utf-8").split("\n")[:120]
    return [text[:700].replace(METASPACE, "") for text in texts]
