"""`python -m model.average`: means of weights, written as a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from common.errors import UserError
from common.files import read_checksummed_json, write_checksummed_json, write_manifest
from common.run_layout import CONFIG_FILE, RUN_FILE, list_steps, step_folder
from model.average import AverageOptions
from model.chat_template.template import Template, load_template
from model.checkpoint import locate, weights
from model.checkpoint.averaging import average_checkpoints, find_last_checkpoints, write_average
from model.llama import Llama
from model.lora import Adapter, adapter_tensors, attach_adapter
from model.lora_options import LoraOptions
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama
from train.run.resume_check import find_differences

CPU = torch.device("cpu")
TEMPLATE = Template(human="问：")


def save_step(run: Path, step: int, model: Llama, tokenizer: Tokenizer) -> Path:
    """Write the checkpoint of a step."""
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    weights.save_checkpoint(model, tokenizer, folder)
    TEMPLATE.save(folder)
    write_manifest(folder, {"step": step, "steps": 100})
    return folder


def small_llama(tokenizer: Tokenizer, seed: int, *, is_tied: bool = True) -> Llama:
    """Return a random model that fits the tokenizer."""
    return random_llama(
        seed, vocab_size=tokenizer.vocab_size, hidden_size=32, tie_word_embeddings=is_tied
    )


@pytest.fixture
def run(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A run that keeps four checkpoints, and is not finished."""
    folder = tmp_path / "run"
    for number in range(4):
        model = small_llama(tokenizer, number)
        model.trained_context = 64
        save_step(folder, 10 * number, model, tokenizer)
    fingerprints = {"data": [{"set": "x", "weight": 1.0}], "template": {}, "max_steps": 100}
    record = {"made": {}, "shards": ["/set"], "fingerprints": fingerprints}
    write_checksummed_json(folder / RUN_FILE, record)
    (folder / CONFIG_FILE).write_text("base: none\n", encoding="utf-8")
    return folder


def test_weights_are_the_means_of_the_last_ones(run: Path, tmp_path: Path) -> None:
    """Prevents means of other checkpoints, sums in fp32, and a head apart from the embedding."""
    out = tmp_path / "out"
    assert write_average(run, 3, out) == [10, 20, 30]
    tensors = [load_file(step_folder(run, step) / "model.safetensors") for step in (10, 20, 30)]
    [step] = list_steps(out)
    averaged = load_file(step_folder(out, step) / "model.safetensors")
    assert averaged.keys() == tensors[0].keys() and step == 30
    for name, values in averaged.items():
        mean = np.mean([each[name].astype(np.float64) for each in tensors], axis=0)
        assert values.dtype == np.float32 and np.array_equal(values, mean.astype(np.float32)), name


def test_average_is_a_run_that_is_finished(run: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents an average without data, template or context, and training that goes on in it."""
    out = tmp_path / "out"
    write_average(run, 2, out)
    folder = locate.resolve_checkpoint(out)
    model, loaded_tokenizer = weights.load_checkpoint(folder, CPU)
    assert model.trained_context == 64 and loaded_tokenizer.fingerprint == tokenizer.fingerprint
    assert load_template(folder) == TEMPLATE and locate.read_step(folder) == 30
    assert locate.find_remaining_steps(run, step_folder(run, 30)) is not None
    assert locate.find_remaining_steps(out, folder) is None
    record, new_record = (read_checksummed_json(each / RUN_FILE) for each in (run, out))
    assert new_record["shards"] == record["shards"]
    assert find_differences(new_record, record) == ["averaged_steps: [20, 30] -> None"]
    assert new_record["averaged_from"]["weights"] == [
        locate.weights_sha256(step_folder(run, step)) for step in (20, 30)
    ]
    assert (out / CONFIG_FILE).read_text(encoding="utf-8") == "base: none\n"


def test_adapters_are_merged_before(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents the product of two means, which is not the mean of the products."""
    base = tmp_path / "base"
    base.mkdir()
    weights.save_checkpoint(small_llama(tokenizer, 0, is_tied=False), tokenizer, base)
    folders = []
    for seed in (1, 2):
        model, _ = weights.load_checkpoint(base, CPU)
        attach_adapter(model, Adapter(LoraOptions(), base, locate.weights_sha256(base)), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in adapter_tensors(model).values():
                tensor.normal_(generator=generator)
        folders.append(save_step(tmp_path / "run", seed, model, tokenizer))
    averaged, _ = average_checkpoints(folders, CPU)
    merged = [weights.load_checkpoint(folder, CPU)[0].state_dict() for folder in folders]
    for name, values in averaged.state_dict().items():
        torch.testing.assert_close(values, (merged[0][name] + merged[1][name]) / 2)


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    """Prevents averages of fewer checkpoints than asked for, of damaged ones, and lost runs."""
    with pytest.raises(UserError, match=r"--last 5: .*keeps 4 checkpoints: .*--checkpoint.keep 5"):
        find_last_checkpoints(run, 5)
    with pytest.raises(UserError, match="is no run: name a run"):
        find_last_checkpoints(tmp_path, 2)
    with pytest.raises(UserError, match="exists already"):
        write_average(run, 2, run)
    weights_file = step_folder(run, 20) / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"step-00000020.* is damaged .*: it cannot be averaged"):
        find_last_checkpoints(run, 2)


def test_default_name_stands_beside_the_run() -> None:
    """Prevents an average that is written into another folder than the help says."""
    assert AverageOptions(source=Path("runs/x"), last=2).out == Path("runs/x-average")
