"""The model a chat speaks with: which, in which precision, and how far its context reaches."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from chat.errors import ChatError, in_chinese
from common.errors import UserError
from common.machine import resolve_device
from data.batching.summary_prompts import CANONICAL, FLAT
from data.shards import shard_sets_of_run
from model.checkpoint import locate, weights
from model.llama import Llama
from model.precision import DTYPES, choose_precision
from model.quantize import Int8Linear, quantize_int8
from model.chat_template.template import FILE as TEMPLATE_FILE
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

# int8 is made of the weights as the files hold them: they have to fit first.
_TOO_LARGE = "内存或显存装不下这个模型：换小一些的模型，或关掉别的程序；显存不够时可用 --device cpu"


@dataclass(frozen=True)
class Weights:
    """A model, what it reads and writes with, and the most ids it may have before it."""

    folder: Path
    model: Llama
    tokenizer: Tokenizer
    template: Template
    context: int
    converses: bool  # fine-tuned on conversations: the checkpoint names its template
    unfinished: locate.Unfinished | None = None  # what is left of the run that was named or chosen

    @property
    def description(self) -> str:
        """Which one it is, on one line."""
        weight = self.model.model.norm.weight
        precision: str = next(name for name, dtype in DTYPES.items() if dtype == weight.dtype)
        if isinstance(self.model.lm_head, Int8Linear):
            precision += "，权重 int8"
        left = self.unfinished
        return (f"{self.folder}（{self.model.config.parameters / 1e6:.1f}M 参数，上下文 {self.context} 个词元，"
                f"{weight.device.type}，{precision}）" + (
                    f"，还没训练完：到第 {left.step} 步，共 {left.steps} 步；接着训练：{left.cure}" if left else ""))


def choose_device(name: str) -> torch.device:
    """Where `--device` says to compute. ChatError if that cannot be."""
    with in_chinese("这里没有能用的显卡：请用 --device cpu"):
        return resolve_device(name)


def newest_run(runs: Path = locate.RUNS) -> Path:
    """The run to talk to where none is named: fine-tuned before pretrained, then the one saved last."""
    found = locate.saved_runs(runs)
    if not found:
        raise ChatError(f"{runs}/ 里还没有训练好的模型：先 make pretrain，再 make sft；或用 --checkpoint 指定一个")
    return next((run for run in found if _converses(locate.step_folder(run, locate.steps(run)[-1]))), found[0])


def hint(weights: Weights) -> str | None:
    """A line for whoever expects more of a model than it was taught; None of one that was taught to talk."""
    if not weights.converses:
        return "提示：这个模型没有对话模板，多半只经过预训练：它只会续写，不会回答；对话要先 make sft"
    try:
        kinds = {shards.kind for shards in shard_sets_of_run(weights.folder)}
    except UserError:
        return None  # an export, or a run whose data is gone: what it was trained on is not known, and need not be
    if "summaries" not in kinds or "conversations" in kinds:
        return None
    return (f"提示：这个模型微调时只学了给文章写标题，多半不会聊天（聊天要 make sft DATA=redgpt 之类）。"
            f"请说“{FLAT[CANONICAL].before.strip()}”，换行（终端里行末打 \\ 再回车），接上文章")


def load(path: Path, device: torch.device, precision: str, quantize: str | None = None) -> Weights:
    """The checkpoint that `path` stands for, on `device`; with `quantize` "int8" its weights in int8. ChatError if it cannot
    be used; of a run, a line on stderr where a damaged checkpoint is passed over."""
    if (meant := locate.same_name(path)) is not None:
        raise ChatError(f"没有 {path}：是不是 {meant}？")
    with in_chinese(f"{path} 里没有能用的模型：请用 --checkpoint 指定一个训练目录、其中一步或导出的模型"):
        folder = locate.find(path, _passed_over)
    with in_chinese(f"{folder} 里的模型读不进来：文件损坏或不配套，请换一个，或重新训练、导出", memory=_TOO_LARGE):
        model, tokenizer = weights.load(folder, device)
        template = Template.load(folder)
        model = model.to(DTYPES[choose_precision(device, precision)])
        model = quantize_int8(model) if quantize else model
    return Weights(folder, model, tokenizer, template, model.context, _converses(folder), locate.unfinished(path, folder))


def _passed_over(problem: str) -> None:
    print(f"提示：有一个 checkpoint 损坏，改用别的；详情：{problem}", file=sys.stderr)


def _converses(folder: Path) -> bool:
    return (folder / TEMPLATE_FILE).is_file()
