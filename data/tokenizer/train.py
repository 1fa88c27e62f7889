"""Train a SentencePiece BPE model on a seeded sample of text: the same input, the same bytes."""

import io
import random
import re
from collections.abc import Iterable, Iterator

from common.errors import UserError
from model.tokenizer.sentencepiece_normalize import normalize_model

# The chat template ends every prefix of a turn with this character. It must be a piece of its own,
# so that the ids of prefix and text are the ids of their concatenation.
_ISOLATED_CHARACTER = "："
_MAX_SEGMENT_CHARACTERS = 1000


def train_bpe(
    texts: Iterable[str],
    *,
    vocabulary_size: int,
    max_piece_characters: int,
    character_coverage: float,
    include_common_characters: bool,
    max_sentences: int,
    seed: int,
) -> bytes:
    """Train a SentencePiece BPE model; return its serialized bytes, normalized.

    The model has exactly `vocabulary_size` ids, for pieces of at most `max_piece_characters`
    characters. The most frequent characters, which make up the share `character_coverage` of the
    texts, get ids, and with `include_common_characters` also those of `common_chinese_text`,
    whether the texts have them or not. Digits and `：` are pieces of their own; line ends and rare
    characters are encoded as bytes. If the texts have more than `max_sentences` segments, the model
    is trained on a random sample of that many, which bounds memory. Raises UserError if the texts
    do not support such a vocabulary.
    """
    import sentencepiece

    segments = reservoir_sample(split_segments(texts), max_sentences, random.Random(seed))
    if not segments:
        raise UserError("--input: there is no text in it to learn a vocabulary from")
    required_characters = _ISOLATED_CHARACTER
    if include_common_characters:
        required_characters = common_chinese_text()
    model_buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(segments),
            model_writer=model_buffer,
            model_type="bpe",
            vocab_size=vocabulary_size,
            max_sentencepiece_length=max_piece_characters,
            character_coverage=character_coverage,
            byte_fallback=True,
            split_digits=True,
            required_chars=required_characters,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=8 * _MAX_SEGMENT_CHARACTERS,
            # No sampling by SentencePiece, which cannot be seeded.
            input_sentence_size=0,
            shuffle_input_sentence=False,
            # The number of threads is written into the model: it must not depend on the machine.
            num_threads=1,
            # Fatal errors only.
            minloglevel=3,
        )
    except RuntimeError as error:
        raise UserError(_training_error_message(str(error), vocabulary_size)) from None
    normalized_model, _changes = normalize_model(model_buffer.getvalue(), "the trained model")
    return normalized_model


def common_chinese_text() -> str:
    """Return ASCII, punctuation and the 3,755 common characters of GB 2312's first level."""
    ascii_characters = "".join(map(chr, range(0x21, 0x7F)))
    punctuation = "、。·ˉ—～…‘’“”〔〕〈〉《》「」『』【】×÷°℃！（），－．／：；？　"
    # In EUC-CN, which Python calls gb2312, a character is two bytes: row and cell of the standard's
    # table, each plus 0xA0. The first level is rows 16 to 55; the last row ends after cell 89.
    encoded_characters = (
        bytes([row, cell])
        for row in range(0xB0, 0xD8)
        for cell in range(0xA1, 0xFF if row < 0xD7 else 0xFA)
    )
    return ascii_characters + punctuation + b"".join(encoded_characters).decode("gb2312")


def split_segments(texts: Iterable[str]) -> Iterator[str]:
    """Split texts into segments; no piece of the vocabulary spans two segments.

    Segments are lines, split further before and after `：`, so that it is always a token of its
    own, and every `_MAX_SEGMENT_CHARACTERS` characters.
    """
    for text in texts:
        # The capturing group keeps `：` as a segment, and gives None where a line end splits.
        for segment in re.split(f"\n|({_ISOLATED_CHARACTER})", text):
            if segment is None:
                continue
            for start in range(0, len(segment), _MAX_SEGMENT_CHARACTERS):
                yield segment[start : start + _MAX_SEGMENT_CHARACTERS]


def reservoir_sample(items: Iterable[str], limit: int, rng: random.Random) -> list[str]:
    """Return a uniform random sample of at most `limit` items (Vitter 1985, algorithm R)."""
    reservoir: list[str] = []
    for index, item in enumerate(items):
        if index < limit:
            reservoir.append(item)
            continue
        # Item `index` is kept with probability limit / (index + 1), in place of a random other one.
        slot = rng.randrange(index + 1)
        if slot < limit:
            reservoir[slot] = item
    return reservoir


def _training_error_message(message: str, vocabulary_size: int) -> str:
    """Return the message for the user about an error `message` of SentencePiece's trainer.

    It names the largest or smallest possible vocabulary if SentencePiece's message does.
    """
    option = f"--vocabulary {vocabulary_size}"
    maximum = re.search(r"too high .*<= (\d+)", message)
    if maximum:
        return (
            f"{option}: this text supports at most {maximum[1]} ids; ask for fewer or give more "
            "text"
        )
    # SentencePiece compares the size with the number of ids that it needs at least.
    minimum = re.search(rf"{vocabulary_size} vs (\d+)", message)
    if minimum:
        return (
            f"{option}: bytes, special pieces and single characters alone need {minimum[1]}; ask "
            "for more"
        )
    return f"{option}: SentencePiece cannot train on this text: {' '.join(message.split())}"
