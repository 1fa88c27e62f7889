"""Several processes train the run that one trains: real processes under torchrun, gloo on a CPU, compared with one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.files import atomic_folder
from common.metrics_file import read_metrics
from data.batching.collate import TextBatchLoader
from data.batching.text_rows import Mixture, TextPlan
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.sequences import ShardWriter
from data.shards import SHARD_FORMAT, ShardSet
from model.checkpoint import weights
from model.checkpoint.locate import find_newest_step, list_steps, step_folder
from model.llama import Llama
from tests.helpers import processes
from tests.helpers.parallel_jobs import run_training, truncate_run
from train import distributed

STEPS = 8
# Sums in another order differ in the last bits, and Muon iterates in bf16: over these steps the losses agree to this.
TOLERANCE = 1e-3
SHAPE = [
    "--model.hidden_size",
    "32",
    "--model.intermediate_size",
    "64",
    "--model.num_hidden_layers",
    "2",
    "--model.num_attention_heads",
    "4",
]
OFTEN = [
    "--device",
    "cpu",
    "--log_every",
    "1",
    "--checkpoint.every",
    "2",
    "--checkpoint.keep",
    "9",
    "--max_steps",
    str(STEPS),
    "--evaluation.every",
    "4",
    "--micro_batch",
    "2",
]
Runs = dict[str, Path]


def words(kind: str, runs: Runs, name: str, *more: str) -> list[str]:
    """The command line of a run."""
    own = {
        "pretrain": [
            "--data",
            str(runs["text"]),
            "--sequence_length",
            "64",
            "--batch_tokens",
            "512",
            "--evaluation.sample_tokens",
            "2",
        ],
        "sft": [
            "--data",
            str(runs["csl"]),
            "--base",
            "none",
            "--sequence_length",
            "256",
            "--batch_tokens",
            "2048",
            "--evaluation.examples",
            "1",
            "--evaluation.max_new_tokens",
            "2",
        ],
    }[kind]
    return [*OFTEN, *SHAPE, *own, "--run", str(runs["folder"] / name), *more]


def job(kind: str, runs: Runs, name: str, *more: str) -> list[str]:
    return ["train", kind, *words(kind, runs, name, *more)]


def adapter(runs: Runs, name: str, *more: str) -> list[str]:
    """The command line of an adapter with dropout, beside what the run of one process has learned; with so much dropout, and
    at such a rate, that other draws are losses 1 % and more apart."""
    targets = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    return words(
        "sft",
        runs,
        name,
        "--base",
        str(runs["folder"] / "sft"),
        "--adapter",
        "lora",
        "--lora.dropout",
        "0.5",
        "--lora.targets",
        targets,
        "--optimizer.lr",
        "0.02",
        *more,
    )


def copy(runs: Runs, source: str, target: str, step: int) -> list[Any]:
    return ["cut", str(runs["folder"] / source), str(runs["folder"] / target), step]


def do(runs: Runs, count: int, jobs: list[Any]) -> subprocess.CompletedProcess[str]:
    file = runs["folder"] / f"jobs-{count}.json"
    file.write_text(json.dumps(jobs))
    return processes.run_command("tests.helpers.parallel_jobs", str(count), str(file))


@pytest.fixture(scope="module")
def one(
    root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Runs:
    """Data, and the runs of one process: whole ones, and one that was cut off after step 2."""
    folder = tmp_path_factory.mktemp("parallel")
    runs = {"folder": folder, "text": folder / "text", "csl": folder / "csl"}
    tokenizer, draw = request.getfixturevalue("tokenizer"), np.random.default_rng(0)
    with atomic_folder(
        runs["text"], {"format": SHARD_FORMAT, "kind": "documents", "splits": {}}
    ) as made:
        (made / "tokenizer.model").write_bytes(tokenizer.serialized)
        for split, count in (
            ("train", 30),
            ("validation", 6),
        ):  # less than the run reads: an epoch border is crossed
            writer = ShardWriter(made, split, tokenizer.vocabulary_size)
            for length in draw.integers(10, 200, count):
                writer.add(400 + (draw.integers(50) + 3 * np.arange(length)) % 50)
            writer.close()
    sample = root / "assets/sample/summary/csl"
    prepare_groups(
        [SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))],
        runs["csl"],
        root / "assets/tokenizer",
        PrepareOptions(workers=1, limit=40),
    )
    run_training("pretrain", *words("pretrain", runs, "one"))
    run_training(
        "pretrain", *words("pretrain", runs, "tied", "--model.tie_word_embeddings", "true")
    )
    run_training("sft", *words("sft", runs, "sft"))
    run_training("sft", *adapter(runs, "lora"))
    truncate_run(str(folder / "one"), str(folder / "relay"), 2)
    return runs


@pytest.fixture(scope="module")
def two(one: Runs) -> Runs:
    """The same with two processes, and the cut run continued."""
    jobs = [["muon"]]
    for how in ("ddp", "fsdp"):
        jobs += [
            job(kind, one, f"{kind}-{how}-2", "--parallel", how) for kind in ("pretrain", "sft")
        ]
        jobs += [
            copy(one, f"pretrain-{how}-2", f"again-{how}", 4),
            job("pretrain", one, f"again-{how}", "--parallel", how),
        ]
        stopped = words("pretrain", one, f"stopped-{how}", "--parallel", how)
        jobs += [["signalled", signal.SIGTERM, 3, *stopped], ["train", "pretrain", *stopped]]
    jobs += [
        ["train", "sft", *adapter(one, "lora-2")],
        ["refused", *adapter(one, "lora-fsdp", "--parallel", "fsdp")],
    ]
    jobs += [job("pretrain", one, "relay")]
    done = do(one, 2, jobs)
    assert done.returncode == 0, done.stderr
    (one["folder"] / "out-2").write_text(done.stdout)
    return one


@pytest.fixture(scope="module")
def four(two: Runs) -> Runs:
    """Four processes: a tied model, two runs continued from two processes, and at last one of the four killed."""
    jobs = [
        job("pretrain", two, "tied-4", "--parallel", "fsdp", "--model.tie_word_embeddings", "true"),
        copy(two, "relay", "relay-4", 4),
        job("pretrain", two, "relay-4", "--parallel", "fsdp"),
        ["signalled", signal.SIGKILL, 7, *words("pretrain", two, "killed")],
    ]
    done = do(two, 4, jobs)
    (two["folder"] / "ended").write_text(str(time.time()))
    (two["folder"] / "out-4").write_text(done.stdout)
    (two["folder"] / "err-4").write_text(done.stderr)
    assert find_newest_step(two["folder"] / "relay-4") == STEPS, done.stderr
    return two


def losses(run: Path, kind: str = "train") -> list[float]:
    found = [record for record in read_metrics(run) if record["kind"] == kind]
    assert [record["step"] for record in found] == list(
        range(1, STEPS + 1) if kind == "train" else range(4, STEPS + 1, 4)
    )
    return [record["loss"] for record in found]


def assert_same_run(run: Path, other: Path, *, learns: bool = True) -> None:
    """Losses, tokens, accuracies and the form of the checkpoint are those of the other run; numbers within TOLERANCE."""
    expected = losses(other)
    assert expected[-1] < 0.95 * expected[0] or not learns
    assert losses(run) == pytest.approx(expected, rel=TOLERANCE)
    assert losses(run, "validation") == pytest.approx(losses(other, "validation"), rel=TOLERANCE)
    for key, slack in (("tokens", 0), ("epoch", 0), ("grad_norm", 0.02)):
        values = [
            [record[key] for record in read_metrics(each) if record["kind"] == "train"]
            for each in (run, other)
        ]
        assert values[0] == pytest.approx(values[1], rel=slack), key
    assert len(read_metrics(run)) == len(read_metrics(other))
    mine, its = step_folder(run, STEPS), step_folder(other, STEPS)
    assert sorted(path.name for path in mine.iterdir()) == sorted(
        path.name for path in its.iterdir()
    )
    assert (mine / "config.json").read_bytes() == (its / "config.json").read_bytes()
    for name in sorted(path.name for path in its.glob("*.safetensors")):
        ours, theirs = load_file(mine / name), load_file(its / name)
        assert {key: (t.dtype, t.shape) for key, t in ours.items()} == {
            key: (t.dtype, t.shape) for key, t in theirs.items()
        }
        for key, tensor in ours.items():
            # Muon makes much of the little that gradients differ by. Parts that are no whole are apart by 1.
            assert (
                torch.dist(tensor.float(), theirs[key].float()) <= 0.2 * theirs[key].float().norm()
            ), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize(("kind", "name"), [("pretrain", "one"), ("sft", "sft")])
def test_two_processes_match_single_process_run(two: Runs, how: str, kind: str, name: str) -> None:
    """Gradients averaged where they should be summed, rows read twice, positions with a loss counted per process, parts of
    weights or of optimiser state taken for the whole."""
    assert_same_run(two["folder"] / f"{kind}-{how}-2", two["folder"] / name)
    model, _ = weights.load_checkpoint(two["folder"] / f"{kind}-{how}-2", torch.device("cpu"))
    assert model.config.num_hidden_layers == 2


@pytest.mark.slow
def test_two_processes_match_single_process_lora(two: Runs) -> None:
    """Dropout that is drawn for a process and not for the row; thin matrices of which only one process's part is kept."""
    both, one = two["folder"] / "lora-2", two["folder"] / "lora"
    # Two tables of random numbers that are frozen leave an adapter little to learn.
    assert_same_run(both, one, learns=False)
    for name in ("adapter_config.json", "base.json"):
        assert (step_folder(both, STEPS) / name).read_bytes() == (
            step_folder(one, STEPS) / name
        ).read_bytes()


@pytest.mark.slow
def test_fsdp_lora_is_refused_before_run_is_created(two: Runs) -> None:
    """A fault of torch's own in the middle of a run, or a line for every process."""
    said = [
        line
        for line in (two["folder"] / "out-2").read_text().splitlines()
        if line.startswith("refused: ")
    ]
    assert len(said) == 1 and "--parallel fsdp" in said[0] and "use --parallel ddp" in said[0]
    assert not (two["folder"] / "lora-fsdp").exists()


@pytest.mark.slow
def test_four_processes_train_a_tied_model(four: Runs) -> None:
    """A table that embedding and head share gathered, moved or saved twice."""
    assert_same_run(four["folder"] / "tied-4", four["folder"] / "tied")


@pytest.mark.slow
def test_run_resumes_with_any_world_size(four: Runs) -> None:
    """Another order of data after a resume on other hardware: 1 process to step 2, 2 to 4, 4 to 6, 1 to 8, DDP and FSDP."""
    run = four["folder"] / "relay-1"
    if not run.exists():
        truncate_run(str(four["folder"] / "relay-4"), str(run), 6)
        run_training("pretrain", *words("pretrain", four, "relay-1"))
    assert_same_run(run, four["folder"] / "one")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_same_world_size_resume_is_bit_identical(two: Runs, how: str) -> None:
    """Optimiser state that is lost or rounded on its way from the processes to the disk and back."""
    folders = [
        step_folder(two["folder"] / name, STEPS) for name in (f"pretrain-{how}-2", f"again-{how}")
    ]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_signal_to_one_rank_stops_all_ranks_at_same_step(two: Runs, how: str) -> None:
    """Processes that wait for one that has left the step; a checkpoint of half of them; a step half of which was applied, or
    logged, before it is made again."""
    run, whole = two["folder"] / f"stopped-{how}", two["folder"] / f"pretrain-{how}-2"
    assert (two["folder"] / "out-2").read_text().count("saved after step 3 of 8") == 2
    assert list_steps(run) == sorted({*list_steps(whole), 3}) and losses(run) == losses(whole)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (step_folder(run, STEPS) / name).read_bytes() == (
            step_folder(whole, STEPS) / name
        ).read_bytes()


@pytest.mark.slow
def test_killed_rank_ends_others_with_one_line_error(four: Runs) -> None:
    """Three processes that wait for ever, or three tracebacks; a run that cannot go on."""
    said = (four["folder"] / "err-4").read_text()
    (line,) = (line for line in said.splitlines() if line.startswith("error:"))
    assert (
        re.search("another process of (this run|it) has ended", line)
        and "the same command goes on" in line
    )
    assert re.findall("^Traceback.*", said, re.MULTILINE) == [
        "Traceback (most recent call last):"
    ]  # torchrun's own
    killed = (four["folder"] / "killed/metrics.jsonl").stat().st_mtime
    # The promise is 30 seconds; a machine that is busy with other things takes longer, one that hangs 10 minutes.
    assert float((four["folder"] / "ended").read_text()) - killed < 120
    assert find_newest_step(four["folder"] / "killed") == 6


@pytest.mark.slow
def test_only_rank_zero_prints(four: Runs) -> None:
    """Every line two or four times."""
    for count in (2, 4):
        said = (four["folder"] / f"out-{count}").read_text().splitlines()
        assert len(said) > 50
        assert sum(line.startswith("model ") for line in said) == sum(
            line.startswith("run ") for line in said
        )
        assert sum(line.startswith(f"processes {count} (") for line in said) == sum(
            line.startswith("model ") for line in said
        )


@pytest.mark.slow
def test_user_error_is_one_line_at_any_world_size(root: Path, one: Runs) -> None:
    """The same line once a process, or a process that waits for one that has left; the real entry point under torchrun."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "--",
            "train.pretrain",
            *words("pretrain", one, "wrong", "--batch_tokens", "320"),
        ],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert (
        done.returncode
        and "5 rows of 64, which 2 processes cannot share evenly" in line
        and "exitcode  : 2" in done.stderr
    )
    assert not (one["folder"] / "wrong").exists() and done.stdout == ""


def test_ranks_split_rows_of_a_step(tmp_path: Path, shard_set: Path) -> None:
    """A row that two processes read, or none; another order of data on another number of processes."""
    plan = TextPlan(
        Mixture((ShardSet.open(shard_set).load_split("train"),), (1.0,)),
        seed=0,
        length=32,
        folder=tmp_path / "plan",
    )
    for step in (0, 7):
        (whole,) = TextBatchLoader(plan, 8).micro_batches(step, 8)
        for world in (2, 4, 8):
            each = [TextBatchLoader(plan, 8, rank=rank, world_size=world) for rank in range(world)]
            rows = torch.cat(
                [batch.ids for batches in each for batch in batches.micro_batches(step, 1)]
            )
            assert torch.equal(rows, whole.ids)
            assert all(
                batches.global_rows(step) == range(8 * step, 8 * step + 8) for batches in each
            )


def test_indivisible_batch_error_suggests_valid_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows dropped, or a traceback, where a number is wrong."""
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    distributed.check_rows_divisible(9, 64)
    with pytest.raises(
        UserError,
        match=r"--batch_tokens 512 is 8 rows of 64, which 3 .*use 1, 2, 4, 8 .* --batch_tokens 576",
    ):
        distributed.check_rows_divisible(8, 64)


def test_single_process_is_not_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group, a wrapper or a copy that one process pays for; a torchrun of one process that is another thing."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.distributed_session():
        assert not torch.distributed.is_initialized()
        model = Llama(
            weights.LlamaConfig(
                vocab_size=9,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
            )
        )
        assert (
            distributed.wrap_model(model, "fsdp")
            is distributed.wrap_model(model, "ddp")
            is distributed.gather_model(model)
            is model
        )
        assert (
            distributed.all_reduce_sum(3, 0.1) == [3, 0.1]
            and distributed.broadcast_object(value := object()) is value
        )
        assert distributed.main_process_first(lambda: value) is value and distributed.any_rank(True)
        distributed.barrier()
        distributed.check_rows_divisible(7, 64)
