"""Which options a run begins and goes on with."""

import sys
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from train.options import PretrainOptions, SftOptions
from train.startup import parse_train_options

SCHEMAS = {"pretrain": PretrainOptions, "sft": SftOptions}


@pytest.mark.parametrize(
    ("kind", "other", "cure"),
    [
        ("sft", "pretrain", "is a pretraining run; to fine-tune what it learned: BASE="),
        ("pretrain", "sft", "is a fine-tuning run; to go on with it: make sft RUN="),
    ],
)
def test_run_of_other_command_gives_one_line_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, other: str, cure: str
) -> None:
    """RUN typed for BASE: a dozen lines about options that nobody gave."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["train", "--run", str(tmp_path)])
    made = parse_train_options(SCHEMAS[other], other, "")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert parse_train_options(SCHEMAS[other], other, "") == made
    with pytest.raises(UserError, match=cure) as caught:
        parse_train_options(SCHEMAS[kind], kind, "")
    assert "\n" not in str(caught.value)
