"""Summaries as text to pretrain on: the request, the article and the title, as in fine-tuning."""

from collections.abc import Sequence

from data.batching.summary_prompts import ALL_REQUESTS, summary_prompt
from data.kinds import documents
from data.kinds.summaries import SummaryKind
from data.prepare.dedup import text_digest
from data.records import EncodedRecord, Summary
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class SummariesAsText(SummaryKind):
    """Summaries that are stored as documents: in the words of the chat template, without spans."""

    name = documents.KIND.name
    is_text = True

    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[Summary]
    ) -> Sequence[EncodedRecord]:
        """Return `<bos> request and article … title <eos>` of each record, without spans.

        The digest of a record decides which request it has.
        """
        titles = tokenizer.encode_continuation(
            [template.render_answer(record.title) for record in records], num_threads=1
        )
        return [
            ([*_encode_prompt(tokenizer, template, record), *title, tokenizer.eos_id], [])
            for record, title in zip(records, titles, strict=True)
        ]


def _encode_prompt(tokenizer: Tokenizer, template: Template, record: Summary) -> list[int]:
    """Return the ids of a request for the title of a record's article."""
    number = int(text_digest(record.plain_text())[0]) % len(ALL_REQUESTS)
    ids, _is_truncated = summary_prompt(
        tokenizer,
        template,
        record.article,
        max_tokens=1 << 30,
        request=ALL_REQUESTS[number],
    )
    return ids


KIND = SummariesAsText()
