"""Runs of a few steps in processes of their own: the peak of the process, and the planned one."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bench.options import MemoryOptions
from bench.rounds import run_rounds
from common.errors import UserError
from common.files import atomic_folder, read_json, write_json
from common.machine import collect_environment, peak_memory_bytes
from data.batching.collate import Batch, BatchLoader, collate
from data.batching.examples import Example
from data.sequences import SequenceWriter
from data.shards import SHARD_FORMAT, ShardSet
from model.checkpoint.locate import CONFIG_FILE, WEIGHTS_INDEX_FILE
from model.config import LlamaConfig, config_from_preset
from model.llama import Llama
from model.lora_options import LoraOptions, Quantization
from model.loss import LossPath
from model.precision import Precision
from model.tokenizer import load_tokenizer
from train.memory_report import idle_process_bytes
from train.monitoring.memory_plan import SCORED_TOKENS, Workload, plan_memory
from train.objective import CrossEntropy
from train.options import GradientCheckpointing, OptimizerName, PretrainOptions
from train.pretrain_eval import TextEvaluator
from train.run.initial_checkpoint import NO_BASE, InitialCheckpoint
from train.run.spec import RunSpec, TrainingPlan
from train.run.start import start

TOKENIZER = Path(__file__).resolve().parents[1] / "assets" / "tokenizer"
# Bounds of the planned peak over the measured one.
MIN_RATIO, MAX_RATIO = 1.0, 1.15
# In the second step optimizer states exist, and in the third the heap has its final size. Steps of
# long rows take minutes, and most of their tensors are not in the heap: there are two.
STEPS = 3
HEADER = """\
| | model | vocabulary | micro-batch | training | measured MB | planned MB | ratio | phase |
|---|---|---|---|---|---|---|---|---|"""
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Configuration:
    """What one process trains."""

    preset: str
    vocab_size: int
    length: int
    rows: int  # of a step
    micro_rows: int
    example_tokens: int = 0
    """Length of the examples that a row is packed from; half of each has a loss. 0: text."""
    optimizer: OptimizerName = "muon"
    precision: Precision = "fp32"
    loss_path: LossPath = "chunked"
    lora: LoraOptions | None = None
    quantize: Quantization | None = None
    checkpointing: GradientCheckpointing = "none"
    held_out_tokens: int = 5000  # of text, which the evaluation scores
    steps: int = STEPS
    shape: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> LlamaConfig:
        """The config of the model."""
        changes = {**self.shape, "reading_heads": False} if self.shape else {}
        return config_from_preset(self.preset, self.vocab_size, **changes)

    @property
    def workload(self) -> Workload:
        """The workload that `python -m train.memory` plans for these options."""
        tokens = self.micro_rows * self.length
        return Workload(
            self.config,
            self.length,
            self.micro_rows,
            micro_batches=self.rows // self.micro_rows,
            targets=tokens // 2 if self.example_tokens else None,
            is_packed=bool(self.example_tokens),
            precision=self.precision,
            loss_path=self.loss_path,
            optimizer=self.optimizer,
            lora=self.lora,
            quantization=self.quantize,
            checkpointing=self.checkpointing,
            scored_tokens=min(SCORED_TOKENS, self.held_out_tokens),
            has_base=self.lora is not None,
        )

    @property
    def name(self) -> str:
        """A description for the table."""
        words: list[str] = []
        # A shape of many fields is one of its own, of which the size is in the table.
        if len(self.shape) <= 1:
            words.append(self.preset.removeprefix("babyllama-"))
            words += [f"{key} {value}" for key, value in self.shape.items()]
        words += [self.optimizer, self.precision]
        if self.loss_path != "chunked":
            words.append(f"{self.loss_path} loss")
        if self.example_tokens:
            words.append(f"packed examples of {self.example_tokens}")
        if self.lora is not None:
            targets = "all" if self.lora.targets == SEVEN else ", ".join(self.lora.targets)
            words.append(f"LoRA {self.lora.rank} on {targets}")
            words += ["adapter in bf16"] * (self.lora.dtype == "bf16")
        if self.quantize is not None:
            words.append(self.quantize)
        if self.checkpointing != "none":
            words.append(f"checkpointing {self.checkpointing}")
        return ", ".join(words)


# That of TinyLlama, with fewer layers for 0.3 billion parameters and with more for 1.5 billion.
SHAPE_1B = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
# As in configs/qlora-33b.yaml.
QLORA: dict[str, Any] = {
    "quantize": "nf4",
    "lora": LoraOptions(rank=64, targets=SEVEN, dtype="bf16"),
    "optimizer": "paged_adamw8bit",
    "precision": "bf16",
    "checkpointing": "layers",
}
# The first configurations are the smallest ones.
CONFIGURATIONS = (
    Configuration("babyllama-3m", 8192, 512, 4, 4),
    Configuration("babyllama-3m", 8192, 128, 4, 4, optimizer="adamw"),
    Configuration("babyllama-3m", 4096, 512, 8, 2),
    Configuration("babyllama-3m", 8192, 2048, 2, 2),
    Configuration("babyllama-3m", 65_000, 512, 4, 2),
    Configuration("babyllama-3m", 65_000, 512, 2, 2, loss_path="full"),
    Configuration("babyllama-3m", 8192, 512, 8, 8, precision="bf16"),
    Configuration("babyllama-3m", 8192, 512, 8, 8, example_tokens=60),
    Configuration("babyllama-3m", 8192, 1024, 4, 4, example_tokens=200),
    Configuration("babyllama-43m", 65_000, 512, 4, 2),
    Configuration("babyllama-43m", 65_000, 512, 4, 4, example_tokens=100),
    Configuration("babyllama-43m", 65_000, 256, 1, 1, optimizer="adamw"),
    Configuration("babyllama-43m", 8192, 512, 4, 4),
    Configuration("babyllama-43m", 8192, 512, 2, 2, shape={"num_key_value_heads": 2}),
    Configuration("babyllama-43m", 65_000, 512, 2, 2, precision="bf16"),
    Configuration("babyllama-43m", 8192, 512, 4, 4, lora=LoraOptions()),
    Configuration(
        "babyllama-43m",
        65_000,
        512,
        4,
        2,
        example_tokens=100,
        lora=LoraOptions(rank=16, targets=SEVEN),
    ),
    Configuration("babyllama-43m", 65_000, 512, 2, 2, loss_path="torch"),
    Configuration("babyllama-92m", 65_000, 512, 2, 2),
    Configuration("babyllama-92m", 8192, 1024, 2, 1, optimizer="adamw"),
    Configuration("babyllama-92m", 65_000, 256, 4, 2, lora=LoraOptions(rank=32)),
    Configuration("babyllama-218m", 65_000, 256, 2, 1),
    Configuration("babyllama-218m", 65_000, 512, 1, 1, optimizer="adamw"),
    Configuration("babyllama-218m", 8192, 256, 1, 1, lora=LoraOptions(rank=16, targets=SEVEN)),
    Configuration("babyllama-218m", 65_000, 256, 1, 1, precision="bf16"),
    Configuration("babyllama-92m", 8192, 256, 2, 1, precision="bf16"),
    Configuration("babyllama-3m", 8192, 512, 8, 8, checkpointing="layers"),
    Configuration("babyllama-43m", 8192, 512, 4, 4, checkpointing="layers"),
    Configuration("babyllama-43m", 8192, 512, 4, 4, optimizer="adamw8bit"),
    Configuration(
        "babyllama-43m", 65_000, 512, 4, 2, optimizer="adamw8bit", lora=LoraOptions(rank=16)
    ),
    Configuration(
        "babyllama-43m",
        8192,
        512,
        4,
        4,
        quantize="nf4",
        lora=LoraOptions(rank=16, targets=SEVEN),
        optimizer="adamw",
    ),
    Configuration(
        "babyllama-43m",
        8192,
        512,
        4,
        4,
        quantize="nf4",
        lora=LoraOptions(rank=16, targets=SEVEN),
        optimizer="adamw",
        precision="bf16",
    ),
    Configuration("babyllama-92m", 65_000, 512, 4, 2, example_tokens=100, **QLORA),
    Configuration(
        "babyllama-3m",
        32_000,
        512,
        1,
        1,
        example_tokens=100,
        shape={**SHAPE_1B, "num_hidden_layers": 5},
        held_out_tokens=1000,
        **QLORA,
    ),
    Configuration(
        "babyllama-3m",
        32_000,
        256,
        1,
        1,
        example_tokens=100,
        shape=SHAPE_1B,
        held_out_tokens=600,
        **QLORA,
    ),
    Configuration(
        "babyllama-3m",
        32_000,
        128,
        1,
        1,
        example_tokens=100,
        shape={**SHAPE_1B, "num_hidden_layers": 32},
        held_out_tokens=300,
        **QLORA,
    ),
    Configuration("babyllama-218m", 8192, 512, 1, 1, example_tokens=200, **QLORA),
    Configuration("babyllama-43m", 8192, 512, 4, 4, checkpointing="attention"),
    Configuration(
        "babyllama-43m",
        8192,
        16_384,
        1,
        1,
        checkpointing="layers",
        shape={"max_position_embeddings": 16_384},
        steps=2,
    ),
    Configuration(
        "babyllama-43m",
        8192,
        8192,
        1,
        1,
        checkpointing="attention",
        shape={"max_position_embeddings": 8192},
        steps=2,
    ),
    Configuration(
        "babyllama-92m",
        8192,
        6000,
        1,
        1,
        checkpointing="layers",
        shape={"max_position_embeddings": 6000},
        lora=LoraOptions(rank=32, targets=SEVEN),
        precision="bf16",
        steps=2,
    ),
)


class RandomBatches(BatchLoader[Any]):
    """Batches of random ids: memory does not depend on them."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(None, configuration.rows)
        self.configuration = configuration

    def epochs_completed(self, step: int) -> float:
        """Return 0: random ids have no epochs."""
        return 0.0

    def micro_batches(self, step: int, micro_rows: int) -> list[Batch]:
        """See `BatchLoader.micro_batches`."""
        rng = np.random.default_rng(step)
        return [self._batch(rng, micro_rows) for _ in range(self.rows_per_step // micro_rows)]

    def _batch(self, rng: np.random.Generator, rows: int) -> Batch:
        length, vocab_size = self.configuration.length, self.configuration.vocab_size
        if self.configuration.example_tokens:
            return collate([self._packed_row(rng) for _ in range(rows)], length)
        ids = torch.from_numpy(rng.integers(vocab_size, size=(rows, length + 1)))
        return Batch(ids=ids[:, :-1].contiguous(), targets=ids[:, 1:].reshape(-1))

    def _packed_row(self, rng: np.random.Generator) -> list[Example]:
        """Return examples that fill a row, with a loss on the second half of each."""
        examples = []
        left = self.configuration.length
        while left:
            tokens = min(self.configuration.example_tokens, left)
            loss_mask = np.arange(tokens) >= tokens / 2
            examples.append(
                (rng.integers(self.configuration.vocab_size, size=tokens + 1), loss_mask)
            )
            left -= tokens
        return examples


@dataclass(frozen=True)
class RandomData:
    """Random batches as training data. It implements `train.run.spec.TrainingData`."""

    batches: RandomBatches
    sets: tuple[()] = ()

    def plan(self, folder: Path) -> TrainingPlan:
        """Return the batches and the number of steps."""
        return TrainingPlan(self.batches, self.batches.configuration.steps, 0.0, 1.0, "random ids")


def write_base(configuration: Configuration, folder: Path) -> Path:
    """Write a checkpoint with random weights for an adapter, and return its folder.

    Each layer has a file of its own, so that the memory of this process stays small. A base that
    will be quantized is in bf16, as large models are.
    """
    config = configuration.config
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Llama(config).named_parameters()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(name.rpartition(".layers.")[2].partition(".")[0], []).append(name)
    generator = torch.Generator().manual_seed(0)
    files: dict[str, str] = {}
    with atomic_folder(folder / "base", {}) as partial_folder:
        load_tokenizer(TOKENIZER).save(partial_folder)
        write_json(partial_folder / CONFIG_FILE, config.to_hf())
        for number, names in enumerate(groups.values(), start=1):
            file = f"model-{number:05}-of-{len(groups):05}.safetensors"
            tensors = {name: torch.empty(shapes[name]) for name in names}
            for tensor in tensors.values():
                tensor.normal_(std=config.initializer_range, generator=generator)
            if configuration.quantize is not None:
                tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
            save_file(tensors, partial_folder / file)
            files |= dict.fromkeys(names, file)
        write_json(partial_folder / WEIGHTS_INDEX_FILE, {"weight_map": files})
    return folder / "base"


def _write_held_out_text(folder: Path, num_tokens: int) -> Path:
    """Write a shard set of random text for the evaluation, with ids that all vocabularies have."""
    tokenizer = load_tokenizer(TOKENIZER)
    manifest = {"format": SHARD_FORMAT, "kind": "documents", "splits": {}}
    with atomic_folder(folder / "shards", manifest) as partial_folder:
        tokenizer.save(partial_folder)
        writer = SequenceWriter(partial_folder, "validation", tokenizer.vocab_size)
        writer.add(np.random.default_rng(0).integers(400, 4000, num_tokens))
        writer.close()
    return folder / "shards"


def measure(configuration: Configuration, base: Path | None) -> int:
    """Train, evaluate and save in this process; return the peak of the process in bytes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = ShardSet.open(_write_held_out_text(folder, configuration.held_out_tokens))
        tokenizer = shards.load_tokenizer()
        tokens = configuration.rows * configuration.length
        options = PretrainOptions.model_validate(
            {
                "device": "cpu",
                "max_steps": configuration.steps,
                "batch_tokens": tokens,
                "sequence_length": configuration.length,
                "micro_batch": configuration.micro_rows,
                "precision": configuration.precision,
                "gradient_checkpointing": configuration.checkpointing,
                "optimizer": {"name": configuration.optimizer},
                # Ids of other prompts are not in the smallest vocabulary.
                "evaluation": {"prompts": [""], "sample_tokens": 8},
            }
        )
        spec = RunSpec(
            command="pretrain",
            options=options,
            folder=folder / "run",
            device=torch.device("cpu"),
            base=InitialCheckpoint(base, NO_BASE, None),
            tokenizer=tokenizer,
            template=None,
            model_config=configuration.config,
            model_name=configuration.preset,
            lora=configuration.lora,
            data=RandomData(RandomBatches(configuration)),
            objective=CrossEntropy(),
            evaluator=TextEvaluator(options, tokenizer, [shards.load_text("validation")]),
            command_fingerprints={},
            quantize=configuration.quantize,
        )
        trainer = start(spec)
        trainer.compute_plan = replace(trainer.compute_plan, loss_path=configuration.loss_path)
        trainer.train()
        trainer.close()
    return peak_memory_bytes()


def compare_memory(options: MemoryOptions) -> int:
    """Measure the configurations, print the table and write the `--json` file.

    Each is measured in a process of its own, which is this command with `--measured`; with
    `--peaks` the peaks are those of an earlier call. Returns 1 if a plan is outside of the bounds.
    Raises UserError for a number without a configuration or a peak, or if a process fails.
    """
    if options.measured is not None:
        print(json.dumps({"peak_bytes": measure(CONFIGURATIONS[options.measured], options.base)}))
        return 0
    numbers = options.only or tuple(range(1, len(CONFIGURATIONS) + 1))
    if invalid := [number for number in numbers if not 1 <= number <= len(CONFIGURATIONS)]:
        raise UserError(f"--only {invalid[0]}: there are configurations 1 to {len(CONFIGURATIONS)}")
    made, process_bytes, peaks = _read_peaks(options.peaks, numbers)
    print(HEADER)
    results = []
    ratios = []
    for number in numbers:
        configuration = CONFIGURATIONS[number - 1]
        peak_bytes = peaks.get(number) or _measure_in_process(number)
        plan = plan_memory(configuration.workload, process_bytes)
        ratios.append(plan.peak_bytes / peak_bytes)
        result = {
            "number": number,
            "name": configuration.name,
            "workload": configuration.workload.to_json(),
            "peak_bytes": peak_bytes,
            "planned_bytes": plan.peak_bytes,
            "ratio": ratios[-1],
            "phase": plan.peak_phase,
            "breakdown": plan.breakdown,
        }
        results.append(result)
        _print_row(configuration, result)
    print(f"\nplanned / measured: {min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} runs")
    if options.json_file:
        write_json(
            options.json_file, {"made": made, "process_bytes": process_bytes, "results": results}
        )
    return int(min(ratios) < MIN_RATIO or max(ratios) > MAX_RATIO)


def _read_peaks(
    file: Path | None, numbers: Sequence[int]
) -> tuple[dict[str, Any], int, dict[int, int]]:
    """Return the environment, the memory of an idle process and the peaks of an earlier call.

    Without a file the process is measured here, and there are no peaks. Raises UserError if a
    configuration has no peak, or was another one at that time.
    """
    if file is None:
        return collect_environment(), idle_process_bytes(), {}
    earlier = read_json(file)
    peaks = {result["number"]: result for result in earlier["results"]}
    for number in numbers:
        workload = json.loads(json.dumps(CONFIGURATIONS[number - 1].workload.to_json()))
        if number not in peaks or peaks[number]["workload"] != workload:
            raise UserError(
                f"--peaks {file}: has no peak of configuration {number} as it is now: measure it "
                f"(--only {number})"
            )
    measured = {number: result["peak_bytes"] for number, result in peaks.items()}
    return earlier["made"], earlier["process_bytes"], measured


def _measure_in_process(number: int) -> int:
    """Return the peak of a configuration in a process of its own."""
    configuration = CONFIGURATIONS[number - 1]
    with tempfile.TemporaryDirectory() as temporary:
        arguments = [f"--measured={number - 1}"]
        if configuration.lora is not None:
            arguments.append(f"--base={write_base(configuration, Path(temporary))}")
        contender = (configuration.name, arguments)
        [measured] = run_rounds("bench.memory", [contender], rounds=1, threads=1)
    return int(measured["peak_bytes"])


def _print_row(configuration: Configuration, result: dict[str, Any]) -> None:
    """Print a row of the Markdown table."""
    parameters = configuration.config.num_parameters / 1e6
    size = f"{parameters:.0f}M" if parameters >= 10 else f"{parameters:.1f}M"
    tokens = f"{configuration.micro_rows} × {configuration.length}"
    print(
        f"| {result['number']} | {size} | {configuration.vocab_size:,} | {tokens} of "
        f"{configuration.rows} rows | {result['name']} | {result['peak_bytes'] / 1e6:,.0f} | "
        f"{result['planned_bytes'] / 1e6:,.0f} | {result['ratio']:.3f} | {result['phase']} |",
        flush=True,
    )
