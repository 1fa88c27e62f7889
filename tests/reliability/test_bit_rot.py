"""One flipped byte or a truncated file is detected and named, in every file."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from common.errors import UserError
from common.files import MANIFEST, check_manifest, read_checksummed_json, write_checksummed_json
from common.run_layout import COMPUTE_PLAN_FILE, CONFIG_FILE, list_steps, step_folder
from data.batching.text_rows import Mixture, TextPlan
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import PROVENANCE_FILE, REPORT_FILE, ShardSet, load_run_shard_set
from model.checkpoint.locate import find_newest_step, resolve_checkpoint
from train.run.directory import RUN_FILE, RunDir


def damages(path: Path, count: int = 3) -> Iterator[str]:
    """Flip single bytes of a file at random places, then truncate it; restore it at the end."""
    original, draw = path.read_bytes(), random.Random(path.name)
    for place in [draw.randrange(len(original)) for _ in range(count)] if original else []:
        path.write_bytes(
            original[:place]
            + bytes([original[place] ^ draw.randint(1, 255)])
            + original[place + 1 :]
        )
        yield f"byte {place} of {path.name}"
    if original:
        path.write_bytes(original[: len(original) // 2])
        yield f"half of {path.name}"
    path.write_bytes(original)


@pytest.mark.slow
def test_flipped_byte_in_checkpoint_falls_back_to_previous(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents training from continuing with corrupted numbers."""
    *_, before, last = list_steps(finished)
    names = {path.name for path in step_folder(finished, last).iterdir()}
    assert names == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "config.json",
        "tokenizer.model",
        MANIFEST,
    }
    for name in sorted(names):
        for damage in damages(step_folder(finished, last) / name):
            assert find_newest_step(finished) == before, damage
            assert f"{last:08d}/{name}" in capsys.readouterr().err
            with pytest.raises(UserError, match=name):
                resolve_checkpoint(step_folder(finished, last))
    assert find_newest_step(finished) == last


@pytest.mark.slow
def test_flipped_byte_in_manifest_is_detected(tmp_path: Path) -> None:
    """Prevents changed counts, sources, identities or checksums from being trusted."""
    path = tmp_path / MANIFEST
    (tmp_path / "a").write_bytes(b"1")
    write_checksummed_json(path, {"format": "f", "seed": 1.5, "名": [True, None], "files": {}})
    original = path.read_bytes()
    for place in range(len(original)):
        for bit in (0, 5):
            path.write_bytes(
                original[:place] + bytes([original[place] ^ 1 << bit]) + original[place + 1 :]
            )
            assert MANIFEST in (check_manifest(tmp_path) or ""), (place, bit)
    path.write_bytes(original)
    assert check_manifest(tmp_path) is None and read_checksummed_json(path)["seed"] == 1.5


@pytest.fixture(scope="module")
def prepared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a shard set with every kind of file: spans, a template, quarantine, a report."""
    folder = tmp_path_factory.mktemp("prepared")
    bad = folder / "bad.json"
    bad.write_text('{"nothing": 1}\n', encoding="utf-8")
    groups = [
        SourceGroup(
            "redgpt",
            (str(root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"), str(bad)),
        )
    ]
    prepare_groups(
        groups,
        folder / "set",
        root / "assets/tokenizer",
        PrepareOptions(workers=1, limit=30, quarantine_share=1),
    )
    return folder / "set"


@pytest.mark.slow
def test_flipped_byte_in_shard_set_is_refused(prepared: Path) -> None:
    """Prevents training on corrupted ids."""
    names = {path.name for path in prepared.iterdir()}
    assert {
        MANIFEST,
        REPORT_FILE,
        PROVENANCE_FILE,
        "tokenizer.model",
        "template.json",
        "train-00000.spans.npy",
    } <= names
    for name in sorted(names):
        for damage in damages(prepared / name):
            with pytest.raises(UserError) as caught:
                ShardSet.open(prepared, checksums=True)
            assert name in str(caught.value), damage
    assert ShardSet.open(prepared, checksums=True).kind.name == "conversations"


@pytest.mark.slow
def test_flipped_byte_in_plan_triggers_rebuild(shard_set: Path, tmp_path: Path) -> None:
    """Prevents another order of data than the run began with."""

    def rows() -> list[list[int]]:
        mixture = Mixture((ShardSet.open(shard_set).load_text("train"),), (1.0,))
        plan = TextPlan(mixture, seed=0, length=32, folder=tmp_path / "plan")
        return [plan.row(row).tolist() for row in range(40)]

    expected = rows()
    for path in sorted((tmp_path / "plan" / "epoch-00000").iterdir()):
        original = path.read_bytes()
        path.write_bytes(original[:-3] + bytes([original[-3] ^ 1]) + original[-2:])
        assert rows() == expected, path.name


def opened(folder: Path) -> RunDir:
    run = RunDir(folder)
    record = {"fingerprints": {"seed": 0}, "shards": []}
    run.open({"seed": 0, "log_every": 10}, record, torch.device("cpu"))
    return run


@pytest.mark.slow
def test_flipped_byte_in_run_metadata_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a run from continuing with a corrupted record or compute plan."""
    folder = tmp_path / "run"
    opened(folder).save_compute_plan({"micro_rows": 4})
    (folder / "metrics.jsonl").touch()
    for damage in damages(folder / RUN_FILE, 20):
        with pytest.raises(UserError, match=RUN_FILE):
            opened(folder)
        with pytest.raises(UserError, match=RUN_FILE):
            load_run_shard_set(folder)
        assert damage
    for damage in damages(folder / COMPUTE_PLAN_FILE, 10):
        assert opened(folder).load_compute_plan() is None, damage
        assert COMPUTE_PLAN_FILE in capsys.readouterr().err
    config = folder / CONFIG_FILE
    original = config.read_bytes()
    for place in range(len(original)):
        config.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        opened(folder)
        assert f"{CONFIG_FILE} was edited by hand, or is damaged" in capsys.readouterr().err, place
        assert config.read_bytes() == original
    assert opened(folder).load_compute_plan() == {"micro_rows": 4} and not capsys.readouterr().err
    assert yaml.safe_load(original) == {"seed": 0, "log_every": 10}


def test_run_without_steps_accepts_new_options(tmp_path: Path) -> None:
    """Prevents a folder from refusing the right options after a failed first attempt."""
    folder = tmp_path / "run"

    def open_run(hidden_size: int) -> None:
        record = {"fingerprints": {"model": {"hidden_size": hidden_size}}, "shards": []}
        RunDir(folder).open({}, record, torch.device("cpu"))

    open_run(7)
    (folder / "plan").mkdir()
    open_run(8)
    fingerprints = read_checksummed_json(folder / RUN_FILE)["fingerprints"]
    assert fingerprints == {"model": {"hidden_size": 8}} and not (folder / "plan").exists()
    (folder / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"model\.hidden_size.* 8 -> 9"):
        open_run(9)
