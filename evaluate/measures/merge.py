"""The dev loss of an adapter beside the 4-bit weights it was trained with, and of its merges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.machine import resolve_device
from data.shards import ShardSet, load_run_shard_sets
from evaluate.kinds import find_evaluation
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.language_model import LMScore
from evaluate.options import MergeOptions
from evaluate.result import EvalResult, report_result
from model.bitsandbytes import require_bitsandbytes
from model.checkpoint import adapters, locate, weights
from model.checkpoint.quantized import load_quantized, load_with_adapter
from model.llama import Llama
from model.tokenizer import load_tokenizer

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# The row that the others are compared with.
_TRAINED = "adapter beside nf4"


def compare_merges(options: MergeOptions) -> None:
    """Score base, trained model and merges on the dev splits of a run; report the losses.

    Raises UserError if the checkpoint has no adapter that was trained beside 4-bit weights, or if
    there is nothing to score.
    """
    device = resolve_device(options.device)
    folder = locate.resolve_checkpoint(options.checkpoint)
    if not locate.is_adapter(folder) or adapters.base_quantization(folder) is None:
        raise UserError(
            f"--checkpoint {options.checkpoint}: is no adapter that was trained beside 4-bit "
            "weights (train.sft --adapter lora --quantize nf4): there is nothing to compare"
        )
    require_bitsandbytes("evaluate.merge")
    shard_sets = [shards for shards in load_run_shard_sets(folder) if not shards.kind.is_text]
    provenance: dict[str, Any] = {"checkpoint": str(options.checkpoint)}
    step = locate.read_step(folder)
    if step is not None:
        provenance["step"] = step
    scores: dict[str, LMScore] = {}
    for name, load in _loaders(folder, device, _DTYPES[options.dtype]).items():
        print(f"{name}: ", end="", flush=True)
        scores[name] = _score_model(load, folder, provenance, shard_sets, options.limit)
        if not scores[name].num_tokens:
            raise UserError(
                f"--checkpoint {options.checkpoint}: its dev splits have no answer that fits a row"
            )
    metrics = {name: score.compute_metrics() for name, score in scores.items()}
    trained_loss = metrics[_TRAINED]["loss"]
    lines = [f"{'':25}{'loss':>8}{'against trained':>17}{'perplexity':>12}{'accuracy':>10}"]
    for name, values in metrics.items():
        values["difference"] = values["loss"] - trained_loss
        lines.append(
            f"{name:25}{values['loss']:8.4f}{values['difference']:+17.4f}"
            f"{values['perplexity']:12.3f}{values['accuracy']:10.2%}"
        )
    lines.append(
        f"{scores[_TRAINED].num_tokens:,} tokens of dev answers, in fp32; merged weights rounded "
        f"to {options.dtype}"
    )
    if len({score.num_tokens for score in scores.values()}) > 1:
        lines.append(
            "the losses are of different tokens: the base was trained on shorter rows, which do "
            "not hold all answers"
        )
    result = EvalResult(
        lines, {"dtype": options.dtype, "weights": metrics}, provenance, device=device
    )
    report_result(result, options.json_file)


def _loaders(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], Llama]]:
    """Return what loads each of the models that are compared, by its name in the table."""
    base = locate.resolve_base(folder)

    return {
        "base": lambda: weights.load_checkpoint(base, device)[0],
        "base in nf4": lambda: load_quantized(base, device, torch.float32),
        _TRAINED: lambda: load_with_adapter(folder, device, torch.float32),
        "merged into dequantized": lambda: _round_weights(
            weights.load_checkpoint(folder, device, merge="dequantized")[0], dtype
        ),
        "merged into original": lambda: _round_weights(
            weights.load_checkpoint(folder, device, merge="original")[0], dtype
        ),
    }


@torch.no_grad()
def _round_weights(model: Llama, dtype: torch.dtype) -> Llama:
    """Round the weights of a model as an export in `dtype` does, in place; return the model.

    `Module.to` would round the table of rotary embeddings as well, which no export holds.
    """
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))
    return model


def _score_model(
    load: Callable[[], Llama],
    folder: Path,
    provenance: dict[str, Any],
    shard_sets: list[ShardSet],
    limit: int | None,
) -> LMScore:
    """Load a model, and return its score on the dev splits.

    A function of its own, so that a model is freed before the next one is loaded: each of them may
    be most of the memory.
    """
    model = load()
    # Not in longer rows than the run's; a base that was trained on shorter ones keeps those.
    weights.limit_trained_context(model, folder)
    loaded = LoadedCheckpoint(folder, model, load_tokenizer(folder), provenance)
    total = LMScore()
    for shards in shard_sets:
        evaluation = find_evaluation(shards.kind)
        total += evaluation.score_shards(loaded, shards, "validation", limit).score
    return total
