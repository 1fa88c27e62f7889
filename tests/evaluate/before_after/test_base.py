"""The base that a run records."""

import shutil
from pathlib import Path

import pytest

from common.files import write_checksummed_json
from evaluate.before_after.base import find_base
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer


def save_model(folder: Path, tokenizer: Tokenizer, seed: int) -> Path:
    """Save a random model."""
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    folder.mkdir(parents=True)
    weights.save_checkpoint(Llama(config).init_weights(seed), tokenizer, folder)
    return folder


def write_tuned_run(run: Path, base: object, sha256: str) -> Path:
    write_checksummed_json(run / "run.json", {"fingerprints": {"base": sha256}})
    (run / "config.yaml").write_text(f"base: {base}\n", encoding="utf-8")
    return run


def test_the_recorded_base_is_found(
    tmp_path: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a comparison with nothing, with other weights, or a report that fails for it."""
    base = save_model(tmp_path / "runs" / "base", tokenizer, 0)
    sha256 = locate.weights_sha256(base)
    run = write_tuned_run(tmp_path / "runs" / "tuned", "runs/base", sha256)
    monkeypatch.chdir(tmp_path)
    assert find_base(run) == Path("runs/base")
    # From another folder, as after the project was moved.
    monkeypatch.chdir("/")
    assert find_base(run) == base
    assert capsys.readouterr().out == ""
    shutil.rmtree(base)
    assert find_base(run) is None
    assert "--before" in (printed := capsys.readouterr().out) and printed.count("\n") == 1
    save_model(base, tokenizer, 1)
    assert find_base(run) is None
    assert "has other weights than" in (printed := capsys.readouterr().out)
    assert printed.count("\n") == 1


def test_a_run_from_random_weights_has_no_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a comparison of a pretraining run with a folder named none."""
    for number, base in enumerate(("none", "null")):
        assert find_base(write_tuned_run(tmp_path / str(number), base, "none")) is None
    (run := tmp_path / "old").mkdir()
    assert find_base(run) is None and capsys.readouterr().out == ""
