"""Sampling options and their defaults. Without PyTorch, so that `--help` need not import it."""

from dataclasses import dataclass

# At lower temperatures dividing the logits could overflow: the most likely id is taken instead.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen from the logits; the defaults leave the distribution unchanged.

    The repetition penalty and the n-gram block count the ids of the answer, never those of the
    prompt: an answer may copy a name from its reference as often as the reference has it.
    """

    temperature: float = 1.0
    """0 takes the most likely id."""
    top_k: int = 0
    """Draw from so many of the most likely ids; 0: all."""
    top_p: float = 1.0
    """Draw from the most likely ids that together have this probability (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Lower the logits of ids in the answer by this factor; 1: not (Keskar et al. 2019)."""
    no_repeat_ngram: int = 0
    """Length in ids of what an answer must not repeat; 0: no limit (Paulus et al. 2017)."""

    @property
    def is_greedy(self) -> bool:
        """Return whether the id with the highest processed logit is taken."""
        return self.temperature < MIN_TEMPERATURE


# The defaults of chat, server and exported models. With them an answer that loops ends after eight
# ids, while a name of rare characters, three byte ids each, may occur twice.
DEFAULT_SAMPLING = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, no_repeat_ngram=8)
DEFAULT_MAX_NEW_TOKENS = 256
