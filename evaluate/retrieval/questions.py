"""Questions about paragraphs, and whether a passage that was found is right."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UserError
from data.index.passage_index import Hit
from data.readers.files import expand_inputs, print_files_about_data
from data.records import BadRecord
from data.sources.squad import iter_passages
from data.usable_records import MAX_BAD_SHARE, check_bad_share


@dataclass(frozen=True, slots=True)
class ParagraphQuestion:
    """A question, its answers, of which one suffices, and the paragraph that it is about."""

    question: str
    answers: tuple[str, ...]
    paragraph: str

    def is_answered_by(self, hit: Hit) -> bool:
        """Return whether an answer stands in the passage, white space aside."""
        text = _without_space(hit.text)
        return any(_without_space(answer) in text for answer in self.answers)

    def is_about(self, hit: Hit) -> bool:
        """Return whether the passage is the paragraph or a window of it."""
        return is_window_of(hit.text, self.paragraph)


def is_window_of(passage: str, paragraph: str) -> bool:
    """Return whether a passage stands in a paragraph, white space aside."""
    return _without_space(passage) in _without_space(paragraph)


def _without_space(text: str) -> str:
    return "".join(text.split())


def read_questions(inputs: Sequence[str], limit: int | None) -> list[ParagraphQuestion]:
    """Return the first `limit` questions (None: all) of files in SQuAD's schema.

    Questions that their paragraph does not answer are left out. Raises UserError if too many cannot
    be read, or if there are none.
    """
    questions: list[ParagraphQuestion] = []
    unreadable: list[BadRecord] = []
    num_unanswerable = 0
    for path in expand_inputs(list(inputs)):
        for passage in iter_passages(path):
            if isinstance(passage, BadRecord):
                unreadable.append(passage)
                continue
            for question in passage.questions:
                if question.answers:
                    questions.append(
                        ParagraphQuestion(question.question, question.answers, passage.context)
                    )
                else:
                    num_unanswerable += 1
    print_files_about_data(list(inputs))
    if num_unanswerable:
        print(f"left out, not answered by their paragraph: {num_unanswerable:,} questions")
    check_bad_share(
        len(questions) + num_unanswerable + len(unreadable),
        len(unreadable),
        unreadable[0] if unreadable else None,
        max_share=MAX_BAD_SHARE,
        advice="are the files in SQuAD's schema?",
    )
    if not questions:
        raise UserError(f"--input {' '.join(inputs)}: there is not one question with an answer")
    return questions[:limit]
