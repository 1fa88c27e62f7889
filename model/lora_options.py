"""Options of LoRA adapters, apart from model/lora.py so that `--help` does not load PyTorch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from common.options import CommaSeparated, Options

# Number formats that the frozen base of an adapter can be quantized to.
Quantization = Literal["nf4"]
# Which weights an adapter that was trained beside quantized ones is merged into: these, as numbers,
# or those of the base before they were quantized.
Merge = Literal["dequantized", "original"]
LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraOptions(Options):
    """Options of the group `lora`."""

    rank: int = Field(8, gt=0, le=4096, description="inner width of the two matrices")
    alpha: float = Field(16.0, gt=0, description="their product is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout of the adapter's inputs in training, a probability"
    )
    targets: Annotated[tuple[LoraTarget, ...], CommaSeparated] = Field(
        ("q_proj", "v_proj"),
        description="matrices of every layer that get an adapter, separated by commas",
    )

    dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="number format of the two matrices and of their gradients; bf16 needs an 8-bit "
        "optimizer",
    )

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, value: tuple[LoraTarget, ...]) -> tuple[LoraTarget, ...]:
        if not value:
            raise ValueError("is empty; name at least one matrix, such as q_proj")
        if duplicates := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"{', '.join(duplicates)} is named twice; once is enough")
        return value
