"""The checkpoint that a run starts from: its base, and what a resumed run does about it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_checksummed_json, write_json, write_manifest
from common.run_layout import step_folder
from model.checkpoint.locate import weights_sha256
from tests.helpers.training import write_fake_run
from train.options import SftOptions
from train.run.default_base import find_newest_run_of
from train.run.initial_checkpoint import NO_BASE, resolve_initial_checkpoint
from train.sft_run import _resolve_base_option, resolve_run


def test_resumed_run_compares_the_base_as_it_is_now(tmp_path: Path) -> None:
    """Catch a run that takes another base, or one that was trained on since, for its own."""
    first = write_fake_run(tmp_path / "first", 3)
    second = write_fake_run(tmp_path / "second", 3)
    original = weights_sha256(first)
    run = tmp_path / "run"
    own_step = write_fake_run(run, 5, base=original)
    (run / "config.yaml").write_text(f"base: {first}\n")
    for base in (first, tmp_path / "first"):
        resolved = resolve_initial_checkpoint(base, None, run)
        assert resolved.fingerprint == original
        assert resolved.tokenizer_path == resolved.config_folder == own_step
    other = resolve_initial_checkpoint(tmp_path / "second", None, run)
    assert other.folder == second
    assert other.fingerprint == weights_sha256(second) != original
    assert resolve_initial_checkpoint(None, None, run).fingerprint == NO_BASE
    (first / "model.safetensors").write_text("trained on")
    write_manifest(first)
    resolved = resolve_initial_checkpoint(tmp_path / "first", None, run)
    assert resolved.fingerprint == weights_sha256(first) != original


@pytest.mark.parametrize("remains", [True, False])
def test_base_may_be_gone_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], remains: bool
) -> None:
    """Catch a run that cannot be resumed without its base, or with the empty folder of it."""
    base, run = tmp_path / "base", tmp_path / "run"
    write_fake_run(run, 5, base="1234")
    step = step_folder(base, 3)
    (run / "config.yaml").write_text(f"base: {step}\n")
    if remains:
        (base / "checkpoints").mkdir(parents=True)
        write_json(base / "run.json", {})
    resolved = resolve_initial_checkpoint(base, None, run)
    assert (resolved.folder, resolved.fingerprint) == (step, "1234")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert f"{run} is resumed without comparing its base: {base} " in printed


def test_another_base_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Catch a misspelt --base on a resumed run, which is ignored."""
    run = tmp_path / "run"
    write_fake_run(run, 5, base="1234")
    (run / "config.yaml").write_text("base: runs/base\n")
    with pytest.raises(UserError, match="elsewhere is no"):
        resolve_initial_checkpoint(tmp_path / "elsewhere", None, run)


def test_unfinished_base_gives_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch a base that Ctrl-C stopped at a tenth taken for a whole one, and the reverse."""
    unfinished = write_fake_run(tmp_path / "a", 3, steps=5)
    write_fake_run(tmp_path / "b", 3, steps=3)
    write_fake_run(tmp_path / "c", 3, steps=5)
    write_checksummed_json(tmp_path / "c" / "ended.json", {"best": 3})
    for base in (tmp_path / "b", tmp_path / "c", unfinished):
        resolve_initial_checkpoint(base, None, tmp_path / "run")
        assert capsys.readouterr().out == "", base
    resolve_initial_checkpoint(tmp_path / "a", None, tmp_path / "run")
    assert capsys.readouterr().out == (
        f"base      {tmp_path / 'a'} is unfinished, at step 3 of 5; to complete it first: "
        f"make pretrain RUN={tmp_path / 'a'}\n"
    )


def test_tokenizer_of_a_resumed_run_is_its_own_unless_another_is_given(tmp_path: Path) -> None:
    """Catch a --tokenizer that is ignored, and a run that needs the file it was prepared with."""
    run, gone = tmp_path / "run", tmp_path / "gone"
    own_step = write_fake_run(run, 5)
    (run / "config.yaml").write_text(f"tokenizer: {gone}\n")

    def resolve(tokenizer: Path | None) -> Path | None:
        return resolve_initial_checkpoint(None, tokenizer, run).tokenizer_path

    assert resolve(None) == own_step
    assert resolve(gone) == own_step
    assert resolve(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    gone.touch()
    assert resolve(gone) == gone


def test_tokenizer_beside_a_base_is_refused(tmp_path: Path) -> None:
    """Catch training on ids that the base gives other meanings."""
    write_fake_run(tmp_path / "base", 3)
    with pytest.raises(UserError, match="--tokenizer is for a run without a base"):
        resolve_initial_checkpoint(tmp_path / "base", tmp_path / "tokenizer", tmp_path / "run")


def test_unfinished_base_is_taken_only_if_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch `make pretrain; make sft` after a Ctrl-C, which fine-tunes a tenth of a model."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/my wiki")
    folder = write_fake_run(run, 3, steps=5)
    with pytest.raises(UserError) as refused:
        resolve_run(SftOptions())
    assert str(refused.value) == (
        "--base: runs/my wiki, the newest pretraining run, is unfinished, at step 3 of 5: complete "
        "it first (make pretrain 'RUN=runs/my wiki'), or name it to train it as it is "
        "('BASE=runs/my wiki', --base 'runs/my wiki')"
    )
    assert _resolve_base_option(SftOptions(base=run)) == run
    write_manifest(folder, {"step": 3, "steps": 3})
    assert _resolve_base_option(SftOptions()) == run


def test_newest_pretraining_run_is_default_base(tmp_path: Path) -> None:
    """Catch a base that is chosen by its name, and a fine-tuned one."""
    assert find_newest_run_of("pretrain", tmp_path) is None
    ages: list[tuple[int, str, dict[str, Any]]] = [
        (3, "pretrain-a", {}),
        (9, "wiki", {"base": "1234"}),
        (5, "pretrain-c", {}),
        (20, "sft-csl", {"template": {}}),
        (21, "tuned", {"template": {}}),
    ]
    for seconds, name, fingerprints in ages:
        write_fake_run(tmp_path / name, 10, **fingerprints)
        os.utime(step_folder(tmp_path / name, 10), (seconds, seconds))
    assert find_newest_run_of("pretrain", tmp_path) == tmp_path / "wiki"
    shutil.rmtree(tmp_path / "wiki")
    assert find_newest_run_of("pretrain", tmp_path) == tmp_path / "pretrain-c"
