"""Options of the training commands. Imports neither PyTorch nor NumPy."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from common.options import Options
from data.mixture import Mixture
from evaluate.rewards.options import REWARD_DESCRIPTIONS, Rewards
from model.config import PRESETS, READING_HEADS_FIELDS
from model.lora_options import LoraOptions, Quantization
from model.rope_scaling import MAX_FACTOR, ExtensionType

ParallelStrategy = Literal["ddp", "fsdp"]
OptimizerName = Literal["muon", "adamw", "adamw8bit", "paged_adamw8bit"]


def _replace_boolean(value: object) -> object:
    """Return what a boolean of earlier versions means, which the config.yaml of their runs has."""
    return {"true": "layers", "false": "none"}.get(str(value).lower(), value)


GradientCheckpointing = Annotated[
    Literal["none", "attention", "layers"], BeforeValidator(_replace_boolean)
]


class ModelOptions(Options):
    """Options of the group `model`: a preset, and fields that replace those of the preset."""

    preset: str = Field("babyllama-3m", description=f"named size: {', '.join(PRESETS)}")
    hidden_size: int | None = Field(None, gt=0, description="width; default: of the preset")
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
    reading_heads: bool | None = Field(
        None,
        description="begin with attention heads that find and copy, and leave them as they are "
        "(docs/training.md); default: for babyllama-3m in its own shape, which they are made for",
    )
    rope_scaling: ExtensionType | None = Field(
        None,
        description="with a base, and rows longer than those that it was trained with: how rotary "
        "frequencies change, yarn (recommended), llama3, linear, or none for more positions alone "
        "(docs/long-context.md); default: as in the base",
    )
    rope_factor: float | None = Field(
        None,
        gt=1,
        le=MAX_FACTOR,
        description="new context in trained lengths of the base; default: sequence_length in them",
    )

    @field_validator("preset")
    @classmethod
    def _check_preset(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"unknown preset {value}; choose {', '.join(PRESETS)}")
        return value

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.rope_factor is not None and self.rope_scaling in (None, "none"):
            lines.append(
                f"--model.rope_factor {self.rope_factor:g} scales nothing: add "
                "--model.rope_scaling yarn"
            )
        return lines

    def preset_overrides(self) -> dict[str, object]:
        """Return the fields of `LlamaConfig` that the options replace, by name."""
        fields = self.model_dump(exclude={"preset", "rope_scaling", "rope_factor"})
        overrides = {name: value for name, value in fields.items() if value is not None}
        if "num_attention_heads" in overrides:
            # Without a number of key-value heads, all heads have their own. The preset's number
            # would turn another number of heads into grouped-query attention.
            overrides.setdefault("num_key_value_heads", overrides["num_attention_heads"])
        if not overrides.keys().isdisjoint(READING_HEADS_FIELDS):
            overrides.setdefault("reading_heads", False)
        return overrides


class OptimizerOptions(Options):
    """Options of the group `optimizer`: which optimizers train, and their hyperparameters."""

    name: OptimizerName = Field(
        "muon",
        description="muon: Muon trains the hidden matrices, and AdamW the rest "
        "(embedding, head, norms, adapters); adamw: AdamW trains everything; adamw8bit: AdamW "
        "whose moments have 8 bits, except those of embedding and norms; paged_adamw8bit: the same "
        "in memory that moves to the host when a GPU is full (both: docs/lora.md)",
    )
    lr: float = Field(2e-3, gt=0, lt=10, description="peak learning rate of AdamW")
    muon_lr: float = Field(
        1.2e-2, gt=0, lt=10, description="peak learning rate of Muon (its updates have unit size)"
    )
    weight_decay: float = Field(
        0.1, ge=0, lt=10, description="decoupled decay of matrices, in units of the rate"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum")
    clip: float = Field(
        1.0, gt=0, description="gradients with a larger norm are scaled to this one"
    )

    @property
    def is_8bit(self) -> bool:
        """Whether the moments are stored in 8 bits, which needs bitsandbytes."""
        return self.name in ("adamw8bit", "paged_adamw8bit")


class ScheduleOptions(Options):
    """Options of the group `schedule`: how the learning rate changes during a run."""

    name: Literal["wsd", "cosine"] = Field(
        "wsd",
        description="wsd: warm-up, stable, decay (Hu et al. 2024), constant after the warm-up with "
        "a decay of 0; cosine (Loshchilov & Hutter 2017)",
    )
    warmup: float = Field(
        0.02, ge=0, lt=1, description="share of the steps over which the rate rises from zero"
    )
    decay: float = Field(
        0.7, ge=0, le=1, description="wsd only: share of the steps over which it falls at the end"
    )
    final: float = Field(
        0.0, ge=0, le=1, description="share of the peak rate that the decay ends at"
    )


class CheckpointOptions(Options):
    """Options of the group `checkpoint`: when checkpoints are written and deleted."""

    every: int = Field(100, gt=0, description="steps between checkpoints")
    keep: Literal["all"] | Annotated[int, Field(gt=0)] = Field(
        2,
        description="number of newest checkpoints to keep, besides the best one; all: keep every "
        "checkpoint, for python -m evaluate.watch",
    )


class EvaluationOptions(Options):
    """Options of the group `evaluation` of pretraining: validation loss, and samples of text."""

    every: int = Field(100, gt=0, description="steps between evaluations on the validation split")
    tokens: int = Field(
        200_000,
        gt=0,
        description="validation tokens to score during training, the same at each evaluation; the "
        "last evaluation scores all",
    )
    prompts: tuple[str, ...] = Field(
        ("", "从前，", "问："),
        description="prompts to continue after each evaluation; an empty one begins a document",
    )
    sample_tokens: int = Field(
        100, ge=0, description="tokens to generate per prompt; 0: no samples"
    )


class CurriculumOptions(Options):
    """Options of the group `curriculum` of pretraining: tasks that come in towards the end."""

    data: Mixture | None = Field(
        None,
        description="text to mix in while the learning rate falls, the more the lower it is, such "
        "as titles_as_text(wikipedia)+pseudo_summaries_as_text(wikipedia):0.5; before that, and in "
        "the other rows, there is --data alone (docs/training.md)",
    )
    share: float = Field(
        0.5, gt=0, le=1, description="its share of the tokens at the end; it grows from 0"
    )


class TrainOptions(Options):
    """Options that all training commands share."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to train; auto: on a GPU if there is one"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 where the GPU has it, fp16 with loss scaling on older GPUs; on a "
        "CPU fp32, or bf16 where it multiplies that and the model is large enough to gain",
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile; auto: on a GPU only"
    )
    parallel: ParallelStrategy = Field(
        "ddp",
        description="for several processes (torchrun, docs/scale.md): ddp replicates the weights, "
        "fsdp shards them",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights and of the order of data")
    sequence_length: int = Field(512, gt=1, description="tokens per row")
    micro_batch: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(
        "auto",
        description="rows per forward pass, with gradient accumulation over the rows of a step; "
        "auto: the fastest that fits, measured on a GPU",
    )
    gradient_checkpointing: GradientCheckpointing = Field(
        "none",
        description="what is kept of each layer for the backward pass, which computes the rest "
        "again; none: everything is kept; attention: the input and the result of attention; "
        "layers: the input alone, so that attention is computed twice, too (docs/memory.md)",
    )
    offload_activations: bool = Field(
        False,
        description="what is kept with --gradient_checkpointing waits in the memory of the host, "
        "not on the GPU",
    )
    log_every: int = Field(20, gt=0, description="steps between log lines")
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()

    @property
    def rows_per_step(self) -> int:
        """Return the rows of a step, over all processes, or the most that it can have."""
        raise NotImplementedError

    @property
    def step_size(self) -> dict[str, Any]:
        """Return the options that say how much a step trains on, as fingerprints of the run."""
        raise NotImplementedError

    def describe_step(self) -> str:
        """Return how much a step trains on, for the summary."""
        raise NotImplementedError

    @property
    def num_answered(self) -> int:
        """Return how many prompts of a set an evaluation answers; 1 if it takes one at a time."""
        raise NotImplementedError

    @property
    def longest_answer(self) -> int:
        """Return the most ids that the model generates after a prompt, in evaluations too."""
        raise NotImplementedError

    @property
    def sampled_rows(self) -> int:
        """Return how many answers are drawn together, to train on them; by default none are."""
        return 0

    @property
    def samples(self) -> int:
        """Return how many of these answers are to the same prompt."""
        return 1

    @property
    def keeps_reference(self) -> bool:
        """Return whether a second model is in memory; by default there is none."""
        return False

    @property
    def bitsandbytes_option(self) -> str | None:
        """Return the option that needs bitsandbytes, with its value, or None."""
        return f"--optimizer.name {self.optimizer.name}" if self.optimizer.is_8bit else None

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.schedule.name == "wsd" and self.schedule.warmup + self.schedule.decay > 1:
            lines.append(
                "--schedule.warmup and --schedule.decay are shares of the steps and may not exceed "
                "1 together"
            )
        if self.compile is True and self.gradient_checkpointing != "none":
            lines.append(
                "--compile true: not with --gradient_checkpointing, which has not been tried with "
                "compiled layers"
            )
        if self.offload_activations and self.gradient_checkpointing == "none":
            lines.append(
                "--offload_activations true: moves what --gradient_checkpointing keeps: add "
                "--gradient_checkpointing layers"
            )
        if self.parallel == "fsdp" and self.optimizer.is_8bit:
            lines.append(
                f"--optimizer.name {self.optimizer.name}: its blocks do not fit the shards of "
                "--parallel fsdp: use --parallel ddp"
            )
        return lines


class TokenBatchOptions(TrainOptions):
    """Options of the commands whose steps have a fixed number of tokens."""

    batch_tokens: int = Field(
        2048, gt=0, description="tokens per optimizer step, a multiple of sequence_length"
    )

    @property
    def rows_per_step(self) -> int:
        """Return the rows of a step, over all processes."""
        return self.batch_tokens // self.sequence_length

    @property
    def step_size(self) -> dict[str, Any]:
        """See `TrainOptions`."""
        return {"batch_tokens": self.batch_tokens}

    def describe_step(self) -> str:
        """See `TrainOptions`."""
        return f" of {self.batch_tokens:,} a step"

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.batch_tokens % self.sequence_length:
            rows = max(1, round(self.batch_tokens / self.sequence_length))
            nearest_multiple = rows * self.sequence_length
            lines.append(
                f"--batch_tokens {self.batch_tokens} is not a multiple of --sequence_length "
                f"{self.sequence_length}; {nearest_multiple} would be"
            )
        return lines


class PretrainOptions(TokenBatchOptions):
    """The options of `python -m train.pretrain`."""

    run: Path | None = Field(
        None, description="run directory; resumed if it exists (default: runs/pretrain-DATA)"
    )
    data: Mixture = Field(
        "sample",
        description="what to train on: a name (sample, wikipedia, zhihu…), a prepared folder, or "
        "a raw file or folder; a mixture is name:weight+name:weight; long(name,4096) is the "
        "documents of at least 4,096 tokens (docs/data.md)",
    )
    base: Path | None = Field(
        None,
        description="initial weights, config and tokenizer: a run, one of its steps, or an "
        "exported folder (default: random weights of the size under model)",
    )
    tokenizer: Path | None = Field(
        None,
        description="tokenizer to prepare the data with (default: of the base, or else the one "
        "that the data was prepared with)",
    )
    max_steps: int = Field(
        470,
        gt=0,
        description="optimizer steps of the whole run, fixed from its start",
    )
    curriculum: CurriculumOptions = CurriculumOptions()
    model: ModelOptions = ModelOptions()
    evaluation: EvaluationOptions = EvaluationOptions()

    @property
    def num_answered(self) -> int:
        """See `TrainOptions`."""
        return 1

    @property
    def longest_answer(self) -> int:
        """See `TrainOptions`."""
        return self.evaluation.sample_tokens

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.model.rope_scaling is not None and self.base is None:
            lines.append(
                f"--model.rope_scaling {self.model.rope_scaling}: extends the context of a --base, "
                "and there is none: name the model to go on from, BASE=RUN (--base RUN), or leave "
                "the option out"
            )
        never_decays = self.schedule.name == "wsd" and self.schedule.decay == 0
        if self.curriculum.data is not None and never_decays:
            lines.append(
                "--curriculum.data: comes in while the learning rate falls, and --schedule.decay 0 "
                "keeps it: raise that"
            )
        return lines


# A rate of fine-tuning, or "auto".
AutoRate = Literal["auto"] | Annotated[float, Field(gt=0, lt=10)]


class SftOptimizerOptions(OptimizerOptions):
    """The group `optimizer` of fine-tuning: rates that are not given depend on the data."""

    lr: AutoRate = Field(  # type: ignore[assignment]
        "auto",
        description="peak learning rate of AdamW; auto: 3e-3 for data with summaries, otherwise "
        "5e-4",
    )
    muon_lr: AutoRate = Field(  # type: ignore[assignment]
        "auto",
        description="peak learning rate of Muon (its updates have unit size); auto: 2e-2 for data "
        "with summaries, otherwise 6e-3",
    )

    def resolve(self, *, has_summaries: bool) -> OptimizerOptions:
        """Return the options with numbers as rates.

        A title is put together from parts of a text, which a base has to learn; answers to
        questions mostly repeat the passage, and high rates make that worse (docs/log.md).
        """
        rates = {"lr": 3e-3, "muon_lr": 2e-2} if has_summaries else {"lr": 5e-4, "muon_lr": 6e-3}
        given = {name: value for name, value in self.model_dump().items() if value != "auto"}
        return OptimizerOptions(**{**rates, **given})


class SftEvaluationOptions(Options):
    """Options of the group `evaluation` of fine-tuning: dev loss, and generated answers."""

    every: int = Field(100, gt=0, description="steps between evaluations on the dev split")
    scored: int = Field(
        1000,
        gt=0,
        description="dev examples of each set whose loss is measured during training, the same at "
        "each evaluation; the last evaluation measures all",
    )
    examples: int = Field(
        100,
        ge=0,
        description="dev examples of each set to generate answers for at each evaluation; 0: "
        "measure the loss alone",
    )
    max_new_tokens: int = Field(48, gt=0, description="longest generated answer")
    patience: int = Field(
        0, ge=0, description="evaluations without a better score that end the run; 0: never"
    )


class FineTuneOptions(TrainOptions):
    """Options that the commands share that train a finished model on examples."""

    data: Mixture = Field(..., description="what to train on")
    epochs: float | None = Field(1.0, gt=0, description="passes over the data")
    max_steps: int | None = Field(
        None, gt=0, description="optimizer steps of the whole run; replaces epochs"
    )
    adapter: Literal["none", "lora"] = Field(
        "none",
        description="none: train all weights; lora: train small matrices beside the frozen weights "
        "of the base",
    )
    quantize: Literal["none"] | Quantization = Field(
        "none",
        description="nf4: keep the frozen weights below an adapter in 4 bits (QLoRA, "
        "docs/lora.md): an eighth of the memory, and each step takes longer",
    )
    lora: LoraOptions = LoraOptions()

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.epochs is None and self.max_steps is None:
            lines.append("no training length: give --epochs or --max_steps")
        return lines + self._find_adapter_conflicts()

    def _find_adapter_conflicts(self) -> list[str]:
        """Return a line for each conflict of an adapter or a quantized base with other options."""
        lines = []
        if self.adapter == "lora" and self.lora.dtype == "bf16" and not self.optimizer.is_8bit:
            lines.append(
                f"--lora.dtype bf16: the moments of --optimizer.name {self.optimizer.name} would "
                "be bf16, too, in which a decay of 0.999 rounds to nothing: use adamw8bit or "
                "paged_adamw8bit"
            )
        if self.quantize == "none":
            return lines
        option = f"--quantize {self.quantize}"
        if self.adapter == "none":
            lines.append(f"{option}: weights of 4 bits cannot be trained: add --adapter lora")
        if self.precision == "fp16":
            lines.append(
                f"--precision fp16: training beside 4-bit weights diverges in it too often: leave "
                f"it out, and {option} computes in bf16 or fp32"
            )
        if self.compile is True:
            lines.append(f"--compile true: not with {option}, which has not been tried")
        return lines

    @property
    def adapter_fingerprint(self) -> Any:
        """What the arithmetic of a run depends on of its adapter, as JSON."""
        if self.adapter == "none":
            return "none"
        lora = self.lora.model_dump(mode="json")
        # Runs of before there was a choice are fp32.
        if lora["dtype"] == "fp32":
            del lora["dtype"]
        fingerprint: dict[str, Any] = {"lora": lora}
        if self.quantize != "none":
            fingerprint["quantize"] = self.quantize
        return fingerprint

    @property
    def quantization(self) -> Quantization | None:
        """Return the format of the frozen weights below an adapter, None for full precision."""
        return None if self.quantize == "none" else self.quantize

    @property
    def bitsandbytes_option(self) -> str | None:
        """See `TrainOptions`."""
        if self.quantize != "none":
            return f"--quantize {self.quantize}"
        return super().bitsandbytes_option


class SftOptions(FineTuneOptions, TokenBatchOptions):
    """The options of `python -m train.sft`."""

    run: Path | None = Field(
        None, description="run directory; resumed if it exists (default: runs/sft-DATA)"
    )
    data: Mixture = Field(
        "csl",
        description="what to train on: a name (csl, lcsts, redgpt, naturalconv, belle-0.5m, "
        "belle-0.8m, deepctrl, pclue), a prepared folder or a raw file; a mixture is "
        "csl+belle-0.8m:0.5+replay:0.1, where replay is pretraining text of the base, here a tenth "
        "as many tokens as the rest has; distractors(redgpt,8) has eight other passages beside "
        "each passage (docs/data.md)",
    )
    base: Path | Literal["none"] | None = Field(
        None,
        description="what to fine-tune: a run, one of its steps, an exported folder, or none for "
        "random weights (default: the newest pretraining run)",
    )
    tokenizer: Path | None = Field(
        None, description="tokenizer for --base none (default: the one that is shipped)"
    )
    epochs: Literal["auto"] | Annotated[float, Field(gt=0)] | None = Field(  # type: ignore[assignment]
        "auto", description="passes over the data; auto: 2 for data with summaries, otherwise 1"
    )
    lead_ins: bool = Field(
        False,
        description="begin answers to summarization requests with a phrase such as 总结如下：",
    )
    model: ModelOptions = Field(ModelOptions(), description="size of the model for --base none")
    optimizer: SftOptimizerOptions = SftOptimizerOptions()
    evaluation: SftEvaluationOptions = SftEvaluationOptions()

    @property
    def num_answered(self) -> int:
        """See `TrainOptions`."""
        return self.evaluation.examples

    @property
    def longest_answer(self) -> int:
        """See `TrainOptions`."""
        return self.evaluation.max_new_tokens

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.adapter != "none" and self.base == "none":
            lines.append(
                f"--adapter {self.adapter}: needs the weights of a base: name one with "
                "--base, or leave --base none out"
            )
        return lines


class PairLossOptions(Options):
    """The loss of a pair of answers."""

    loss: Literal["sigmoid", "simpo"] = Field(
        "sigmoid",
        description="sigmoid: DPO (Rafailov et al. 2023), against the base; simpo: SimPO (Meng et "
        "al. 2024), mean log-probabilities without a reference",
    )
    beta: float = Field(
        0.1, gt=0, lt=1000, description="the smaller, the further from its base the model may go"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of the pairs that may be the wrong way round"
    )
    nll: float = Field(
        0.0,
        ge=0,
        lt=1000,
        description="weight of the cross-entropy of the chosen answers, which keeps their "
        "probability from falling",
    )
    gamma: float = Field(
        0.0, ge=0, lt=1000, description="simpo only: the margin that a pair should have"
    )


class DpoLossOptions(PairLossOptions):
    """The group `dpo` of learning from preferences: some defaults depend on the loss."""

    beta: Literal["auto"] | Annotated[float, Field(gt=0, lt=1000)] = Field(  # type: ignore[assignment]
        "auto",
        description="the smaller, the further from its base the model may go; auto: 0.1, for simpo "
        "2",
    )
    gamma: Literal["auto"] | Annotated[float, Field(ge=0, lt=1000)] = Field(  # type: ignore[assignment]
        "auto",
        description="simpo only: the margin that a pair should have; auto: half of beta",
    )

    def resolve(self) -> PairLossOptions:
        """Return the options with numbers as beta and gamma."""
        is_simpo = self.loss == "simpo"
        given = {name: value for name, value in self.model_dump().items() if value != "auto"}
        given.setdefault("beta", 2.0 if is_simpo else 0.1)
        given.setdefault("gamma", given["beta"] / 2 if is_simpo else 0.0)
        return PairLossOptions(**given)


class DpoOptimizerOptions(OptimizerOptions):
    """The group `optimizer` of learning from preferences."""

    name: OptimizerName = Field(
        "adamw",
        description="adamw: AdamW trains everything; muon: Muon trains the hidden matrices, and "
        "AdamW the rest; adamw8bit, paged_adamw8bit: AdamW with moments of 8 bits (docs/lora.md)",
    )
    lr: AutoRate = Field(  # type: ignore[assignment]
        "auto", description="peak learning rate of AdamW; auto: by the size of the model"
    )
    muon_lr: AutoRate = Field(  # type: ignore[assignment]
        "auto", description="peak learning rate of Muon; auto: 12 times that of AdamW"
    )
    weight_decay: float = Field(
        0.0, ge=0, lt=10, description="decoupled decay of matrices, in units of the rate"
    )

    def resolve(self, *, num_parameters: int, uses_lora: bool) -> OptimizerOptions:
        """Return the options with a number as the rate."""
        given = {name: value for name, value in self.model_dump().items() if value != "auto"}
        given.setdefault("lr", auto_dpo_rate(num_parameters, uses_lora=uses_lora))
        # The ratio of the rates of fine-tuning.
        given.setdefault("muon_lr", 12 * given["lr"])
        return OptimizerOptions(**given)


def auto_dpo_rate(num_parameters: int, *, uses_lora: bool) -> float:
    """Return the default learning rate of a model of this size.

    Anchors are 1e-6 for SmolLM2-135M (alignment-handbook), 5e-7 for models of 7 billion and more
    (Zephyr), and what was measured with the sample's model of 2 million (docs/preferences.md).
    Adapters take ten times the rate, as in TRL.
    """
    rate = min(max(1e-6 * 135e6 / num_parameters, 5e-7), 1e-4)
    return 10 * rate if uses_lora else rate


class DpoEvaluationOptions(Options):
    """Options of the group `evaluation` of learning from preferences."""

    every: int = Field(50, gt=0, description="steps between evaluations on the held-out pairs")
    scored: int = Field(
        500,
        gt=0,
        description="held-out pairs of each set to score during training, the same at each "
        "evaluation; the last evaluation scores all",
    )
    examples: int = Field(
        20,
        ge=0,
        description="held-out prompts of each set to answer at each evaluation, for length, loops "
        "and <eos>; 0: none",
    )
    max_new_tokens: int = Field(200, gt=0, description="longest generated answer")
    patience: int = Field(
        0, ge=0, description="evaluations without a lower loss that end the run; 0: never"
    )


class DpoOptions(FineTuneOptions, TokenBatchOptions):
    """The options of `python -m train.dpo`."""

    run: Path | None = Field(
        None, description="run directory; resumed if it exists (default: runs/dpo-DATA)"
    )
    data: Mixture = Field(
        ...,
        description="pairs to learn from: a file with chosen and rejected answers, a prepared "
        "folder, or a mixture such as a.jsonl+b.jsonl:0.5",
    )
    base: Path | None = Field(
        None,
        description="the model to train, which is the reference too: a fine-tuned run, one of its "
        "steps, or an exported folder (default: the newest fine-tuning run)",
    )
    batch_tokens: int = Field(
        8192, gt=0, description="tokens per optimizer step, a multiple of sequence_length"
    )
    dpo: DpoLossOptions = DpoLossOptions()
    optimizer: DpoOptimizerOptions = DpoOptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions(warmup=0.1)
    evaluation: DpoEvaluationOptions = DpoEvaluationOptions()

    @property
    def num_answered(self) -> int:
        """See `TrainOptions`."""
        return self.evaluation.examples

    @property
    def longest_answer(self) -> int:
        """See `TrainOptions`."""
        return self.evaluation.max_new_tokens

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.dpo.loss == "sigmoid" and self.dpo.gamma not in ("auto", 0):
            lines.append("--dpo.gamma is for --dpo.loss simpo; sigmoid has no target margin")
        return lines


class GroupOptions(Options):
    """The group `grpo`: the samples that a model learns from, and the loss of them."""

    rewards: Rewards = Field(
        "rouge:1,loops:0.5,truncated:0.5",
        description="what is rewarded, with weights, such as exact:1,loops:0.5 (in YAML also "
        "exact: 1): "
        + "; ".join(f"{name}: {text}" for name, text in REWARD_DESCRIPTIONS.items())
        + "; or a function of your own, FILE.py:FUNCTION (docs/grpo.md)",
    )
    prompts: int = Field(16, gt=0, description="questions that are answered at a time")
    samples: int = Field(8, ge=2, le=1024, description="answers to each, which are compared")
    max_new_tokens: int = Field(48, gt=0, description="longest answer")
    updates: int = Field(
        1, gt=0, le=64, description="optimizer steps on the same answers before others are drawn"
    )
    clip: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="with several updates: how far the probability of a token may move from that "
        "at which it was drawn, as a ratio, before it has no more effect",
    )
    kl: float = Field(
        0.0, ge=0, lt=1000, description="weight of the KL divergence from the base in the loss"
    )
    batch: int = Field(128, gt=0, description="answers that are decoded together")


class GrpoEvaluationOptions(Options):
    """Options of the group `evaluation` of learning from rewards."""

    every: int = Field(20, gt=0, description="steps between evaluations on the dev split")
    examples: int = Field(
        100, gt=0, description="dev questions of each set to answer at each evaluation"
    )
    patience: int = Field(
        0, ge=0, description="evaluations without a higher reward that end the run; 0: never"
    )


class GrpoOptions(FineTuneOptions):
    """The options of `python -m train.grpo`."""

    run: Path | None = Field(
        None, description="run directory; resumed if it exists (default: runs/grpo-DATA)"
    )
    data: Mixture = Field(
        "csl",
        description="whose questions to answer: a name (csl, lcsts, redgpt …), a prepared folder, "
        "a raw file, or a mixture, as for make sft",
    )
    base: Path | None = Field(
        None,
        description="the model to train: a fine-tuned run, one of its steps, or an exported folder "
        "(default: the newest fine-tuning run)",
    )
    log_every: int = Field(5, gt=0, description="steps between log lines")
    grpo: GroupOptions = GroupOptions()
    optimizer: DpoOptimizerOptions = DpoOptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    checkpoint: CheckpointOptions = CheckpointOptions(every=20)
    evaluation: GrpoEvaluationOptions = GrpoEvaluationOptions()

    @property
    def rows_per_step(self) -> int:
        """Return the number of answers: a row holds one of them at least."""
        return self.grpo.prompts * self.grpo.samples

    @property
    def num_answered(self) -> int:
        """See `TrainOptions`."""
        return self.evaluation.examples

    @property
    def longest_answer(self) -> int:
        """See `TrainOptions`."""
        return self.grpo.max_new_tokens

    @property
    def sampled_rows(self) -> int:
        """See `TrainOptions`."""
        return min(self.grpo.batch, self.rows_per_step)

    @property
    def samples(self) -> int:
        """See `TrainOptions`."""
        return self.grpo.samples

    @property
    def keeps_reference(self) -> bool:
        """Return whether the base is in memory too; an adapter is switched off instead."""
        return self.grpo.kl > 0 and self.adapter == "none"

    @property
    def step_size(self) -> dict[str, Any]:
        """Return nothing: the group `grpo` is a fingerprint as a whole."""
        return {}

    def describe_step(self) -> str:
        """See `TrainOptions`."""
        return f", {self.grpo.prompts} questions with {self.grpo.samples} answers each in a step"

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if 2 * self.grpo.max_new_tokens > self.sequence_length:
            lines.append(
                f"--grpo.max_new_tokens {self.grpo.max_new_tokens} leaves less than half of "
                f"--sequence_length {self.sequence_length} to the question: lower it, or use "
                "longer rows"
            )
        return lines
