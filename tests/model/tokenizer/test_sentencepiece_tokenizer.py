"""The 65k tokenizer and the shipped one give the same ids here and in transformers."""

import concurrent.futures
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from common.errors import UserError
from model.tokenizer import hf_json, load_tokenizer
from model.tokenizer.base import METASPACE, TOKENIZER_FILE, Tokenizer
from model.tokenizer.sentencepiece_normalize import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    normalize_model,
)

ROOT = Path(__file__).parents[3]
SMALL = ROOT / "assets" / "tokenizer"
STOCK = ROOT.parent / "shared" / "tokenizer" / "llama-chinese-65k.model"
LITERALS = [
    "</s>",
    "<s>你好</s>",
    "<unk>",
    " <s>",
    "a</s>\n</s>b",
    "<0x0A>",
    "[<0xE4><0xBD>]",
    "<s",
    "/s>",
    "<</s>>",
]
AWKWARD = [
    "",
    " ",
    "  ",
    "   缩进",
    "结尾   ",
    "\n",
    "\n\n\n",
    "a\r\nb",
    "\t\t制表",
    "\x00",
    "\u3000\u3000全角空格",
    "ＡＢＣ：１２",
    "：",
    "人类：",
    "👨‍👩‍👧‍👦",
    "𠀀𪚥",
    "e\u0301",
    "\ufeff开头",
    "\u200b\u2028",
    "\uffff",
    "\U0010ffff",
    "￥100，折扣8.5%",
    "x" * 3000,
    " " * 1000,
    "哈" * 1000,
]


@pytest.fixture(scope="module", params=["small", "stock"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "small":
        return load_tokenizer(SMALL)
    request.getfixturevalue("shared")
    return load_tokenizer(STOCK)


@pytest.fixture(scope="module")
def fast(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same tokenizer as transformers loads it from the folder of an exported Llama."""
    import transformers

    folder = tmp_path_factory.mktemp("exported")
    template = "{{ bos_token }}{{ messages[0]['content'] }}"
    hf_json.export_tokenizer(tokenizer, folder, chat_template=template, model_max_length=512)
    transformers.LlamaConfig(vocab_size=tokenizer.vocab_size).save_pretrained(folder)
    (folder / TOKENIZER_FILE).write_bytes(tokenizer.serialized)
    return transformers.AutoTokenizer.from_pretrained(folder)


def same_ids(tokenizer: Tokenizer, fast: Any, texts: list[str]) -> list[str]:
    """The texts that the two give different ids, `<bos>` included."""
    ours, theirs = tokenizer.encode_batch(texts), fast(texts)["input_ids"]
    return [
        text for text, a, b in zip(texts, ours, theirs, strict=True) if [tokenizer.bos_id, *a] != b
    ]


@pytest.mark.slow
def test_ids_match_transformers_on_real_texts(
    tokenizer: Tokenizer, fast: Any, real_texts: list[str]
) -> None:
    """Prevents an exported model from reading other ids than it was trained on."""
    texts = real_texts[::3]
    assert len(texts) > 350
    assert same_ids(tokenizer, fast, texts + AWKWARD + LITERALS) == []
    ids = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(item) for item in ids] == texts
    assert fast.batch_decode(ids[::10], skip_special_tokens=True) == texts[::10]
    assert not any(
        index in item
        for item in ids
        for index in (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    )


@pytest.mark.slow
def test_ids_match_transformers_on_adversarial_texts(tokenizer: Tokenizer, fast: Any) -> None:
    """Catches differences at score ties, unused pieces and runs of one piece."""
    dice = random.Random(0)
    usable = [piece.text for piece in tokenizer.pieces if piece.kind == NORMAL]
    unused = [piece.text for piece in tokenizer.pieces if piece.kind == UNUSED] or usable
    texts = []
    for _ in range(500):
        texts.append("".join(dice.choice(usable) for _ in range(dice.randint(1, 6))))
        texts.append(
            "".join(dice.choice(dice.choice((unused, usable))) for _ in range(dice.randint(1, 5)))
        )
        piece = dice.choice(usable)
        texts.append("".join(dice.choice(piece) for _ in range(dice.randint(1, 14))))
        texts.append((piece[: dice.randint(1, 4)] * dice.randint(1, 9))[dice.randint(0, 2) :])
    assert same_ids(tokenizer, fast, [text.replace(METASPACE, " ") for text in texts]) == []


@pytest.mark.slow
def test_user_text_cannot_encode_to_special_ids(tokenizer: Tokenizer, fast: Any) -> None:
    """Prevents `</s>` in a text from ending the answer or the document."""
    specials = {index for index, piece in enumerate(tokenizer.pieces) if piece.kind == CONTROL} | {
        tokenizer.unk_id
    }
    assert specials == {0, 1, 2} == {tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id}
    for text in LITERALS:
        ids = tokenizer.encode(text)
        assert not specials & set(ids)
        assert tokenizer.decode(ids) == text
        assert fast(text, add_special_tokens=False)["input_ids"] == ids


def test_transformers_tokenizer_begins_texts_with_bos(fast: Any, tokenizer: Tokenizer) -> None:
    """Prevents texts without the `<bos>` that every text has in training, and two in a chat."""
    ids = tokenizer.encode("春天")
    bos = tokenizer.bos_id
    assert fast("春天")["input_ids"] == [bos, *ids]
    assert fast("春天", "春天")["input_ids"] == [bos, *ids, bos, *ids]
    chat = fast.apply_chat_template([{"role": "user", "content": "春天"}])
    assert chat["input_ids"] == [bos, *ids]


def test_transformers_tokenizer_has_special_tokens_length_and_template(
    fast: Any, tokenizer: Tokenizer
) -> None:
    """Prevents generation in transformers that never stops or uses another chat template."""
    assert (fast.bos_token_id, fast.eos_token_id, fast.unk_token_id) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        0,
    )
    assert len(fast) == tokenizer.vocab_size
    assert fast.model_max_length == 512
    assert (
        fast.apply_chat_template([{"role": "user", "content": " 问"}], tokenize=False)
        == "<s>\ufdd0 问"
    )
    assert fast.decode([1, *tokenizer.encode(" 问"), 2], skip_special_tokens=True) == " 问"


@pytest.mark.slow
def test_characters_round_trip_and_count_once(tokenizer: Tokenizer) -> None:
    """Prevents characters lost from a corpus, and wrong bits per character."""
    # Every character of the basic plane, and every thirteenth beyond it, where a character is
    # encoded as bytes or is a rare ideograph.
    codes = [*range(0x10000), *range(0x10000, 0x110000, 13)]
    characters = [
        chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF and chr(code) != METASPACE
    ]
    texts = ["".join(characters[start : start + 999]) for start in range(0, len(characters), 999)]
    counts = tokenizer.characters_per_id
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert counts[ids].sum() == len(text)


ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=METASPACE))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(text=ANY | st.text("  \n\t</s>0x：人a1你", max_size=60))
def test_any_text_round_trips_with_correct_count(tokenizer: Tokenizer, text: str) -> None:
    """Prevents loss of leading and double spaces, line breaks and rare characters."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.characters_per_id[ids].sum() == len(text)
    assert all(tokenizer.pieces[index].kind in (NORMAL, BYTE) for index in ids)


def test_encode_batch_matches_single_encode(tokenizer: Tokenizer) -> None:
    """Prevents threads from reordering or changing results."""
    texts = AWKWARD + LITERALS
    alone = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == tokenizer.encode_batch(texts, num_threads=3) == alone
    assert tokenizer.encode_batch([]) == []


def test_newline_and_template_colon_are_separate_tokens(tokenizer: Tokenizer) -> None:
    """Prevents prompt and answer from being split differently in training and in chat."""
    colon = tokenizer.encode("：")
    assert len(colon) == 1 and len(tokenizer.encode("\n")) == 1
    assert [piece.text for piece in tokenizer.pieces if "：" in piece.text] == ["："]
    for answer in ("你好", " x", "：", "\n", "1"):
        assert tokenizer.encode("\n\n助手：" + answer) == tokenizer.encode(
            "\n\n助手："
        ) + tokenizer.encode(answer)


def test_incomplete_utf8_is_detected_when_streaming(tokenizer: Tokenizer) -> None:
    """Prevents chat from printing U+FFFD for every byte of an unfinished character."""
    ids = tokenizer.encode("\U0010fffd")
    assert len(ids) == 4
    assert tokenizer.decode_bytes(ids[:3]) == "\U0010fffd".encode()[:3]
    assert tokenizer.decode([*tokenizer.encode("好"), ids[0]]) == "好\ufffd"
    assert tokenizer.decode([0, 1, *tokenizer.encode("好"), 2]) == "好"


def test_ids_of_padded_embedding_rows_decode_to_nothing(tokenizer: Tokenizer) -> None:
    """Prevents a traceback in mid-answer: models with padded embeddings can generate such ids."""
    ids = tokenizer.encode("你好")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, tokenizer.vocab_size + 40]) == "你好"


def test_lone_surrogate_raises_user_error(tokenizer: Tokenizer) -> None:
    """Prevents a traceback from the library for text that has no UTF-8."""
    for encode in (
        lambda: tokenizer.encode("ab\ud83d"),
        lambda: tokenizer.encode_batch(["好", "ab\ud83d"]),
    ):
        with pytest.raises(UserError, match=r"lone surrogate U\+D83D at character 3"):
            encode()


def _encode_elsewhere(tokenizer: Tokenizer, text: str) -> tuple[str, list[int]]:
    return tokenizer.fingerprint, tokenizer.encode(text)


@pytest.mark.slow
def test_tokenizer_can_be_pickled_to_spawned_processes() -> None:
    """Prevents preparation workers from loading another tokenizer than their parent."""
    tokenizer = load_tokenizer(SMALL)
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        answer = pool.submit(_encode_elsewhere, tokenizer, "你好 世界").result(timeout=60)
    assert answer == (tokenizer.fingerprint, tokenizer.encode("你好 世界"))


# Normalising


def parsed(serialized: bytes) -> Any:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(serialized)
    return model


@pytest.mark.slow
def test_normalization_keeps_ids_and_makes_scores_distinct(shared: Path) -> None:
    """Prevents moved ids, which break checkpoints, and score ties, which split implementations."""
    before, serialized = parsed(STOCK.read_bytes()), normalize_model(STOCK.read_bytes(), "stock")[0]
    after = parsed(serialized)
    assert [piece.piece for piece in before.pieces] == [piece.piece for piece in after.pieces]
    changed = [a.type for b, a in zip(before.pieces, after.pieces, strict=True) if b.type != a.type]
    assert changed == [UNUSED] * 875
    order = [index for index, piece in enumerate(after.pieces) if piece.type == NORMAL]
    order.sort(key=lambda index: -after.pieces[index].score)
    assert len({after.pieces[index].score for index in order}) == len(order)
    assert order == sorted(order, key=lambda index: (-before.pieces[index].score, index))
    lowest = min(after.pieces[index].score for index in order)
    assert all(piece.score < lowest for piece in after.pieces if piece.type == UNUSED)
    assert (
        not after.normalizer_spec.add_dummy_prefix
        and not after.normalizer_spec.remove_extra_whitespaces
    )


@pytest.mark.slow
def test_default_tokenizer_fingerprint_is_stable(shared: Path) -> None:
    """Prevents a library update from invalidating every prepared corpus and run."""
    assert (
        load_tokenizer(STOCK).fingerprint
        == "b4543689c4405ca7e93ea50adfe5854765f89a3b876b0464388d951e1247ba73"
    )


@pytest.mark.slow
def test_normalization_is_idempotent(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a fingerprint that changes on the way from corpus to run to export."""
    again, changes = normalize_model(tokenizer.serialized, "again")
    assert again == tokenizer.serialized
    assert (changes.num_tied_scores, changes.num_unreachable, changes.changed_settings) == (
        0,
        0,
        (),
    )
    (tmp_path / TOKENIZER_FILE).write_bytes(tokenizer.serialized)
    assert (
        load_tokenizer(tmp_path).fingerprint
        == tokenizer.fingerprint
        == load_tokenizer(tmp_path / TOKENIZER_FILE).fingerprint
    )


def _retype(index: int, kind: int) -> Callable[[Any], None]:
    return lambda model: setattr(model.pieces[index], "type", kind)


def _rename(index: int, text: str) -> Callable[[Any], None]:
    return lambda model: setattr(model.pieces[index], "piece", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.trainer_spec, "model_type", 1), "not of type BPE"),
        (_rename(1, "<bos>"), "id 1 must be the special piece <s>"),
        (_retype(2, NORMAL), "id 2 must be the special piece </s>"),
        (_rename(13, "<0x0a>"), "no byte fallback"),
        (lambda model: model.ClearField("pieces"), "is not a SentencePiece model"),
        (lambda model: model.pieces.__delitem__(slice(2, None)), "id 2 must be"),
        (_retype(400, USER_DEFINED), "id 400 is user-defined"),
        (_retype(300, UNUSED), "id 300 is marked unused though merges reach it"),
        (lambda model: _rename(400, model.pieces[401].piece)(model), "one piece twice"),
        (
            lambda model: model.pieces.add(piece="\u0e01", type=CONTROL),
            "special piece of one character",
        ),
        (
            lambda model: setattr(model.pieces[500], "score", float("nan")),
            "score of id 500 is not finite",
        ),
    ],
)
def test_unusable_sentencepiece_model_gives_one_line_error(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    """Prevents a training run that fails halfway because of a bad tokenizer file."""
    model = parsed((SMALL / TOKENIZER_FILE).read_bytes())
    change(model)
    path = tmp_path / "theirs.model"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95\x0b",
        b"PK\x03\x04",
        b'{"model": {}}',
        b"\x0a\x04\x0a\x02\xff\xfe",
        b"\xff" * 99,
    ],
)
def test_invalid_model_file_gives_one_line_error(content: bytes, tmp_path: Path) -> None:
    """Prevents tracebacks for pickles, archives, JSON and noise given as a tokenizer."""
    (tmp_path / TOKENIZER_FILE).write_bytes(content)
    with pytest.raises(UserError, match="is not a SentencePiece model") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_file_error_names_the_file(tmp_path: Path) -> None:
    """Prevents an error without the path, for a missing file or a folder without a tokenizer."""
    for path in (tmp_path, tmp_path / "none.model"):
        with pytest.raises(UserError, match="does not exist"):
            load_tokenizer(path)


@pytest.mark.slow
def test_corrupted_models_load_or_raise_user_error(tmp_path: Path) -> None:
    """Prevents flipped bytes from crashing the process or giving a tokenizer that fails later."""
    whole, dice = (SMALL / TOKENIZER_FILE).read_bytes(), random.Random(3)
    path, survived = tmp_path / TOKENIZER_FILE, 0
    for _ in range(25):
        data = bytearray(whole)
        data[dice.choice((dice.randrange(len(data)), len(data) - dice.randrange(1, 60)))] = (
            dice.randrange(256)
        )
        path.write_bytes(data)
        try:
            loaded = load_tokenizer(path)
        except UserError:
            continue
        survived += 1
        assert loaded.decode(loaded.encode("好 </s>\n")) == "好 </s>\n"
        assert len(loaded.characters_per_id) == loaded.vocab_size
    assert survived
