"""Hostile files: what a stranger made runs no code, writes nowhere outside its folder, and takes no memory by its word alone.

Every place where the project reads a file that may come from elsewhere is tried with the worst file for it. Most tests run
under a limit on the memory of this process (`little_memory`): an allocation that a header asks for fails there.
"""

import ast
import gzip
import io
import json
import pickle
import re
import resource
import shutil
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import archive, files
from common.archive import extract_zip
from common.errors import UserError
from common.files import manifest_problem, read_json, write_json, write_manifest, write_sealed
from common.options import load_yaml
from data import reading
from data.records import BadRecord
from data.shards import ShardSet, shards_of_run
from data.sources import SOURCES
from evaluate.run_record import read_run
from model import checkpoints
from model.config import LlamaConfig
from model.llama import Llama
from model.template import Template
from model.tokenizer import Tokenizer
from train import checkpoint as training

ROOMS = ("assets", "bench", "chat", "common", "data", "evaluate", "model", "train")
CPU = torch.device("cpu")
QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than 1.5 GB beyond what this process has mapped by now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (3 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A small checkpoint folder."""
    config = LlamaConfig(vocab_size=tokenizer.vocabulary_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=16)
    (tmp_path / "model").mkdir()
    checkpoints.save(Llama(config).initialise(0), tokenizer, tmp_path / "model")
    return tmp_path / "model"


# No pickle anywhere: the source


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "code"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
                   "np.fromregex", "pandas.read_pickle", "tarfile.open", "shutil.unpack_archive"}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(source: str) -> list[str]:
    """What of a module's text could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.Call):
            name, words = _dotted(node.func), {word.arg: word.value for word in node.keywords}
            if name in FORBIDDEN_CALLS or getattr(words.get("trust_remote_code"), "value", False):
                found.append(name)
            if name in ("np.load", "np.save", "numpy.load") and getattr(words.get("allow_pickle"), "value", True):
                found.append(f"{name} without allow_pickle=False")
            if name == "yaml.load" and "Loader" not in "".join(_dotted(each) for each in node.args[1:]) and not (
                    len(node.args) > 1 and isinstance(node.args[1], ast.IfExp)):
                found.append("yaml.load without a safe loader")
            if name.startswith("subprocess.") and getattr(words.get("shell"), "value", False):
                found.append(f"{name} through a shell")
    return found


def test_the_source_has_nothing_that_runs_what_a_file_says(root: Path) -> None:
    """A torch.load, a pickle, an np.load that unpickles, a YAML that makes objects, an eval: in any room, ever."""
    modules = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    assert len(modules) > 100
    assert {str(path): found for path in modules if (found := forbidden(path.read_text(encoding="utf-8")))} == {}
    for text in ("import pickle", "from joblib import load", "torch.load(f)", "np.load(f)", "np.load(f, allow_pickle=True)",
                 "yaml.load(f)", "eval(x)", "subprocess.run(x, shell=True)", "f(trust_remote_code=True)"):
        assert forbidden(text), text


# No pickle anywhere: tried


class _Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _object_array(trap: _Trap) -> bytes:
    written = io.BytesIO()
    np.save(written, np.array([trap], dtype=object), allow_pickle=True)
    return written.getvalue()


def test_files_that_would_run_code_run_none_wherever_a_file_is_read(
    tmp_path: Path, model: Path, shard_set: Path, root: Path
) -> None:
    """Every reader is given a pickle, a torch file, an object array and a YAML with a constructor under its file's name."""
    mark = tmp_path / "ran"
    trap = _Trap(mark)
    saved = io.BytesIO()
    torch.save({"x": trap}, saved)
    traps = [pickle.dumps(trap), saved.getvalue(), _object_array(trap),
             b"!!python/object/apply:os.system ['touch %s']" % bytes(mark)]
    pickle.loads(traps[0])
    assert mark.exists()  # the trap works
    mark.unlink()
    readers: list[tuple[Path, Callable[[], object]]] = [
        *((model / name, lambda: checkpoints.load(model, CPU))
          for name in ("model.safetensors", "config.json", "tokenizer.model")),
        (model / "manifest.json", lambda: checkpoints.load(model, CPU)),
        (model / "template.json", lambda: Template.load(model)),
        (model / training.OPTIMIZER, lambda: training.restore(model, Llama(_config(model)), {})),
        *((path, lambda: [ShardSet.open(shard_set), *map(ShardSet(shard_set, {}).split, ("train", "validation"))])
          for path in shard_set.iterdir()),
        (tmp_path / "run" / "run.json", lambda: [shards_of_run(tmp_path / "run"), read_run(tmp_path / "run")]),
        *((tmp_path / "run" / name, lambda: read_run(tmp_path / "run")) for name in ("config.yaml", "metrics.jsonl")),
        (tmp_path / "options.yaml", lambda: load_yaml(tmp_path / "options.yaml")),
        *((tmp_path / "records", lambda s=source: list(s.open(tmp_path / "records"))) for source in SOURCES.values()),
        (tmp_path / "a.zip", lambda: extract_zip(tmp_path / "a.zip", tmp_path / "unpacked")),
    ]
    (tmp_path / "run").mkdir()
    for path, reader in readers:
        whole = path.read_bytes() if path.exists() else None
        for data in traps:
            path.write_bytes(data)
            try:
                reader()
            except UserError as error:
                assert "\n" not in str(error).replace("\nmodel", "")
            assert not mark.exists(), path
        path.unlink() if whole is None else path.write_bytes(whole)


def test_a_parquet_file_with_a_pickled_type_runs_nothing(tmp_path: Path) -> None:
    """pyarrow before 14.0.1 unpickled an extension type's description (CVE-2023-47248)."""
    import pyarrow
    import pyarrow.parquet

    mark = tmp_path / "ran"
    described = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(_Trap(mark))}
    field = pyarrow.field("text", pyarrow.string(), metadata=described)
    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(["甲"])], pyarrow.schema([field])), tmp_path / "a.parquet")
    list(SOURCES["jsonl"].open(tmp_path / "a.parquet"))
    assert not mark.exists()


# Archives


def packed(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def _kind(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize("name", [
    "../out", "a/../../out", "/out", "//out", "..", "a/..", "C:out", "c:/out", "..\\out", "a\\..\\..\\out", "manifest.json",
    "./manifest.json", ".", "a/./../../out",
])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Path traversal, by every spelling of it; names that are none; a manifest that vouches for the attacker's files."""
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    path = packed(inside / "a.zip", ("good", b"1"), (name, b"2"))
    with pytest.raises(UserError, match="not unpacked"):
        extract_zip(path, inside / "folder")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["a.zip", "deep", "inside"]


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_are_not_unpacked(tmp_path: Path, mode: int) -> None:
    path = packed(tmp_path / "a.zip", (_kind("link", mode | 0o777), b"/etc/passwd"), ("link/x", b"1"))
    with pytest.raises(UserError, match="is not a plain file: not unpacked"):
        extract_zip(path, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_bombs_are_refused_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of zeros in a megabyte; a million empty files; a size that the directory of the archive lies about."""
    monkeypatch.setattr(archive, "SPARED", 1 << 20)
    path = packed(tmp_path / "a.zip", ("zeros", bytes(32 << 20)), how=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"more than the \d+ allowed for its size: not unpacked"):
        extract_zip(path, tmp_path / "folder")
    monkeypatch.setattr(archive, "MEMBERS", 10)
    with pytest.raises(UserError, match="holds 11 files, more than the 10 allowed"):
        extract_zip(packed(tmp_path / "b.zip", *((str(n), b"") for n in range(11))), tmp_path / "folder")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1000)
    (tmp_path / "c.zip").write_bytes(bytes(data))
    with pytest.raises(UserError, match="is not a readable zip archive"):
        extract_zip(tmp_path / "c.zip", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@given(at=st.integers(0, 10_000), noise=st.binary(min_size=1, max_size=8), how=st.sampled_from([0, 8, 12, 14]))
@QUICK
def test_any_damage_to_an_archive_is_one_line_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes, how: int
) -> None:
    folder = tmp_path_factory.mktemp("zip")
    data = bytearray(packed(folder / "a.zip", ("a.txt", b"text " * 50), ("b/c.txt", bytes(range(256))), how=how).read_bytes())
    at %= len(data)
    data[at : at + len(noise)] = noise
    (folder / "a.zip").write_bytes(bytes(data))
    try:
        extract_zip(folder / "a.zip", folder / "out")
    except UserError as error:
        assert str(folder) in str(error)
        assert [path.name for path in folder.iterdir()] == ["a.zip"]
    else:
        assert {path.name for path in folder.iterdir()} == {"a.zip", "out"}


# Indexes


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..", "\0", "x" * 5000])
def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    write_sealed(tmp_path / "folder" / "manifest.json", {"files": {name: {"bytes": 1, "sha256": "0" * 64}}})
    assert manifest_problem(tmp_path / "folder")


KEYS = ["files", "bytes", "sha256", "shards", "fingerprints", "data", "set", "format", "kind"]
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=8)


@given(value=JSON)
@QUICK
def test_any_json_in_place_of_a_file_of_facts_is_one_line(tmp_path: Path, value: object) -> None:
    """A KeyError from inside for a run or a shard set that someone else wrote."""
    folder = tmp_path / "facts"
    write_json(folder / "manifest.json", value)
    assert manifest_problem(folder) or value.get("files") == {}  # type: ignore[attr-defined]
    for name, reader in (("manifest.json", ShardSet.open), ("run.json", shards_of_run), ("template.json", Template.load)):
        write_json(folder / name, value)
        with pytest.raises(UserError):
            reader(folder)
    with pytest.raises(UserError):
        LlamaConfig.from_hf(value)  # type: ignore[arg-type]


# Sizes that a header claims


@pytest.mark.parametrize("change", [
    {"hidden_size": 10**9, "num_attention_heads": 1}, {"num_hidden_layers": 10**6}, {"vocab_size": 10**12},
    {"intermediate_size": 10**15}, {"max_position_embeddings": 10**12}, {"head_dim": 2 * 10**12}, {"num_hidden_layers": 10**30},
    {"rope_theta": float("inf")}, {"rms_norm_eps": float("nan")}, {"rope_theta": 10**400},
])
def test_a_shape_beyond_the_file_or_the_machine_is_refused_before_it_is_built(
    model: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """config.json alone asking for terabytes, or for a million layers, each of nothing."""
    monkeypatch.setattr(checkpoints, "Llama", lambda *_: pytest.fail("it was built"))
    write_json(model / "config.json", {**read_json(model / "config.json"), **change})
    with pytest.raises(UserError, match=r"GB of memory|does not fit its config.json: it holds|must be positive and finite"):
        checkpoints.load(model, CPU)


def _config(model: Path) -> LlamaConfig:
    return LlamaConfig.from_hf(read_json(model / "config.json"))


def _safetensors(header: object, *, length: int | None = None, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize("data", [
    b"", b"\0" * 7, _safetensors({}, length=2**60), _safetensors({}, length=2**64 - 1), _safetensors({}, length=99_000_000),
    _safetensors(b"[" * 1_000_000),
    _safetensors({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}, body=b"1234"),
    _safetensors({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
    _safetensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, body=b"1234"),
    _safetensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "y": {"dtype": "F32", "shape": [1],
                  "data_offsets": [0, 4]}}, body=b"1234"),
    _safetensors({"adamw/x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, body=b"1234"),
    _safetensors({"muon/lm_head.weight/a/b": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}, body=b"1"),
])
def test_a_safetensors_header_is_not_taken_at_its_word(model: Path, little_memory: None, data: bytes) -> None:
    network = Llama(_config(model))
    for name in ("model.safetensors", training.OPTIMIZER):
        (model / name).write_bytes(data)
    for reader in (lambda: checkpoints.load(model, CPU), lambda: checkpoints.load_weights(network, model)):
        with pytest.raises(UserError, match=r"model\.safetensors (cannot be read|does not fit)"):
            reader()
    shutil.rmtree(model)
    model.mkdir()
    checkpoints.save_weights(network, model)
    (model / training.OPTIMIZER).write_bytes(data)
    with pytest.raises(UserError, match=r"optimizer\.safetensors (cannot be read|holds)"):
        training.restore(model, network, {"muon": torch.optim.SGD(network.parameters())})


def test_a_tied_model_without_its_one_table_is_one_line(model: Path, tokenizer: Tokenizer) -> None:
    """A KeyError for the tensor that both ends share."""
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    state["model.other.weight"] = state.pop("model.embed_tokens.weight").clone()
    save_file({**state, "another": torch.zeros(1)}, model / "model.safetensors")
    write_json(model / "config.json", {**read_json(model / "config.json"), "tie_word_embeddings": True})
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        checkpoints.load(model, CPU)


def _npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize("data", [
    b"", b"\x93NUMPY", _npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000,)}"),
    _npy("{'descr': '<u2', 'fortran_order': False, 'shape': (10000000000, 10000000000)}"),
    _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
    _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    _npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1, 1)}", bytes(2)),
    _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}", struct.pack("<2q", 0, 2**60)),
    _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}", bytes(8)),
    _npy("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': ()}"), pickle.dumps([1]),
])
def test_an_array_is_what_its_shard_needs_or_one_line(shard_set: Path, little_memory: None, data: bytes) -> None:
    """Object arrays, shapes beyond the file, sequences of 2⁶⁰ ids, numbers of another kind, a folder of them vouched for."""
    for name in ("train-00000.tokens.npy", "train-00000.offsets.npy"):
        whole = (shard_set / name).read_bytes()
        (shard_set / name).write_bytes(data)
        facts = {key: value for key, value in read_json(shard_set / "manifest.json").items() if key not in ("files", "seal")}
        write_manifest(shard_set, facts)
        with pytest.raises(UserError, match=r"npy(:| cannot be read| does not hold)"):
            ShardSet.open(shard_set, checksums=True).split("train").lengths()
        (shard_set / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["config.json", "template.json", "tokenizer.model", "manifest.json"])
def test_small_files_are_not_read_at_any_size(model: Path, little_memory: None, name: str) -> None:
    """A file of facts of 100 GB (sparse: it takes no disk), or one that never ends."""
    path = model / name
    with path.open("wb") as file:
        file.truncate(100 << 30)
    readers: dict[str, Callable[[Path], object]] = {"template.json": Template.load, "tokenizer.model": Tokenizer.load}
    reader = readers.get(name, lambda folder: checkpoints.load(folder, CPU))
    with pytest.raises(UserError, match="is larger than 64 MB"):
        reader(model)
    path.unlink()
    path.symlink_to("/dev/zero")
    if name == "tokenizer.model":  # the others are only read where they are files
        with pytest.raises(UserError, match="is larger than 64 MB"):
            reader(model)


def test_nested_and_gigantic_json_is_one_line(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "1" * 10_000, '{"a":' * 100_000, '"\\ud800', "\ufeff{}", "{'a': 1}"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read as JSON"):
            read_json(tmp_path / "a.json")
    assert files.SMALL <= 64 << 20


def test_aliases_do_not_multiply(tmp_path: Path, little_memory: None) -> None:
    """The billion laughs: nine lines of YAML that stand for gigabytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="aliases"):
        load_yaml(tmp_path / "a.yaml")


def test_a_gzip_bomb_streams_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred kilobytes that unpack to one line of a hundred megabytes: a bad record, and the next one is read."""
    monkeypatch.setattr(reading, "LINE_LIMIT", 1 << 20)
    with gzip.open(tmp_path / "a.jsonl", "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
        file.write(b'\n{"text": "a"}\n')
    assert (tmp_path / "a.jsonl").stat().st_size < 1 << 20
    for source in ("jsonl", "naturalconv"):
        tracemalloc.start()
        found = list(SOURCES[source].open(tmp_path / "a.jsonl"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(found[0], BadRecord) and "longer than 1 MB" in found[0].reason and len(found) == 2
        assert peak < 16 << 20


# Tokenizers


@given(at=st.integers(0, 10**6), noise=st.binary(min_size=1, max_size=40))
@QUICK
def test_any_damage_to_a_tokenizer_is_one_line_or_a_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer, at: int, noise: bytes
) -> None:
    data = bytearray(tokenizer.serialized)
    # Half of the noise in the last kilobytes, where the settings are, the rest anywhere.
    at = at % len(data) if at % 2 else len(data) - 1 - at % 2000
    data[at : at + len(noise)] = noise
    (tmp_path / "tokenizer.model").write_bytes(bytes(data))
    try:
        loaded = Tokenizer.load(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)
    else:
        assert loaded.decode(loaded.encode("你好，world")) is not None


@given(data=st.binary(max_size=300))
@QUICK
def test_random_bytes_are_no_tokenizer(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Tokenizer.load(tmp_path)


def test_a_piece_of_megabytes_does_not_take_hours(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Every cut of every piece is looked at: ten million cuts of ten megabytes each."""
    from sentencepiece import sentencepiece_model_pb2

    held = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    held.ParseFromString(tokenizer.serialized)
    held.pieces[-1].piece = "长" * 3_000_000
    (tmp_path / "tokenizer.model").write_bytes(held.SerializeToString())
    with pytest.raises(UserError, match="holds a piece of 3000000 characters"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("value", [[], {}, {"path": 3, "relative": "x", "sha256": "x"},
                                   {"path": "SELF", "relative": "x", "sha256": "x"}, {"path": "x", "relative": None}])
def test_an_adapter_s_base_is_a_folder_or_one_line(tmp_path: Path, value: object) -> None:
    """A base.json of another shape, or one that leads back to the adapter without end."""
    (tmp_path / "adapter_model.safetensors").touch()
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    if isinstance(value, dict) and value.get("path") == "SELF":
        value = {**value, "path": str(tmp_path)}
    write_json(tmp_path / "base.json", value)
    with pytest.raises(UserError, match=r"base"):
        checkpoints.load(tmp_path, CPU)


def test_a_folder_that_only_looks_like_a_step_is_none(tmp_path: Path) -> None:
    """Digits that are no numbers."""
    for name in ("step-00000003", "step-²", "step-", "step-٣"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoints.steps(tmp_path) == [3]
