"""Hostile sizes: no header, shape, array or packed line makes a reader allocate memory.

Most tests run under a memory limit (`little_memory`), where an allocation by a header fails.
"""

import gzip
import json
import pickle
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common import files
from common.errors import UserError
from common.files import read_json, write_json, write_manifest
from common.yaml_files import load_yaml
from data.readers import files as readers
from data.records import BadRecord
from data.shards import ShardSet
from data.sources import SOURCES
from model.chat_template.template import load_template
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from train import checkpoint as training
from train.optimizer import build_optimizers
from train.options import OptimizerOptions

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**9, "num_attention_heads": 1},
        {"num_hidden_layers": 10**6},
        {"vocab_size": 10**12},
        {"intermediate_size": 10**15},
        {"max_position_embeddings": 10**12},
        {"head_dim": 2 * 10**12},
        {"num_hidden_layers": 10**30},
        {"rope_theta": float("inf")},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": 10**400},
    ],
)
def test_oversized_config_is_refused_before_allocation(
    model: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Prevents a config.json from allocating terabytes or building a million layers."""
    monkeypatch.setattr(weights, "Llama", lambda *_: pytest.fail("it was built"))
    write_json(model / "config.json", {**read_json(model / "config.json"), **change})
    with pytest.raises(
        UserError,
        match=r"GB of memory|does not fit its config.json: it holds|must be positive and finite",
    ):
        weights.load_checkpoint(model, CPU)


def _safetensors(header: object, *, length: int | None = None, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        _safetensors({}, length=2**60),
        _safetensors({}, length=2**64 - 1),
        _safetensors({}, length=99_000_000),
        _safetensors(b"[" * 1_000_000),
        _safetensors(
            {"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}, body=b"1234"
        ),
        _safetensors({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        _safetensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, body=b"1234"),
        _safetensors(
            {
                "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            body=b"1234",
        ),
        _safetensors(
            {"adamw/x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, body=b"1234"
        ),
        _safetensors(
            {"muon/lm_head.weight/a/b": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}},
            body=b"1",
        ),
    ],
)
def test_safetensors_header_sizes_are_checked(
    model: Path, little_memory: None, data: bytes
) -> None:
    """Prevents headers that claim sizes beyond their file from allocating memory."""
    network = Llama(LlamaConfig.from_hf(read_json(model / "config.json")))
    for name in ("model.safetensors", training.OPTIMIZER_FILE):
        (model / name).write_bytes(data)
    for reader in (
        lambda: weights.load_checkpoint(model, CPU),
        lambda: weights.load_weights(network, model),
    ):
        with pytest.raises(UserError, match=r"model\.safetensors (cannot be read|does not fit)"):
            reader()
    shutil.rmtree(model)
    model.mkdir()
    weights.save_weights(network, model)
    (model / training.OPTIMIZER_FILE).write_bytes(data)
    with pytest.raises(UserError, match=r"optimizer\.safetensors (cannot be read|holds)"):
        training.restore(model, network, build_optimizers(network, OptimizerOptions()))


def test_tied_model_without_embedding_gives_one_line_error(
    model: Path, tokenizer: Tokenizer
) -> None:
    """Prevents a KeyError for the missing shared tensor."""
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    state["model.other.weight"] = state.pop("model.embed_tokens.weight").clone()
    save_file({**state, "another": torch.zeros(1)}, model / "model.safetensors")
    write_json(
        model / "config.json", {**read_json(model / "config.json"), "tie_word_embeddings": True}
    )
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        weights.load_checkpoint(model, CPU)


def _npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        _npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000,)}"),
        _npy("{'descr': '<u2', 'fortran_order': False, 'shape': (10000000000, 10000000000)}"),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
        _npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1, 1)}", bytes(2)),
        _npy(
            "{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}", struct.pack("<2q", 0, 2**60)
        ),
        _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}", bytes(8)),
        _npy("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': ()}"),
        pickle.dumps([1]),
    ],
)
def test_mismatched_shard_array_gives_one_line_error(
    shard_set: Path, little_memory: None, data: bytes
) -> None:
    """Prevents object arrays, shapes beyond the file and sequences of 2⁶⁰ ids."""
    for name in ("train-00000.tokens.npy", "train-00000.offsets.npy"):
        original = (shard_set / name).read_bytes()
        (shard_set / name).write_bytes(data)
        metadata = {
            key: value
            for key, value in read_json(shard_set / "manifest.json").items()
            if key not in ("files", "seal")
        }
        write_manifest(shard_set, metadata)
        with pytest.raises(UserError, match=r"npy(:| cannot be read| does not hold)"):
            ShardSet.open(shard_set, checksums=True).load_text("train").lengths()
        (shard_set / name).write_bytes(original)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "template.json", "tokenizer.model", "manifest.json"]
)
def test_metadata_files_have_a_size_limit(model: Path, little_memory: None, name: str) -> None:
    """Prevents reading a JSON file of 100 GB (sparse), or one that never ends."""
    path = model / name
    with path.open("wb") as file:
        file.truncate(100 << 30)
    readers: dict[str, Callable[[Path], object]] = {
        "template.json": load_template,
        "tokenizer.model": load_tokenizer,
    }
    reader = readers.get(name, lambda folder: weights.load_checkpoint(folder, CPU))
    with pytest.raises(UserError, match="is larger than 64 MB"):
        reader(model)
    path.unlink()
    path.symlink_to("/dev/zero")
    if name == "tokenizer.model":  # the others are only read where they are files
        with pytest.raises(UserError, match="is larger than 64 MB"):
            reader(model)


def test_deeply_nested_or_huge_json_gives_one_line_error(tmp_path: Path) -> None:
    """Prevents a RecursionError or a ValueError of the JSON parser."""
    for text in (
        "[" * 100_000,
        "1" * 10_000,
        '{"a":' * 100_000,
        '"\\ud800',
        "\ufeff{}",
        "{'a': 1}",
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read as JSON"):
            read_json(tmp_path / "a.json")
    assert files.MAX_JSON_BYTES <= 64 << 20


def test_yaml_alias_bomb_is_refused(tmp_path: Path, little_memory: None) -> None:
    """Prevents the billion laughs: nine lines of YAML that expand to gigabytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="aliases"):
        load_yaml(tmp_path / "a.yaml")


@pytest.mark.slow
def test_gzip_bomb_is_streamed_in_constant_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a small file that unpacks to a huge line from filling the memory."""
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1 << 20)
    with gzip.open(tmp_path / "a.jsonl", "wb", compresslevel=1) as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
        file.write(b'\n{"text": "a"}\n')
    assert (tmp_path / "a.jsonl").stat().st_size < 1 << 20
    for source in ("jsonl", "naturalconv"):
        tracemalloc.start()
        records = list(SOURCES[source].iter_records(tmp_path / "a.jsonl"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (
            isinstance(records[0], BadRecord)
            and "longer than 1 MB" in records[0].reason
            and len(records) == 2
        )
        assert peak < 16 << 20
