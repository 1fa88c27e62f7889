"""Measure a checkpoint on summaries: loss on the titles, and ROUGE of generated titles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from common.errors import UserError
from common.progress import progress_bar
from data.batching.summary_prompts import (
    ALL_REQUESTS,
    EVAL_REQUEST,
    SummaryRequest,
    strip_lead_in,
    summary_prompt,
)
from data.from_text.extracts import iter_extracts
from data.kinds import summaries
from data.records import Conversation, Record, Summary, Turn
from data.sources.base import LetterCase
from evaluate.decoding.consensus import choose_consensus
from evaluate.decoding.settings import GREEDY, Decoding
from evaluate.kinds.base import Commands, KindEvaluation
from evaluate.kinds.question_sets import Measure, QuestionSet
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.baselines import first_sentence
from evaluate.metrics.rouge import ROUGE_VARIANTS, compute_rouge
from evaluate.model_answer import ModelAnswer
from model.chat_template.template import Template
from model.decode.batch_generate import DecodedAnswer, generate_batch
from model.decode.generate import max_prompt_tokens
from model.decode.logits_processors import build_logits_processors
from model.decode.sample_batch import derive_seed, sample_batch
from model.decode.sampling import Sampling
from model.llama import Llama
from model.tokenizer.base import Tokenizer

# The other variants rise and fall with ROUGE-1, which alone counts as quality.
ROUGE = (
    Measure(
        "rouge_1",
        "ROUGE-1 F",
        is_quality=True,
        if_higher="summarizes better",
        if_lower="summarizes worse",
    ),
    *(Measure(f"rouge_{variant}", f"ROUGE-{variant.upper()} F") for variant in ROUGE_VARIANTS[1:]),
)


@dataclass(frozen=True)
class SummaryQuestions(QuestionSet):
    """Articles whose title is asked for."""

    questions: tuple[Summary, ...]
    case: LetterCase
    """The letter case that ROUGE is counted in."""
    question_name = "article"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Add ROUGE."""
        return (*ROUGE, *super().measures)

    @property
    def texts(self) -> list[str]:
        """Return the articles."""
        return [record.article for record in self.questions]

    @property
    def references(self) -> list[str]:
        """Return the true titles."""
        return [record.title for record in self.questions]

    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """See `QuestionSet`. A long article is cut to the context."""
        return summarize_articles(
            loaded.model,
            loaded.tokenizer,
            loaded.template,
            [record.article for record in chunk],
            max_new_tokens=max_new_tokens,
            batch=batch,
        )

    def score(self, answers: Sequence[ModelAnswer]) -> dict[str, np.ndarray]:
        """Add ROUGE F on characters."""
        return super().score(answers) | self._rouge([answer.text for answer in answers])

    def trivial_scores(self) -> dict[str, str]:
        """Return the ROUGE of the first sentence of each article."""
        sentences = [
            first_sentence(record.article, record.title, self.case) for record in self.questions
        ]
        return {
            key: f"{values.mean():.4f} (first sentence)"
            for key, values in self._rouge(sentences).items()
        }

    def _rouge(self, predictions: Sequence[str]) -> dict[str, np.ndarray]:
        scores = [
            compute_rouge(prediction, reference, case=self.case)
            for prediction, reference in zip(predictions, self.references, strict=True)
        ]
        return {
            measure.key: np.array([score[variant].f for score in scores])
            for measure, variant in zip(ROUGE, ROUGE_VARIANTS, strict=True)
        }


class SummaryEvaluation(KindEvaluation):
    """The evaluation of summaries.

    ROUGE on the dev split selects the best checkpoint of a fine-tuning run.
    """

    kind = summaries.KIND
    has_questions = True
    answers_metric = "rouge"
    selection_key = "rouge_1"

    def test_commands(
        self, source: str, test_options: list[str], model_options: list[str], predictions: str
    ) -> Commands:
        """Return evaluate.rouge, evaluate.repetition on its titles, and titles in a dialogue."""
        rouge = ["evaluate.rouge", *model_options, *test_options]
        return {
            "rouge": [*rouge, "--predictions", predictions],
            "repetition": ["evaluate.repetition", "--score", predictions],
            # There are 304 phrasings: few records, so that they take a minute and not three.
            "rouge-dialogue": [*rouge, "--dialogue", "--phrasing_records", "4"],
        }

    def generate_answers(
        self,
        loaded: LoadedCheckpoint,
        records: Sequence[Record],
        *,
        max_new_tokens: int,
        batch: int,
    ) -> list[tuple[str, ModelAnswer | None]]:
        """Return every article with the title that the model generates for it."""
        articles = [cast(Summary, record).article for record in records]
        with progress_bar("answering", len(articles), "answers") as bar:
            answers = summarize_articles(
                loaded.model,
                loaded.tokenizer,
                loaded.template,
                articles,
                max_new_tokens=max_new_tokens,
                batch=batch,
                on_progress=bar.update,
            )
        return list(zip(articles, answers, strict=True))

    def as_conversation(self, record: Record) -> Conversation:
        """Return the request of evaluation, with the article in it, and the title."""
        summary, request = cast(Summary, record), ALL_REQUESTS[EVAL_REQUEST]
        question = f"{request.prefix}{summary.article}{request.suffix}"
        return Conversation((Turn(question, summary.title),))

    def question_set(
        self, label: str, records: Sequence[Record], case: LetterCase
    ) -> QuestionSet | None:
        """Return the requests for the titles."""
        articles = dict.fromkeys(cast(Summary, record) for record in records)
        return SummaryQuestions(label, tuple(articles), case) if articles else None

    def strip_answer(self, template: Template, text: str) -> str:
        """Return a title without its lead-in, if the template has lead-ins."""
        return strip_lead_in(text) if template.lead_ins else text


@dataclass(frozen=True, slots=True)
class TitleQuestion:
    """A request for the title of an article, with what stands before and after it."""

    article: str
    request: SummaryRequest = ALL_REQUESTS[EVAL_REQUEST]
    turns: tuple[tuple[str, str], ...] = ()
    """(question, answer) turns of the conversation before the request."""
    lead_in: str = ""
    """The beginning of the answer, which the model continues."""


def summarize_articles(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    articles: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[ModelAnswer]:
    """Return the title that the model generates for each article, without its lead-in.

    The articles are asked for with the request of evaluation, and decoded greedily. Otherwise like
    `answer_title_questions`.
    """
    answers = answer_title_questions(
        model,
        tokenizer,
        template,
        [TitleQuestion(article) for article in articles],
        max_new_tokens=max_new_tokens,
        batch=batch,
        on_progress=on_progress,
    )
    # EVALUATION, at the end of this module, is its `SummaryEvaluation`.
    return [
        replace(answer, text=EVALUATION.strip_answer(template, answer.text)) for answer in answers
    ]


def answer_title_questions(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    questions: Sequence[TitleQuestion],
    *,
    max_new_tokens: int,
    decoding: Decoding = GREEDY,
    case: LetterCase = "lower",
    batch: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> list[ModelAnswer]:
    """Return the whole answer to each question, with the lead-in that it begins with, if any.

    The end of an article is cut off if the prompt and an answer of `max_new_tokens` would not fit
    the context. `batch` answers are decoded together, each sample counted. `case` is the letter
    case in which samples are compared with each other. `on_progress` is called with the number of
    answers that are done since the last call. Raises UserError if a request does not fit even
    without an article.
    """
    budget = max_prompt_tokens(model.trained_context, max_new_tokens)
    lead_ins = tokenizer.encode_continuation([question.lead_in for question in questions])
    prompts = []
    is_truncated = []
    for question, lead_in_ids in zip(questions, lead_ins, strict=True):
        request_ids, is_article_truncated = summary_prompt(
            tokenizer,
            template,
            question.article,
            max_tokens=budget - len(lead_in_ids),
            request=question.request,
            turns=question.turns,
        )
        prompt = [*request_ids, *lead_in_ids]
        # Exceeded only if nothing is left of the article.
        if len(prompt) > budget:
            after = f" after {len(question.turns)} turns of chat" if question.turns else ""
            raise UserError(
                f"the request for a title{after} alone takes {len(prompt)} tokens, and {budget} "
                f"are left for a prompt in the {model.trained_context} tokens that the model was "
                "trained on: it cannot be measured on summaries"
            )
        prompts.append(prompt)
        is_truncated.append(is_article_truncated)
    if decoding.samples > 1:
        decoded = _sample_consensus(
            model,
            tokenizer,
            template,
            questions,
            prompts,
            max_new_tokens=max_new_tokens,
            decoding=decoding,
            case=case,
            batch=batch,
        )
        if on_progress:
            on_progress(len(questions))
    else:
        decoded = generate_batch(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            num_beams=decoding.beams,
            length_penalty=decoding.length_penalty,
            processors=build_logits_processors(
                repetition_penalty=decoding.repetition_penalty,
                no_repeat_ngram=decoding.no_repeat_ngram,
            ),
            novelty_penalty=decoding.novelty_penalty,
            batch_size=batch,
            on_progress=on_progress,
        )
    return [
        ModelAnswer(
            tokenizer.decode([*lead_in_ids, *answer.ids]),
            len(answer.ids),
            has_eos=answer.reached_stop_id,
            is_truncated=is_cut,
        )
        for answer, lead_in_ids, is_cut in zip(decoded, lead_ins, is_truncated, strict=True)
    ]


def _sample_consensus(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    questions: Sequence[TitleQuestion],
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    decoding: Decoding,
    case: LetterCase,
    batch: int,
) -> list[DecodedAnswer]:
    """Draw answers to each question, and return the consensus of each, see `decoding.consensus`.

    Samples are compared without lead-in. They follow from the model, the setting and the question
    alone. A part of the article that is chosen instead becomes an answer that ends by itself. The
    arguments are those of `answer_title_questions`.
    """
    numbers = range(decoding.samples)
    seeds = [
        [derive_seed(decoding.sample_seed, repr(question), number) for number in numbers]
        for question in questions
    ]
    sampling = Sampling(
        temperature=decoding.temperature,
        repetition_penalty=decoding.repetition_penalty,
        no_repeat_ngram=decoding.no_repeat_ngram,
    )
    groups = sample_batch(
        model,
        prompts,
        seeds,
        sampling,
        max_new_tokens=max_new_tokens,
        novelty_penalty=decoding.novelty_penalty,
        batch_size=batch,
    )
    chosen = []
    for question, samples in zip(questions, groups, strict=True):
        texts = [
            EVALUATION.strip_answer(template, question.lead_in + tokenizer.decode(sample.ids))
            for sample in samples
        ]
        extracts = []
        if decoding.extracts:
            extracts = _encode_extracts(tokenizer, template, question.article, max_new_tokens)
        index = choose_consensus(
            texts,
            case,
            extracts=[text for text, _ids in extracts],
            article=question.article,
            coverage_weight=decoding.coverage,
        )
        if index < len(samples):
            chosen.append(samples[index])
        else:
            _text, ids = extracts[index - len(samples)]
            chosen.append(DecodedAnswer(ids, reached_stop_id=True))
    return chosen


def _encode_extracts(
    tokenizer: Tokenizer, template: Template, article: str, max_tokens: int
) -> list[tuple[str, list[int]]]:
    """Return the runs of an article's clauses that have at most `max_tokens`, as text and ids."""
    texts = [" ".join(template.sanitize(text).split()) for _, text in iter_extracts(article)]
    pairs = zip(texts, tokenizer.encode_continuation(texts, num_threads=1), strict=True)
    return [(text, ids) for text, ids in pairs if len(ids) <= max_tokens]


EVALUATION = SummaryEvaluation()
