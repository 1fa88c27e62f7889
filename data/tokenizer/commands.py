"""Run the commands of `python -m data.tokenizer`."""

import itertools
from collections import Counter
from collections.abc import Iterable

from common.errors import UserError
from common.files import write_atomic
from data.tokenizer.options import (
    ExportOptions,
    ImportOptions,
    InspectOptions,
    TrainOptions,
)
from data.tokenizer.texts import (
    read_texts,
    resolve_source_files,
    sample_text_inputs,
)
from data.tokenizer.train import train_bpe
from model.tokenizer import hf_json, load_tokenizer
from model.tokenizer.base import TOKENIZER_FILE, Tokenizer
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer, read_normalized_model


def run_train(options: TrainOptions) -> None:
    """Train a tokenizer on text, by default on that of the sample, and write it."""
    inputs = list(options.input) or sample_text_inputs()
    texts = read_texts(resolve_source_files(inputs, options.source))
    serialized_model = train_bpe(
        texts,
        vocabulary_size=options.vocabulary,
        max_piece_characters=options.longest,
        character_coverage=options.coverage,
        include_common_characters=options.common_characters,
        max_sentences=options.sentences,
        seed=options.seed,
    )
    tokenizer = SentencePieceTokenizer(serialized_model)
    write_atomic(options.out / TOKENIZER_FILE, serialized_model)
    print(
        f"{options.out / TOKENIZER_FILE}: {tokenizer.vocab_size} ids, fingerprint "
        f"{tokenizer.fingerprint[:16]}"
    )
    if tokenizer.vocab_size % 64:
        print("a multiple of 64 ids makes a model's embedding and LM head faster on a GPU")


def run_import(options: ImportOptions) -> None:
    """Normalize a stock SentencePiece model, write it, and print what was changed."""
    serialized_model, changes = read_normalized_model(options.input)
    tokenizer = SentencePieceTokenizer(serialized_model)
    write_atomic(options.out / TOKENIZER_FILE, serialized_model)
    print(
        f"{options.out / TOKENIZER_FILE}: {changes.num_pieces} pieces, ids unchanged, "
        f"fingerprint {tokenizer.fingerprint[:16]}"
    )
    print(f"  scores made distinct: {changes.num_tied_scores} pieces had the score of another")
    print(f"  marked unused: {changes.num_unreachable} pieces that no merge reaches")
    print(f"  settings changed: {', '.join(changes.changed_settings) or 'nothing'}")


def run_export(options: ExportOptions) -> None:
    """Write the files of a tokenizer for transformers.

    Raises UserError for an imported tokenizer, which belongs to a model.
    """
    tokenizer = load_tokenizer(options.tokenizer)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f"{options.tokenizer} is an imported tokenizer: python -m model.export writes it with "
            "its model"
        )
    hf_json.export_tokenizer(tokenizer, options.out)
    print(f"{options.out}: {', '.join(hf_json.HF_TOKENIZER_FILES)}")


def run_inspect(options: InspectOptions) -> None:
    """Print the size, the special ids, the fingerprint and the compression of a tokenizer."""
    tokenizer = load_tokenizer(options.tokenizer)
    kind_counts = Counter(piece.kind for piece in tokenizer.pieces)
    special_pieces = [
        f"{piece.text} {id_}"
        for id_, piece in enumerate(tokenizer.pieces)
        if piece.kind in (UNKNOWN, CONTROL)
    ]
    print(
        f"{tokenizer.vocab_size} ids: {kind_counts[NORMAL]} pieces, {kind_counts[BYTE]} bytes, "
        f"{kind_counts[UNUSED]} unused"
    )
    print(f"specials: {', '.join(special_pieces)}")
    print(f"fingerprint: {tokenizer.fingerprint}")
    if options.text is not None:
        ids = tokenizer.encode(options.text)
        print(" ".join(f"{tokenizer.pieces[id_].text}:{id_}" for id_ in ids))
        _print_compression(tokenizer, [options.text])
    if options.input:
        source_files = resolve_source_files(list(options.input), options.source)
        _print_compression(tokenizer, read_texts(source_files))


def _print_compression(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Print characters per token, and the share of tokens that are single bytes.

    A line end, which is always the byte <0x0A>, does not count as a single byte.
    """
    num_characters = num_tokens = num_byte_tokens = 0
    is_byte = [piece.kind == BYTE and piece.text != "<0x0A>" for piece in tokenizer.pieces]
    # Texts are encoded 1,000 at a time: in parallel, and in memory that does not grow.
    texts = iter(texts)
    while batch := list(itertools.islice(texts, 1000)):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            num_characters += len(text)
            num_tokens += len(ids)
            num_byte_tokens += sum(is_byte[id_] for id_ in ids)
    characters_per_token = num_characters / max(num_tokens, 1)
    byte_share = num_byte_tokens / max(num_tokens, 1)
    print(
        f"{num_characters} characters in {num_tokens} tokens: {characters_per_token:.3f} "
        f"characters per token; {byte_share:.2%} are single bytes"
    )
