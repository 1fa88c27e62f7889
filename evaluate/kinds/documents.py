"""Measure a checkpoint on documents: loss on every token, in fixed windows of the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from common.errors import UserError
from common.progress import progress_bar
from data.kinds import documents
from data.records import Document, Record
from data.shards import ShardSet
from data.sources.base import LetterCase
from evaluate.input_records import iter_usable_records
from evaluate.kinds.base import RULES_COMMAND, CheckpointScore, Commands, KindEvaluation
from evaluate.kinds.question_sets import QuestionSet
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.language_model import (
    WINDOW_TOKENS,
    LMScore,
    iter_split,
    score_blocks,
    score_stream,
)
from evaluate.model_answer import ModelAnswer
from model.decode.batch_generate import generate_batch
from model.decode.generate import max_prompt_tokens
from model.tokenizer.base import Tokenizer

# Length of the beginning of a text that a model continues.
BEGINNING_CHARACTERS = 16
# Tokens at the beginning of a document that `score_each` scores: books are documents, too.
MAX_DOCUMENT_TOKENS = 4 * WINDOW_TOKENS


@dataclass(frozen=True)
class TextBeginnings(QuestionSet):
    """Beginnings of texts, which the model continues."""

    questions: tuple[str, ...]
    question_name = "beginning"

    @property
    def texts(self) -> list[str]:
        """Return the beginnings."""
        return list(self.questions)

    def generate(
        self, loaded: LoadedCheckpoint, chunk: Sequence[Any], max_new_tokens: int, batch: int
    ) -> Sequence[ModelAnswer | None]:
        """See `QuestionSet`."""
        prompts = [documents.KIND.encode_prompt(loaded.tokenizer, text) for text in chunk]
        max_tokens = max_prompt_tokens(loaded.model.trained_context, max_new_tokens)
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= max_tokens]
        decoded = generate_batch(
            loaded.model,
            [prompts[index] for index in fitting],
            max_new_tokens=max_new_tokens,
            batch_size=batch,
        )
        answers: list[ModelAnswer | None] = [None] * len(prompts)
        for index, answer in zip(fitting, decoded, strict=True):
            answers[index] = ModelAnswer(
                loaded.tokenizer.decode(answer.ids),
                len(answer.ids),
                has_eos=answer.reached_stop_id,
            )
        return answers


class DocumentEvaluation(KindEvaluation):
    """The evaluation of documents, which are scored as one stream of text.

    A limit therefore counts tokens, not records.
    """

    kind = documents.KIND
    nothing_to_score = "fewer than two tokens"

    def score_shards(
        self, loaded: LoadedCheckpoint, shards: ShardSet, split: str, limit: int | None
    ) -> CheckpointScore:
        """Score the first `limit` tokens of a split (None: all).

        If the set was prepared with another tokenizer than the model's, its text is decoded and
        encoded again.
        """
        label = f"{shards.folder} {split}"
        sequences = shards.load_text(split)
        shard_tokenizer = shards.load_tokenizer()
        if shard_tokenizer.fingerprint == loaded.tokenizer.fingerprint:
            num_tokens = min(sequences.num_tokens, limit or sequences.num_tokens)
            return self._score_stream(
                loaded, iter_split(sequences), label, limit, expected_tokens=num_tokens
            )
        texts = (
            shard_tokenizer.decode(sequences.tokens(index).tolist())
            for index in range(len(sequences))
        )
        # How many tokens the text has with the other tokenizer is not known before it is encoded.
        return self._score_stream(
            loaded,
            _encode_texts(loaded.tokenizer, texts),
            f"{label} (encoded anew)",
            limit,
            expected_tokens=None,
        )

    def score_files(
        self, loaded: LoadedCheckpoint, source: str, inputs: Sequence[str], limit: int | None
    ) -> CheckpointScore:
        """Score the first `limit` tokens of native files (None: all)."""
        records = iter_usable_records(source, inputs)
        texts = (cast(Document, record).text for record in records)
        result = self._score_stream(
            loaded,
            _encode_texts(loaded.tokenizer, texts),
            " ".join(inputs),
            limit,
            expected_tokens=limit,
        )
        # Only now, because the records are read while they are scored.
        records.print_skipped()
        return result

    def _score_stream(
        self,
        loaded: LoadedCheckpoint,
        id_blocks: Iterator[np.ndarray],
        label: str,
        limit: int | None,
        expected_tokens: int | None,
    ) -> CheckpointScore:
        """Score the first `limit` ids of a text that comes in blocks, int64[n] each.

        `expected_tokens` is the end of the progress bar, None if it is unknown. Raises UserError
        for a limit of 1, or a model whose context is shorter than a window.
        """
        context = loaded.model.config.max_position_embeddings
        if context < WINDOW_TOKENS:
            raise UserError(
                f"{loaded.folder}: its context of {context} tokens is shorter than the window of "
                f"{WINDOW_TOKENS} that text is measured in"
            )
        if limit == 1:
            raise UserError("--limit 1: at least 2 tokens of text are needed to score one")
        with progress_bar("scoring", expected_tokens, "tokens") as bar:
            score = score_blocks(
                loaded.model,
                id_blocks,
                loaded.tokenizer.characters_per_id,
                limit=limit,
                on_progress=bar.update,
            )
        return CheckpointScore(label, f"windows of {WINDOW_TOKENS}", score)

    def score_each(self, loaded: LoadedCheckpoint, records: Sequence[Any]) -> list[LMScore]:
        """Return the score of the beginning of each document, in windows of its own.

        `evaluate.perplexity` cuts the windows from all documents together, where a document may
        begin in the middle of one.
        """
        window = min(WINDOW_TOKENS, loaded.model.trained_context)
        return [
            score_stream(
                loaded.model,
                ids[:MAX_DOCUMENT_TOKENS],
                loaded.tokenizer.characters_per_id,
                window=window,
            )
            for ids in _encode_texts(loaded.tokenizer, (record.text for record in records))
        ]

    def validation_commands(
        self,
        data_options: list[str],
        model_options: list[str],
        limit_options: list[str],
        *,
        is_fine_tuned: bool,
    ) -> Commands:
        """Return evaluate.perplexity and, for a pretraining run, the baseline evaluate.trigram.

        In a fine-tuned run text is replay, which is not compared with a baseline. `limit_options`
        are ignored, because a limit on records would count tokens here.
        """
        commands = {"perplexity": ["evaluate.perplexity", *model_options, *data_options]}
        if not is_fine_tuned:
            commands["trigram"] = ["evaluate.trigram", *data_options]
        return commands

    def question_set(
        self, label: str, records: Sequence[Record], case: LetterCase
    ) -> QuestionSet | None:
        """Return the beginnings of longer documents."""
        texts = [cast(Document, record).text.strip() for record in records]
        beginnings = dict.fromkeys(
            text[:BEGINNING_CHARACTERS] for text in texts if len(text) > BEGINNING_CHARACTERS
        )
        return TextBeginnings(label, tuple(beginnings)) if beginnings else None

    def generated_commands(self, model_options: list[str]) -> Commands:
        """Return evaluate.rules, by likelihood: a pretrained model answers no questions."""
        return {"rules": [*RULES_COMMAND, *model_options]}


def _encode_texts(tokenizer: Tokenizer, texts: Iterator[str]) -> Iterator[np.ndarray]:
    """Yield the ids of each text as a document `<bos> text <eos>`, int64[n]."""
    for text in texts:
        yield np.array(documents.KIND.encode_text(tokenizer, text), dtype=np.int64)


EVALUATION = DocumentEvaluation()
