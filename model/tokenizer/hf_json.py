"""The tokenizer as transformers reads it: `tokenizer.json` and its two companions, for `PreTrainedTokenizerFast`.

The fast tokenizers know BPE as a list of pairs to merge, the best first. Every way to cut a normal piece into two
normal pieces is such a pair, and its rank is that of the piece it makes; with distinct scores that is the order in
which SentencePiece merges.

Text must never give a special id, a chat template must, and transformers encodes what a template rendered as one text. Its
`split_special_tokens` would make text of both. So the special tokens are named here by strings that no text holds: `</s>`
is `</s>` and U+FDD0, one of the code points that Unicode keeps out of text for such use.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import write_atomic, write_json
from model.tokenizer.base import METASPACE, SPECIAL_TOKEN_MARK, Piece, Tokenizer
from model.tokenizer.sentencepiece_normalize import CONTROL, NORMAL, UNKNOWN

HF_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def export_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    chat_template: str | None = None,
    model_max_length: int | None = None,
) -> None:
    """Write `FILES` into a folder.

    `chat_template` is Jinja, for `apply_chat_template`; `model_max_length` is in tokens and becomes `model_max_length`.
    No bos is added to a text.
    """
    write_atomic(
        folder / HF_TOKENIZER_FILES[0],
        json.dumps(build_tokenizer_json(tokenizer), ensure_ascii=False) + "\n",
    )
    specials = {
        "bos_token": _token_text(tokenizer.pieces[tokenizer.bos_id]),
        "eos_token": _token_text(tokenizer.pieces[tokenizer.eos_id]),
        "unk_token": _token_text(tokenizer.pieces[tokenizer.unk_id]),
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **specials,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    if chat_template is not None:
        config["chat_template"] = chat_template
    write_json(folder / HF_TOKENIZER_FILES[1], config)
    write_json(folder / HF_TOKENIZER_FILES[2], specials)


def build_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": _token_text(piece),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, piece in enumerate(tokenizer.pieces)
            if piece.kind in (CONTROL, UNKNOWN)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _token_text(tokenizer.pieces[tokenizer.unk_id]),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {_token_text(piece): index for index, piece in enumerate(tokenizer.pieces)},
            "merges": list(_iter_merges(tokenizer)),
        },
    }


def _token_text(piece: Piece) -> str:
    return piece.text + SPECIAL_TOKEN_MARK if piece.kind in (CONTROL, UNKNOWN) else piece.text


def _iter_merges(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    normal = [piece for piece in tokenizer.pieces if piece.kind == NORMAL]
    texts = {piece.text for piece in normal}
    for piece in sorted(normal, key=lambda piece: -piece.score):
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in texts and right in texts:
                yield left, right
