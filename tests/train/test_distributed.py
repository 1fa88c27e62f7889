"""Several processes train the run that one process trains: torchrun with gloo on a CPU."""

import json
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.metrics_file import read_metrics
from common.run_layout import EARLY_STOP_FILE, REFERENCE_DIR, list_steps, step_folder
from data.batching.collate import TextBatchLoader
from data.batching.text_rows import Mixture, TextPlan
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.checkpoint import weights
from model.checkpoint.locate import find_newest_step
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers import processes
from tests.helpers.parallel_jobs import run_training, truncate_run
from tests.helpers.preferences import write_pairs
from tests.helpers.training import (
    TINY_SHAPE,
    checkpoint_bytes,
    to_arguments,
    truncate_tokenizer,
    write_text_set,
)
from train import distributed

# Of pretraining, and of fine-tuning, which no test resumes.
STEPS, SFT_STEPS = 8, 4
# The run that 1, 2 and 4 processes pass on from checkpoint to checkpoint.
TIED = {"model.tie_word_embeddings": True, "checkpoint.every": 2}
# Sums in another order differ in the last bits, and Muon iterates in bf16: the losses of these
# steps agree to this relative difference.
TOLERANCE = 1e-3
COMMON: dict[str, Any] = {
    "model": TINY_SHAPE,
    "device": "cpu",
    "log_every": 1,
    "checkpoint.every": 4,
    "checkpoint.keep": 9,
    "evaluation.every": 4,
    "micro_batch": 2,
}
# In fp32, so that the order of sums is the only difference.
QLORA: dict[str, Any] = {
    "quantize": "nf4",
    "precision": "fp32",
    "gradient_checkpointing": "attention",
    "optimizer.name": "adamw8bit",
}
COMMAND_OPTIONS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "max_steps": STEPS,
        "sequence_length": 64,
        "batch_tokens": 512,
        "evaluation.sample_tokens": 2,
    },
    "sft": {
        "max_steps": SFT_STEPS,
        "base": "none",
        "optimizer.lr": 0.04,
        "optimizer.muon_lr": 0.04,
        "sequence_length": 256,
        "batch_tokens": 2048,
        "evaluation.examples": 1,
        "evaluation.max_new_tokens": 2,
    },
    "dpo": {
        "max_steps": SFT_STEPS,
        "optimizer.lr": 1e-3,
        "sequence_length": 128,
        "batch_tokens": 1024,
        "evaluation.examples": 1,
        "evaluation.max_new_tokens": 2,
    },
}


@dataclass(frozen=True)
class Runs:
    """The folder of all runs of this file, and of their data."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the directory of a run, or another path in the folder."""
        return self.folder / name

    def arguments(self, command: str, name: str, **changes: Any) -> list[str]:
        """Return the command line of a run."""
        data = self.path({"pretrain": "text", "sft": "csl", "dpo": "pairs"}[command])
        options = {**COMMON, **COMMAND_OPTIONS[command], "data": data, "run": self.path(name)}
        if command == "dpo":
            del options["model"]
            options["base"] = self.path("sft")
        return to_arguments({**options, **changes})

    def adapter_arguments(self, name: str, **changes: Any) -> list[str]:
        """Return the command line of an adapter with dropout, beside the model of the run `sft`.

        Other dropout masks would change the losses by 1 % and more.
        """
        adapter = {
            "base": self.path("sft"),
            "adapter": "lora",
            "lora.dropout": 0.5,
            "lora.targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
            "optimizer.lr": 0.04,
            "optimizer.muon_lr": 0.04,
        }
        return self.arguments("sft", name, **adapter, **changes)

    def truncate_job(self, source: str, target: str, step: int) -> list[Any]:
        """Return the job that copies a run as it was at its checkpoint of `step`."""
        return ["truncate", str(self.path(source)), str(self.path(target)), step]

    def run_jobs(self, num_processes: int, jobs: list[Any]) -> subprocess.CompletedProcess[str]:
        """Do the jobs under torchrun."""
        file = self.path("jobs.json")
        file.write_text(json.dumps(jobs))
        return processes.run_command("tests.helpers.parallel_jobs", str(num_processes), str(file))

    def store_output(self, num_processes: int, done: subprocess.CompletedProcess[str]) -> None:
        """Store what torchrun printed."""
        self.path(f"out-{num_processes}").write_text(done.stdout)
        self.path(f"err-{num_processes}").write_text(done.stderr)


@pytest.fixture(scope="module")
def one(root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Runs:
    """Data, and the runs of one process; one of them is cut off after step 2."""
    runs = Runs(tmp_path_factory.mktemp("parallel"))
    # Less text than a run reads: it crosses an epoch border.
    small_tokenizer = truncate_tokenizer(tokenizer)
    write_text_set(runs.path("text"), small_tokenizer, train=30, validation=6)
    sample = root / "assets/sample/summary/csl"
    source = SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))
    options = PrepareOptions(workers=1, limit=40)
    prepare_groups([source], runs.path("csl"), root / "assets/tokenizer", options)
    pairs = SourceGroup("preferences", (str(write_pairs(runs.path("pairs.jsonl"), 40)),))
    prepare_groups([pairs], runs.path("pairs"), root / "assets/tokenizer", options)
    run_training("pretrain", *runs.arguments("pretrain", "one"))
    run_training("pretrain", *runs.arguments("pretrain", "tied", **TIED))
    run_training("pretrain", *runs.arguments("pretrain", "narrow", precision="bf16"))
    run_training("sft", *runs.arguments("sft", "sft"))
    run_training("sft", *runs.adapter_arguments("lora"))
    run_training("dpo", *runs.arguments("dpo", "dpo"))
    run_training("sft", *runs.adapter_arguments("lora-nf4", **QLORA))
    truncate_run(str(runs.path("tied")), str(runs.path("relay")), 2)
    return runs


@pytest.fixture(scope="module")
def two(one: Runs) -> Runs:
    """The same runs on two processes, and the truncated run resumed."""
    jobs: list[Any] = [["muon"]]
    # Of fine-tuning with DDP the adapter is the stricter test.
    for command, strategy in (("pretrain", "ddp"), ("pretrain", "fsdp"), ("sft", "fsdp")):
        name = f"{command}-{strategy}-2"
        jobs.append(["train", command, *one.arguments(command, name, parallel=strategy)])
    for strategy in ("ddp", "fsdp"):
        narrow = {"parallel": strategy, "precision": "bf16"}
        name = f"narrow-{strategy}-2"
        jobs.append(["train", "pretrain", *one.arguments("pretrain", name, **narrow)])
    for strategy in ("ddp", "fsdp"):
        stopped = one.arguments("pretrain", f"stopped-{strategy}", parallel=strategy)
        jobs.append(["signal", signal.SIGTERM, 3, *stopped])
        jobs.append(["train", "pretrain", *stopped])
    jobs.append(["train", "sft", *one.adapter_arguments("lora-2")])
    for strategy in ("ddp", "fsdp"):
        name = f"dpo-{strategy}-2"
        jobs.append(["train", "dpo", *one.arguments("dpo", name, parallel=strategy)])
    jobs.append(["train", "sft", *one.adapter_arguments("lora-nf4-2", **QLORA)])
    # At this rate the second score is worse than the first.
    hasty = {"optimizer.lr": 9.0, "evaluation.every": 1, "evaluation.patience": 1}
    jobs.append(["complete", "sft", *one.arguments("sft", "impatient", **hasty)])
    jobs.append(["refuse", *one.adapter_arguments("lora-fsdp", parallel="fsdp")])
    jobs.append(["train", "pretrain", *one.arguments("pretrain", "relay", **TIED)])
    done = one.run_jobs(2, jobs)
    one.store_output(2, done)
    assert done.returncode == 0, done.stderr
    return one


@pytest.fixture(scope="module")
def four(two: Runs) -> Runs:
    """Four processes: the tied run of two processes resumed, and one process killed."""
    relay = two.arguments("pretrain", "relay-4", parallel="fsdp", **TIED)
    jobs = [
        two.truncate_job("relay", "relay-4", 4),
        ["train", "pretrain", *relay],
        [
            "signal",
            signal.SIGKILL,
            3,
            *two.arguments("pretrain", "killed", **{"checkpoint.every": 2}),
        ],
    ]
    done = two.run_jobs(4, jobs)
    two.store_output(4, done)
    two.path("end-time").write_text(str(time.time()))
    assert find_newest_step(two.path("relay-4")) == STEPS, done.stderr
    return two


def losses(run: Path, kind: str = "train") -> list[float]:
    """Return the losses of a run, of all its steps or of its evaluations."""
    records = [record for record in read_metrics(run) if record["kind"] == kind]
    last_step = find_newest_step(run)
    assert last_step == (SFT_STEPS if run.name.startswith(("sft", "lora", "dpo")) else STEPS)
    steps = range(1, last_step + 1) if kind == "train" else range(4, last_step + 1, 4)
    assert [record["step"] for record in records] == list(steps)
    return [record["loss"] for record in records]


def assert_same_run(run: Path, other: Path, *, learns: bool = True) -> None:
    """Compare metrics and checkpoints of two runs, numbers within TOLERANCE."""
    expected = losses(other)
    assert expected[-1] < 0.95 * expected[0] or not learns
    assert losses(run) == pytest.approx(expected, rel=TOLERANCE)
    assert losses(run, "validation") == pytest.approx(losses(other, "validation"), rel=TOLERANCE)
    records, other_records = read_metrics(run), read_metrics(other)
    assert len(records) == len(other_records)
    for record, other_record in zip(records, other_records, strict=True):
        if record["kind"] == "train":
            assert record["tokens"] == other_record["tokens"]
            assert record["epoch"] == other_record["epoch"]
            assert record["grad_norm"] == pytest.approx(other_record["grad_norm"], rel=0.02)
    assert find_newest_step(run) == find_newest_step(other)
    folder, other_folder = step_folder(run, len(expected)), step_folder(other, len(expected))
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in other_folder.iterdir())
    assert (folder / "config.json").read_bytes() == (other_folder / "config.json").read_bytes()
    for name in names:
        if name.endswith(".safetensors"):
            assert_close_tensors(folder / name, other_folder / name)


def assert_close_tensors(file: Path, other_file: Path) -> None:
    """Compare two files of tensors: names, types and shapes exactly, numbers roughly."""
    tensors, other_tensors = load_file(file), load_file(other_file)
    assert tensors.keys() == other_tensors.keys()
    for key, tensor in tensors.items():
        other = other_tensors[key]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        # Muon amplifies small differences of gradients. A shard in place of the whole tensor
        # would be apart by 1.
        distance = torch.dist(tensor.float(), other.float())
        assert distance <= 0.2 * other.float().norm(), (file.name, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name", "strategy"),
    [
        ("pretrain", "one", "ddp"),
        ("pretrain", "one", "fsdp"),
        ("narrow", "narrow", "ddp"),
        ("narrow", "narrow", "fsdp"),
        ("sft", "sft", "fsdp"),
        ("dpo", "dpo", "ddp"),
        ("dpo", "dpo", "fsdp"),
    ],
)
def test_two_processes_match_single_process_run(
    two: Runs, command: str, name: str, strategy: str
) -> None:
    """Catch gradients with another scale, rows read twice, and shards saved as whole tensors."""
    run = two.path(f"{command}-{strategy}-2")
    assert_same_run(run, two.path(name), learns=command != "dpo")
    model, _ = weights.load_checkpoint(run, torch.device("cpu"))
    assert model.config.num_hidden_layers == 2


@pytest.mark.slow
def test_two_processes_share_the_reference_of_preferences(two: Runs) -> None:
    """Catch a rank with a reference of its own, and measures of one rank's pairs alone."""
    for strategy in ("ddp", "fsdp"):
        run, whole = two.path(f"dpo-{strategy}-2"), two.path("dpo")
        for file in (Path(REFERENCE_DIR, "train.npy"), Path(REFERENCE_DIR, "validation.npy")):
            assert (run / file).read_bytes() == (whole / file).read_bytes()
        records = [
            [record for record in read_metrics(each) if record["kind"] == "train"]
            for each in (run, whole)
        ]
        for record, expected in zip(*records, strict=True):
            for name in ("margin", "chosen_log_prob", "rejected_log_prob", "rejected_tokens"):
                assert record[name] == pytest.approx(expected[name], rel=1e-3, abs=2e-3)


@pytest.mark.slow
def test_two_processes_match_single_process_lora(two: Runs) -> None:
    """Catch dropout drawn per process in place of per row."""
    # Both embedding tables are random and frozen, which leaves an adapter little to learn.
    assert_same_run(two.path("lora-2"), two.path("lora"), learns=False)
    folders = [step_folder(two.path(name), SFT_STEPS) for name in ("lora-2", "lora")]
    for name in ("adapter_config.json", "base.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.slow
def test_two_processes_match_single_process_qlora(two: Runs) -> None:
    """Catch ranks with other 4-bit weights, and gradients of repeated layers reduced twice."""
    assert_same_run(two.path("lora-nf4-2"), two.path("lora-nf4"), learns=False)


@pytest.mark.slow
def test_fsdp_lora_is_refused_before_run_is_created(two: Runs) -> None:
    """Catch an error of torch in the middle of a run, and one line per process."""
    output = two.path("out-2").read_text().splitlines()
    (line,) = (line for line in output if line.startswith("refused: "))
    assert "--parallel fsdp" in line and "use --parallel ddp" in line
    assert not two.path("lora-fsdp").exists()


@pytest.mark.slow
def test_four_processes_train_a_tied_model(four: Runs) -> None:
    """Catch a table that embedding and head share gathered, updated or saved twice."""
    assert_same_run(four.path("relay-4"), four.path("tied"))


@pytest.mark.slow
def test_run_resumes_with_any_world_size(four: Runs) -> None:
    """Catch another order of data after a resume: 1 process to step 2, 2 to 4, 4 to 6, 1 to 8."""
    run = four.path("relay-1")
    if not run.exists():
        truncate_run(str(four.path("relay-4")), str(run), 6)
        run_training("pretrain", *four.arguments("pretrain", "relay-1", **TIED))
    assert_same_run(run, four.path("tied"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_signal_to_one_rank_stops_all_ranks_at_same_step(two: Runs, strategy: str) -> None:
    """Catch ranks that wait for one that left the step, and half a step applied or logged.

    The resumed run also shows optimizer state that is lost or rounded between processes and disk.
    """
    run, whole = two.path(f"stopped-{strategy}"), two.path(f"pretrain-{strategy}-2")
    assert two.path("out-2").read_text().count("saved after step 3 of 8") == 2
    assert list_steps(run) == sorted({*list_steps(whole), 3})
    assert losses(run) == losses(whole)
    assert checkpoint_bytes(run, STEPS) == checkpoint_bytes(whole, STEPS)


@pytest.mark.slow
def test_run_out_of_patience_is_complete_on_all_ranks(two: Runs) -> None:
    """Catch ranks without the scores, which end in an error what the main process completed."""
    assert find_newest_step(two.path("impatient")) == 2
    assert (two.path("impatient") / EARLY_STOP_FILE).is_file()


@pytest.mark.slow
def test_killed_rank_ends_others_with_one_line_error(four: Runs) -> None:
    """Catch three ranks that wait for ever, three tracebacks, and a run that cannot be resumed."""
    errors = four.path("err-4").read_text()
    (line,) = (line for line in errors.splitlines() if line.startswith("error:"))
    assert re.search("another process of (this run|it) has ended", line)
    assert "the same command resumes" in line
    tracebacks = re.findall("^Traceback.*", errors, re.MULTILINE)
    assert tracebacks == ["Traceback (most recent call last):"]  # of torchrun itself
    killed_at = four.path("killed/metrics.jsonl").stat().st_mtime
    # The promise is 30 seconds. A busy machine takes longer; ranks that hang take 10 minutes.
    assert float(four.path("end-time").read_text()) - killed_at < 120
    assert find_newest_step(four.path("killed")) == 2


@pytest.mark.slow
def test_only_rank_zero_prints(four: Runs) -> None:
    """Catch every line two or four times."""
    for count, num_runs in ((2, 15), (4, 2)):
        lines = four.path(f"out-{count}").read_text().splitlines()
        assert sum(line.startswith("run ") for line in lines) == num_runs
        assert sum(line.startswith("model ") for line in lines) == num_runs
        assert sum(line.startswith(f"processes {count} (") for line in lines) == num_runs


@pytest.mark.slow
def test_user_error_is_one_line_at_any_world_size(one: Runs) -> None:
    """Catch a line per process, and a process that waits for another; torchrun with forks."""
    arguments = one.arguments("pretrain", "wrong", batch_tokens=320)
    done = one.run_jobs(2, [["command", "train.pretrain", *arguments]])
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert done.returncode
    assert "5 rows of 64, which 2 processes cannot share evenly" in line
    assert not one.path("wrong").exists() and done.stdout == ""


def test_ranks_split_rows_of_a_step(tmp_path: Path, shard_set: Path) -> None:
    """Catch a row that two ranks read, or none, whatever their number."""
    mixture = Mixture((ShardSet.open(shard_set).load_text("train"),), (1.0,))
    plan = TextPlan(mixture, seed=0, length=32, folder=tmp_path / "plan")
    for step in (0, 7):
        (whole,) = TextBatchLoader(plan, 8).micro_batches(step, 8)
        for world_size in (2, 4, 8):
            ids = []
            for rank in range(world_size):
                batches = TextBatchLoader(plan, 8, rank=rank, world_size=world_size)
                assert batches.global_rows(step) == range(8 * step, 8 * step + 8)
                ids += [batch.ids for batch in batches.micro_batches(step, 1)]
            assert torch.equal(torch.cat(ids), whole.ids)


def test_indivisible_batch_error_suggests_valid_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch rows that are dropped, and a traceback for a wrong number of processes."""
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    distributed.check_rows_divisible(9, 64)
    message = "--batch_tokens 512 is 8 rows of 64, which 3 .*use 1, 2, 4, 8 .* --batch_tokens 576"
    with pytest.raises(UserError, match=message):
        distributed.check_rows_divisible(8, 64)


def test_gathered_model_keeps_what_is_not_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch samples under FSDP that hold ids without a token, or are of another length."""
    monkeypatch.setattr(distributed, "is_sharded", lambda _: True)
    monkeypatch.setattr(distributed, "full_tensor", lambda tensor: tensor)
    model = Llama(LlamaConfig(9, num_key_value_heads=4, **TINY_SHAPE)).init_weights(0)
    model.trained_context, model.unused_ids = 5, (7, 8)
    whole = distributed.gather_model(model)
    assert whole is not model and torch.equal(whole.lm_head.weight, model.lm_head.weight)
    assert (whole.trained_context, whole.unused_ids) == (5, (7, 8))


def test_single_process_is_not_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch a process group, a wrapper or a copy that a single process pays for."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.distributed_session():
        assert not torch.distributed.is_initialized()
        model = Llama(LlamaConfig(9, num_key_value_heads=4, **TINY_SHAPE))
        assert distributed.wrap_model(model, "fsdp") is model
        assert distributed.wrap_model(model, "ddp") is model
        assert distributed.gather_model(model) is model
        assert distributed.all_reduce_sum(3, 0.1) == [3, 0.1]
        value = object()
        assert distributed.broadcast_object(value) is value
        assert distributed.main_process_first(lambda: value) is value
        assert distributed.any_rank(True)
        distributed.barrier()
        distributed.check_rows_divisible(7, 64)
