"""Time, memory and losses of QLoRA here and with PEFT, in rounds of separate processes."""

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.options import QloraOptions
from bench.rounds import peer_environments, run_rounds
from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment
from model.bitsandbytes import load_functional, require_bitsandbytes
from model.checkpoint import weights
from model.checkpoint.quantized import load_quantized
from model.config import LlamaConfig
from model.llama import Llama
from model.lora import Adapter, LoraOptions, attach_adapter
from model.recomputation import Checkpointing
from model.tokenizer import load_tokenizer
from train.optimizer import build_optimizers
from train.options import OptimizerOptions

CPU = torch.device("cpu")
SIZES: dict[str, dict[str, Any]] = {
    # TinyLlama.
    "1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "70m": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
VOCAB_SIZE = 32_000
LORA = LoraOptions(
    rank=64,
    alpha=16.0,
    targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
# Large, so that a few steps show whether the updates agree.
LEARNING_RATE, BETAS = 1e-3, (0.9, 0.999)
# Largest difference of two losses of a step, in nats. bf16 has three digits, and both round the
# adapter's part differently: PEFT computes it in fp32.
LOSS_TOLERANCE = 0.02
CONTENDERS = ("babyllama", "peft")
BASE, ADAPTER, IDS_FILE = "base", "adapter", "ids.npy"
_TOKENIZER = Path(__file__).parent.parent / "assets" / "tokenizer"

TrainStep = Callable[[Any, Any], float]


@dataclass(frozen=True)
class QloraRound:
    """The measurement of one contender in one round, which is one process."""

    contender: str
    losses: list[float]
    seconds: list[float]
    """Duration of each step; the first is not counted."""
    cpu_seconds: list[float]
    """CPU time of each step, over all threads, which other work on the machine changes less."""
    load_seconds: float
    imported_bytes: int
    """Resident memory before the model is loaded: interpreter and libraries."""
    load_peak_bytes: int
    """Peak resident memory while the model is loaded."""
    steps_peak_bytes: int
    """Peak resident memory of the steps."""


def write_task(folder: Path, config: LlamaConfig, steps: int, length: int) -> None:
    """Write the base, the adapter in PEFT's format, and ids, int64[steps, 1, length + 1]."""
    base, adapter = folder / BASE, folder / ADAPTER
    base.mkdir()
    model = Llama(config).init_weights(seed=1).bfloat16()
    weights.save_checkpoint(model, load_tokenizer(_TOKENIZER), base)
    attach_adapter(model, Adapter(LORA, base, "", quantize="nf4"), seed=2)
    adapter.mkdir()
    weights.save_weights(model, adapter)
    # The fourth power of uniform numbers in [0, 1) is dense near 0: low ids are frequent.
    skewed = np.random.default_rng(1).random((steps, 1, length + 1)) ** 4
    np.save(folder / IDS_FILE, (skewed * config.vocab_size).astype(np.int64), allow_pickle=False)


def build_babyllama_step(folder: Path) -> TrainStep:
    """Build the step of this project, as `train.sft` runs it."""
    model = load_quantized(folder / BASE, CPU, torch.bfloat16)
    attach_adapter(model, Adapter(LORA, folder / BASE, "", quantize="nf4"), seed=0)
    weights.load_weights(model, folder / ADAPTER)
    model.model.set_checkpointing(Checkpointing())
    options = OptimizerOptions(
        name="adamw8bit", lr=LEARNING_RATE, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0
    )
    optimizers = build_optimizers(model.train(), options).values()

    def step(inputs: Any, targets: Any) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(inputs, targets, scale=1 / targets.numel())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        return loss.item()

    return step


def build_peft_step(folder: Path) -> TrainStep:
    """Build the step of PEFT and transformers, with the optimizer of bitsandbytes."""
    import bitsandbytes
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder / BASE,
        quantization_config=quantization,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
    )
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.config.use_cache = False
    model = PeftModel.from_pretrained(base, folder / ADAPTER, is_trainable=True).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = bitsandbytes.optim.AdamW8bit(
        trained, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0
    )

    def step(inputs: Any, targets: Any) -> float:
        loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def run_round(contender: str, folder: Path, threads: int) -> QloraRound:
    """Train one contender in this process, on the files of `write_task`, and return the figures."""
    torch.set_num_threads(threads)
    ids = torch.from_numpy(np.load(folder / IDS_FILE, allow_pickle=False))
    load_functional()
    if contender == "peft":
        # Imports are no part of loading a model.
        import peft  # noqa: F401
        import transformers  # noqa: F401

        build = build_peft_step
    else:
        build = build_babyllama_step
    imported_bytes = _reset_peak()
    start = time.perf_counter()
    train_step = build(folder)
    load_seconds = time.perf_counter() - start
    load_peak_bytes = _peak_bytes()
    _reset_peak()
    losses, seconds, cpu_seconds = [], [], []
    for batch in ids:
        inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(train_step(inputs, targets))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return QloraRound(
        contender=contender,
        losses=losses,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        load_seconds=load_seconds,
        imported_bytes=imported_bytes,
        load_peak_bytes=load_peak_bytes,
        steps_peak_bytes=_peak_bytes(),
    )


def _reset_peak() -> int:
    """Set the peak of this process's memory to what is resident now; return that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # Linux: see proc(5)
    return _peak_bytes()


def _peak_bytes() -> int:
    """Return the peak resident memory of this process since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def check_equal_losses(rounds: list[QloraRound]) -> None:
    """Raise UserError unless the losses agree, within LOSS_TOLERANCE, at every step."""
    for step, losses in enumerate(zip(*(each.losses for each in rounds), strict=True), start=1):
        # A comparison with NaN is false, so `not … <` also rejects a loss that is NaN.
        if not np.ptp(losses) < LOSS_TOLERANCE:
            values = ", ".join(
                f"{each.contender} {loss:.6f}" for each, loss in zip(rounds, losses, strict=True)
            )
            raise UserError(
                f"the losses of step {step} differ, so the times cannot be compared: {values}"
            )


def summarize(rounds: list[QloraRound]) -> list[dict[str, Any]]:
    """Return a table row per contender; ratios are those of a step's time to the last one's."""
    rows: list[dict[str, Any]] = []
    for name in CONTENDERS:
        own = [each for each in rounds if each.contender == name]
        rows.append(
            {
                "contender": name,
                "step_seconds": statistics.median(
                    statistics.median(each.seconds[1:]) for each in own
                ),
                "step_cpu_seconds": statistics.median(
                    statistics.median(each.cpu_seconds[1:]) for each in own
                ),
                "load_seconds": statistics.median(each.load_seconds for each in own),
                "imported_bytes": max(each.imported_bytes for each in own),
                "load_peak_bytes": max(each.load_peak_bytes for each in own),
                "steps_peak_bytes": max(each.steps_peak_bytes for each in own),
            }
        )
    for row in rows:
        row["ratio"] = row["step_seconds"] / rows[-1]["step_seconds"]
        row["cpu_ratio"] = row["step_cpu_seconds"] / rows[-1]["step_cpu_seconds"]
    return rows


def compare_qlora(options: QloraOptions) -> None:
    """Measure the contenders in rounds, print the comparison, and write the `--json` file.

    Each measurement runs in a process of its own, which is this command with `--only_contender`.
    Raises UserError if a package is missing, if a process fails, or if the losses differ.
    """
    if options.only_contender:
        one_round = run_round(options.only_contender, options.task_folder, options.threads)
        print(json.dumps(asdict(one_round)))
        return
    require_bitsandbytes("bench.qlora")
    for package in ("peft", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise UserError(f"bench.qlora: the package {package} is not installed: pip install it")
    config = LlamaConfig(VOCAB_SIZE, max_position_embeddings=2048, **SIZES[options.size])
    with tempfile.TemporaryDirectory() as temporary:
        write_task(Path(temporary), config, options.steps, options.length)
        shared_arguments = [f"--task_folder={temporary}", f"--threads={options.threads}"]
        commands = [(name, [f"--only_contender={name}", *shared_arguments]) for name in CONTENDERS]
        results = run_rounds(
            "bench.qlora",
            commands,
            rounds=options.rounds,
            threads=options.threads,
            environments=peer_environments(CONTENDERS),
        )
    rounds = [QloraRound(**fields) for fields in results]
    check_equal_losses(rounds)
    rows = summarize(rounds)
    print(f"losses: {'; '.join(_format_losses(each) for each in rounds[:2])}")
    print(
        f"{'':12}{'s a step':>10}{'ratio':>7}{'CPU s':>8}{'ratio':>7}{'s to load':>11}"
        f"{'load MB':>9}{'steps MB':>10}"
    )
    for row in rows:
        print(
            f"{row['contender']:12}{row['step_seconds']:10.2f}{row['ratio']:7.2f}"
            f"{row['step_cpu_seconds']:8.2f}{row['cpu_ratio']:7.2f}{row['load_seconds']:11.1f}"
            f"{row['load_peak_bytes'] / 1e6:9,.0f}{row['steps_peak_bytes'] / 1e6:10,.0f}"
        )
    if options.json_file:
        settings = {name: getattr(options, name) for name in ("size", "steps", "length", "threads")}
        write_json(
            options.json_file,
            {
                "made": collect_environment(),
                "rounds": options.rounds,
                **settings,
                "config": config.to_hf(),
                "results": rows,
                "all_rounds": [asdict(each) for each in rounds],
            },
        )


def _format_losses(one_round: QloraRound) -> str:
    """Return a contender and its losses as text."""
    return f"{one_round.contender} {' '.join(f'{loss:.4f}' for loss in one_round.losses)}"
