"""Sampling options and their defaults. Without PyTorch, so that `--help` need not import it."""

from dataclasses import dataclass

# Below this temperature, dividing the logits could overflow: the most likely id is taken instead.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Sampling:
    """Options of choosing the next id from the logits; the defaults draw from plain softmax.

    `repetition_penalty` and `no_repeat_ngram` count the ids of the answer, never those of the
    prompt: an answer may repeat a name from the reference text in its prompt.
    """

    temperature: float = 1.0
    """Divisor of the logits; 0 takes the most likely id."""
    top_k: int = 0
    """Draw from this many of the most likely ids; 0 draws from all."""
    top_p: float = 1.0
    """Draw from the most likely ids that together have this probability (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Lower the logits of ids in the answer by this factor (Keskar et al. 2019); 1 changes none."""
    no_repeat_ngram: int = 0
    """An answer must not repeat a sequence of this many ids (Paulus et al. 2017); 0: no limit."""

    @property
    def is_greedy(self) -> bool:
        """Return whether the id with the highest processed logit is taken."""
        return self.temperature < MIN_TEMPERATURE


# The defaults of chat, server and exported models. An n-gram of eight ids breaks loops, but is
# longer than a name of two rare characters, three byte ids each, which may occur twice.
DEFAULT_SAMPLING = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, no_repeat_ngram=8)
# The samples of a pretraining run, less random than a chat.
PRETRAINING_SAMPLING = Sampling(temperature=0.5, top_p=0.9)
DEFAULT_MAX_NEW_TOKENS = 256
