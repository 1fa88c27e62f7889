"""The model a chat speaks with: which, in which precision, and how far its context reaches."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from chat.errors import ChatError, translate_errors
from common.errors import UserError
from common.machine import resolve_device
from data.batching.summary_prompts import ALL_REQUESTS, EVAL_REQUEST
from data.shards import load_run_shard_sets
from model.chat_template.template import TEMPLATE_FILE as TEMPLATE_FILE
from model.chat_template.template import Template, load_template
from model.checkpoint import locate, weights
from model.llama import Llama
from model.precision import DTYPES, resolve_precision
from model.quantize import Int8Linear, quantize_int8
from model.tokenizer.base import Tokenizer

# int8 is made of the weights as the files hold them: they have to fit first.
_MODEL_TOO_LARGE = (
    "内存或显存装不下这个模型：换小一些的模型，或关掉别的程序；显存不够时可用 --device cpu"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model, what it reads and writes with, and the most ids it may have before it."""

    folder: Path
    model: Llama
    tokenizer: Tokenizer
    template: Template
    context_length: int
    is_chat_tuned: bool  # fine-tuned on conversations: the checkpoint names its template
    remaining_steps: locate.RemainingSteps | None = (
        None  # what is left of the run that was named or chosen
    )

    @property
    def description(self) -> str:
        """Which one it is, on one line."""
        weight = self.model.model.norm.weight
        precision: str = next(name for name, dtype in DTYPES.items() if dtype == weight.dtype)
        if isinstance(self.model.lm_head, Int8Linear):
            precision += "，权重 int8"
        remaining = self.remaining_steps
        return (
            f"{self.folder}（{self.model.config.num_parameters / 1e6:.1f}M 参数，上下文 {self.context_length} 个词元，"
            f"{weight.device.type}，{precision}）"
            + (
                f"，还没训练完：到第 {remaining.step} 步，共 {remaining.total_steps} 步；接着训练：{remaining.resume_command}"
                if remaining
                else ""
            )
        )


def resolve_chat_device(name: str) -> torch.device:
    """Where `--device` says to compute. ChatError if that cannot be."""
    with translate_errors("这里没有能用的显卡：请用 --device cpu"):
        return resolve_device(name)


def find_default_run(runs: Path = locate.RUNS_DIR) -> Path:
    """The run to talk to where none is named: fine-tuned before pretrained, then the one saved last."""
    saved_runs = locate.list_runs(runs)
    if not saved_runs:
        raise ChatError(
            f"{runs}/ 里还没有训练好的模型：先 make pretrain，再 make sft；或用 --checkpoint 指定一个"
        )
    return next(
        (
            run
            for run in saved_runs
            if _has_template(locate.step_folder(run, locate.list_steps(run)[-1]))
        ),
        saved_runs[0],
    )


def capability_hint(loaded: LoadedModel) -> str | None:
    """A line for whoever expects more of a model than it was taught; None of one that was taught to talk."""
    if not loaded.is_chat_tuned:
        return (
            "提示：这个模型没有对话模板，多半只经过预训练：它只会续写，不会回答；对话要先 make sft"
        )
    try:
        kinds = {shards.kind for shards in load_run_shard_sets(loaded.folder)}
    except UserError:
        return None  # an export, or a run whose data is gone: what it was trained on is not known, and need not be
    if "summaries" not in kinds or "conversations" in kinds:
        return None
    return (
        f"提示：这个模型微调时只学了给文章写标题，多半不会聊天（聊天要 make sft DATA=redgpt 之类）。"
        f"请说“{ALL_REQUESTS[EVAL_REQUEST].prefix.strip()}”，换行（终端里行末打 \\ 再回车），接上文章"
    )


def load_chat_model(
    path: Path, device: torch.device, precision: str, quantize: str | None = None
) -> LoadedModel:
    """The checkpoint that `path` stands for, on `device`; with `quantize` "int8" its weights in int8. ChatError if it cannot
    be used; of a run, a line on stderr where a damaged checkpoint is passed over."""
    if (suggestion := locate.suggest_run(path)) is not None:
        raise ChatError(f"没有 {path}：是不是 {suggestion}？")
    with translate_errors(
        f"{path} 里没有能用的模型：请用 --checkpoint 指定一个训练目录、其中一步或导出的模型"
    ):
        folder = locate.resolve_checkpoint(path, _warn_skipped_checkpoint)
    with translate_errors(
        f"{folder} 里的模型读不进来：文件损坏或不配套，请换一个，或重新训练、导出",
        memory_message=_MODEL_TOO_LARGE,
    ):
        model, tokenizer = weights.load_checkpoint(folder, device)
        template = load_template(folder)
        model = model.to(DTYPES[resolve_precision(device, precision)])
        model = quantize_int8(model) if quantize else model
    return LoadedModel(
        folder,
        model,
        tokenizer,
        template,
        model.trained_context,
        _has_template(folder),
        locate.find_remaining_steps(path, folder),
    )


def _warn_skipped_checkpoint(problem: str) -> None:
    print(f"提示：有一个 checkpoint 损坏，改用别的；详情：{problem}", file=sys.stderr)


def _has_template(folder: Path) -> bool:
    return (folder / TEMPLATE_FILE).is_file()
