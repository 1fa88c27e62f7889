"""What the options name: lengths, texts, and how a model is asked."""

from dataclasses import dataclass
from functools import partial

from evaluate.input_records import iter_texts
from evaluate.load_model import LoadedCheckpoint
from evaluate.needle.cases import Case, build_case
from evaluate.needle.frames import ChatFrame, Frame, PlainFrame
from evaluate.needle.haystack import Hay, draw_haystack
from evaluate.needle.long_text import DrawText, Part
from evaluate.needle.options import NeedleOptions
from evaluate.needle.register import draw_register
from evaluate.needle.topics import draw_topics
from evaluate.needle.wording import WORDINGS, Wording
from model.chat_template.template import TEMPLATE_FILE

_SHORTEST_LENGTH = 256
# A line of a register has at least about so many tokens.
_TOKENS_PER_LINE = 10


@dataclass(frozen=True)
class Setup:
    """Everything that the cases of a task depend on."""

    lengths: tuple[int, ...]
    digits: int
    frame: Frame
    wording: Wording
    draw: DrawText
    num_depths: int
    seed: int
    part: Part

    @property
    def form(self) -> str:
        """Return how the model is asked."""
        return "chat" if isinstance(self.frame, ChatFrame) else "plain"

    def build_case(self, length: int, number: int, num_questions: int) -> Case:
        """Return case `number` of a length. Raises UserError if the length has too little room."""
        return build_case(
            self.draw,
            self.frame,
            length=length,
            num_depths=num_questions,
            seed=f"{self.seed} {self.part} {length} {number}",
        )


def resolve_setup(options: NeedleOptions, loaded: LoadedCheckpoint, part: Part) -> Setup:
    """Return the setup of the options. Raises UserError if --input has no text."""
    lengths = options.lengths or _default_lengths(loaded.model.trained_context)
    wording = WORDINGS[options.language]
    is_chat = (loaded.folder / TEMPLATE_FILE).is_file()
    if options.form != "auto":
        is_chat = options.form == "chat"
    digits = options.digits or choose_digits(max(lengths), options.task)
    return Setup(
        lengths=lengths,
        digits=digits,
        frame=(ChatFrame if is_chat else PlainFrame)(loaded, wording),
        wording=wording,
        draw=_build_draw(options, loaded, wording, part, digits),
        num_depths=options.depths,
        seed=options.seed,
        part=part,
    )


def check_lengths(setup: Setup) -> None:
    """Raise UserError if a length has too little room, before hours go into the other ones."""
    for length in setup.lengths:
        setup.build_case(length, 0, setup.num_depths)


def _default_lengths(trained_context: int) -> tuple[int, ...]:
    """Return the powers of two from 256 up to a context, or the context if it is shorter."""
    lengths = [_SHORTEST_LENGTH]
    while lengths[-1] * 2 <= trained_context:
        lengths.append(lengths[-1] * 2)
    return tuple(length for length in lengths if length <= trained_context) or (trained_context,)


def choose_digits(longest: int, task: str) -> int:
    """Return 3, or for a register enough for twice as many numbers as its longest text has."""
    digits = 3
    while task == "register" and 9 * 10 ** (digits - 1) < 2 * longest / _TOKENS_PER_LINE:
        digits += 1
    return digits


def _build_draw(
    options: NeedleOptions, loaded: LoadedCheckpoint, wording: Wording, part: Part, digits: int
) -> DrawText:
    """Return the function that draws the texts of a task."""
    tokenizer = loaded.tokenizer

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    if options.task == "register":
        return partial(
            draw_register, wording=wording, part=part, digits=digits, count_tokens=count_tokens
        )
    if options.task == "topics":
        return partial(draw_topics, wording=wording, part=part, count_tokens=count_tokens)
    assert options.source is not None  # the options have both or none
    hay = Hay(iter_texts(options.source, options.input), tokenizer)
    return partial(
        draw_haystack,
        hay=hay,
        wording=wording,
        part=part,
        digits=digits,
        num_needles=options.needles,
        num_depths=options.depths,
        count_tokens=count_tokens,
    )
