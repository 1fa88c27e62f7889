"""A document is divided at a paragraph, by its ids alone."""

from pathlib import Path

import numpy as np
import pytest

from data.kinds import documents
from data.prepare import paragraphs
from data.prepare.paragraphs import ParagraphDivider
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer

LINE = "从前有一座山，山上有一座庙。"
UNBROKEN = "从前有一座山" * 3


@pytest.fixture(scope="session", params=["project", "imported"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: Path) -> Tokenizer:
    """A tokenizer with a byte for a line end, and one with pieces such as "。\\n\\n"."""
    if request.param == "project":
        return load_tokenizer(tokenizer)
    return merging_tokenizer()


def merging_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer that merges a mark with the line ends after it, as Qwen's."""
    import json

    from tokenizers import AddedToken, Regex, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    from model.tokenizer.imported import ImportedTokenizer

    backend = Backend(BPE())
    pattern = r"[^\s\p{L}\p{N}]+[\r\n]*|\p{L}+|\p{N}+|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=[AddedToken("<s>", special=True), AddedToken("</s>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([f"{LINE}\n\n{LINE}\n{LINE}" * 20], trainer)
    assert any("。" in piece for piece in [backend.decode([i]) for i in range(400)])
    serialized = {
        "definition": json.loads(backend.to_str()),
        "config": {"eos_token": "</s>"},
        "bos_id": 0,
        "eos_id": 1,
        "unk_id": None,
    }
    return ImportedTokenizer(json.dumps(serialized).encode())


@pytest.mark.parametrize(
    ("beginning", "separator", "end"),
    [
        # Paragraphs between blank lines, each of two lines: not in the middle of one.
        (f"{LINE}\n{LINE}\n\n{LINE}\n{LINE}", "\n\n", f"{LINE}\n{LINE}\n\n{LINE}\n{LINE}"),
        # Lines, beside a blank line that would leave too little.
        (f"{LINE}\n{LINE}\n{LINE}", "\n", f"{LINE}\n{LINE}\n\n{LINE}"),
        (f"{LINE}\n{LINE}\n{LINE}", "\n", f"{LINE}\n{LINE}\n{LINE}"),
        # One line; a quotation mark does not begin the end.
        (f"{LINE}", "", f"“{LINE}”{LINE}"),
        (f"“{LINE}”{LINE}", "", f"{LINE}{LINE}"),
        # A title and one paragraph that is longer than allowed.
        (f"{LINE}\n{LINE}{LINE}", "", f"{LINE}{LINE}"),
        # Nothing fills half: a line is better than nothing.
        (UNBROKEN * 9, "\n", UNBROKEN),
    ],
    ids=["blank_line", "one_blank_line", "line", "quotation", "sentence", "long_line", "short_end"],
)
def test_the_end_is_of_whole_paragraphs(
    any_tokenizer: Tokenizer,
    beginning: str,
    separator: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents text in both parts or in neither, and an end that begins within a paragraph."""
    monkeypatch.setattr(paragraphs, "MIN_SENTENCE_TOKENS", 0)
    ids = np.array(documents.KIND.encode_text(any_tokenizer, f"{beginning}{separator}{end}"))
    num_tokens = len(documents.KIND.encode_text(any_tokenizer, end))
    max_tokens = 3 * num_tokens if end == UNBROKEN else num_tokens
    if separator == "\n\n" or "”" in beginning:
        # A line more, which would begin within a paragraph or with a quotation mark.
        max_tokens += len(any_tokenizer.encode(f"”{LINE}"))
    divider = ParagraphDivider(any_tokenizer)
    parts = divider.divide(ids.astype(np.uint16), max_tokens)
    assert [any_tokenizer.decode(part.tolist()).rstrip("\n") for part in parts] == [beginning, end]
    for part in parts:
        assert (part[0], part[-1]) == (any_tokenizer.bos_id, any_tokenizer.eod_id)
        assert not np.isin([any_tokenizer.bos_id, any_tokenizer.eod_id], part[1:-1]).any()
        assert any_tokenizer.decode([int(part[-2])]).strip("\n")
    assert len(parts[1]) <= max_tokens and parts[0].dtype == parts[1].dtype == np.uint16
    assert len(divider.divide(ids, len(parts[1]) - 1)[1]) < len(parts[1])


@pytest.mark.parametrize("text", [UNBROKEN, "山。山。"])
def test_a_text_without_ends_is_not_divided(any_tokenizer: Tokenizer, text: str) -> None:
    """Prevents a cut within a sentence or a short line, and the loss of a text that stays whole."""
    divider = ParagraphDivider(any_tokenizer)
    ids = np.array(documents.KIND.encode_text(any_tokenizer, text))
    for max_tokens, sizes in ((len(ids) - 1, (len(ids), 0)), (len(ids), (0, len(ids)))):
        assert tuple(map(len, divider.divide(ids, max_tokens))) == sizes
    assert divider.count_smallest_end(ids) == len(ids)
    # `<bos> <eos>`, and a single id.
    for short in (ids[[0, -1]], ids[[0, 1, -1]]):
        assert tuple(map(len, divider.divide(short, 1))) == (len(short), 0)
