"""Options of `python -m train.memory`. Imports neither PyTorch nor NumPy."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from common.options import Options, OutputFile
from model.lora_options import LoraOptions, Quantization
from train.options import ModelOptions, OptimizerName


class PlannedOptimizer(Options):
    """The option of the group `optimizer` that memory depends on."""

    name: OptimizerName = Field(
        "muon",
        description="as in training; paged_adamw8bit: for a GPU without the moments, which move to "
        "the host when it is full",
    )


class PlannedEvaluation(Options):
    """The options of the group `evaluation` that memory depends on."""

    examples: int = Field(100, ge=0, description="questions that an evaluation answers, if packed")
    max_new_tokens: int = Field(100, gt=0, description="longest answer, or sample of text")


class PlannedPairs(Options):
    """The option of the group `dpo` that memory depends on."""

    loss: Literal["none", "sigmoid", "simpo"] = Field(
        "none", description="the loss of train.dpo; none: for another command"
    )


class PlannedGroups(Options):
    """The options of the group `grpo` that memory depends on."""

    prompts: int = Field(
        0, ge=0, description="questions that train.grpo answers at a time; 0: for another command"
    )
    samples: int = Field(8, ge=2, le=1024, description="answers to each")
    max_new_tokens: int = Field(48, gt=0, description="longest answer")
    kl: float = Field(
        0.0, ge=0, lt=1000, description="above 0 and without an adapter: a second model"
    )
    batch: int = Field(128, gt=0, description="answers that are decoded together")


class MemoryOptions(Options):
    """The options of `python -m train.memory`: those of a run, as far as memory depends on them."""

    base: Path | Literal["none"] | None = Field(
        None,
        description="plan for the model of a run, one of its steps or an exported folder (default: "
        "a model with the options under model)",
    )
    vocab_size: int = Field(8192, gt=0, description="ids of the vocabulary, without --base")
    sequence_length: int = Field(512, gt=1, description="tokens per row")
    batch_tokens: int = Field(2048, gt=0, description="tokens per optimizer step")
    micro_batch: Literal["auto"] | Annotated[int, Field(gt=0)] = Field(
        "auto", description="rows at once; auto: as a run on a CPU chooses them, 1 on a GPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="what to plan for, here or not; auto: a GPU if there is one here"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on a GPU, and beside quantized weights on a CPU that computes in "
        "it; otherwise fp32",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="torch.compile; auto: on a GPU, without checkpointing and quantized weights",
    )
    loss_path: Literal["full", "chunked", "torch"] = Field(
        "chunked", description="implementation of the loss; a run on a GPU chooses the fastest"
    )
    packed: Literal["auto"] | bool = Field(
        "auto",
        description="rows of several examples, as in fine-tuning; auto: with an "
        "adapter, --dpo.loss or --grpo.prompts",
    )
    target_share: float = Field(
        1.0, gt=0, le=1, description="share of the positions that have a loss"
    )
    model: ModelOptions = ModelOptions()
    optimizer: PlannedOptimizer = PlannedOptimizer()
    adapter: Literal["none", "lora"] = Field(
        "none", description="none: train all weights; lora: small matrices beside frozen weights"
    )
    lora: LoraOptions = LoraOptions()
    quantize: Literal["none"] | Quantization = Field(
        "none", description="nf4: frozen weights below an adapter in 4.127 bits each"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep the input of each layer only, and compute the layer twice"
    )
    evaluation: PlannedEvaluation = PlannedEvaluation()
    dpo: PlannedPairs = PlannedPairs()
    grpo: PlannedGroups = PlannedGroups()
    tokens: int | None = Field(
        None, gt=0, description="tokens to train on; with a rate, the hours are printed"
    )
    tokens_per_second: float | None = Field(None, gt=0, description="the rate of training")
    rate_of: Path | None = Field(
        None, description="a run whose measured rate is taken, from its metrics.jsonl"
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the plan to this file"
    )

    @property
    def is_packed(self) -> bool:
        """Return whether rows hold several examples."""
        if self.packed != "auto":
            return self.packed
        return self.adapter != "none" or self.dpo.loss != "none" or self.grpo.prompts > 0

    @property
    def quantization(self) -> Quantization | None:
        """Return the format of the frozen weights below an adapter, None for full precision."""
        return None if self.quantize == "none" else self.quantize

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.quantize != "none" and self.adapter == "none":
            lines.append(
                f"--quantize {self.quantize}: weights of 4 bits cannot be trained: add --adapter "
                "lora"
            )
        if self.tokens_per_second is not None and self.rate_of is not None:
            lines.append("--tokens_per_second and --rate_of are two rates: give one of them")
        if self.tokens is not None and self.tokens_per_second is None and self.rate_of is None:
            lines.append("--tokens needs a rate: give --tokens_per_second or --rate_of")
        return lines
