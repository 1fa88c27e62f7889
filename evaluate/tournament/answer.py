"""Let a checkpoint answer the questions of a tournament."""

from common.errors import UserError
from common.machine import resolve_device
from evaluate.answers import answer_resumably
from evaluate.kinds.conversations import Question
from evaluate.load_model import load_checkpoint
from evaluate.partial_results import partial_results
from evaluate.result import EvalResult, report_result
from evaluate.tournament.options import AnswerOptions
from evaluate.tournament.questions import read_questions


def run_answer(options: AnswerOptions) -> None:
    """Write the greedy answers of a checkpoint to a file of questions.

    Raises UserError if no question fits the model's context.
    """
    device = resolve_device(options.device)
    questions = read_questions(options.questions)[: options.limit]
    loaded = load_checkpoint(options.checkpoint, options, device)
    depends_on = {**loaded.identity, "max_new_tokens": options.max_new_tokens}
    results = partial_results(options.predictions, depends_on)
    answers = answer_resumably(
        results,
        "answering",
        loaded,
        [Question((), question.text, answer="", passage="") for question in questions],
        max_new_tokens=options.max_new_tokens,
        batch=options.batch,
    )
    rows = [
        {
            "question_id": question.question_id,
            "category": question.category,
            "input": question.text,
            "prediction": answer.text,
            "tokens": answer.num_tokens,
            "stopped": answer.has_eos,
        }
        for question, answer in zip(questions, answers, strict=True)
        if answer is not None
    ]
    if not rows:
        raise UserError(f"--questions {options.questions}: none fits the model's context")
    lines = [
        f"{options.predictions}: {len(rows):,} answers of {options.checkpoint} as the model "
        f"{options.predictions.stem}, greedy, at most {options.max_new_tokens} tokens"
    ]
    if len(rows) < len(questions):
        lines.append(
            "left out, no room for an answer in the context: "
            f"{len(questions) - len(rows):,} questions"
        )
    result = EvalResult(lines, metrics={}, provenance=loaded.provenance, rows=rows)
    report_result(result, None, options.predictions)
