"""Text to ids and back: SentencePiece models and imported Hugging Face tokenizers."""

from pathlib import Path

from common.files import read_limited
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE, TOKENIZER_FILE, Tokenizer
from model.tokenizer.imported import parse_imported_tokenizer
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer, read_normalized_model


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the SentencePiece model in a file, or the tokenizer in a folder.

    A folder holds a SentencePiece model (TOKENIZER_FILE) or a tokenizer imported from Hugging Face
    (IMPORTED_TOKENIZER_FILE). Scores and settings of a SentencePiece model are changed in memory as
    `model.tokenizer.sentencepiece_normalize` describes. Raises UserError if there is no such file
    or if it is not a usable BPE model.
    """
    # If a folder has both, `tokenizer.model` is used.
    imported_file = path / IMPORTED_TOKENIZER_FILE
    if imported_file.is_file() and not (path / TOKENIZER_FILE).is_file():
        return parse_imported_tokenizer(read_limited(imported_file), imported_file)
    return SentencePieceTokenizer(read_normalized_model(path)[0])
