"""Choose and load the model of a chat or a server."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from chat.errors import (
    CHECKPOINT_UNREADABLE,
    CHECKPOINT_UNUSABLE,
    GPU_UNAVAILABLE,
    MODEL_TOO_LARGE,
    TOKENIZER_MISSING,
    ChatError,
    translate_errors,
)
from chat.examples import find_examples
from common import run_layout
from common.errors import UserError
from common.machine import resolve_device
from data.kinds.base import ChatExample
from data.shards import load_run_shard_sets
from model.chat_template.template import TEMPLATE_FILE, Template, load_template
from model.checkpoint import locate, weights
from model.llama import Llama
from model.precision import DTYPES, Precision, resolve_precision
from model.quantize import Int8Linear, quantize_int8
from model.tokenizer import has_tokenizer
from model.tokenizer.base import Tokenizer

# What chat tells whoever talks to a model for which there are examples.
_EXAMPLES_HINT = "；/示例（或 /example，网页上点“示例”）给出现成的例子"
_PASSAGE_HINT = (
    "提示：这个模型会读一段给它的资料，回答关于这段资料的问题："
    "先用 /资料（或 /reference）给出资料，再提问"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and chat template."""

    folder: Path
    model: Llama
    tokenizer: Tokenizer
    template: Template
    context_length: int  # maximum number of ids of a prompt and its answer together
    is_chat_tuned: bool  # whether the checkpoint has a chat template, which fine-tuning writes
    remaining_steps: locate.RemainingSteps | None = None  # if its training is unfinished
    examples: tuple[ChatExample, ...] = ()  # to try it on, if it was trained on the sample

    @property
    def description(self) -> str:
        """One line in Chinese: folder, size, context, device, precision, unfinished training."""
        # The norms stay in floating point when the matrices are quantized.
        weight = self.model.model.norm.weight
        precision: str = next(name for name, dtype in DTYPES.items() if dtype == weight.dtype)
        if isinstance(self.model.lm_head, Int8Linear):
            precision += "，int8 权重"
        num_millions = self.model.config.num_parameters / 1e6
        description = (
            f"{self.folder}（{num_millions:.1f}M 参数，上下文 {self.context_length} 个词元，"
            f"{weight.device.type}，{precision}）"
        )
        if (remaining := self.remaining_steps) is not None:
            description += (
                f"，训练尚未完成：第 {remaining.step} 步，共 {remaining.total_steps} 步；"
                f"继续训练：{remaining.resume_command}"
            )
        return description


def resolve_chat_device(name: str) -> torch.device:
    """Return the device for a `--device` value. Raises ChatError if it is not available."""
    with translate_errors(GPU_UNAVAILABLE):
        return resolve_device(name)


def find_default_run(runs: Path = run_layout.RUNS_DIR) -> Path:
    """Return the newest fine-tuned run in `runs`, or the newest of all if none is fine-tuned.

    Raises ChatError if no run has a checkpoint.
    """
    newest = locate.find_newest_run(runs, _is_fine_tuned) or locate.find_newest_run(runs)
    if newest is None:
        raise ChatError(
            f"{runs}/ 中还没有训练好的模型：请先运行 make pretrain，再运行 make sft，"
            "或用 --checkpoint 指定模型"
        )
    return newest


def _is_fine_tuned(run: Path) -> bool:
    """Return whether the newest checkpoint of a run has a template, which fine-tuning writes."""
    newest_step = run_layout.list_steps(run)[-1]
    return _has_template(run_layout.step_folder(run, newest_step))


def capability_hint(loaded: LoadedModel) -> str | None:
    """Return a line in Chinese that says what a model can do, or None if there is nothing to say.

    There is for a model that was not trained to converse, and for one that was fine-tuned on the
    sample's passages: a few invented texts, which teach to read a passage and no knowledge. None if
    the training data of a model is unknown.
    """
    if not loaded.is_chat_tuned:
        return (
            "提示：这个模型没有对话模板，应该只做过预训练，只会续写，不会回答问题；"
            "要对话，请先运行 make sft"
        )
    try:
        shard_sets = load_run_shard_sets(loaded.folder)
    except UserError:
        return None  # an export, or a run whose data is gone: nothing is known about its training
    # Text that is replayed during fine-tuning does not teach a model to converse.
    hints = [shards.kind.chat_hint for shards in shard_sets if not shards.kind.is_text]
    # A kind without a hint teaches a model to converse, and one such set is enough. Of several
    # hints the first is shown.
    if hints and all(hints):
        return f"{hints[0]}{_EXAMPLES_HINT if loaded.examples else ''}"
    if any(example.reference for example in loaded.examples):
        return _PASSAGE_HINT + _EXAMPLES_HINT
    return None


def load_chat_model(
    path: Path,
    device: torch.device,
    precision: str,
    quantize: str | None = None,
    kv_cache: Precision | None = None,
) -> LoadedModel:
    """Load the checkpoint that `path` stands for (`locate.resolve_checkpoint`) onto `device`.

    With `quantize` "int8" the weights are quantized, else `precision` is their format; `kv_cache`
    is that of keys and values, by default the same. Raises ChatError if the checkpoint cannot be
    used. Prints a line on stderr for every damaged checkpoint of a run that is skipped.
    """
    if (suggested_run := locate.suggest_run(path)) is not None:
        raise ChatError(f"找不到 {path}：是不是 {suggested_run}？")
    _check_tokenizer(path)
    with translate_errors(CHECKPOINT_UNUSABLE.format(path=path)):
        folder = locate.resolve_checkpoint(path, _warn_skipped_checkpoint)
    with translate_errors(CHECKPOINT_UNREADABLE.format(folder=folder), MODEL_TOO_LARGE):
        model, tokenizer = weights.load_checkpoint(folder, device)
        template = load_template(folder)
        model = model.to(DTYPES[resolve_precision(device, precision)])
        if quantize:
            model = quantize_int8(model)
        if kv_cache:
            model.kv_cache_dtype = DTYPES[kv_cache]
    return LoadedModel(
        folder,
        model,
        tokenizer,
        template,
        context_length=model.trained_context,
        is_chat_tuned=_has_template(folder),
        remaining_steps=locate.find_remaining_steps(path, folder),
        examples=find_examples(folder),
    )


def _check_tokenizer(path: Path) -> None:
    """Raise ChatError for a folder with weights, or a run, that has no tokenizer beside them."""
    folders = [run_layout.step_folder(path, step) for step in run_layout.list_steps(path)] or [path]
    if all(locate.has_weights(folder) and not has_tokenizer(folder) for folder in folders):
        raise ChatError(TOKENIZER_MISSING.format(folder=folders[-1]))


def _warn_skipped_checkpoint(problem: str) -> None:
    print(f"提示：一个检查点已损坏，改用其他检查点；详情：{problem}", file=sys.stderr)


def _has_template(folder: Path) -> bool:
    return (folder / TEMPLATE_FILE).is_file()
