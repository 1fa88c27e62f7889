"""Options of pretraining and fine-tuning. Imports neither PyTorch nor NumPy."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from common.options import Options
from model.config import PRESETS
from model.lora_options import LoraOptions

ParallelStrategy = Literal["ddp", "fsdp"]


class ModelOptions(Options):
    """Options under `model.`: a preset, and single fields of it changed."""

    preset: str = Field("babyllama-3m", description=f"named shape: {', '.join(PRESETS)}")
    hidden_size: int | None = Field(None, gt=0, description="width; the preset's unless given")
    intermediate_size: int | None = Field(
        None, gt=0, description="width inside the feed-forward layers"
    )
    num_hidden_layers: int | None = Field(None, gt=0, description="layers")
    num_attention_heads: int | None = Field(None, gt=0, description="attention heads")
    num_key_value_heads: int | None = Field(
        None, gt=0, description="key-value heads; fewer than heads is GQA"
    )
    max_position_embeddings: int | None = Field(None, gt=0, description="longest context in tokens")
    rope_theta: float | None = Field(None, gt=0, description="base of the rotary frequencies")
    tie_word_embeddings: bool | None = Field(None, description="one table for embedding and head")

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"there is no preset {value}; choose {', '.join(PRESETS)}")
        return value

    def preset_overrides(self) -> dict[str, object]:
        """The fields that were changed from the preset."""
        said = {
            key: value
            for key, value in self.model_dump(exclude={"preset"}).items()
            if value is not None
        }
        if "num_attention_heads" in said:
            # Fewer key-value heads than heads is a wish of its own.
            said.setdefault("num_key_value_heads", said["num_attention_heads"])
        return said


class OptimizerOptions(Options):
    """Options under `optimizer.`"""

    name: Literal["muon", "adamw"] = Field(
        "muon",
        description="muon moves hidden matrices and AdamW the rest "
        "(embedding, head, norms, adapters); adamw moves everything",
    )
    lr: float = Field(8e-3, gt=0, lt=10, description="peak learning rate of AdamW")
    muon_lr: float = Field(
        4e-2, gt=0, lt=10, description="peak learning rate of Muon (its updates have unit size)"
    )
    weight_decay: float = Field(
        0.1, ge=0, lt=10, description="decoupled decay of matrices, in units of the rate"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum")
    clip: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")


class ScheduleOptions(Options):
    """Options under `schedule.`"""

    name: Literal["wsd", "cosine"] = Field(
        "wsd",
        description="wsd: warm-up, stable, decay (Hu et al. 2024); cosine "
        "(Loshchilov & Hutter 2017)",
    )
    warmup: float = Field(
        0.02, ge=0, lt=1, description="share of the steps over which the rate rises from zero"
    )
    decay: float = Field(
        0.7, ge=0, le=1, description="wsd only: share of the steps over which it falls at the end"
    )
    final: float = Field(
        0.0, ge=0, le=1, description="share of the peak rate left at the last step"
    )


class CheckpointOptions(Options):
    """Options under `checkpoint.`"""

    every: int = Field(100, gt=0, description="steps between checkpoints")
    keep: int = Field(2, gt=0, description="newest checkpoints kept; the best one is kept besides")


class EvaluationOptions(Options):
    """Options under `evaluation.`"""

    every: int = Field(100, gt=0, description="steps between evaluations on the validation split")
    tokens: int = Field(
        200_000,
        gt=0,
        description="validation tokens scored during training (the first ones); the last "
        "evaluation scores all of them",
    )
    prompts: tuple[str, ...] = Field(
        ("", "从前，", "问："),
        description="beginnings that are continued after every evaluation; an empty "
        "one begins a document",
    )
    sample_tokens: int = Field(
        100, ge=0, description="tokens generated per prompt; 0 turns samples off"
    )


class TrainOptions(Options):
    """What every way of training has."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to train; auto takes a GPU if there is one"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 where the GPU has it, fp16 "
        "with loss scaling on older GPUs, fp32 on a CPU",
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile; auto: on a GPU only"
    )
    parallel: ParallelStrategy = Field(
        "ddp",
        description="how several processes share the work (torchrun, docs/scale.md): ddp, each "
        "with all weights; fsdp, each with a part of them; one process has no use for it",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights and of the order of data")
    batch_tokens: int = Field(
        2048, gt=0, description="tokens per optimizer step, a multiple of sequence_length"
    )
    sequence_length: int = Field(256, gt=1, description="tokens per row")
    micro_batch: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(
        "auto",
        description="rows that go through the model at once; auto measures what fits and is fast",
    )
    log_every: int = Field(20, gt=0, description="steps between lines in the terminal and the log")
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()

    def find_conflicts(self) -> list[str]:
        """See `Options.find_conflicts`."""
        lines = super().find_conflicts()
        if self.batch_tokens % self.sequence_length:
            near = max(1, round(self.batch_tokens / self.sequence_length)) * self.sequence_length
            lines.append(
                f"--batch_tokens {self.batch_tokens} is not a multiple of --sequence_length "
                f"{self.sequence_length}; {near} would be"
            )
        if self.schedule.name == "wsd" and self.schedule.warmup + self.schedule.decay > 1:
            lines.append(
                "--schedule.warmup and --schedule.decay are shares of the steps and may not exceed "
                "1 together"
            )
        return lines


class PretrainOptions(TrainOptions):
    """All options of `python -m train.pretrain`."""

    run: Path | None = Field(
        None, description="the run's folder; continued if it exists (default runs/pretrain-DATA)"
    )
    data: str = Field(
        "sample",
        description="what to train on: a name (sample, wikipedia, zhihu…), a prepared folder, or "
        "a raw file or folder; a mix is written name:weight+name:weight",
    )
    base: Path | None = Field(
        None,
        description="what to go on from: a run, one of its steps, or an exported folder; its shape "
        "and tokenizer are the run's (default: random weights of the shape under model)",
    )
    tokenizer: Path | None = Field(
        None,
        description="tokenizer to prepare the data with; the base's, or without one the "
        "data's own by default",
    )
    max_steps: int = Field(
        260,
        gt=0,
        description="optimizer steps of the whole run: its horizon, fixed from the start",
    )
    model: ModelOptions = ModelOptions()
    evaluation: EvaluationOptions = EvaluationOptions()


class SftEvaluationOptions(Options):
    """Options under `evaluation.` of fine-tuning."""

    every: int = Field(100, gt=0, description="steps between evaluations on the dev split")
    scored: int = Field(
        1000,
        gt=0,
        description="dev examples of each set whose answers' loss is measured during training (the "
        "first ones); the last evaluation measures all of them",
    )
    examples: int = Field(
        100,
        ge=0,
        description="dev records that are answered and scored at each evaluation (the first "
        "ones); 0: only the loss is measured",
    )
    max_new_tokens: int = Field(48, gt=0, description="longest answer then")
    patience: int = Field(
        0, ge=0, description="evaluations without a better score after which the run ends; 0: never"
    )


class SftOptions(TrainOptions):
    """All options of `python -m train.sft`."""

    run: Path | None = Field(
        None, description="the run's folder; continued if it exists (default runs/sft-DATA)"
    )
    data: str = Field(
        "csl",
        description="what to train on: a name (csl, lcsts, redgpt, naturalconv, belle-0.5m, belle-0.8m, "
        "deepctrl, pclue), a prepared folder or a raw file; a mix is written csl+belle-0.8m:0.5+replay:0.1, "
        "where replay is the base's pretraining text, 0.1 tokens of it to each of the rest",
    )
    base: Path | Literal["none"] | None = Field(
        None,
        description="what to fine-tune: a run, one of its steps, an exported "
        "folder, or none to begin from nothing (default: the newest pretraining run)",
    )
    tokenizer: Path | None = Field(
        None, description="tokenizer where there is no base; the base's own otherwise"
    )
    epochs: float | None = Field(2.0, gt=0, description="passes over the data")
    max_steps: int | None = Field(
        None, gt=0, description="optimizer steps; given, epochs do not count"
    )
    lead_ins: bool = Field(
        False,
        description="begin the answers to summarization requests with a phrase such as 总结如下：",
    )
    model: ModelOptions = Field(ModelOptions(), description="shape where there is no base")
    adapter: Literal["none", "lora"] = Field(
        "none",
        description="none: all weights train; lora: small matrices beside the "
        "base's weights, which are frozen and not stored again",
    )
    lora: LoraOptions = LoraOptions()
    # Half of the rates of pretraining, as measured on the sample.
    optimizer: OptimizerOptions = OptimizerOptions(lr=4e-3, muon_lr=2e-2)
    evaluation: SftEvaluationOptions = SftEvaluationOptions()

    def find_conflicts(self) -> list[str]:
        """See `Options.find_conflicts`."""
        lines = super().find_conflicts()
        if self.adapter != "none" and self.base == "none":
            lines.append(
                f"--adapter {self.adapter}: trains beside the weights of a base: name one with "
                "--base, or leave --base none out"
            )
        if self.epochs is None and self.max_steps is None:
            lines.append("no training length: give --epochs or --max_steps")
        return lines
