"""Export a SentencePiece tokenizer for transformers' `PreTrainedTokenizerFast`.

The `tokenizers` library defines BPE by a ranked list of merges. Every split of a normal piece into
two normal pieces is such a merge, ranked by the score of the result; with distinct scores that is
the order in which SentencePiece merges.

User text must never give a special id and a chat template must, but transformers encodes a rendered
template as one text, and its `split_special_tokens` would turn the template's own tokens into text
as well. So special tokens get names that do not occur in text: `</s>` becomes `</s>` + U+FDD0, a
code point that Unicode reserves as a noncharacter.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import write_atomic, write_json
from model.tokenizer.base import METASPACE, SPECIAL_TOKEN_MARK, Piece
from model.tokenizer.sentencepiece_normalize import CONTROL, NORMAL, UNKNOWN
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer

HF_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def export_tokenizer(
    tokenizer: SentencePieceTokenizer,
    folder: Path,
    *,
    chat_template: str | None = None,
    model_max_length: int | None = None,
) -> None:
    """Write HF_TOKENIZER_FILES into a folder.

    `chat_template` is Jinja source; `model_max_length` is in tokens. As Llama's, the exported
    tokenizer puts bos before a text unless `add_special_tokens=False`; a rendered chat template
    has its own, and transformers encodes it without.
    """
    definition = json.dumps(build_tokenizer_json(tokenizer), ensure_ascii=False) + "\n"
    write_atomic(folder / HF_TOKENIZER_FILES[0], definition)
    special_tokens = {
        "bos_token": _token_text(tokenizer.pieces[tokenizer.bos_id]),
        "eos_token": _token_text(tokenizer.pieces[tokenizer.eos_id]),
        "unk_token": _token_text(tokenizer.pieces[tokenizer.unk_id]),
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    if chat_template is not None:
        config["chat_template"] = chat_template
    write_json(folder / HF_TOKENIZER_FILES[1], config)
    write_json(folder / HF_TOKENIZER_FILES[2], special_tokens)


def build_tokenizer_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Return the content of `tokenizer.json`."""
    added_tokens = [
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
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE},
        "pre_tokenizer": None,
        "post_processor": _build_post_processor(tokenizer),
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


def _build_post_processor(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Return the rule that puts bos before a text, and before each text of a pair."""
    bos = _token_text(tokenizer.pieces[tokenizer.bos_id])

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": type_id}},
            {"Sequence": {"id": name, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def _token_text(piece: Piece) -> str:
    """Return the name of a piece in the exported tokenizer; see above for special tokens."""
    return piece.text + SPECIAL_TOKEN_MARK if piece.kind in (CONTROL, UNKNOWN) else piece.text


def _iter_merges(tokenizer: SentencePieceTokenizer) -> Iterator[tuple[str, str]]:
    """Yield every split of a normal piece into two normal pieces, the best score first."""
    normal = [piece for piece in tokenizer.pieces if piece.kind == NORMAL]
    texts = {piece.text for piece in normal}
    for piece in sorted(normal, key=lambda piece: -piece.score):
        for split in range(1, len(piece.text)):
            left, right = piece.text[:split], piece.text[split:]
            if left in texts and right in texts:
                yield left, right
