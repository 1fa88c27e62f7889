"""Train a small tokenizer: SentencePiece's BPE on a seeded sample of sentences, the same bytes for the same input."""

import io
import random
import re
from collections.abc import Iterable, Iterator

from common.errors import UserError
from model.tokenizer.sentencepiece_normalize import normalise

# The conversation template ends each turn's opening with it, and the seam between template and answer must be a
# boundary of pieces too.
_ALONE = "："
_CHARACTERS = 1000


def train(
    texts: Iterable[str], *, vocabulary_size: int, longest: int, coverage: float, common_characters: bool,
    sentences: int, seed: int,
) -> bytes:
    """The normalised bytes of a BPE model of exactly `vocabulary_size` ids, learnt from the texts.

    No piece is longer than `longest` characters. The most frequent characters, which make up the share `coverage` of
    the texts, have ids; with `common_characters` so has every character of `common_text`, present or not. Digits and
    `：` stay pieces of their own; line ends and rare characters are written as bytes. Memory is bounded by `sentences`:
    of more, a random sample of that many is learnt from. UserError if the texts do not support such a vocabulary.
    """
    import sentencepiece

    chosen = sample(pieces_of(texts), sentences, random.Random(seed))
    if not chosen:
        raise UserError("--input: there is no text in it to learn a vocabulary from")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chosen), model_writer=written, model_type="bpe", vocab_size=vocabulary_size,
            max_sentencepiece_length=longest, character_coverage=coverage, byte_fallback=True, split_digits=True,
            required_chars=common_text() if common_characters else _ALONE, allow_whitespace_only_pieces=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            max_sentence_length=8 * _CHARACTERS,
            # Its own sampling cannot be seeded; the number of threads is written into the model.
            input_sentence_size=0, shuffle_input_sentence=False, num_threads=1, minloglevel=3,
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocabulary_size)) from None
    return normalise(written.getvalue(), "the trained model")[0]


def common_text() -> str:
    """What any Chinese text is written with: ASCII, punctuation and the 3,755 characters of GB 2312's first level."""
    ascii_ = "".join(map(chr, range(0x21, 0x7F)))
    punctuation = "、。·ˉ—～…‘’“”〔〕〈〉《》「」『』【】×÷°℃！（），－．／：；？　"
    rows = (bytes([row, cell]) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF if row < 0xD7 else 0xFA))
    return ascii_ + punctuation + b"".join(rows).decode("gb2312")


def pieces_of(texts: Iterable[str]) -> Iterator[str]:
    """The stretches of texts that pieces may lie in: lines, cut around `：` and after `_CHARACTERS` characters."""
    for text in texts:
        for stretch in re.split(f"\n|({_ALONE})", text):
            for start in range(0, len(stretch or ""), _CHARACTERS):
                yield stretch[start : start + _CHARACTERS]


def sample(items: Iterable[str], limit: int, randomness: random.Random) -> list[str]:
    """A uniform random sample of at most `limit` items in one pass (reservoir sampling: Vitter 1985, algorithm R)."""
    chosen: list[str] = []
    for number, item in enumerate(items):
        if number < limit:
            chosen.append(item)
        elif (place := randomness.randrange(number + 1)) < limit:
            chosen[place] = item
    return chosen


def _explain(message: str, size: int) -> str:
    if found := re.search(r"too high .*<= (\d+)", message):
        return f"--vocabulary {size}: this text supports at most {found[1]} ids; ask for fewer or give more text"
    if found := re.search(rf"{size} vs (\d+)", message):
        return f"--vocabulary {size}: bytes, special pieces and single characters alone need {found[1]}; ask for more"
    return f"--vocabulary {size}: SentencePiece cannot train on this text: {' '.join(message.split())}"
