"""What becomes of a run on the sample's part of a name: before the real data of that name is here, and after it came."""

import re
import sys
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.metrics_file import METRICS_FILE
from model.config import LlamaConfig
from model.llama import Llama
from train import pretrain
from train.autotune import ComputePlan
from train.options import PretrainOptions
from train.run_dir import RunDir
from train.startup import print_run_summary


@pytest.fixture
def refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the reference configuration says where zhihu is not prepared; a run that would begin is an OSError."""

    def opened(*_: object) -> None:
        raise OSError("begins")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "open_run", opened)
    return start(monkeypatch, root, UserError)


def start(monkeypatch: pytest.MonkeyPatch, root: Path, ends: type[Exception], *words: str) -> str:
    config = str(root / "configs" / "pretrain-43m.yaml")
    monkeypatch.setattr(
        sys, "argv", ["pretrain", "--config", config, "--data", "zhihu", "--run", "runs/x", *words]
    )
    with pytest.raises(ends) as said:
        pretrain.main()
    return str(said.value)


def test_fallback_sample_limits_epochs(
    refused: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day of a GPU on 29,000 epochs of 100 kB, because `make data` was forgotten; a cure that is refused as well."""
    assert re.search(
        r"--data zhihu: 10,000 steps are 29,\d\d\d epochs of the shipped sample's part, which stands in",
        refused,
    )
    assert "get the real text first (make data DATA=zhihu)" in refused and "\n" not in refused
    assert not Path("runs").exists()
    most = re.search(r"--max_steps (\d+)$", refused)
    assert most is not None
    assert start(monkeypatch, root, OSError, "--max_steps", most[1]) == "begins"
    assert "epochs of the shipped" in start(
        monkeypatch, root, UserError, "--max_steps", str(int(most[1]) + 1)
    )


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            "zhihu",
            "trained on the shipped sample's part, which stood in for zhihu before the real zhihu was prepared",
        ),
        (
            "wikipedia",
            r"was trained on zhihu \(sample-zhihu-e2752e43\) and not on wikipedia \(wikipedia-04ef61cc\): go on with "
            r"DATA=zhihu \(--data zhihu\)",
        ),
    ],
)
def test_resume_on_fallback_sample_reports_available_data(
    tmp_path: Path, now: str, said: str
) -> None:
    """Three lines about data, tokenizer and shape for somebody who did what the first line told them: `make data`."""
    run, cpu = tmp_path / "run", torch.device("cpu")
    RunDir(run).open(
        {"data": "zhihu"}, {"data": "of the sample"}, [Path("prepared/sample-zhihu-e2752e43")], cpu
    )
    (run / METRICS_FILE).touch()
    with pytest.raises(UserError, match=said) as refused:
        RunDir(run).open({"data": now}, {"data": "real"}, [Path(f"prepared/{now}-04ef61cc")], cpu)
    assert "RUN=runs/NAME (--run runs/NAME)" in str(refused.value) and "\n" not in str(
        refused.value
    )


def test_changed_data_is_reported(tmp_path: Path) -> None:
    """A cure that is what was done: the same name, and other content behind it by now."""
    run, cpu, folder = tmp_path / "run", torch.device("cpu"), Path("prepared/mine-e2752e43")
    RunDir(run).open({"data": "mine.txt"}, {"data": "before"}, [folder], cpu)
    (run / METRICS_FILE).touch()
    with pytest.raises(
        UserError,
        match=r"trained on mine\.txt \(mine-e2752e43\), and what lies there now has other content",
    ):
        RunDir(run).open({"data": "mine.txt"}, {"data": "now"}, [folder], cpu)


@pytest.mark.parametrize(("epochs", "said"), [(40.0, False), (41.0, True)])
def test_many_epochs_of_real_text_give_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: float, said: bool
) -> None:
    """A small corpus read a thousand times, of which only the loss on held-out text tells, hours later; a run in vain."""
    shape = LlamaConfig(
        300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    print_run_summary(
        PretrainOptions(),
        RunDir(tmp_path / "run"),
        Llama(shape),
        ComputePlan("cpu", "fp32", False, 1, "chunked"),
        name="tiny",
        data="mine",
        epochs=epochs,
        flops=1.0,
        has_validation_data=True,
    )
    assert ("text read 40 times teaches next to nothing more" in capsys.readouterr().out) == said
