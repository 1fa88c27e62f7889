"""The command on a model that was taught some items."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluate.rules import __main__ as rules
from evaluate.rules import ask
from evaluate.rules.generate import draw_items
from evaluate.rules.item import FORMS
from evaluate.rules.measure import group_families
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

Run = Callable[..., None]
COUNT = 2


@pytest.mark.slow
def test_a_taught_family_is_held_in_and_right(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Forms that are mixed up, families in the wrong group, and a run that cannot go on."""
    lessons = [
        (
            Template().encode_prompt(tokenizer, (), item.question, item.passage(form)),
            item.answer(form),
        )
        for item in draw_items("calendar", COUNT, 1, 0, "test")
        for form in FORMS
    ]
    folder = teach(lessons, tmp_path / "model")
    trained_on, out = tmp_path / "train.jsonl", tmp_path / "out.json"
    run_command(rules, "--export", trained_on, "--families", "calendar", "--count", COUNT)
    predictions = tmp_path / "answers.jsonl"
    arguments = ["--checkpoint", folder, "--families", "calendar,cipher", "--count", COUNT]
    arguments += ["--trained_on", trained_on, "--device", "cpu", "--json", out]
    arguments += ["--generation_count", 1, "--predictions", predictions]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ask, "answer_resumably", interrupt)
        run_command(rules, *arguments)
    assert out.with_name("out.json.partial").is_file()
    # The likelihoods are not computed again.
    monkeypatch.setattr(ask, "score_candidates", interrupt)
    run_command(rules, *arguments)
    assert not out.with_name("out.json.partial").exists()

    figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    for method, count in (("likelihood", COUNT), ("generation", 1)):
        calendar = figures[method]["calendar"]
        assert figures[method]["held_in"] == calendar
        assert figures[method]["held_out"] == figures[method]["cipher"]
        for form in ("with", "against"):
            assert calendar[form]["right"]["rate"] == 1.0
            assert calendar[form]["right"]["questions"] == count
            assert calendar[form]["without_rule"]["rate"] == 0.0
            assert calendar[form]["rule_use"]["mean"] == 1.0
            assert calendar[form]["common_sense"]["rate"] == 0.0
        assert calendar["without"]["common_sense"]["rate"] == 1.0
    assert figures["trained_on"]["families"] == ["calendar"]
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    # The two originals are asked, too.
    assert len(rows) == 2 + 2 * COUNT + 2 + 2
    printed = capsys.readouterr().out
    assert "\nheld in " in printed and "\nheld out " in printed
    assert "held out 0 of 1 families" in printed


def test_families_are_grouped_by_what_was_trained() -> None:
    """An empty group, and families of the file that were not asked."""
    assert group_families(["a", "b"], None) == {"all": ["a", "b"]}
    assert group_families(["a", "b"], ["b", "c"]) == {"held in": ["b"], "held out": ["a"]}
    assert group_families(["a"], ["a"]) == {"held in": ["a"]}
