"""How the next id of an answer is chosen, in numbers that a command line can say: no PyTorch is needed to read them."""

from dataclasses import dataclass

# Dividing by a lower temperature would overflow: it takes the likeliest.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen. Temperature 0 takes the likeliest.

    The two that work against repetition count what was generated and never the prompt: an answer may copy a name from
    its reference as often as the reference says it.
    """

    temperature: float = 0.8
    top_k: int = 0  # 0: no limit
    top_p: float = 0.95
    repetition_penalty: float = 1.0  # 1: none (Keskar et al. 2019)
    no_repeat_ngram: int = (
        0  # length in ids of what is never said twice; 0: none (Paulus et al. 2017)
    )

    @property
    def is_greedy(self) -> bool:
        """Whether it is simply the id with the highest logit."""
        return (
            self.temperature < MIN_TEMPERATURE
            and self.repetition_penalty == 1.0
            and self.no_repeat_ngram == 0
        )
