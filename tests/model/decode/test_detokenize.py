"""Text that is streamed from ids."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import locate
from model.decode.detokenize import StreamingDetokenizer, stream_text
from model.interop.hf_import import import_hf
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from tests.helpers import hf_checkpoints


@pytest.fixture(scope="module")
def llama2_tokenizer(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """An imported tokenizer that puts a space before every text, as that of Llama 2 does."""
    folder = tmp_path_factory.mktemp("llama2")
    backend = hf_checkpoints.legacy_llama2_tokenizer(root)
    hf_checkpoints.save_hf_checkpoint(folder / "hf", backend, ("<s>\ufdd0", "</s>\ufdd0"))
    import_hf(folder / "hf", folder / "run")
    return load_tokenizer(locate.resolve_checkpoint(folder / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["你好 world", " 你好", "  two spaces", "𠀀", ""])
def test_stop_strings_do_not_change_the_prefix_space(
    llama2_tokenizer: Tokenizer, text: str
) -> None:
    """Prevents a server that shows a space before an answer where the chat shows none."""
    assert llama2_tokenizer.adds_prefix_space
    ids = llama2_tokenizer.encode(text)
    detokenizer = StreamingDetokenizer(llama2_tokenizer, stop_strings=["<never>"])
    streamed = "".join(map(detokenizer.add_token, ids)) + detokenizer.flush()
    assert streamed == llama2_tokenizer.decode(ids) == text
    assert "".join(stream_text(llama2_tokenizer, ids)) == text


def test_stop_strings_do_not_match_the_prefix_space(llama2_tokenizer: Tokenizer) -> None:
    """Prevents a stop string that matches a space which no reader of the answer sees."""
    detokenizer = StreamingDetokenizer(llama2_tokenizer, stop_strings=[" 你"])
    ids = iter(llama2_tokenizer.encode("你好 你们"))
    streamed = ""
    while not detokenizer.has_stopped:
        streamed += detokenizer.add_token(next(ids))
    assert streamed == "你好"


@pytest.mark.slow
@given(st.lists(st.integers(3, 258), max_size=40))
def test_streamed_bytes_match_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Prevents a transcript that differs from the screen where bytes form no character."""
    assert tokenizer.pieces[3].text == "<0x00>" and tokenizer.pieces[258].text == "<0xFF>"
    assert "".join(stream_text(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.slow
@given(
    st.lists(
        st.integers(0, 8191) | st.sampled_from([3 + 0xE4, 3 + 0xF0, 3 + 0x9F, 3 + 0xBD]),
        max_size=30,
    )
)
def test_streamed_text_matches_decoded_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Prevents lost text where byte pieces, whole pieces and special ids are mixed."""
    assert "".join(stream_text(tokenizer, ids)) == tokenizer.decode(ids)


def test_streamed_text_never_splits_a_character(tokenizer: Tokenizer) -> None:
    """Prevents half a character on the screen: rare characters are several byte pieces."""
    text = "小驼说：𠀀𪚥🐫 good\n。"
    parts = list(stream_text(tokenizer, iter(tokenizer.encode(text))))
    assert "".join(parts) == text and "\ufffd" not in "".join(parts)
    assert len(parts) > 5
    cut = "".join(stream_text(tokenizer, iter(tokenizer.encode("好𠀀")[:-1])))
    assert cut.startswith("好") and cut.endswith("\ufffd")


@pytest.mark.slow
@given(
    st.text("甲乙丙a", max_size=30),
    st.lists(st.text("甲乙丙a", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_a_stop_string(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    """Prevents a client that sees a stop string, or that never sees text which began like one."""
    ids = [index for character in text for index in tokenizer.encode(character)]
    shown, detokenizer = "", StreamingDetokenizer(tokenizer, stops)
    for index in ids:
        shown += detokenizer.add_token(index)
        if detokenizer.has_stopped:
            break
    else:
        shown += detokenizer.flush()
    # The answer is cut once one stop string is complete, at the earliest place that one begins.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    seen = text[: min(ends, default=len(text))]
    starts = [seen.find(stop) for stop in stops if stop in seen]
    assert detokenizer.has_stopped == bool(starts)
    assert shown == (seen[: min(starts)] if starts else text)
