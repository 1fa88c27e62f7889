"""Text to ids and back: SentencePiece models and imported Hugging Face tokenizers."""

import shlex
from pathlib import Path

from common.errors import UserError
from common.files import read_limited
from common.run_layout import RUN_FILE, list_steps, step_folder
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE, TOKENIZER_FILE, Tokenizer
from model.tokenizer.imported import TOKENIZER_JSON, parse_imported_tokenizer
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer, read_normalized_model


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the SentencePiece model in a file, or the tokenizer in a folder.

    A folder holds a SentencePiece model (TOKENIZER_FILE) or a tokenizer imported from Hugging Face
    (IMPORTED_TOKENIZER_FILE). Scores and settings of a SentencePiece model are changed in memory as
    `model.tokenizer.sentencepiece_normalize` describes. Raises UserError if there is no such file
    or if it is not a usable BPE model, and for a run, whose steps have one each.
    """
    _check_folder(path)
    # If a folder has both, `tokenizer.model` is used.
    imported_file = path / IMPORTED_TOKENIZER_FILE
    if imported_file.is_file() and not (path / TOKENIZER_FILE).is_file():
        return parse_imported_tokenizer(read_limited(imported_file), imported_file)
    return SentencePieceTokenizer(read_normalized_model(path)[0])


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer, also one that has yet to be imported."""
    names = (TOKENIZER_FILE, IMPORTED_TOKENIZER_FILE, TOKENIZER_JSON)
    return any((folder / name).is_file() for name in names)


def _check_folder(path: Path) -> None:
    """Raise UserError, with the folder to name instead, for a run and for a model to import."""
    if (path / RUN_FILE).is_file() and (steps := list_steps(path)):
        raise UserError(
            f"{path} is a run, and its tokenizer lies in its steps: name "
            f"{step_folder(path, steps[-1])}"
        )
    own_files = (TOKENIZER_FILE, IMPORTED_TOKENIZER_FILE)
    is_own = any((path / name).is_file() for name in own_files)
    if (path / TOKENIZER_JSON).is_file() and not is_own:
        raise UserError(
            f"{path} has a tokenizer in Hugging Face's format: import the model (python -m "
            f"model.import_hf {shlex.quote(str(path))} --run runs/NAME) and name the step in that "
            "run"
        )
