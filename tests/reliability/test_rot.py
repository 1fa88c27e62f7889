"""One flipped byte, or a file cut short, is noticed and named: over every file of a checkpoint, a set and a run."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from common.errors import UserError
from common.files import MANIFEST, manifest_problem, read_sealed, write_sealed
from data.readers.source_args import Group
from data.batching.text_rows import Mixture, Plan
from data.prepare.pipeline import PrepareOptions, prepare_groups
from data.shards import MADE_FROM, REPORT, ShardSet, shards_of_run
from model.checkpoint.locate import find, newest, step_folder, steps
from train.run_dir import CHOICES, CONFIG, MADE, Run


def damages(path: Path, count: int = 3) -> Iterator[str]:
    """Flip single bytes of a file at random places, then cut it short; it is whole again after each, and at the end."""
    whole, draw = path.read_bytes(), random.Random(path.name)
    for place in [draw.randrange(len(whole)) for _ in range(count)] if whole else []:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randint(1, 255)]) + whole[place + 1 :])
        yield f"byte {place} of {path.name}"
    if whole:
        path.write_bytes(whole[: len(whole) // 2])
        yield f"half of {path.name}"
    path.write_bytes(whole)


def test_a_flipped_byte_anywhere_in_a_checkpoint_is_named_and_the_one_before_used(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Going on from numbers that nobody computed."""
    *_, before, last = steps(finished)
    names = {path.name for path in step_folder(finished, last).iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json", "config.json", "tokenizer.model", MANIFEST}
    for name in sorted(names):
        for damage in damages(step_folder(finished, last) / name):
            assert newest(finished) == before, damage
            assert f"{last:08d}/{name}" in capsys.readouterr().err
            with pytest.raises(UserError, match=name):
                find(step_folder(finished, last))
    assert newest(finished) == last


def test_a_flipped_byte_anywhere_in_a_manifest_is_noticed(tmp_path: Path) -> None:
    """Counts, sources and identities that are not what was written; a checksum that was itself changed."""
    path = tmp_path / MANIFEST
    (tmp_path / "a").write_bytes(b"1")
    write_sealed(path, {"format": "f", "seed": 1.5, "名": [True, None], "files": {}})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 5):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert MANIFEST in (manifest_problem(tmp_path) or ""), (place, bit)
    path.write_bytes(whole)
    assert manifest_problem(tmp_path) is None and read_sealed(path)["seed"] == 1.5


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared shard set with all that can be in one: spans, a template, quarantine, a report."""
    folder = tmp_path_factory.mktemp("prepared")
    bad = folder / "bad.json"
    bad.write_text('{"nothing": 1}\n', encoding="utf-8")
    groups = [Group("redgpt", (str(root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"), str(bad)))]
    prepare_groups(groups, folder / "set", root / "assets/tokenizer", PrepareOptions(workers=1, limit=30, quarantine_share=1))
    write_sealed(folder / "set" / MADE_FROM, {"name": "redgpt"})
    return folder / "set"


def test_a_flipped_byte_anywhere_in_a_shard_set_is_named_and_the_set_refused(prepared: Path) -> None:
    """Training on ids that were never written."""
    names = {path.name for path in prepared.iterdir()}
    assert {MANIFEST, REPORT, MADE_FROM, "tokenizer.model", "template.json", "train-00000.spans.npy"} <= names
    for name in sorted(names):
        for damage in damages(prepared / name):
            with pytest.raises(UserError) as caught:
                ShardSet.open(prepared, checksums=True)
            assert name in str(caught.value), damage
    assert ShardSet.open(prepared, checksums=True).kind == "conversations"


def test_a_flipped_byte_in_a_plan_has_it_built_anew(shard_set: Path, tmp_path: Path) -> None:
    """Another order of data than the run began with."""
    def rows() -> list[list[int]]:
        mixture = Mixture((ShardSet.open(shard_set).split("train"),), (1.0,))
        plan = Plan(mixture, seed=0, length=32, folder=tmp_path / "plan")
        return [plan.row(row).tolist() for row in range(40)]

    right = rows()
    for path in sorted((tmp_path / "plan" / "epoch-00000").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        assert rows() == right, path.name


def opened(folder: Path) -> Run:
    run = Run(folder)
    run.open({"seed": 0, "log_every": 10}, {"seed": 0}, [], torch.device("cpu"))
    return run


def test_a_flipped_byte_in_the_record_of_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on as another one because its record rotted; a machine's choice that changed by itself."""
    folder = tmp_path / "run"
    opened(folder).keep_choices({"micro_rows": 4})
    (folder / "metrics.jsonl").touch()
    for damage in damages(folder / MADE, 20):
        with pytest.raises(UserError, match=MADE):
            opened(folder)
        with pytest.raises(UserError, match=MADE):
            shards_of_run(folder)
        assert damage
    for damage in damages(folder / CHOICES, 10):
        assert opened(folder).choices() is None, damage
        assert CHOICES in capsys.readouterr().err
    config = folder / CONFIG
    whole = config.read_bytes()
    for place in range(len(whole)):
        config.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        opened(folder)
        assert f"{CONFIG} is not as this run wrote it" in capsys.readouterr().err, place
        assert config.read_bytes() == whole
    assert opened(folder).choices() == {"micro_rows": 4} and not capsys.readouterr().err
    assert yaml.safe_load(whole) == {"seed": 0, "log_every": 10}


def test_wrong_options_that_never_trained_bind_nobody(tmp_path: Path) -> None:
    """A folder that refuses the right options because of the wrong ones that were tried first."""
    folder = tmp_path / "run"
    Run(folder).open({}, {"model": {"hidden_size": 7}}, [], torch.device("cpu"))
    (folder / "plan").mkdir()
    Run(folder).open({}, {"model": {"hidden_size": 8}}, [], torch.device("cpu"))
    assert read_sealed(folder / MADE)["fingerprints"] == {"model": {"hidden_size": 8}} and not (folder / "plan").exists()
    (folder / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"another model \(hidden_size: 8, now 9\)"):
        Run(folder).open({}, {"model": {"hidden_size": 9}}, [], torch.device("cpu"))
