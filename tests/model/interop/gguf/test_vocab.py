"""The vocabulary of a GGUF file gives the ids of the tokenizer, without llama.cpp."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from model.export import main as export
from model.interop.gguf.export import build_vocabulary
from model.interop.gguf.imported_vocab import PRE_TOKENIZERS
from model.interop.gguf.vocab import GGUFVocabulary, build_native_vocabulary
from model.interop.hf_import import import_hf
from model.tokenizer.base import Piece, Tokenizer
from model.tokenizer.imported import ImportedTokenizer, build_imported_tokenizer
from model.tokenizer.sentencepiece_normalize import CONTROL, NORMAL, UNUSED, USER_DEFINED
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.helpers import hf_checkpoints
from tests.helpers.gguf_files import read_gguf_metadata


@pytest.fixture(scope="module")
def texts(root: Path) -> list[str]:
    with gzip.open(
        root / "assets/sample/pretrain/jsonl/stories.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        return [json.loads(line)["text"][:200] for line, _ in zip(file, range(300), strict=False)]


@pytest.fixture(scope="module")
def byte_level(texts: list[str]) -> dict[str, Any]:
    """A `tokenizer.json` like Llama 3's."""
    return dict(json.loads(hf_checkpoints.train_byte_level_bpe(texts[:150]).to_str()))


@pytest.fixture(scope="module")
def sentencepiece(texts: list[str]) -> dict[str, Any]:
    """A `tokenizer.json` like Llama 2's."""
    return dict(
        json.loads(
            hf_checkpoints.train_sentencepiece_bpe(texts[:150], add_prefix_space=True).to_str()
        )
    )


def imported(definition: dict[str, Any]) -> ImportedTokenizer:
    """Build the tokenizer of a `tokenizer.json` with bos 1 and eos 2."""
    return build_imported_tokenizer(
        json.loads(json.dumps(definition)), {}, 1, 2, 0, Path("tokenizer.json")
    )


def test_vocabulary_is_padded_to_model_size(tokenizer: Tokenizer) -> None:
    """Prevents a file that llama.cpp refuses: more embedding rows than tokens."""
    pieces = build_native_vocabulary(tokenizer, tokenizer.vocab_size + 2).pieces
    assert pieces[3:-2] == tokenizer.pieces[3:]
    assert [(piece.text, piece.kind) for piece in pieces[-2:]] == [
        ("<unused_4202>", UNUSED),
        ("<unused_4203>", UNUSED),
    ]


@pytest.mark.slow
def test_padding_pieces_are_unreachable(stock: Tokenizer) -> None:
    """Prevents llama.cpp from merging text into unused pieces, such as 基础."""
    tokenizer, pieces = stock, build_native_vocabulary(stock, stock.vocab_size).pieces
    changed = [
        index for index, (a, b) in enumerate(zip(tokenizer.pieces, pieces, strict=True)) if a != b
    ]
    assert changed == [
        0,
        1,
        2,
        *(index for index, piece in enumerate(tokenizer.pieces) if piece.kind == UNUSED),
    ]
    assert len(changed) == 878
    assert len({piece.text for piece in pieces}) == len(pieces)


def test_reachable_byte_piece_raises(tokenizer: Tokenizer) -> None:
    """Prevents a literal `<0x0A>` in text from becoming a line break in llama.cpp."""
    pieces = list(tokenizer.pieces)
    pieces[500] = Piece("<0x0A", -1.5, NORMAL)
    tokenizer = SentencePieceTokenizer(tokenizer.serialized)
    tokenizer.pieces = pieces
    with pytest.raises(
        UserError,
        match=r"id 13, <0x0A>, is not a normal piece, but llama.cpp would merge text into it",
    ):
        build_native_vocabulary(tokenizer, len(pieces))


# Imported tokenizers

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def by_score(vocabulary: GGUFVocabulary, text: str) -> list[int]:
    """Encode as llama.cpp's `llama` vocabulary does: merge by score, the best first."""
    ids = {piece.text: index for index, piece in enumerate(vocabulary.pieces)}
    parts = list(((" " if vocabulary.adds_space_prefix and text else "") + text).replace(" ", "▁"))
    while True:
        joined = [ids.get(left + right) for left, right in zip(parts, parts[1:], strict=False)]
        candidates = [
            (-vocabulary.pieces[index].score, place)
            for place, index in enumerate(joined)
            if index is not None
        ]
        if not candidates:
            break
        place = min(candidates)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [
        index
        for part in parts
        for index in (
            [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"add_prefix_space": True}, {"split_on_spaces": True}], ids=str
)
def test_scores_reproduce_merge_order(options: dict[str, Any], texts: list[str]) -> None:
    """Prevents pieces built by other merges than in the original tokenizer."""
    definition = json.loads(hf_checkpoints.train_sentencepiece_bpe(texts[:150], **options).to_str())
    vocab = definition["model"]["vocab"]
    backwards = {
        text: index if index < 259 else len(vocab) + 258 - index for text, index in vocab.items()
    }
    tokenizer = imported({**definition, "model": {**definition["model"], "vocab": backwards}})
    vocabulary = build_vocabulary(tokenizer, tokenizer.vocab_size)
    assert (vocabulary.tokenizer_model, vocabulary.adds_space_prefix) == (
        "llama",
        bool(options.get("add_prefix_space")),
    )
    strange = ["", " ", "  a  b", "<0x0A>", "</s><s>", "𠀀é\n\tß", "哈" * 40, "ab" * 20]
    for text in [*(text[:60] for text in texts[::3]), *strange]:
        assert by_score(vocabulary, text) == tokenizer.encode(text), text


def with_piece(definition: dict[str, Any], *added: str) -> dict[str, Any]:
    """Return the definition with pieces added that no merge builds."""
    model = definition["model"]
    vocabulary = {
        **model["vocab"],
        **{text: len(model["vocab"]) + n for n, text in enumerate(added)},
    }
    return {**definition, "model": {**model, "vocab": vocabulary}}


@pytest.mark.slow
def test_unreachable_piece_does_not_affect_encoding(
    byte_level: dict[str, Any], sentencepiece: dict[str, Any], texts: list[str]
) -> None:
    """Prevents llama.cpp from giving ids that training never saw."""
    pieces = sentencepiece["model"]["vocab"]
    lonely = next(
        a + b
        for a in "山水天人"
        for b in "天人山水"
        if a in pieces and b in pieces and a + b not in pieces
    )
    tokenizer = imported(with_piece(sentencepiece, lonely))
    vocabulary = build_vocabulary(tokenizer, tokenizer.vocab_size)
    assert vocabulary.pieces[-1] == Piece(f"<unused_{len(pieces)}>", -float(len(pieces)), UNUSED)
    assert by_score(vocabulary, f"在{lonely}里") == tokenizer.encode(f"在{lonely}里")
    strange = "".join(chr(0x100 + n) for n in (40, 41, 42))
    plain = {**byte_level, "model": {**byte_level["model"], "ignore_merges": False}}
    for definition, kind in ((plain, UNUSED), (byte_level, NORMAL)):
        tokenizer = imported(with_piece(definition, strange))
        assert build_vocabulary(tokenizer, tokenizer.vocab_size).pieces[-1].kind == kind


def test_spellable_special_token_is_renamed_in_template_too(sentencepiece: dict[str, Any]) -> None:
    """Prevents a user who types </s> from ending the conversation."""
    model = sentencepiece["model"]
    needed = [each for each in ("<", "/", "s", ">") if each not in model["vocab"]]
    merges = [*model["merges"], ["<", "/"], ["s", ">"]]
    definition = with_piece(sentencepiece, *needed, "</", "s>")
    tokenizer = imported({**definition, "model": {**definition["model"], "merges": merges}})
    vocabulary = build_vocabulary(tokenizer, tokenizer.vocab_size)
    assert vocabulary.special_token_names == {
        "<unk>": "<unk>",
        "<s>": "<s>\ufdd0",
        "</s>": "</s>\ufdd0",
    }
    assert vocabulary.pieces[2] == Piece("</s>\ufdd0", 0.0, CONTROL)
    assert by_score(vocabulary, "a</s>b") == tokenizer.encode("a</s>b")
    assert vocabulary.rename_special_tokens("{{ '</s><unk>' }}") == "{{ '</s>\ufdd0<unk>' }}"


def test_special_token_of_one_character_is_renamed(sentencepiece: dict[str, Any]) -> None:
    """Prevents a user who types the character from getting the special token without a merge."""
    index = len(sentencepiece["model"]["vocab"])
    smiley = {**sentencepiece["added_tokens"][0], "id": index, "content": "☺"}
    definition = {**sentencepiece, "added_tokens": [*sentencepiece["added_tokens"], smiley]}
    tokenizer = imported(definition)
    vocabulary = build_vocabulary(tokenizer, tokenizer.vocab_size)
    assert vocabulary.pieces[index] == Piece("☺\ufdd0", 0.0, CONTROL)
    assert by_score(vocabulary, "a☺b") == tokenizer.encode("a☺b")


@pytest.mark.slow
def test_gguf_of_imported_run_has_complete_tokenizer(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a missing merge, token type or stop id."""
    backend = hf_checkpoints.train_byte_level_bpe(texts[:150])
    backend.add_tokens(["表情"])
    hf_checkpoints.save_hf_checkpoint(
        tmp_path / "theirs", backend, ("<|begin|>", "<|end|>"), hf_checkpoints.LLAMA3_TEMPLATE
    )
    _, tokenizer, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert isinstance(tokenizer, ImportedTokenizer)
    arguments = [
        "--checkpoint",
        str(tmp_path / "run"),
        "--format",
        "gguf",
        "--out",
        str(tmp_path / "out.gguf"),
    ]
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    export()
    metadata = read_gguf_metadata(tmp_path / "out.gguf")
    size = tokenizer.vocab_size
    expected = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "eot_token_id": 4,
        "eom_token_id": 3,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": False,
    }
    assert {key: metadata[f"tokenizer.ggml.{key}"] for key in expected} == expected
    assert metadata["tokenizer.chat_template"] == hf_checkpoints.LLAMA3_TEMPLATE
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocab = backend.get_vocab(with_added_tokens=True)
    assert tokens == [
        *sorted(vocab, key=vocab.get),
        *(f"<unused_{index}>" for index in range(size, size + 9)),
    ]
    assert kinds == [CONTROL] * 7 + [NORMAL] * (size - 8) + [USER_DEFINED] + [UNUSED] * 9
    merges = json.loads(backend.to_str())["model"]["merges"]
    assert (
        metadata["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
        and len(merges) > 300
    )


@pytest.mark.parametrize(("cuts", "name"), PRE_TOKENIZERS.items(), ids=PRE_TOKENIZERS.values())
def test_pre_tokenizer_is_identified_by_behavior(
    cuts: tuple[str, ...], name: str, texts: list[str]
) -> None:
    """Prevents llama.cpp's default pre-tokenizer, which splits numbers differently."""
    tokenizer = imported(
        json.loads(
            hf_checkpoints.train_byte_level_bpe(texts[:20], cuts, ignore_merges=False).to_str()
        )
    )
    assert build_vocabulary(tokenizer, tokenizer.vocab_size).pre_tokenizer == name


def test_gpt2_and_smollm_pre_tokenizers_are_identified(byte_level: dict[str, Any]) -> None:
    """Prevents the usual spellings of the commonest pre-tokenizers from being refused."""
    plain = {**byte_level, "model": {**byte_level["model"], "ignore_merges": False}}
    digits = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
    }
    for cut, name in ((BYTES, "gpt-2"), (digits, "smollm")):
        assert (
            build_vocabulary(imported({**plain, "pre_tokenizer": cut}), 700).pre_tokenizer == name
        )


def test_missing_tokenizer_fields_use_library_defaults(byte_level: dict[str, Any]) -> None:
    """Prevents older files from being refused, and KeyErrors."""
    complete = imported({**byte_level, "added_tokens": []})
    model = {key: value for key, value in byte_level["model"].items() if key != "type"}
    merges = [" ".join(pair) for pair in model["merges"]]
    incomplete = {key: value for key, value in byte_level.items() if key != "added_tokens"}
    loaded = imported(
        {
            **incomplete,
            "model": {**model, "merges": merges},
            "normalizer": {"type": "Sequence", "normalizers": []},
        }
    )
    assert "type" not in loaded.definition["model"]
    assert build_vocabulary(loaded, 700) == build_vocabulary(complete, 700)


def test_merge_listed_twice_has_its_last_rank(byte_level: dict[str, Any]) -> None:
    """Prevents llama.cpp, which takes the first rank, from giving other ids."""
    merges = byte_level["model"]["merges"]
    plain = {**byte_level["model"], "ignore_merges": False}
    repeated = imported({**byte_level, "model": {**plain, "merges": [*merges, merges[0]]}})
    moved = imported({**byte_level, "model": {**plain, "merges": [*merges[1:], merges[0]]}})
    assert build_vocabulary(repeated, 700) == build_vocabulary(moved, 700)
    assert build_vocabulary(moved, 700).merges[-1] == " ".join(merges[0])


SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("byte_level", {"normalizer": {"type": "NFC"}}, "byte-level with the normalizer NFC"),
        (
            "byte_level",
            {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
            "ByteLevel, which puts a space before every text",
        ),
        (
            "byte_level",
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": "[a-z]"},
                            "behavior": "Isolated",
                            "invert": False,
                        },
                        {**BYTES, "use_regex": False},
                    ],
                }
            },
            r"it splits text by \[a-z\];",
        ),
        ("byte_level", {"model.end_of_word_suffix": "@@"}, "its BPE has end_of_word_suffix '@@'"),
        (
            "byte_level",
            {"model.ignore_merges": True, "pre_tokenizer": BYTES},
            "looks up whole words before it merges .* such as strange, and splits .* as gpt-2",
        ),
        ("byte_level", {"model.vocab": {"a": 0}}, "it does not have all of the 256 bytes"),
        (
            "sentencepiece",
            {"normalizer": None, "pre_tokenizer": SPACES},
            "some texts and not before others .*scheme first",
        ),
        (
            "sentencepiece",
            {"normalizer": {"type": "NFKC"}},
            "it has the normalizer NFKC and no pre-tokenizer",
        ),
        ("sentencepiece", {"model.ignore_merges": True}, "looks up whole texts before it merges"),
    ],
)
def test_unsupported_llama_cpp_features_raise_by_name(
    kind: str, change: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    """Prevents a file that loads, answers, and reads other ids than it was trained on."""
    definition = with_piece(request.getfixturevalue(kind), "strange")
    inside = {
        key.removeprefix("model."): value
        for key, value in change.items()
        if key.startswith("model.")
    }
    outside = {key: value for key, value in change.items() if not key.startswith("model.")}
    tokenizer = imported({**definition, **outside, "model": definition["model"]})
    tokenizer.canonical_definition["model"] |= inside
    with pytest.raises(UserError, match=f"cannot be exported as GGUF: .*{message}") as caught:
        build_vocabulary(tokenizer, tokenizer.vocab_size)
    assert "\n" not in str(caught.value)
