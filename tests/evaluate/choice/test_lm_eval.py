"""The convention lm-eval against EleutherAI's harness, question by question."""

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluate.choice import __main__ as choice
from model import export
from model.chat_template.template import Template
from model.checkpoint import weights
from model.tokenizer import load_tokenizer
from tests.helpers.random_llama import random_llama

Run = Callable[..., None]
# The harness has a package `evaluate`, so it runs in an environment of its own and outside of the
# checkout: see requirements-lm-eval.txt.
HARNESS = os.environ.get("LM_EVAL", "")
NUM_SUBJECTS = 10


@pytest.mark.slow
@pytest.mark.skipif(not HARNESS, reason="no LM_EVAL=ENV/bin/lm_eval: see requirements-lm-eval.txt")
@pytest.mark.parametrize("shots", [0, 2])
def test_every_cmmlu_question_gets_the_same_answer(
    shots: int, run_command: Run, shared: Path, tmp_path: Path
) -> None:
    """Prevents prompts, letters, examples or truncation that are not those of the harness."""
    tokenizer = load_tokenizer(shared / "tokenizer/llama-chinese-65k.model")
    # A short context, so that some prompts with examples lose their beginning.
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=384)
    checkpoint, exported = tmp_path / "model", tmp_path / "exported"
    checkpoint.mkdir()
    weights.save_checkpoint(model, tokenizer, checkpoint)
    Template().save(checkpoint)
    run_command(export, "--checkpoint", checkpoint, "--format", "hf", "--out", exported)
    ours, predictions = tmp_path / "ours.json", tmp_path / "predictions.jsonl"
    folder = shared / "data/eval/cmmlu"
    run_command(
        choice, "--checkpoint", exported, "--source", "cmmlu", "--input", folder, "--shots", shots,
        "--convention", "lm-eval", "--json", ours, "--predictions", predictions,
    )  # fmt: skip
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    theirs = _run_harness(tmp_path / "harness", folder, exported, shots)
    assert len(rows) == len(theirs) == 1743
    assert (json.loads(ours.read_text())["cut"] > 0) is (shots > 0)
    different = [
        (row["question"], row["log_likelihoods"], scores)
        for row, (question, scores) in zip(rows, theirs, strict=True)
        if row["question"] != question
        or row["log_likelihoods"] != pytest.approx(scores, abs=1e-3)
        or row["predicted"]["letter"] != "ABCD"[scores.index(max(scores))]
    ]
    assert different == []


def _run_harness(
    work: Path, dataset: Path, model: Path, shots: int
) -> list[tuple[str, list[float]]]:
    """Return each question with the log-likelihoods of its letters, in the order of the files."""
    python = Path(HARNESS).with_name("python")
    found = "import lm_eval, pathlib; print(pathlib.Path(lm_eval.__file__).parent / 'tasks/cmmlu')"
    work.mkdir()
    command = [python, "-c", found]
    tasks = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True).stdout
    subjects = sorted(path.stem for path in (dataset / "test").glob("*.csv"))
    assert len(subjects) == NUM_SUBJECTS
    for subject in subjects:
        for split in ("test", "dev"):
            with (dataset / split / f"{subject}.csv").open(newline="", encoding="utf-8") as file:
                lines = [json.dumps(row) + "\n" for row in csv.DictReader(file)]
            (work / f"{subject}_{split}.jsonl").write_text("".join(lines))
        data_files = "".join(
            f"    {split}: {work}/{subject}_{split}.jsonl\n" for split in ("test", "dev")
        )
        # The task of the harness, with files in the place of its download.
        (work / f"{subject}.yaml").write_text(
            f"include: {tasks.strip()}/cmmlu_{subject}.yaml\ntask: local_{subject}\n"
            f"dataset_path: json\ndataset_name: null\ndataset_kwargs:\n  data_files:\n{data_files}"
        )
    subprocess.run(
        [
            HARNESS, "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32",
            "--tasks", ",".join(f"local_{subject}" for subject in subjects),
            "--include_path", work, "--device", "cpu", "--batch_size", "16",
            "--num_fewshot", str(shots), "--log_samples", "--output_path", work / "out",
        ],
        cwd=work,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "cache")},
        check=True,
    )  # fmt: skip
    theirs = []
    for subject in subjects:
        (samples,) = (work / "out").rglob(f"samples_local_{subject}_*.jsonl")
        rows = sorted(
            map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"]
        )
        for row in rows:
            scores = [float(response[0]) for response in row["filtered_resps"]]
            theirs.append((row["doc"]["Question"], scores))
    return theirs
