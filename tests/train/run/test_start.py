"""The options of the training commands, and the names of runs."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.files import write_json
from common.options import default_values
from model.decode import free_processors
from model.recomputation import Checkpointing
from tests.helpers.training import build_spec
from train.cli import default_run_folder, parse_train_options
from train.options import DpoOptions, PretrainOptions, SftOptions
from train.run.start import build_model, start

SCHEMAS = {"pretrain": PretrainOptions, "sft": SftOptions, "dpo": DpoOptions}
FINGERPRINTS = {"pretrain": {}, "sft": {"template": {}}, "dpo": {"template": {}, "dpo": {}}}


def write_run(folder: Path, command: str) -> None:
    """Write the files that `parse_train_options` reads in a run directory."""
    options = SCHEMAS[command](seed=7, data="sample").model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    write_json(folder / "run.json", {"fingerprints": FINGERPRINTS[command]})


@pytest.mark.parametrize(
    ("command", "owner", "advice"),
    [
        ("sft", "pretrain", "is a pretraining run; to fine-tune its model: 'BASE=.*my run' "),
        ("pretrain", "sft", "is a fine-tuning run; to resume it: make sft 'RUN=.*my run';"),
        ("dpo", "sft", "is a fine-tuning run; to resume it: make sft .* on preferences: 'BASE="),
        ("sft", "dpo", "is a run on preferences; to resume it: make dpo 'RUN=.*my run';"),
        ("dpo", "pretrain", "is a pretraining run; to train its model: 'BASE=.*my run' "),
    ],
)
def test_run_of_other_command_gives_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, owner: str, advice: str
) -> None:
    """Prevent a dozen errors about unknown options for RUN in place of BASE."""
    run = tmp_path / "my run"
    run.mkdir()
    monkeypatch.setattr(sys, "argv", ["train", "--run", str(run)])
    write_run(run, owner)
    assert parse_train_options(SCHEMAS[owner], owner, "").seed == 7
    with pytest.raises(UserError, match=advice) as caught:
        parse_train_options(SCHEMAS[command], command, "")
    assert "\n" not in str(caught.value)


def test_help_defaults_do_not_depend_on_existing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch a help text that shows the options of an old run."""
    (tmp_path / "config.yaml").write_text("max_steps: 7654321\n")
    for word in ("-h", "--help"):
        monkeypatch.setattr(sys, "argv", ["pretrain", "--run", str(tmp_path), word])
        with pytest.raises(SystemExit):
            parse_train_options(PretrainOptions, "pretrain", "")
        text = " ".join(capsys.readouterr().out.split())
        default = default_values(PretrainOptions)["max_steps"]
        assert f"start (default: {default})" in text and "7654321" not in text


def test_options_of_earlier_runs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents runs that no longer resume because their config.yaml says true or false."""
    for old, new in {"true": "layers", "false": "none"}.items():
        options = PretrainOptions(data="sample").model_dump(mode="json")
        text = yaml.safe_dump({**options, "gradient_checkpointing": old == "true"})
        (tmp_path / "config.yaml").write_text(text)
        write_json(tmp_path / "run.json", {"fingerprints": {}})
        monkeypatch.setattr(sys, "argv", ["train", "--run", str(tmp_path)])
        assert parse_train_options(PretrainOptions, "pretrain", "").gradient_checkpointing == new


def test_checkpointing_is_that_of_the_options(tmp_path: Path, shard_set: Path) -> None:
    """Prevents options that are accepted, planned with and not used."""
    for options, expected in (
        ({}, None),
        ({"gradient_checkpointing": "layers"}, Checkpointing()),
        (
            {"gradient_checkpointing": "attention", "offload_activations": True},
            Checkpointing(keeps_attention=True, offloads=True),
        ),
    ):
        model = build_model(build_spec(tmp_path, shard_set, **options), None)
        assert model.model._checkpointing == expected


def test_samples_of_a_new_model_have_tokens_only(tmp_path: Path, shard_set: Path) -> None:
    """Catch a sample during training with ids that stand for nothing."""
    spec = build_spec(tmp_path, shard_set)
    vocab_size = spec.tokenizer.vocab_size
    config = replace(spec.model_config, vocab_size=vocab_size + 2)
    model = build_model(replace(spec, model_config=config), None)
    assert model.unused_ids == (vocab_size, vocab_size + 1)


def test_wrong_mixture_is_reported_with_other_wrong_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catch options that are reported one run after another."""
    command = "pretrain --data csl:-1 --max_steps abc --nonsense 3"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(UserError) as refused:
        parse_train_options(PretrainOptions, "pretrain", "")
    options = [line.split(":")[0] for line in str(refused.value).splitlines()]
    assert sorted(options) == ["--data", "--max_steps", "--nonsense"]


def test_run_names_differ_by_mixture_weights() -> None:
    """Prevent two mixtures from sharing a run directory, where one of them would be refused."""
    assert default_run_folder("sft", "csl+lcsts") == Path("runs/sft-csl+lcsts")
    assert default_run_folder("sft", "csl:0.5+lcsts") == Path("runs/sft-csl-0.5+lcsts")


def test_training_keeps_its_threads(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents samples of another number of threads, and so another text, beside other work."""
    monkeypatch.setattr(free_processors, "_is_switched_off", False)
    start(build_spec(tmp_path / "run", shard_set))
    assert free_processors._is_switched_off
