"""Options of `python -m train.summariser`."""

from pathlib import Path

from pydantic import Field

from common.options import Options
from data.mixture import Mixture
from train.options import GrpoOptions, PretrainOptions, SftOptions, TrainOptions


class SummariserOptions(Options):
    """The options of `python -m train.summariser`."""

    run: Path = Field(
        Path("runs/summariser"), description="the run of the summariser; others lie beside it"
    )
    text: str = Field(
        "sample",
        description="what to learn the language from: sample, a raw file or folder, or "
        "decontaminated(FILE,TEST_FILE…), which names test files of your own",
    )
    data: Mixture = Field(
        "csl", description="summaries to fine-tune on, as for make sft, which name a test split"
    )
    tasks: Mixture | None = Field(
        None,
        description="the curriculum of pretraining (default: titles of the text)",
    )
    vocabulary: int = Field(8192, ge=260, le=1 << 21, description="ids of the tokenizer")
    hours: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="length of the night: pretraining takes --pretraining of it, by a measurement "
        "of the speed (default: --pretrain.max_steps)",
    )
    pretraining: float = Field(
        0.65, gt=0, lt=1, description="share of the hours; the rest is for what comes after it"
    )
    limit: int | None = Field(
        None, ge=1, description="evaluate this many records of each split alone (default: all)"
    )
    pretrain: PretrainOptions = PretrainOptions()
    sft: SftOptions = SftOptions()
    rewards: bool = Field(
        False,
        description="after fine-tuning, learn from ROUGE of sampled titles, as make grpo does",
    )
    reward_data: Mixture | None = Field(
        None,
        description="summaries to learn from the reward on; the decoding is chosen, and the report "
        "made, on them (default: those of --data)",
    )
    grpo: GrpoOptions = GrpoOptions()

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        groups: dict[str, tuple[TrainOptions, str]] = {
            "pretrain": (self.pretrain, "--text"),
            "sft": (self.sft, "--data"),
            "grpo": (self.grpo, "--reward_data"),
        }
        for group, (options, data_option) in groups.items():
            for name in ("run", "data", "base", "tokenizer"):
                field = type(options).model_fields.get(name)
                if field is not None and getattr(options, name) != field.default:
                    advice = f"use {data_option}" if name == "data" else "leave it out"
                    lines.append(f"--{group}.{name}: follows from the other options: {advice}")
        if self.pretrain.curriculum.data is not None:
            lines.append("--pretrain.curriculum.data: use --tasks")
        if self.reward_data is not None and not self.rewards:
            lines.append("--reward_data: is for the reward: give --rewards true, or leave it out")
        return lines
