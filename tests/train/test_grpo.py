"""Learning from rewards: killed and resumed, with an adapter, refused."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.run_layout import ROLLOUTS_DIR, START_SCORES_FILE, list_steps, step_folder
from data.batching.group_rows import GroupBatch
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.checkpoint import weights
from model.checkpoint.locate import ADAPTER_WEIGHTS_FILE, WEIGHTS_FILE, find_newest_step
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.fault_injection.child import run_in_test_process
from tests.helpers.processes import CommandProcess, PauseAfterStep
from tests.helpers.questions import write_questions
from tests.helpers.training import (
    QLORA,
    TINY_SHAPE,
    checkpoint_bytes,
    comparable_records,
    to_arguments,
)
from train import distributed
from train.grpo_run import resolve_run
from train.monitoring.memory_plan import plan_memory
from train.monitoring.run_memory import describe_step
from train.options import GrpoOptions
from train.run.start import start
from train.trainer import Trainer

# The runs of this file take seconds each.
pytestmark = pytest.mark.slow

LAST_STEP = 7
# The share of the characters with an even number: something that a model of random weights can
# learn to write.
REWARD = """
def even(prompt, answer, reference):
    assert "有几个" in prompt or "谁有" in prompt
    return sum(ord(char) % 2 == 0 for char in answer) / max(1, len(answer))
"""


@pytest.fixture(scope="module")
def options(
    root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Invented questions, a base of random weights, and a reward."""
    folder = tmp_path_factory.mktemp("grpo")
    source = SourceGroup("redgpt", (str(write_questions(folder / "questions.jsonl", 40)),))
    prepare_groups([source], folder / "set", root / "assets/tokenizer", PrepareOptions(workers=1))
    config = LlamaConfig(
        tokenizer.vocab_size, num_key_value_heads=4, max_position_embeddings=256, **TINY_SHAPE
    )
    (folder / "base").mkdir()
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, folder / "base")
    (folder / "mine.py").write_text(REWARD, encoding="utf-8")
    return {
        "device": "cpu",
        "data": folder / "set",
        "base": folder / "base",
        "sequence_length": 128,
        "micro_batch": 1,
        "max_steps": LAST_STEP,
        "optimizer.lr": 1e-3,
        "checkpoint.every": 3,
        "evaluation.every": 4,
        "evaluation.examples": 3,
        "log_every": 3,
        "grpo.rewards": f"{folder / 'mine.py'}:even,truncated:0.1",
        "grpo.prompts": 4,
        "grpo.samples": 3,
        "grpo.max_new_tokens": 6,
    }


def learn(run: Path, options: dict[str, Any]) -> str:
    """Train to the end in this process; return what is printed."""
    return run_in_test_process("train.grpo", to_arguments({"run": run, **options}))


@pytest.fixture
def trainer(options: dict[str, Any], tmp_path: Path) -> Iterator[Trainer]:
    """A trainer of a new run."""
    trainer = build_trainer(tmp_path / "run", options)
    yield trainer
    trainer.close()


def build_trainer(run: Path, options: dict[str, Any], **changes: Any) -> Trainer:
    """Return the trainer of a new run; `changes` are options of the group `grpo`."""
    group = {
        key.removeprefix("grpo."): value for key, value in options.items() if key.startswith("grpo")
    }
    return start(
        resolve_run(
            GrpoOptions(
                run=run,
                data=str(options["data"]),
                base=options["base"],
                device="cpu",
                sequence_length=options["sequence_length"],
                micro_batch=1,
                max_steps=4,
                grpo={**group, **changes},
                evaluation={"examples": 3},
            )
        )
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"grpo.updates": 2, "grpo.kl": 0.1}, {"grpo.updates": 2, "grpo.kl": 0.1, **QLORA}],
    ids=["once", "twice", "qlora"],
)
def test_killed_run_resumes_bit_identically(
    options: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Catch answers of other weights or seeds after a resume, and a base that is needed again."""
    base = tmp_path / "base"
    shutil.copytree(options["base"], base)
    options = {**options, **changes, "base": base}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output = learn(whole, options)
    assert "complete" in output
    # An answer with line ends is one line, which ends with its reward.
    shown = [line for line in output.splitlines() if line.startswith("  …")]
    assert shown and all("' → " in line and line.endswith("]") for line in shown)
    assert f"evaluate.report {whole} --before {options['base']}" in output
    arguments = to_arguments({"run": killed, **options})
    # Step 3 is between two updates on the same answers.
    process = CommandProcess("train.grpo", *arguments, fault=PauseAfterStep(4))
    process.send_signal_when(signal.SIGKILL, lambda: 3 in list_steps(killed))
    assert process.wait().returncode == -signal.SIGKILL
    assert find_newest_step(killed) == 3
    if not changes:
        shutil.rmtree(base)
    done = CommandProcess("train.grpo", *arguments).wait()
    assert done.returncode == 0 and "continues after step 3" in done.stdout, done.stderr
    file = ADAPTER_WEIGHTS_FILE if "adapter" in changes else WEIGHTS_FILE
    assert checkpoint_bytes(killed, LAST_STEP, file) == checkpoint_bytes(whole, LAST_STEP, file)
    records = comparable_records(whole)
    assert comparable_records(killed) == records
    train = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in train] == [1, 3, 6, 7]
    assert {"reward", "reward_even", "reward_std", "no_gradient", "loops"} <= train[0].keys()
    assert ("clipped" in train[0]) == ("kl" in train[0]) == bool(changes)
    assert (killed / ROLLOUTS_DIR).exists() == bool(changes)


def test_rewards_are_learned(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a loss of the wrong sign, and a log that does not tell what is reached."""
    run = tmp_path / "run"
    changes = {
        "max_steps": 30,
        "optimizer.lr": 2e-2,
        "schedule.decay": 0,
        "grpo.prompts": 8,
        "grpo.samples": 8,
        "evaluation.every": 30,
        "log_every": 10,
    }
    output = learn(run, {**options, **changes})
    assert "sampling" in output and "gain +" in output
    records = comparable_records(run)
    train = [record for record in records if record["kind"] == "train"]
    assert train[0]["reward_even"] == pytest.approx(0.5, abs=0.1)
    assert train[-1]["reward_even"] > 0.75
    (dev,) = (record for record in records if record["kind"] == "reward")
    assert dev["reward_low"] <= dev["reward"] <= dev["reward_high"]
    assert dev["gain"] == pytest.approx(dev["reward"] - dev["start_reward"])
    assert dev["kl"] > 0.05 and dev["examples"] == 3
    samples = [record["text"] for record in records if record["kind"] == "sample"]
    assert samples and all("base" in text for text in samples)


def test_answers_follow_from_weights_and_seed_alone(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Catch answers that depend on how many are decoded together."""
    batches = []
    for index, batch in enumerate((3, 64)):
        trainer = build_trainer(tmp_path / str(index), options, batch=batch)
        batches.append(trainer.batches.micro_batches(2, 1))
        trainer.close()
    for first, second in zip(*batches, strict=True):
        assert torch.equal(first.ids, second.ids) and torch.equal(first.targets, second.targets)


def test_groups_without_a_gradient_are_counted_and_left_out(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Catch time spent on answers that teach nothing, and measures that leave them out."""
    trainer = build_trainer(tmp_path / "run", options, rewards="loops")
    (batch,) = trainer.batches.micro_batches(0, 8)
    trainer.close()
    assert isinstance(batch, GroupBatch)
    # One group is kept, so that the step has a row.
    assert len(batch.answer_lengths) == 3 and batch.num_samples == 12
    # Of four questions a step, not of twelve answers.
    assert trainer.batches.global_rows(2) == range(8, 12)
    names = trainer.objective.measure_names
    sums = dict(zip(names, batch.measure_sums.tolist(), strict=True))
    assert sums["no_gradient"] == 12 and sums["answer_tokens"] > 12


def test_batches_are_not_drawn_before_the_weights_are_there(trainer: Trainer) -> None:
    """Catch answers that are drawn while the loop waits, from the weights of the step before."""
    trainer.train_step()
    assert trainer._prefetched is None
    typical = trainer.batches.typical_batch()
    assert typical.num_tokens > 0 and trainer.model.training


def test_memory_is_planned_without_drawing_answers(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a summary that asks a model for answers before there is one, and one without them."""
    trainer = build_trainer(tmp_path / "run", options)
    trainer.close()
    spec, batches = trainer.spec, trainer.batches
    batches._model = None
    plan = plan_memory(describe_step(spec, trainer.model, trainer.compute_plan, batches))
    config = spec.model_config
    width = config.num_key_value_heads * config.head_dim
    # 4 prompts with 3 answers, each in a row of 128.
    numbers = 2 * config.num_hidden_layers * 12 * 128 * width
    assert plan.phases["sampling"]["KV cache"] == 4 * numbers


def test_reference_of_an_adapter_is_the_base(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a divergence from the bare base of an adapter, or an adapter that stays off."""
    changes = {"adapter": "lora", "optimizer.lr": 0.05, "grpo.kl": 0.1, "log_every": 1}
    first, run = tmp_path / "first", tmp_path / "run"
    learn(first, {**options, **changes, "max_steps": 2})
    learn(run, {**options, **changes, "base": first})
    assert (step_folder(run, LAST_STEP) / "adapter_model.safetensors").is_file()
    records = [record for record in comparable_records(run) if record["kind"] == "train"]
    # In the first step nothing has changed yet.
    assert records[0]["kl"] == pytest.approx(0, abs=1e-6) and records[-1]["kl"] > 1e-3
    model, _ = weights.load_checkpoint(run, torch.device("cpu"))
    base, _ = weights.load_checkpoint(first, torch.device("cpu"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert not torch.allclose(model(ids), base(ids))


def test_reward_that_fails_ends_the_run_in_one_line(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Catch a traceback through the project for a mistake in the user's file."""
    path = tmp_path / "bad.py"
    path.write_text("def score(prompt, answer, reference):\n    return reference['x']\n")
    with pytest.raises(UserError, match=r"reward .*bad\.py:score: TypeError: .*, line 2"):
        build_trainer(tmp_path / "run", options, rewards=f"{path}:score")


def test_changed_reward_does_not_resume(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a run whose second half has another reward, and one taken for fine-tuning."""
    run = tmp_path / "run"
    path = tmp_path / "mine.py"
    path.write_text(REWARD, encoding="utf-8")
    changes = {"max_steps": 1, "grpo.rewards": f"{path}:even"}
    learn(run, {**options, **changes})
    path.write_text(REWARD + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="was started with other values"):
        learn(run, {**options, **changes})
    with pytest.raises(UserError, match="is a run on rewards; to resume it: make grpo"):
        run_in_test_process("train.sft", ["--run", str(run)])


def test_several_processes_are_refused(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch processes that wait for each other, because their answers fill other rows."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="in one process: start it without torchrun"):
        build_trainer(tmp_path / "run", options)


def test_scores_of_the_base_are_computed_once(options: dict[str, Any], tmp_path: Path) -> None:
    """Catch a base that is scored again, or a damaged file that is believed."""
    run = tmp_path / "run"
    trainer = build_trainer(run, options)
    trainer.close()
    path = run / START_SCORES_FILE
    before = path.read_bytes()
    build_trainer(run, options).close()
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b"ids", b"odd", 1))
    build_trainer(run, options).close()
    assert path.read_bytes() == before


def test_data_without_questions_is_refused(
    options: dict[str, Any], shard_set: Path, tmp_path: Path
) -> None:
    """Catch a traceback, or hours of training, for data without questions or in too short rows."""
    for data, length, message in (
        (f"{options['data']}+replay:0.1", 128, "--data replay: is text, and has no questions"),
        (str(shard_set), 128, "holds documents, not questions .* make pretrain"),
        (str(options["data"]), 16, "no question fits a row of 16 tokens with an answer of 8"),
    ):
        spec = {"base": options["base"], "data": data, "sequence_length": length}
        group = {"max_new_tokens": 8}
        with pytest.raises(UserError, match=message) as refused:
            resolve_run(GrpoOptions.model_validate({**spec, "run": tmp_path, "grpo": group}))
        assert "\n" not in str(refused.value)
