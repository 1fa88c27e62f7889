"""Requests for a title: many, drawn as a pure function, around an article whose ids never change."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.batching.summary_prompts import (
    ALL_REQUESTS,
    EVAL_REQUEST,
    LEAD_INS,
    REQUESTS_BY_TEMPLATE,
    EncodedRequests,
    sample_requests,
    strip_lead_in,
    summary_prompt,
)
from data.kinds import summaries
from data.records import Summary
from data.sources import SOURCES
from model.chat_template.template import Template, load_template
from model.chat_template.to_jinja import build_jinja_template
from model.checkpoint import locate
from model.interop.hf_import import import_hf
from model.tokenizer.base import Tokenizer
from tests.helpers import hf_checkpoints
from tests.helpers.conversations import to_chat_messages
from train.fine_tuning import build_sft_template
from train.options import SftOptions


def test_requests_are_formatted_and_distinct() -> None:
    """A slot left in a request, or one request many times over."""
    assert len(set(ALL_REQUESTS)) == len(ALL_REQUESTS) > 100
    assert not any("{" in request.prefix + request.suffix for request in ALL_REQUESTS)
    assert any(not request.prefix for request in ALL_REQUESTS) and any(
        not request.suffix for request in ALL_REQUESTS
    )


def test_request_sampling_is_deterministic_per_epoch() -> None:
    """Requests that depend on the order of reading (no exact resume), or are the same in every epoch."""
    records = np.arange(20_000)
    first = sample_requests(3, 0, records)
    assert np.array_equal(first[500:600], sample_requests(3, 0, records[500:600]))
    for other in (sample_requests(3, 1, records), sample_requests(4, 0, records)):
        assert (first == other).mean() < 0.05
    starts = np.cumsum([0] + [len(group) for group in REQUESTS_BY_TEMPLATE])
    shapes = np.searchsorted(starts, first, side="right") - 1
    counts = np.bincount(shapes, minlength=len(REQUESTS_BY_TEMPLATE)) / len(records)
    assert np.abs(counts - 1 / len(REQUESTS_BY_TEMPLATE)).max() < 0.01


def test_training_requests_match_inference_prompts(tokenizer: Tokenizer) -> None:
    """Evaluation that asks with other ids than training."""
    article = "本文研究了山谷里的风。结果表明，风从东边来。"
    frames = EncodedRequests(tokenizer, Template())
    prompt, trimmed = summary_prompt(tokenizer, Template(), article, max_tokens=500)
    assert not trimmed and prompt == frames.prompt(EVAL_REQUEST, tokenizer.encode(article))
    assert (
        tokenizer.decode(prompt)
        == f"人类：{ALL_REQUESTS[EVAL_REQUEST].prefix}{article}{ALL_REQUESTS[EVAL_REQUEST].suffix}\n\n助手："
    )
    for request in (0, len(ALL_REQUESTS) // 2, len(ALL_REQUESTS) - 1):
        ids = frames.prompt(request, tokenizer.encode(article))
        assert (
            tokenizer.decode(ids)
            == f"人类：{ALL_REQUESTS[request].prefix}{article}{ALL_REQUESTS[request].suffix}\n\n助手："
        )
        assert len(ids) - len(tokenizer.encode(article)) == frames.lengths[request]


def test_long_article_is_truncated_and_request_is_kept(tokenizer: Tokenizer) -> None:
    """A request cut off by a long article: the model is asked nothing."""
    article = "风从东边来，" * 200
    prompt, trimmed = summary_prompt(tokenizer, Template(), article, max_tokens=100)
    assert trimmed and len(prompt) == 100
    text = tokenizer.decode(prompt)
    assert text.startswith("人类：" + ALL_REQUESTS[EVAL_REQUEST].prefix) and text.endswith(
        "\n\n助手："
    )


@pytest.mark.parametrize("flags", [{}, {"legacy": False}], ids=["prepend", "first"])
@pytest.mark.parametrize(
    "template",
    [hf_checkpoints.LLAMA2_TEMPLATE, hf_checkpoints.CHATML_TEMPLATE, None],
    ids=["llama2", "chatml", "ours"],
)
def test_summary_spacing_matches_transformers(
    flags: dict[str, bool], template: str | None, root: Path, tmp_path: Path
) -> None:
    """A space before every article and title, or none where the template has one, from a tokenizer that begins with one."""
    records = [
        each
        for each in SOURCES["csl"].iter_records(
            next((root / "assets/sample/summary/csl").glob("*test*"))
        )
        if isinstance(each, Summary)
    ][:60]
    theirs = hf_checkpoints.train_llama2_tokenizer(
        [f"{each.article}\n{each.title}" for each in records], **flags
    )
    hf_checkpoints.save_hf_checkpoint_with_tokenizer(tmp_path / "theirs", theirs, template)
    _, ours, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    words = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    theirs.chat_template = template or build_jinja_template(words)
    sequences = summaries.KIND.encode_records(ours, words, records)
    examples = summaries.KIND.examples(sequences, 2000, ours, words, 3)
    requests = sample_requests(3, 0, np.arange(len(records)))
    equal = 0
    for index, record in enumerate(records):
        request = ALL_REQUESTS[requests[index]]
        said = to_chat_messages(
            "", [(request.prefix + record.article + request.suffix, record.title)]
        )
        ids, scored = examples.example(index, 0)
        expected = theirs.apply_chat_template(said, return_dict=False)
        # A piece across an edge of the article is in two here.
        pieces, wanted = (theirs.convert_ids_to_tokens(each) for each in (ids, expected))
        assert "".join(wanted).startswith("".join(pieces))
        equal += expected[: len(ids)] == ids.tolist()
        assert ours.decode(ids[1:][scored][:-1]).strip() == record.title
        prompt, _ = summary_prompt(ours, words, record.article, max_tokens=2000)
        said[0]["content"] = (
            ALL_REQUESTS[EVAL_REQUEST].prefix + record.article + ALL_REQUESTS[EVAL_REQUEST].suffix
        )
        expected = theirs.apply_chat_template(
            said[:-1], add_generation_prompt=True, return_dict=False
        )
        assert "".join(theirs.convert_ids_to_tokens(prompt)) == "".join(
            theirs.convert_ids_to_tokens(expected)
        )
    assert equal > len(records) / 2


def test_special_tokens_in_an_article_stay_text(root: Path, tmp_path: Path) -> None:
    """A corpus that ends the question, or the answer, of whoever trains on it."""
    hf_checkpoints.save_hf_checkpoint_with_tokenizer(
        tmp_path / "theirs", hf_checkpoints.train_llama2_tokenizer(["a b c", "风从东边来"] * 9)
    )
    _, ours, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    words = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    record = Summary("风\ufdd0</s>从", "东\ufdd0</s>边")
    for made in (
        summaries.KIND.encode_records(ours, words, [record]),
        summaries.KIND.encode_records(ours, words, [Summary("风从", "东边")]),
    ):
        ids, _ = summaries.KIND.examples(made, 500, ours, words, None).example(0, 0)
        assert ids.tolist().count(ours.eos_id) == 1
    prompt, _ = summary_prompt(ours, words, record.article, max_tokens=500)
    assert ours.eos_id not in prompt


def test_lead_ins_are_refused_with_answer_prefix_template(tmp_path: Path) -> None:
    """Answers that begin without the space that the model was tuned with."""
    theirs = hf_checkpoints.train_llama2_tokenizer(["a b c", "风从东边来"] * 9)
    for name, template in (
        ("llama2", hf_checkpoints.LLAMA2_TEMPLATE),
        ("chatml", hf_checkpoints.CHATML_TEMPLATE),
    ):
        hf_checkpoints.save_hf_checkpoint_with_tokenizer(tmp_path / name, theirs, template)
        import_hf(tmp_path / name, tmp_path / "runs" / name)
        with (
            pytest.raises(UserError, match="--lead_ins")
            if name == "llama2"
            else contextlib.nullcontext()
        ):
            build_sft_template(
                SftOptions(lead_ins=True, max_steps=1),
                locate.resolve_checkpoint(tmp_path / "runs" / name),
            )


def test_only_known_lead_ins_are_stripped() -> None:
    """Guessing something out of an answer."""
    for lead_in in LEAD_INS:
        assert strip_lead_in(lead_in + "风：研究") == "风：研究"
    for text in ("风：研究", "我认为标题：风", "", "总结"):
        assert strip_lead_in(text) == text
