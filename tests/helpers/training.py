"""Small training runs for tests: descriptions, trainers, and command lines of options."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import atomic_folder, write_json, write_manifest
from common.metrics_file import read_metrics
from common.run_layout import step_folder
from data.sequences import SequenceWriter
from data.shards import SHARD_FORMAT, ShardSet
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from model.tokenizer.sentencepiece_normalize import normalize_model
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from train.monitoring.metrics_log import VALIDATION_LOSS, MetricsLog, SelectionMetric
from train.objective import CrossEntropy
from train.options import PretrainOptions
from train.pretrain_run import TextData
from train.run.initial_checkpoint import NO_BASE, InitialCheckpoint
from train.run.mixture import MixtureSet
from train.run.spec import RunSpec
from train.run.start import start
from train.trainer import Trainer

TINY_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# An adapter beside 4-bit weights, with every option that saves memory.
QLORA: dict[str, Any] = {
    "adapter": "lora",
    "quantize": "nf4",
    "precision": "auto",
    "optimizer.name": "adamw8bit",
    "gradient_checkpointing": "attention",
    "offload_activations": True,
    "lora.dtype": "bf16",
    "lora.rank": 64,
    "lora.targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
}
# Fields of a metrics record that differ between two identical runs.
TIMING_FIELDS = {
    "tokens_per_second",
    "mfu",
    "memory_bytes",
    "sampled_tokens_per_second",
    "sampling_share",
}


def truncate_tokenizer(tokenizer: Tokenizer, vocab_size: int = 512) -> Tokenizer:
    """Return a SentencePiece tokenizer with the first pieces of another one.

    With 512 ids a training step takes a third of the time that it takes with 8,192. The ids of
    `write_text_set` are among them. Text is encoded as bytes, for the most part.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString(tokenizer.serialized)
    del model.pieces[vocab_size:]
    model.trainer_spec.vocab_size = vocab_size
    serialized, _ = normalize_model(model.SerializeToString(), "a truncated tokenizer")
    return SentencePieceTokenizer(serialized)


def to_arguments(options: dict[str, Any]) -> list[str]:
    """Return `--key value` for each option; the keys of a nested dict become dotted."""
    arguments = []
    for key, value in options.items():
        if isinstance(value, dict):
            dotted = {f"{key}.{inner_key}": item for inner_key, item in value.items()}
            arguments += to_arguments(dotted)
        else:
            arguments += [f"--{key}", str(value)]
    return arguments


def comparable_records(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run without the fields that depend on the speed of the machine."""
    records = []
    for record in read_metrics(run):
        records.append({key: value for key, value in record.items() if key not in TIMING_FIELDS})
    return records


def checkpoint_bytes(run: Path, step: int, name: str = "model.safetensors") -> tuple[bytes, bytes]:
    """Return the contents of the weights file `name` and of the optimizer file of a step."""
    folder = step_folder(run, step)
    return (folder / name).read_bytes(), (folder / "optimizer.safetensors").read_bytes()


@dataclass(frozen=True)
class StubEvaluator:
    """An evaluator that calls the given functions, which by default do nothing."""

    every: int
    patience: int = 0
    metric: SelectionMetric = VALIDATION_LOSS
    has_data: bool = True
    on_evaluate: Callable[[int, MetricsLog], None] = lambda step, log: None
    on_evaluate_all: Callable[[int, MetricsLog], None] = lambda step, log: None

    def evaluate(self, model: Llama, step: int, log: MetricsLog) -> None:
        """See `Evaluator`."""
        self.on_evaluate(step, log)

    def evaluate_all(self, model: Llama, step: int, log: MetricsLog) -> None:
        """See `Evaluator`."""
        self.on_evaluate_all(step, log)


def build_spec(folder: Path, shard_set: Path, **changes: Any) -> RunSpec:
    """Return the spec of a pretraining run on a CPU: 12 steps of 8 rows of 32 tokens.

    `changes` are options of pretraining that replace these.
    """
    shards = ShardSet.open(shard_set)
    tokenizer = shards.load_tokenizer()
    options = PretrainOptions.model_validate(
        {
            "max_steps": 12,
            "batch_tokens": 256,
            "sequence_length": 32,
            "micro_batch": 4,
            "log_every": 2,
            "checkpoint": {"every": 6},
            "evaluation": {"every": 6},
            "model": TINY_SHAPE,
            **changes,
        }
    )
    return RunSpec(
        command="pretrain",
        options=options,
        folder=folder,
        device=torch.device("cpu"),
        base=InitialCheckpoint(None, NO_BASE, None),
        tokenizer=tokenizer,
        template=None,
        model_config=LlamaConfig(tokenizer.vocab_size, num_key_value_heads=4, **TINY_SHAPE),
        model_name="tiny",
        lora=None,
        data=TextData(options, (MixtureSet("text", shards, 1.0),)),
        objective=CrossEntropy(),
        evaluator=StubEvaluator(options.evaluation.every),
        command_fingerprints={"max_steps": options.max_steps},
    )


def build_trainer(
    folder: Path, shard_set: Path, evaluator: StubEvaluator | None = None, **changes: Any
) -> Trainer:
    """Return a trainer for the spec of `build_spec`, with another evaluator if one is given."""
    spec = build_spec(folder, shard_set, **changes)
    return start(replace(spec, evaluator=evaluator) if evaluator else spec)


def write_fake_run(run: Path, step: int, steps: int | None = None, **fingerprints: Any) -> Path:
    """Write a run directory whose only checkpoint has a manifest but no real weights.

    `step` is that of the checkpoint, `steps` the planned number of steps of the run. Returns the
    folder of the checkpoint.
    """
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_text(run.name)
    write_manifest(folder, {"step": step, "steps": steps})
    write_json(run / "run.json", {"shards": [], "fingerprints": fingerprints})
    return folder


def write_text_set(folder: Path, tokenizer: Tokenizer, **counts: int) -> Path:
    """Write a shard set of generated text; `counts` are the documents per split (train=60).

    In a document each id is 3 more than the one before, modulo 50, so that a model can learn.
    """
    rng = np.random.default_rng(0)
    manifest = {"format": SHARD_FORMAT, "kind": "documents", "splits": {}}
    with atomic_folder(folder, manifest) as partial_folder:
        tokenizer.save(partial_folder)
        for split, count in counts.items():
            writer = SequenceWriter(partial_folder, split, tokenizer.vocab_size)
            for length in rng.integers(10, 200, count):
                writer.add(400 + (rng.integers(50) + 3 * np.arange(length)) % 50)
            writer.close()
    return folder


def tensorboard_losses(run: Path) -> dict[int, float]:
    """Return the training loss of each step that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}
