"""Decoding settings: how a model writes an answer that is measured."""

from pydantic import Field

from common.errors import UserError
from common.options import Options, validate_options

GREEDY_NAME = "greedy"
_DEFAULT_TEMPERATURE = 0.7
_DEFAULT_LENGTH_PENALTY = 1.0


class Decoding(Options):
    """A decoding setting; the defaults are greedy."""

    beams: int = Field(1, ge=1, description="width of the beam search; 1 is greedy")
    length_penalty: float = Field(
        _DEFAULT_LENGTH_PENALTY,
        description="a beam's score is its log-probability / length ** this",
    )
    samples: int = Field(
        1,
        ge=1,
        le=1024,
        description="draw this many answers and take the one that has most in common with the "
        "others, by ROUGE-1 (minimum Bayes risk); 1: none is drawn",
    )
    temperature: float = Field(
        _DEFAULT_TEMPERATURE,
        gt=0,
        le=10,
        description="divisor of the logits that --samples are drawn from",
    )
    sample_seed: int = Field(0, ge=0, lt=2**63, description="seed of --samples")
    coverage: float = Field(
        0.0,
        ge=0,
        description="with --samples: add this times the share of the article that repeats "
        "characters of the answer to its mean ROUGE-1 F with the others; 0: off",
    )
    extracts: bool = Field(
        False, description="with --samples: runs of clauses of the article may be chosen, too"
    )
    repetition_penalty: float = Field(
        1.0, ge=1, description="lower the logits of tokens in the answer by this factor; 1: off"
    )
    no_repeat_ngram: int = Field(
        0,
        ge=0,
        description="no sequence of this many tokens repeats in an answer; 0: no limit",
    )
    novelty_penalty: float = Field(
        0.0,
        ge=0,
        description="lower the logits of tokens that are not in the prompt by this; 0: off",
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.beams > 1 and self.samples > 1:
            lines.append("--beams and --samples are two ways to decode: give one of them")
        if self.length_penalty != _DEFAULT_LENGTH_PENALTY and self.beams == 1:
            lines.append("--length_penalty is for --beams: give both")
        if self.temperature != _DEFAULT_TEMPERATURE and self.samples == 1:
            lines.append("--temperature is for --samples: give both")
        if self.coverage and self.samples == 1:
            lines.append("--coverage is for --samples: give both")
        if self.extracts and self.samples == 1:
            lines.append("--extracts is for --samples: give both")
        return lines

    def describe(self) -> str:
        """Return the setting in words, for the output and results files."""
        text = GREEDY_NAME
        if self.beams > 1:
            text = f"{self.beams} beams, length penalty {self.length_penalty:g}"
        elif self.samples > 1:
            text = (
                f"consensus of {self.samples} samples, temperature {self.temperature:g}, seed "
                f"{self.sample_seed}"
            )
            if self.coverage:
                text += f", coverage {self.coverage:g}"
            if self.extracts:
                text += ", clauses of the article"
        if self.repetition_penalty != 1:
            text += f", repetition penalty {self.repetition_penalty:g}"
        if self.no_repeat_ngram:
            text += f", no repeated {self.no_repeat_ngram}-grams"
        if self.novelty_penalty:
            text += f", novelty penalty {self.novelty_penalty:g}"
        return text


GREEDY = Decoding()


def parse_decoding(text: str) -> Decoding:
    """Return the setting of a text such as `beams=4,length_penalty=0.5` or `greedy`.

    Raises UserError with a line for each mistake.
    """
    if text == GREEDY_NAME:
        return GREEDY
    values = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"{item!r} is not KEY=VALUE, as in beams=4,length_penalty=0.5")
        values[key.strip()] = value.strip()
    return validate_options(Decoding, values)
