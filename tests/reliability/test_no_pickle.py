"""Hostile files run no code: nothing is unpickled, by reading the source and by trying."""

import ast
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.archive import extract_zip
from common.errors import UserError
from common.files import read_json
from common.yaml_files import load_yaml
from data.shards import ShardSet, load_run_shard_set
from data.sources import SOURCES
from evaluate.report.run_reader import read_run
from model.chat_template.template import load_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.interop.hf_export import export_hf
from model.interop.hf_import import import_hf
from model.llama import Llama
from model.lora import Adapter, LoraOptions, attach_adapter
from model.tokenizer import load_tokenizer
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE
from train import checkpoint as training

PACKAGES = ("assets", "bench", "chat", "common", "data", "evaluate", "model", "train")
CPU = torch.device("cpu")
FORBIDDEN_IMPORTS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "runpy",
    "code",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "np.fromregex",
    "pandas.read_pickle",
    "tarfile.open",
    "shutil.unpack_archive",
}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(source: str) -> list[str]:
    """Return the imports and calls of a module that could run code in a file."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            problems += [
                f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS
            ]
        if isinstance(node, ast.Call):
            name, keywords = (
                _dotted(node.func),
                {keyword.arg: keyword.value for keyword in node.keywords},
            )
            if name in FORBIDDEN_CALLS or getattr(
                keywords.get("trust_remote_code"), "value", False
            ):
                problems.append(name)
            if name in ("np.load", "np.save", "numpy.load") and getattr(
                keywords.get("allow_pickle"), "value", True
            ):
                problems.append(f"{name} without allow_pickle=False")
            if (
                name == "yaml.load"
                and "Loader" not in "".join(_dotted(each) for each in node.args[1:])
                and not (len(node.args) > 1 and isinstance(node.args[1], ast.IfExp))
            ):
                problems.append("yaml.load without a safe loader")
            if name.startswith("subprocess.") and getattr(keywords.get("shell"), "value", False):
                problems.append(f"{name} through a shell")
    return problems


@pytest.mark.slow
def test_source_code_has_no_unsafe_deserialization(root: Path) -> None:
    """Prevents torch.load, pickle, unsafe np.load or YAML, and eval anywhere in the product."""
    modules = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    assert len(modules) > 100
    assert {
        str(path): problems
        for path in modules
        if (problems := forbidden(path.read_text(encoding="utf-8")))
    } == {}
    for text in (
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "eval(x)",
        "subprocess.run(x, shell=True)",
        "f(trust_remote_code=True)",
    ):
        assert forbidden(text), text


class _Trap:
    """Touch a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _object_array(trap: _Trap) -> bytes:
    written = io.BytesIO()
    np.save(written, np.array([trap], dtype=object), allow_pickle=True)
    return written.getvalue()


Reader = tuple[Path, Callable[[], object]]


def _foreign_readers(model: Path, tmp_path: Path) -> list[Reader]:
    """Return the files of an adapter and of an exported model, with their readers."""
    adapter, theirs = tmp_path / "adapter", tmp_path / "theirs"
    adapted, _ = weights.load_checkpoint(model, CPU)
    attach_adapter(adapted, Adapter(LoraOptions(), model, locate.weights_sha256(model)), seed=0)
    adapter.mkdir()
    weights.save_weights(adapted, adapter)
    export_hf(model, theirs)
    for name in ("manifest.json", "tokenizer.model"):
        (theirs / name).unlink()
    names = (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
    return [
        *((path, lambda: weights.load_checkpoint(adapter, CPU)) for path in adapter.iterdir()),
        *((theirs / name, lambda: import_hf(theirs, tmp_path / "new")) for name in names),
    ]


@pytest.mark.slow
def test_malicious_pickle_files_never_execute(
    tmp_path: Path, model: Path, shard_set: Path, root: Path
) -> None:
    """Prevents every reader from running code in a pickle, torch file, object array or YAML."""
    mark = tmp_path / "ran"
    trap = _Trap(mark)
    saved = io.BytesIO()
    torch.save({"x": trap}, saved)
    traps = [
        pickle.dumps(trap),
        saved.getvalue(),
        _object_array(trap),
        b"!!python/object/apply:os.system ['touch %s']" % bytes(mark),
    ]
    pickle.loads(traps[0])
    assert mark.exists()  # the trap works
    mark.unlink()
    network = Llama(LlamaConfig.from_hf(read_json(model / "config.json")))
    readers: list[Reader] = [
        *(
            (model / name, lambda: weights.load_checkpoint(model, CPU))
            for name in ("model.safetensors", "config.json", "tokenizer.model")
        ),
        (model / "manifest.json", lambda: weights.load_checkpoint(model, CPU)),
        (model / "template.json", lambda: load_template(model)),
        (model / training.OPTIMIZER_FILE, lambda: training.restore(model, network, {})),
        *(
            (
                path,
                lambda: [
                    ShardSet.open(shard_set),
                    *map(ShardSet(shard_set, {}).load_text, ("train", "validation")),
                ],
            )
            for path in shard_set.iterdir()
            # All shards are read by the same code.
            if not path.name.startswith("train-") or path.name.startswith("train-00000.")
        ),
        (
            tmp_path / "run" / "run.json",
            lambda: [load_run_shard_set(tmp_path / "run"), read_run(tmp_path / "run")],
        ),
        *(
            (tmp_path / "run" / name, lambda: read_run(tmp_path / "run"))
            for name in ("config.yaml", "metrics.jsonl")
        ),
        (tmp_path / "options.yaml", lambda: load_yaml(tmp_path / "options.yaml")),
        *(
            (tmp_path / "records", lambda s=source: list(s.iter_records(tmp_path / "records")))
            for source in SOURCES.values()
        ),
        (tmp_path / "a.zip", lambda: extract_zip(tmp_path / "a.zip", tmp_path / "unpacked")),
        (tmp_path / "run" / IMPORTED_TOKENIZER_FILE, lambda: load_tokenizer(tmp_path / "run")),
        *_foreign_readers(model, tmp_path),
    ]
    (tmp_path / "run").mkdir()
    for path, reader in readers:
        original = path.read_bytes() if path.exists() else None
        for data in traps:
            path.write_bytes(data)
            try:
                reader()
            except UserError as error:
                assert "\n" not in str(error).replace("\nmodel", "")
            assert not mark.exists(), path
        path.unlink() if original is None else path.write_bytes(original)


@pytest.mark.slow
def test_parquet_with_pickled_type_never_executes(tmp_path: Path) -> None:
    """Prevents pyarrow's unpickling of extension types (CVE-2023-47248, before 14.0.1)."""
    import pyarrow
    import pyarrow.parquet

    mark = tmp_path / "ran"
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(_Trap(mark)),
    }
    field = pyarrow.field("text", pyarrow.string(), metadata=metadata)
    pyarrow.parquet.write_table(
        pyarrow.table([pyarrow.array(["甲"])], pyarrow.schema([field])), tmp_path / "a.parquet"
    )
    list(SOURCES["jsonl"].iter_records(tmp_path / "a.parquet"))
    assert not mark.exists()
