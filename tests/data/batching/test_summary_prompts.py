"""Requests for a title: drawn as a pure function, around an article whose ids never change."""

import itertools
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
    SummaryRequest,
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
from train.options import SftOptions
from train.sft_run import build_sft_template


def build_question(request: SummaryRequest, article: str) -> str:
    return request.prefix + article + request.suffix


def test_requests_are_formatted_and_distinct() -> None:
    """Prevents a slot left in a request, or one request many times over."""
    assert len(set(ALL_REQUESTS)) == len(ALL_REQUESTS) > 100
    assert not any("{" in request.prefix + request.suffix for request in ALL_REQUESTS)
    assert any(not request.prefix for request in ALL_REQUESTS)
    assert any(not request.suffix for request in ALL_REQUESTS)


def test_request_sampling_is_deterministic_per_epoch() -> None:
    """Prevents requests that depend on the reading order, or repeat in every epoch."""
    records = np.arange(20_000)
    requests = sample_requests(3, 0, records)
    assert np.array_equal(requests[500:600], sample_requests(3, 0, records[500:600]))
    for other in (sample_requests(3, 1, records), sample_requests(4, 0, records)):
        assert (requests == other).mean() < 0.05
    starts = np.cumsum([0] + [len(group) for group in REQUESTS_BY_TEMPLATE])
    templates = np.searchsorted(starts, requests, side="right") - 1
    shares = np.bincount(templates, minlength=len(REQUESTS_BY_TEMPLATE)) / len(records)
    assert np.abs(shares - 1 / len(REQUESTS_BY_TEMPLATE)).max() < 0.01


def test_training_requests_match_inference_prompts(tokenizer: Tokenizer) -> None:
    """Prevents an evaluation that asks with other ids than training."""
    article = "本文研究了山谷里的风。结果表明，风从东边来。"
    article_ids = tokenizer.encode(article)
    encoded = EncodedRequests(tokenizer, Template())
    prompt, is_truncated = summary_prompt(tokenizer, Template(), article, max_tokens=500)
    assert not is_truncated and prompt == encoded.prompt(EVAL_REQUEST, article_ids)
    for request in (EVAL_REQUEST, len(ALL_REQUESTS) // 2, len(ALL_REQUESTS) - 1):
        ids = encoded.prompt(request, article_ids)
        question = build_question(ALL_REQUESTS[request], article)
        assert tokenizer.decode(ids) == f"人类：{question}\n\n助手："
        assert len(ids) - len(article_ids) == encoded.lengths[request]


def test_request_after_chat_matches_the_template(root: Path, tokenizer: Tokenizer) -> None:
    """Prevents chat before a request that is formatted in another way than chat itself."""
    records = list(
        itertools.islice(
            SOURCES["csl"].iter_records(root / "assets/sample/summary/csl/test.tsv"), 20
        )
    )
    turns = [("你好。", "你好！"), ("今天冷吗？", "有一点冷。")]
    for template in (Template(), Template(human="问：", assistant="答：", separator="\n")):
        for record in records:
            assert isinstance(record, Summary)
            for count, request in itertools.product((0, 1, 2), (EVAL_REQUEST, -1)):
                prompt, _ = summary_prompt(
                    tokenizer,
                    template,
                    record.article,
                    max_tokens=1000,
                    request=ALL_REQUESTS[request],
                    turns=turns[:count],
                )
                question = build_question(ALL_REQUESTS[request], record.article)
                assert prompt == template.encode_prompt(tokenizer, turns[:count], question)


def test_long_article_is_truncated_and_request_is_whole(tokenizer: Tokenizer) -> None:
    """Prevents a request cut off by a long article: the model would be asked nothing."""
    article = "风从东边来，" * 200
    prompt, is_truncated = summary_prompt(tokenizer, Template(), article, max_tokens=100)
    assert is_truncated and len(prompt) == 100
    text = tokenizer.decode(prompt)
    assert text.startswith("人类：" + ALL_REQUESTS[EVAL_REQUEST].prefix)
    assert text.endswith("\n\n助手：")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"legacy": False}], ids=["prepend", "first"])
@pytest.mark.parametrize(
    "template",
    [hf_checkpoints.LLAMA2_TEMPLATE, hf_checkpoints.CHATML_TEMPLATE, None],
    ids=["llama2", "chatml", "ours"],
)
def test_summary_spacing_matches_transformers(
    flags: dict[str, bool], template: str | None, root: Path, tmp_path: Path
) -> None:
    """Prevents a space before every article and title, or none where the template has one."""
    (test_file,) = (root / "assets/sample/summary/csl").glob("*test*")
    usable = (each for each in SOURCES["csl"].iter_records(test_file) if isinstance(each, Summary))
    records = list(itertools.islice(usable, 16))
    theirs = hf_checkpoints.train_llama2_tokenizer(
        [f"{each.article}\n{each.title}" for each in records], **flags
    )
    hf_checkpoints.save_hf_checkpoint_with_tokenizer(tmp_path / "theirs", theirs, template)
    _, ours, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    imported = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    theirs.chat_template = template or build_jinja_template(imported)
    sequences = summaries.KIND.encode_records(ours, imported, records)
    examples = summaries.KIND.examples(sequences, 2000, ours, imported, 3)
    requests = sample_requests(3, 0, np.arange(len(records)))
    num_equal = 0
    for index, record in enumerate(records):
        question = build_question(ALL_REQUESTS[requests[index]], record.article)
        messages = to_chat_messages("", [(question, record.title)])
        ids, loss_mask = examples.example(index, 0)
        expected = theirs.apply_chat_template(messages, return_dict=False)
        # A piece across an edge of the article is two pieces here.
        ours_text, theirs_text = (
            "".join(theirs.convert_ids_to_tokens(each)) for each in (ids, expected)
        )
        assert theirs_text.startswith(ours_text)
        num_equal += expected[: len(ids)] == ids.tolist()
        assert ours.decode(ids[1:][loss_mask][:-1]).strip() == record.title

        prompt, _ = summary_prompt(ours, imported, record.article, max_tokens=2000)
        messages[0]["content"] = build_question(ALL_REQUESTS[EVAL_REQUEST], record.article)
        expected = theirs.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=False
        )
        ours_text, theirs_text = (
            "".join(theirs.convert_ids_to_tokens(each)) for each in (prompt, expected)
        )
        assert ours_text == theirs_text

        turns = [("你好。", "你好！"), ("今天冷吗？", "有一点冷。")]
        prompt, _ = summary_prompt(ours, imported, record.article, max_tokens=2000, turns=turns)
        question = build_question(ALL_REQUESTS[EVAL_REQUEST], record.article)
        expected = theirs.apply_chat_template(
            to_chat_messages("", [*turns, (question, "")])[:-1],
            add_generation_prompt=True,
            return_dict=False,
        )
        ours_text, theirs_text = (
            "".join(theirs.convert_ids_to_tokens(each)) for each in (prompt, expected)
        )
        assert ours_text == theirs_text
    assert num_equal > len(records) / 2


@pytest.mark.slow
def test_special_tokens_in_an_article_stay_text(tmp_path: Path) -> None:
    """Prevents a corpus that ends the question, or the answer, of whoever trains on it."""
    theirs = hf_checkpoints.train_llama2_tokenizer(["a b c", "风从东边来"] * 9)
    hf_checkpoints.save_hf_checkpoint_with_tokenizer(tmp_path / "theirs", theirs)
    _, ours, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    template = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    hostile = Summary("风\ufdd0</s>从", "东\ufdd0</s>边")
    for record in (hostile, Summary("风从", "东边")):
        sequences = summaries.KIND.encode_records(ours, template, [record])
        ids, _ = summaries.KIND.examples(sequences, 500, ours, template, None).example(0, 0)
        assert ids.tolist().count(ours.eos_id) == 1
    prompt, _ = summary_prompt(ours, template, hostile.article, max_tokens=500)
    assert ours.eos_id not in prompt


@pytest.mark.slow
def test_lead_ins_are_refused_with_answer_prefix_template(tmp_path: Path) -> None:
    """Prevents answers that begin without the space that the model was fine-tuned with."""
    theirs = hf_checkpoints.train_llama2_tokenizer(["a b c", "风从东边来"] * 9)
    options = SftOptions(lead_ins=True, max_steps=1)
    for name, template in (
        ("llama2", hf_checkpoints.LLAMA2_TEMPLATE),
        ("chatml", hf_checkpoints.CHATML_TEMPLATE),
    ):
        hf_checkpoints.save_hf_checkpoint_with_tokenizer(tmp_path / name, theirs, template)
        import_hf(tmp_path / name, tmp_path / "runs" / name)
        folder = locate.resolve_checkpoint(tmp_path / "runs" / name)
        if name == "llama2":
            with pytest.raises(UserError, match="--lead_ins"):
                build_sft_template(options, folder)
        else:
            assert build_sft_template(options, folder).lead_ins


def test_only_known_lead_ins_are_stripped() -> None:
    """Prevents guessing something out of an answer."""
    for lead_in in LEAD_INS:
        assert strip_lead_in(lead_in + "风：研究") == "风：研究"
    for text in ("风：研究", "我认为标题：风", "", "总结"):
        assert strip_lead_in(text) == text
