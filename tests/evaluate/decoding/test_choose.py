"""`python -m evaluate.decoding` chooses on the dev split, and `evaluate.rouge` uses the choice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.files import write_checksummed_json, write_manifest
from common.run_layout import DECODING_FILE, RUN_FILE, step_folder
from data.batching.summary_prompts import summary_prompt
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from evaluate import rouge
from evaluate.decoding import __main__ as decoding_command
from evaluate.decoding.choose import choose_best
from evaluate.decoding.consensus import choose_consensus
from evaluate.decoding.settings import GREEDY, Decoding, parse_decoding
from evaluate.decoding.stored import read_run_decoding, write_run_decoding
from evaluate.kinds.summaries import TitleQuestion, answer_title_questions
from evaluate.metrics.rouge import bootstrap_mean_interval, compute_rouge
from model.chat_template.template import Template
from model.checkpoint import weights
from model.decode.generate import generate
from model.decode.sample_batch import derive_seed
from model.decode.sampling import Sampling
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama

Run = Callable[..., None]
SAMPLE = Path("assets/sample/summary/csl")
RECORDS = 6


def head(path: Path, count: int) -> str:
    """Return the first lines of a file."""
    return "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:count])


@pytest.fixture(scope="module")
def make_run(
    root: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function that makes a run of random weights whose dev split is this text."""

    def make(dev: str) -> Path:
        folder = tmp_path_factory.mktemp("decoding")
        (folder / "dev.tsv").write_text(dev, encoding="utf-8")
        train = folder / "train.tsv"
        train.write_text(head(root / SAMPLE / "train.tsv", 3), encoding="utf-8")
        group = SourceGroup("csl", (str(train),), (str(folder / "dev.tsv"),))
        prepare_groups(
            [group], folder / "set", root / "assets/tokenizer", PrepareOptions(workers=1)
        )
        step = step_folder(folder / "run", 7)
        step.mkdir(parents=True)
        model = random_llama(
            vocab_size=tokenizer.vocab_size, max_position_embeddings=512, hidden_size=32
        )
        weights.save_checkpoint(model, tokenizer, step)
        Template().save(step)
        write_manifest(step, {"step": 7})
        fingerprint = ShardSet.open(folder / "set").fingerprint
        record = {
            "shards": [str(folder / "set")],
            "fingerprints": {"data": [{"set": fingerprint, "weight": 1.0}], "template": {}},
        }
        write_checksummed_json(folder / "run" / RUN_FILE, record)
        return folder / "run"

    return make


@pytest.fixture(scope="module")
def run(make_run: Callable[[str], Path], root: Path) -> Path:
    """A run on records of the sample's dev split."""
    return make_run(head(root / SAMPLE / "dev.tsv", RECORDS))


def figures(
    *, rouge: tuple[float, float], high: float = 0.1, loops: float = 0.1, stopped: float = 0.9
) -> dict[str, Any]:
    """Return figures of ROUGE-1 F, the ends of its difference to greedy, and how answers end."""
    mean, low = rouge
    return {
        "rouge": {"1": {"mean": mean}},
        "difference": {"1": {"low": low, "high": high}},
        "loops": {"rate": loops},
        "stopped": {"rate": stopped},
    }


def test_what_is_not_clearly_better_than_greedy_is_not_chosen() -> None:
    """Prevents a choice by noise, which makes every answer several times as dear."""
    greedy = figures(rouge=(0.5, 0.0))
    assert choose_best([greedy, figures(rouge=(0.6, 0.01)), figures(rouge=(0.55, 0.02))]) == 1
    assert choose_best([greedy, figures(rouge=(0.6, 0.0)), figures(rouge=(0.55, 0.02))]) == 0
    assert choose_best([greedy, figures(rouge=(0.4, -0.2))]) == 0


def test_of_settings_that_score_alike_one_that_ends_its_answers_is_chosen() -> None:
    """Prevents a default that loops, where another one scores as much and does not."""
    greedy = figures(rouge=(0.5, 0.0))
    clean = figures(rouge=(0.49, -0.03), loops=0.0, stopped=1.0)
    cleaner_and_better = figures(rouge=(0.51, -0.01), loops=0.05)
    assert choose_best([greedy, clean]) == 1
    assert choose_best([greedy, clean, cleaner_and_better]) == 2
    # Clearly worse titles, or answers without an end, are too high a price.
    assert choose_best([greedy, figures(rouge=(0.4, -0.2), high=-0.01, loops=0.0)]) == 0
    assert choose_best([greedy, figures(rouge=(0.51, -0.01), loops=0.0, stopped=0.8)]) == 0
    # What is clearly better is chosen whether it loops or not.
    assert choose_best([greedy, clean, figures(rouge=(0.6, 0.02), loops=0.2)]) == 2


@pytest.mark.slow
def test_settings_are_measured_and_the_best_is_stored(
    run_command: Run, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents figures of other answers or records, and a file that evaluate.rouge cannot read."""
    out = tmp_path / "out.json"
    settings = ["beams=2", "samples=3,temperature=0.5"]
    short = ["--max_new_tokens", 4, "--device", "cpu"]
    arguments = ["--checkpoint", run, *short, "--json", out]
    run_command(decoding_command, *arguments, "--settings", *settings)
    record = json.loads(out.read_text(encoding="utf-8"))
    [data] = record["data"].values()
    assert data["dev_records"] == RECORDS and data["case"] == "lower"
    decodings = [GREEDY, *map(parse_decoding, settings)]
    assert [each["description"] for each in record["settings"]] == [
        each.describe() for each in decodings
    ]
    # The same by hand.
    model, tokenizer = weights.load_checkpoint(step_folder(run, 7), torch.device("cpu"))
    split = ShardSet.open(run.parent / "set").load_records("validation")
    records = [split.record(index) for index in range(RECORDS)]
    scores = []
    for decoding in decodings:
        answers = answer_title_questions(
            model,
            tokenizer,
            Template(),
            [TitleQuestion(record.article) for record in records],
            max_new_tokens=4,
            decoding=decoding,
        )
        scores.append(
            np.array(
                [
                    compute_rouge(answer.text, record.title, case="lower")["1"].f
                    for answer, record in zip(answers, records, strict=True)
                ]
            )
        )
    for each, values in zip(record["settings"], scores, strict=True):
        for key, expected in (("rouge", values), ("difference", values - scores[0])):
            triple = [each[key]["1"][name] for name in ("mean", "low", "high")]
            assert triple == pytest.approx(bootstrap_mean_interval(expected).tolist())
    stored = json.loads((run / DECODING_FILE).read_text(encoding="utf-8"))
    assert stored["step"] == 7 and stored["settings"] == record["settings"]
    assert read_run_decoding(step_folder(run, 7), "csl") == (decodings[record["chosen"]], None)
    (run / DECODING_FILE).unlink()
    run_command(decoding_command, *arguments, "--settings", "greedy", "--store", "false")
    assert not (run / DECODING_FILE).exists()
    assert "stored in" not in capsys.readouterr().out.rsplit("best on the dev split", 1)[1]


@pytest.mark.slow
def test_rouge_decodes_as_the_run_says_unless_options_do(
    run_command: Run, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a stored setting without effect, or one that overrides the command line."""
    write_run_decoding(run, Decoding(beams=2, no_repeat_ngram=3), {})
    out = tmp_path / "out.json"
    arguments = ["--checkpoint", run, "--source", "csl", "--input", SAMPLE / "test.tsv"]
    arguments += ["--limit", 2, "--max_new_tokens", 3, "--device", "cpu", "--json", out]
    for options, expected in (
        ([], "2 beams, length penalty 1, no repeated 3-grams, at most 3 tokens"),
        (["--run_decoding", "false"], "greedy, at most 3 tokens"),
        (["--samples", 2], "consensus of 2 samples, temperature 0.7, seed 0, at most 3 tokens"),
    ):
        run_command(rouge, *arguments, *options)
        assert json.loads(out.read_text(encoding="utf-8"))["decoding"] == expected
        is_of_run = "decoding as chosen for" in capsys.readouterr().out
        assert is_of_run == (not options)
    (run / DECODING_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"decoding\.json .*: delete it, and run python -m evaluate"
    ):
        run_command(rouge, *arguments)
    write_checksummed_json(run / DECODING_FILE, {"decoding": {"beams": 0}})
    with pytest.raises(UserError, match=r"decoding\.json: --beams: 0 is not valid.*: delete it"):
        run_command(rouge, *arguments)
    (run / DECODING_FILE).unlink()


@pytest.mark.slow
def test_a_source_has_a_choice_of_its_own(
    run_command: Run,
    run: Path,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents news that is decoded as abstracts are, and a choice that replaces another one."""
    short = ["--checkpoint", run, "--max_new_tokens", 2, "--device", "cpu"]
    choose = [*short, "--settings", "greedy", "--limit", 2]
    beams = Decoding(beams=2)
    write_run_decoding(run, beams, {})
    run_command(decoding_command, *choose, "--source", "lcsts")
    assert "uses it from now on for texts of lcsts" in capsys.readouterr().out
    assert read_run_decoding(run, "csl") == (beams, None)
    assert read_run_decoding(run, "lcsts") == (GREEDY, "lcsts")
    write_run_decoding(run, Decoding(no_repeat_ngram=1), {}, "lcsts")
    run_command(decoding_command, *choose)
    assert "from now on, but for texts of lcsts, which have" in capsys.readouterr().out
    assert read_run_decoding(run, "csl") == (GREEDY, None)
    out = tmp_path / "out.json"
    for source, file, expected in (
        ("csl", "csl/test.tsv", "greedy"),
        ("lcsts", "lcsts/PART_III.txt", "greedy, no repeated 1-grams"),
    ):
        articles = ["--source", source, "--input", root / SAMPLE.parent / file, "--limit", 2]
        run_command(rouge, *short, *articles, "--json", out)
        decoding = json.loads(out.read_text(encoding="utf-8"))["decoding"]
        assert decoding == f"{expected}, at most 2 tokens"
        assert (f"{run} and texts of lcsts: " in capsys.readouterr().out) == (source == "lcsts")
    for source, problem in (("redgpt", "its records have no titles"), ("cls", "unknown source")):
        with pytest.raises(UserError, match=problem):
            run_command(decoding_command, *choose, "--source", source)
    (run / DECODING_FILE).unlink()


@pytest.mark.slow
def test_records_of_a_test_split_do_not_choose(
    run_command: Run,
    make_run: Callable[[str], Path],
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a setting that is chosen on the test split by way of a prepared set."""
    test_lines = head(root / SAMPLE / "test.tsv", 3)
    run = make_run(test_lines)
    arguments = ["--max_new_tokens", 2, "--device", "cpu", "--settings", "beams=2"]
    with pytest.raises(UserError, match="no dev records of summaries that no test split has"):
        run_command(decoding_command, "--checkpoint", run, *arguments)
    assert not (run / DECODING_FILE).exists()
    run = make_run(head(root / SAMPLE / "dev.tsv", 2) + test_lines)
    run_command(decoding_command, "--checkpoint", run, *arguments)
    printed = capsys.readouterr().out
    assert "3 dev articles left out, a test split has them" in printed
    assert f"{run}: 2 dev records" in printed


def prompts_of(
    model: Llama, tokenizer: Tokenizer, template: Template, questions: list[TitleQuestion]
) -> list[list[int]]:
    """Return the prompt of each question."""
    prompts = []
    for question in questions:
        [lead_in] = tokenizer.encode_continuation([question.lead_in])
        ids, _ = summary_prompt(
            tokenizer,
            template,
            question.article,
            max_tokens=model.trained_context - 5 - len(lead_in),
        )
        prompts.append([*ids, *lead_in])
    return prompts


@pytest.mark.slow
def test_consensus_is_of_the_samples_that_generate_draws(run: Path) -> None:
    """Prevents samples that depend on the batch, and lead-ins that count as agreement."""
    model, tokenizer = weights.load_checkpoint(step_folder(run, 7), torch.device("cpu"))
    template = Template(lead_ins=True)
    split = ShardSet.open(run.parent / "set").load_records("validation")
    questions = [TitleQuestion(split.record(index).article, lead_in="标题：") for index in (0, 1)]
    decoding = Decoding(samples=5, temperature=1.5, sample_seed=4, no_repeat_ngram=1)
    answers = answer_title_questions(
        model, tokenizer, template, questions, max_new_tokens=5, decoding=decoding, batch=3
    )
    [alone] = answer_title_questions(
        model, tokenizer, template, questions[1:], max_new_tokens=5, decoding=decoding
    )
    assert answers[1] == alone
    prompts = prompts_of(model, tokenizer, template, questions)
    sampling = Sampling(temperature=1.5, no_repeat_ngram=1)
    for question, prompt, answer in zip(questions, prompts, answers, strict=True):
        seeds = [derive_seed(4, repr(question), number) for number in range(5)]
        drawn = [
            tokenizer.decode(list(generate(model, prompt, sampling, max_new_tokens=5, seed=seed)))
            for seed in seeds
        ]
        assert len(set(drawn)) > 1
        assert answer.text == "标题：" + drawn[choose_consensus(drawn, "lower")]


@pytest.mark.slow
def test_part_of_the_article_is_an_answer(run: Path) -> None:
    """Prevents a chosen part that loses its lead-in, its text, or its end."""
    model, tokenizer = weights.load_checkpoint(step_folder(run, 7), torch.device("cpu"))
    template = Template(lead_ins=True)
    # No sample of a random model says so much of the article.
    clause = "小骆驼过河的时候看见小骆驼"
    article = f"{clause}，天亮了。"
    question = TitleQuestion(article, lead_in="标题：")
    for extracts, max_new_tokens in ((True, 40), (False, 40), (True, 3)):
        decoding = Decoding(samples=2, coverage=9.0, extracts=extracts, novelty_penalty=1.0)
        [answer] = answer_title_questions(
            model, tokenizer, template, [question], max_new_tokens=max_new_tokens, decoding=decoding
        )
        is_clause = answer.text == f"标题：{clause}"
        assert is_clause == (extracts and max_new_tokens == 40)
        assert answer.has_eos or not is_clause
        assert answer.num_tokens <= max_new_tokens


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"beams": 2}, {"samples": 3}], ids=str)
def test_novelty_penalty_reaches_every_way_to_decode(run: Path, options: dict[str, int]) -> None:
    """Prevents an option that is named in the results and changes nothing."""
    model, tokenizer = weights.load_checkpoint(step_folder(run, 7), torch.device("cpu"))
    question = TitleQuestion("小骆驼过河的时候看见小马。")
    prompt = prompts_of(model, tokenizer, Template(), [question])[0]
    for penalty in (0.0, 1e4):
        decoding = Decoding(novelty_penalty=penalty, **options)
        [answer] = answer_title_questions(
            model, tokenizer, Template(), [question], max_new_tokens=8, decoding=decoding
        )
        is_copied = set(answer.text) <= set(tokenizer.decode(prompt))
        assert is_copied == (penalty > 0), answer.text
