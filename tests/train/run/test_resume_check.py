"""A run that is resumed with another description: the differences, each on a line of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.run_layout import METRICS_FILE
from train.run.directory import RunDir
from train.run.resume_check import find_differences

CPU = torch.device("cpu")
OLD_SHA, NEW_SHA = "1234abcd" + "0" * 56, "98765432" + "0" * 56


def record(data: str = "prepared/text", sha: str = OLD_SHA, **fingerprints: Any) -> dict[str, Any]:
    """Return the record of a run on one set."""
    sets = [{"set": sha, "weight": fingerprints.pop("weight", 1.0)}]
    return {"shards": [str(Path(data).resolve())], "fingerprints": {"data": sets, **fingerprints}}


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"seed": 0}, {"seed": 0}, []),
        ({"seed": 0}, {"seed": 7}, ["seed: 0 -> 7"]),
        ({"model": {"a": 1, "b": 2}}, {"model": {"a": 1, "b": 3, "c": 4}},
         ["model.b: 2 -> 3", "model.c: None -> 4"]),
        ({"tokenizer": OLD_SHA}, {"tokenizer": NEW_SHA}, ["tokenizer: 1234abcd -> 98765432"]),
        ({"base": "none"}, {"base": NEW_SHA}, ["base: none -> 98765432"]),
        ({"adapter": "none"}, {"adapter": {"lora": {"rank": 8}}},
         ["adapter: none -> {'lora': {'rank': 8}}"]),
        ({}, {"model": {"a": 1}}, []),
    ],
)  # fmt: skip
def test_each_difference_is_named_with_both_values(
    old: dict[str, Any], new: dict[str, Any], lines: list[str]
) -> None:
    """Prevent a refusal that leaves the user to guess, and one for what an old record lacks."""
    assert find_differences(record(**old), record(**new)) == lines


@pytest.mark.parametrize(
    ("new", "line"),
    [
        (
            record("prepared/zhihu-04ef61cc", NEW_SHA),
            "data: prepared/sample-zhihu-e2752e43 (content 1234abcd) -> "
            "prepared/zhihu-04ef61cc (content 98765432)",
        ),
        (
            record("prepared/sample-zhihu-e2752e43", NEW_SHA),
            "data: prepared/sample-zhihu-e2752e43 (content 1234abcd) -> "
            "prepared/sample-zhihu-e2752e43 (content 98765432)",
        ),
        (
            record("prepared/sample-zhihu-e2752e43", weight=0.5),
            "data: prepared/sample-zhihu-e2752e43 (content 1234abcd) -> "
            "prepared/sample-zhihu-e2752e43:0.5 (content 1234abcd)",
        ),
    ],
)
def test_changed_data_is_named_as_the_option_takes_it(new: dict[str, Any], line: str) -> None:
    """Prevent a refusal that names two checksums, from which nobody knows what to give again."""
    assert find_differences(record("prepared/sample-zhihu-e2752e43"), new) == [line]


def test_moved_data_is_no_difference() -> None:
    """Prevent a run that cannot be resumed after its project was moved or copied."""
    assert find_differences(record("here/text"), record("there/text")) == []


def test_refusal_gives_both_remedies(tmp_path: Path) -> None:
    """Prevent a resumed run that silently trains something else."""
    folder = tmp_path / "run"
    RunDir(folder).open({"seed": 0}, record(seed=0), CPU)
    (folder / METRICS_FILE).touch()
    with pytest.raises(UserError) as refused:
        RunDir(folder).open({"seed": 7}, record(seed=7), CPU)
    first, difference, remedy = str(refused.value).splitlines()
    assert first == f"{folder} was started with other values (old -> new):"
    assert difference.strip() == "seed: 0 -> 7"
    assert "RUN=runs/NAME (--run runs/NAME)" in remedy
    assert str(folder / "config.yaml") in remedy
    assert "seed: 0" in (folder / "config.yaml").read_text()


def test_another_scaling_is_refused_in_one_line(tmp_path: Path) -> None:
    """Prevents a list of what a scaling changes in a model, from which nobody knows the option."""
    folder = tmp_path / "run"
    scaling = {"rope_type": "yarn", "factor": 8.0}
    model = {"hidden_size": 4, "max_position_embeddings": 512, "rope_scaling": scaling}
    RunDir(folder).open({}, record(model=model), CPU)
    (folder / METRICS_FILE).touch()
    changed = {"max_position_embeddings": 1024, "rope_scaling": {**scaling, "factor": 16.0}}
    with pytest.raises(UserError) as refused:
        RunDir(folder).open({}, record(model={**model, **changed}), CPU)
    message = str(refused.value)
    assert "\n" not in message and "model.rope_scaling.factor: 8.0 -> 16.0" in message
    assert "leave out --model.rope_scaling" in message and f"--base {folder}" in message
    with pytest.raises(UserError, match="was started with other values"):
        RunDir(folder).open({}, record(model={**model, **changed, "hidden_size": 8}), CPU)


@pytest.mark.parametrize(
    ("values", "is_longer"),
    [({"max_steps": 9}, True), ({"epochs": 3.0, "max_steps": None}, True),
     ({"max_steps": 9, "seed": 7}, True), ({"max_steps": 9, "model": {"hidden_size": 8}}, False)],
)  # fmt: skip
def test_longer_run_is_referred_to_a_run_from_its_model(
    tmp_path: Path, values: dict[str, Any], is_longer: bool
) -> None:
    """Prevent training anew for days, where the finished model only has to train on."""
    folder = tmp_path / "my run"
    old = {"seed": 0, "max_steps": 5, "epochs": 2.0, "model": {"hidden_size": 4}}
    RunDir(folder).open({}, record(**old), CPU)
    (folder / METRICS_FILE).touch()
    with pytest.raises(UserError) as refused:
        RunDir(folder).open({}, record(**{**old, **values}), CPU)
    remedy = str(refused.value).splitlines()[-1]
    advice = f"'BASE={folder}' RUN=runs/NAME (--base '{folder}' --run runs/NAME)"
    assert (advice in remedy) == is_longer
    assert str(folder / "config.yaml") in remedy
