"""Measure a checkpoint on documents: loss on every token, in fixed windows of the text."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from common.errors import UserError
from common.progress import progress_bar
from data.kinds import documents
from data.records import Document
from data.shards import ShardSet
from evaluate.input_records import iter_usable_records
from evaluate.kinds.base import CheckpointScore, Command, KindEvaluation
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.language_model import WINDOW_TOKENS, iter_split, score_pieces
from model.tokenizer.base import Tokenizer


class DocumentEvaluation(KindEvaluation):
    """Documents. A limit counts tokens, not records: text is one stream."""

    kind = documents.KIND
    nothing_to_score = "fewer than two tokens"

    def score_shards(
        self, loaded: LoadedCheckpoint, shards: ShardSet, split: str, limit: int | None
    ) -> CheckpointScore:
        """Score the first `limit` tokens of a split, encoded again if the tokenizer differs."""
        label = f"{shards.folder} {split}"
        sequences = shards.load_split(split)
        source_tokenizer = shards.load_tokenizer()
        if source_tokenizer.fingerprint == loaded.tokenizer.fingerprint:
            num_tokens = min(sequences.num_tokens, limit or sequences.num_tokens)
            return self._score_stream(loaded, iter_split(sequences), label, limit, num_tokens)
        texts = (
            source_tokenizer.decode(sequences.tokens(index).tolist())
            for index in range(len(sequences))
        )
        pieces = _encode_texts(loaded.tokenizer, texts)
        return self._score_stream(loaded, pieces, f"{label} (encoded anew)", limit, None)

    def score_files(
        self, loaded: LoadedCheckpoint, source: str, inputs: Sequence[str], limit: int | None
    ) -> CheckpointScore:
        """Score the first `limit` tokens of native files."""
        records = iter_usable_records(source, inputs)
        texts = (cast(Document, record).text for record in records)
        pieces = _encode_texts(loaded.tokenizer, texts)
        result = self._score_stream(loaded, pieces, " ".join(inputs), limit, limit)
        records.print_skipped()
        return result

    def _score_stream(
        self,
        loaded: LoadedCheckpoint,
        pieces: Iterator[np.ndarray],
        label: str,
        limit: int | None,
        num_tokens: int | None,
    ) -> CheckpointScore:
        """Score a stream of ids; `num_tokens` are those that the progress bar expects."""
        if limit == 1:
            raise UserError("--limit 1: at least 2 tokens of text are needed to score one")
        with progress_bar("scoring", num_tokens, "tokens") as bar:
            score = score_pieces(
                loaded.model,
                pieces,
                loaded.tokenizer.characters_per_id,
                limit=limit,
                on_progress=bar.update,
            )
        return CheckpointScore(label, f"windows of {WINDOW_TOKENS}", score)

    def validation_commands(
        self, data: list[str], model: list[str], limit: list[str], *, is_fine_tuned: bool
    ) -> list[Command]:
        """Return perplexity, and the trigram baseline except for replay of a fine-tuned run.

        Text is scored whole: a limit would count tokens.
        """
        perplexity = ["evaluate.perplexity", *model, *data]
        if is_fine_tuned:
            return [perplexity]
        return [perplexity, ["evaluate.trigram", *data]]


def _encode_texts(tokenizer: Tokenizer, texts: Iterator[str]) -> Iterator[np.ndarray]:
    """Yield the ids of each text as a document, int64[n]."""
    for text in texts:
        yield np.array(documents.KIND.encode_text(tokenizer, text), dtype=np.int64)


EVALUATION = DocumentEvaluation()
