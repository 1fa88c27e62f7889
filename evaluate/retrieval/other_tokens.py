"""Other tokens to search by, for comparison: words of a dictionary, and pieces of a tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.index.tokens import Tokenize, fold_text, hash_token
from evaluate.metrics.rouge import split_words
from evaluate.retrieval.options import OtherTokens
from model.tokenizer import load_tokenizer


def load_tokenize(tokens: OtherTokens, tokenizer: Path) -> Tokenize:
    """Return the function that gives the tokens of texts; `tokenizer` is for pieces."""
    if tokens == "jieba":
        return _concatenate(_words)
    loaded = load_tokenizer(tokenizer)
    return _concatenate(lambda text: loaded.encode(fold_text(text)))


def _words(text: str) -> list[int]:
    """Return the words of jieba that have a letter or a digit."""
    words = [word for word in split_words(fold_text(text)) if any(map(str.isalnum, word))]
    return [hash_token(word.encode("utf-8", "surrogatepass")) for word in words]


def _concatenate(tokenize: Callable[[str], Sequence[int]]) -> Tokenize:
    """Return a function for several texts from one for a single text."""

    def tokenize_all(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [np.array(tokenize(text), dtype=np.uint64) for text in texts]
        return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(row) for row in rows])

    return tokenize_all
