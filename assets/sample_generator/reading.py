"""Generate reading comprehension: passages of many kinds, with questions about them.

The answer to a question is the clause of the passage that holds it: a model that finds the clause
and repeats it has read. Some questions ask for the bare value, and some are about what the passage
does not say. Values are drawn at random, so that no answer can be guessed, and every passage has
several of a type, so that the type of an answer does not find it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from assets.sample_generator.grammar import expand_choices
from assets.sample_generator.reading_forms import CLAUSE_END, SLOT, Block, Kind, read_forms
from assets.sample_generator.reading_values import ValueGenerator

# Length of a passage in characters, both ends included.
LENGTH_RANGE = (20, 100)
MAX_TURNS = 5
# Characters of all questions and answers of a passage: with it they fit rows of 256 tokens.
MAX_TURN_CHARACTERS = 100
NOT_MENTIONED = "文中没有提到。"
UNANSWERABLE_SHARE, SPAN_SHARE = 0.2, 0.3
SPAN_REQUESTS = ("{}？只写答案。", "{}？用一个词回答。", "只写答案：{}？")


@dataclass(frozen=True)
class Passage:
    """A passage, the values in it that are asked for, and question-answer turns about them."""

    reference: str
    names: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Question:
    """A question, the clause of the passage that answers it, and the value in it."""

    text: str
    clause: str
    value: str
    # Whether the question may ask for the value alone: a number without its unit is no answer, and
    # values inside a clause are more than a small model learns to cut out in minutes.
    has_bare_answer: bool


class PassageGenerator:
    """Generate passages from the sentence forms in `text/reading` and drawn values."""

    def __init__(self, rng: random.Random, is_allowed: Callable[[str], bool]) -> None:
        """Read the forms. `is_allowed` restricts names, see `ValueGenerator`."""
        self.rng = rng
        self.values = ValueGenerator(rng, is_allowed)
        self.kinds = read_forms()

    def draw_passages(self, count: int) -> list[Passage]:
        """Generate `count` passages."""
        return [self.draw_passage() for _ in range(count)]

    def draw_passage(self) -> Passage:
        """Generate one passage with questions about it."""
        while True:
            kind = self.rng.choice(self.kinds)
            subjects = self._draw_subjects(kind)
            body = self.rng.sample(kind.body, len(kind.body))
            num_blocks = self.rng.randint(1, 4)
            blocks = [self.rng.choice(kind.openings), *body[:num_blocks]]
            reference, questions = "", []
            for block in blocks:
                sentence, block_questions = self._expand(block, subjects)
                reference += sentence
                questions += block_questions
            if questions and LENGTH_RANGE[0] <= len(reference) <= LENGTH_RANGE[1]:
                break
        absent = [
            question
            for block in body[num_blocks:]
            for question in self._expand(block, subjects)[1]
            if question.clause not in reference
        ]
        turns = self._choose_turns(kind, questions, absent)
        names = tuple(question.value for question in questions)
        return Passage(reference, names, tuple(turns))

    def _draw_subjects(self, kind: Kind) -> dict[str, str]:
        """Draw the values that the blocks of a passage share."""
        subjects = {slot: self.values.draw(slot.rstrip("0123456789")) for slot in kind.subjects}
        return {**subjects, "他": self.rng.choice("他她")}

    def _expand(self, block: Block, subjects: dict[str, str]) -> tuple[str, list[Question]]:
        """Fill in a block; return its sentence and one question for each slot asked for."""
        template = expand_choices(block.sentence, self.rng)
        values = dict(subjects)
        for slot in SLOT.findall(template):
            # No two slots of a sentence have the same value.
            while slot not in values:
                value = self.values.draw(slot.rstrip("0123456789"))
                if value not in values.values():
                    values[slot] = value

        def fill(text: str) -> str:
            return SLOT.sub(lambda match: values[match.group(1)], text)

        questions = []
        for clause in CLAUSE_END.split(template):
            for slot in SLOT.findall(clause):
                phrasings = [
                    phrasing
                    for phrasing in block.questions.get(slot, [])
                    if set(SLOT.findall(phrasing)) <= values.keys()
                ]
                if phrasings:
                    text = expand_choices(self.rng.choice(phrasings), self.rng)
                    value, filled_clause = values[slot], fill(clause)
                    has_bare_answer = slot[0] not in "数个" and filled_clause.startswith(value)
                    questions.append(Question(fill(text), filled_clause, value, has_bare_answer))
        return fill(template), questions

    def _choose_turns(
        self, kind: Kind, questions: list[Question], absent: list[Question]
    ) -> list[tuple[str, str]]:
        """Return turns about some of the questions, and about some that have no answer."""
        turns: list[tuple[str, str]] = []
        num_characters = 0
        for question in self.rng.sample(questions, len(questions)):
            turn = question.text + "？", question.clause + "。"
            form = self.rng.random()
            if form < UNANSWERABLE_SHARE:
                text = self._absent_question(kind, absent)
                turn = text + "？", NOT_MENTIONED
            elif form < UNANSWERABLE_SHARE + SPAN_SHARE and question.has_bare_answer:
                turn = self.rng.choice(SPAN_REQUESTS).format(question.text), question.value + "。"
            num_characters += sum(map(len, turn))
            if turns and (num_characters > MAX_TURN_CHARACTERS or len(turns) == MAX_TURNS):
                break
            turns.append(turn)
        return turns

    def _absent_question(self, kind: Kind, absent: list[Question]) -> str:
        """Return a question that the passage does not answer: of its kind, or of another."""
        if absent and self.rng.random() < 0.5:
            return absent.pop(self.rng.randrange(len(absent))).text
        while True:
            other = self.rng.choice(self.kinds)
            if other is kind:
                continue
            block = self.rng.choice([*other.openings, *other.body])
            _, questions = self._expand(block, self._draw_subjects(other))
            if questions:
                return self.rng.choice(questions).text


class ExerciseGenerator:
    """Generate passages of random characters, whose questions hold some characters of a clause.

    They teach to find a clause by what it shares with a question, whatever the words, and every
    common character occurs in them.
    """

    QUESTION_WORDS = ("什么", "谁", "哪里", "多少", "几点", "哪天", "多久", "怎么", "哪个")

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values = ValueGenerator(rng, lambda _: True)

    def draw_passages(self, count: int) -> list[Passage]:
        """Generate `count` passages."""
        return [self.draw_passage() for _ in range(count)]

    def draw_passage(self) -> Passage:
        """Generate one passage of two to five clauses with a question about each."""
        clauses = [self.values.stem(self.rng.randint(3, 7)) for _ in range(self.rng.randint(2, 5))]
        ends = [self.rng.choice("，，，。；") for _ in clauses[1:]] + ["。"]
        turns = []
        for clause in self.rng.sample(clauses, len(clauses)):
            # A run of the clause's characters, with a question word in front, behind or between.
            length = self.rng.randint(2, min(5, len(clause) - 1))
            start = self.rng.randint(0, len(clause) - length)
            run = clause[start : start + length]
            position = self.rng.choice((0, len(run), self.rng.randint(0, len(run))))
            word = self.rng.choice(self.QUESTION_WORDS)
            turns.append((run[:position] + word + run[position:] + "？", clause + "。"))
        reference = "".join(map("".join, zip(clauses, ends, strict=True)))
        return Passage(reference, tuple(clauses), tuple(turns))


def to_redgpt_record(passage: Passage, rng: random.Random) -> dict[str, str]:
    """Return a passage as a RedGPT record, with all turns in one text.

    About one in seven spells the names of the speakers or separates the turns in another way, as
    some of the published files do.
    """
    human, assistant, separator = "Human: ", "Assistant: ", "\n\n"
    if rng.random() < 0.15:
        human, assistant, separator = rng.choice(
            [
                ("Human: ", "Assistant: ", "\n"),
                ("Human：", "Assistant：", "\n\n"),
                ("HUMAN: ", "ASSISTANT: ", "\n\n"),
                ("Human(用户): ", "Assistant(助手): ", "\n\n"),
            ]
        )
    messages: list[str] = []
    for question, answer in passage.turns:
        messages += [human + question, assistant + answer]
    return {"reference": passage.reference, "dialogue": separator.join(messages)}


def format_passage(passage: Passage, *, with_questions: bool) -> str:
    """Format a passage as in a school reading book, with its questions and answers if asked for."""
    lines = ["短文：" + passage.reference]
    if with_questions:
        for question, answer in passage.turns:
            lines += [f"问：{question}", f"答：{answer}"]
    return "\n".join(lines)
