"""Options of `python -m train.memory`. Imports neither PyTorch nor NumPy."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from common.options import Options, OutputFile
from model.lora_options import LoraOptions
from train.options import ModelOptions


class PlannedOptimizer(Options):
    """The option of the group `optimizer` that memory depends on."""

    name: Literal["muon", "adamw", "adamw-8bit", "adamw-paged"] = Field(
        "muon",
        description="muon and adamw as in training; adamw-8bit: moments of 8 bits; adamw-paged: "
        "moments in the memory of the host",
    )


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
        "auto", description="auto: bf16 on a GPU, fp32 on a CPU"
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="torch.compile; auto: on a GPU only"
    )
    loss_path: Literal["full", "chunked", "torch"] = Field(
        "chunked", description="implementation of the loss; a run on a GPU chooses the fastest"
    )
    packed: bool = Field(
        False, description="rows of several examples, as in fine-tuning: they need a mask"
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
    adapter_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="number format of the adapter and its gradients"
    )
    quantize: Literal["none", "nf4"] = Field(
        "none", description="nf4: linear layers in 4.127 bits a weight, the rest in bf16"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep the input of each layer only, and compute the layer twice"
    )
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

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.quantize != "none" and self.adapter == "none":
            lines.append(
                f"--quantize {self.quantize}: quantized weights do not train: add --adapter lora"
            )
        if self.tokens_per_second is not None and self.rate_of is not None:
            lines.append("--tokens_per_second and --rate_of are two rates: give one of them")
        if self.tokens is not None and self.tokens_per_second is None and self.rate_of is None:
            lines.append("--tokens needs a rate: give --tokens_per_second or --rate_of")
        return lines
