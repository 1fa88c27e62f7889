"""The tokenizer's own commands: train one, import a stock SentencePiece file, export to transformers, inspect.

python -m data.tokenizer train --input wikipedia=wiki.jsonl more.txt --vocabulary 8192 --out tokenizer
python -m data.tokenizer import --input llama-chinese-65k.model --out tokenizer
python -m data.tokenizer export --tokenizer tokenizer --out exported
python -m data.tokenizer inspect --tokenizer tokenizer --text 你好，世界
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError, run_main
from common.files import write_atomic
from common.options import CommandParser
from data.sources import SOURCES
from data.tokenizer.texts import (
    STRINGS_SOURCE,
    read_texts,
    resolve_source_files,
    sample_text_inputs,
)
from data.tokenizer.train import train_bpe
from model.tokenizer import hf_json, load_tokenizer
from model.tokenizer.base import TOKENIZER_FILE, Tokenizer
from model.tokenizer.sentencepiece_normalize import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer, read_normalized_model


def main() -> None:
    """Run the subcommand that the command line names."""
    arguments = _build_parser().parse_args()
    arguments.run(arguments)


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m data.tokenizer", description="Train, import, export or inspect a tokenizer."
    )
    commands = parser.add_subparsers(required=True, metavar="train|import|export|inspect")
    command = commands.add_parser("train", help="learn a vocabulary from text", allow_abbrev=False)
    _add_input_options(command, default="the sample")
    command.add_argument(
        "--vocabulary", type=int, default=8192, metavar="N", help="ids (default %(default)s)"
    )
    command.add_argument(
        "--longest",
        type=int,
        default=16,
        metavar="N",
        help="characters of the longest piece (default %(default)s)",
    )
    command.add_argument(
        "--coverage",
        type=float,
        default=0.9995,
        metavar="X",
        help="share of the text's characters that get ids; the rarest are spelt in bytes (default %(default)s)",
    )
    command.add_argument(
        "--common_characters",
        action="store_true",
        help="give ASCII, punctuation and GB 2312's 3,755 common characters ids even where the text lacks them",
    )
    command.add_argument(
        "--sentences",
        type=int,
        default=1_000_000,
        metavar="N",
        help="learn from a random sample of at most so many lines; bounds memory (default %(default)s)",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of that sample (default %(default)s)"
    )
    _add_out_option(command, TOKENIZER_FILE)
    command.set_defaults(run=_run_train)

    command = commands.add_parser(
        "import", help="normalise a stock SentencePiece BPE model", allow_abbrev=False
    )
    command.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="a SentencePiece model"
    )
    _add_out_option(command, TOKENIZER_FILE)
    command.set_defaults(run=_run_import)

    command = commands.add_parser(
        "export", help="write tokenizer.json for transformers", allow_abbrev=False
    )
    _add_tokenizer_option(command)
    _add_out_option(command, ", ".join(hf_json.HF_TOKENIZER_FILES))
    command.set_defaults(run=_run_export)

    command = commands.add_parser(
        "inspect", help="size, specials, characters per token", allow_abbrev=False
    )
    _add_tokenizer_option(command)
    command.add_argument("--text", metavar="TEXT", help="show the pieces of this text")
    _add_input_options(command, default="none")
    command.set_defaults(run=_run_inspect)
    return parser


def _add_tokenizer_option(command: argparse.ArgumentParser) -> None:
    help_text = f"a SentencePiece model, or a folder with {TOKENIZER_FILE}"
    command.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help=help_text)


def _add_out_option(command: argparse.ArgumentParser, files: str) -> None:
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help=f"folder for {files}"
    )


def _add_input_options(command: argparse.ArgumentParser, *, default: str) -> None:
    command.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="[SOURCE=]PATH",
        help=f"files, folders or globs; each may name its source (default: {default})",
    )
    command.add_argument(
        "--source",
        metavar="NAME",
        help=f"the source of inputs that name none: {', '.join(SOURCES)}, jsonl:FIELD, or "
        f"{STRINGS_SOURCE.name} for {STRINGS_SOURCE.description} (default: told from each file)",
    )


def _run_train(arguments: argparse.Namespace) -> None:
    for name, least, most in (
        ("vocabulary", 260, 1 << 21),
        ("longest", 1, 512),
        ("sentences", 1, 1 << 40),
    ):
        if not least <= getattr(arguments, name) <= most:
            raise UserError(
                f"--{name} {getattr(arguments, name)}: must be between {least} and {most}"
            )
    if not 0.98 <= arguments.coverage <= 1:
        raise UserError(f"--coverage {arguments.coverage}: must be between 0.98 and 1")
    texts = read_texts(
        resolve_source_files(arguments.input or sample_text_inputs(), arguments.source)
    )
    serialized = train_bpe(
        texts,
        vocabulary_size=arguments.vocabulary,
        max_piece_characters=arguments.longest,
        character_coverage=arguments.coverage,
        include_common_characters=arguments.common_characters,
        max_sentences=arguments.sentences,
        seed=arguments.seed,
    )
    tokenizer = SentencePieceTokenizer(serialized)
    write_atomic(arguments.out / TOKENIZER_FILE, serialized)
    print(
        f"{arguments.out / TOKENIZER_FILE}: {tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint[:16]}"
    )
    if tokenizer.vocab_size % 64:
        print("a multiple of 64 ids makes the model's vocabulary tables faster on a GPU")


def _run_import(arguments: argparse.Namespace) -> None:
    serialized, changes = read_normalized_model(arguments.input)
    tokenizer = SentencePieceTokenizer(serialized)
    write_atomic(arguments.out / TOKENIZER_FILE, serialized)
    print(
        f"{arguments.out / TOKENIZER_FILE}: {changes.num_pieces} ids, all in place, fingerprint {tokenizer.fingerprint[:16]}"
    )
    print(f"  scores made distinct: {changes.num_tied_scores} pieces had the score of another")
    print(f"  marked unused: {changes.num_unreachable} pieces that no merge reaches")
    print(f"  switched: {', '.join(changes.changed_settings) or 'nothing'}")


def _run_export(arguments: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(arguments.tokenizer)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f"{arguments.tokenizer} is an imported tokenizer: python -m model.export writes it "
            "with its model"
        )
    hf_json.export_tokenizer(tokenizer, arguments.out)
    print(f"{arguments.out}: {', '.join(hf_json.HF_TOKENIZER_FILES)}")


def _run_inspect(arguments: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(arguments.tokenizer)
    kinds = Counter(piece.kind for piece in tokenizer.pieces)
    special_pieces = [
        (index, piece.text)
        for index, piece in enumerate(tokenizer.pieces)
        if piece.kind in (UNKNOWN, CONTROL)
    ]
    print(
        f"{tokenizer.vocab_size} ids: {kinds[NORMAL]} pieces, {kinds[BYTE]} bytes, {kinds[UNUSED]} unused"
    )
    print(f"specials: {', '.join(f'{text} {index}' for index, text in special_pieces)}")
    print(f"fingerprint: {tokenizer.fingerprint}")
    if arguments.text is not None:
        ids = tokenizer.encode(arguments.text)
        print(" ".join(f"{tokenizer.pieces[index].text}:{index}" for index in ids))
        _print_compression(tokenizer, [arguments.text])
    if arguments.input:
        _print_compression(
            tokenizer, read_texts(resolve_source_files(arguments.input, arguments.source))
        )


def _print_compression(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    num_characters = num_tokens = num_byte_tokens = 0
    is_byte = [piece.kind == BYTE and piece.text != "<0x0A>" for piece in tokenizer.pieces]
    texts = iter(texts)
    while batch := list(itertools.islice(texts, 1000)):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            num_characters += len(text)
            num_tokens += len(ids)
            num_byte_tokens += sum(is_byte[index] for index in ids)
    rate, share = num_characters / max(num_tokens, 1), num_byte_tokens / max(num_tokens, 1)
    print(
        f"{num_characters} characters in {num_tokens} tokens: {rate:.3f} characters per token; {share:.2%} are single bytes"
    )


if __name__ == "__main__":
    run_main(main)
