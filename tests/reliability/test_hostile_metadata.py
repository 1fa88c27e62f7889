"""Hostile metadata: any JSON value in a model, run or adapter is harmless or one line."""

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import run_layout
from common.errors import UserError, describe_disk_error
from common.files import check_manifest, read_json, write_checksummed_json, write_json
from data.shards import ShardSet, load_run_shard_set
from model.chat_template.template import Template, load_template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.interop.hf_export import export_hf
from model.interop.hf_import import import_hf
from model.llama import Llama
from model.lora import Adapter, LoraOptions, attach_adapter
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE
from train.run.default_base import find_newest_run_of

CPU = torch.device("cpu")
QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", "\0", "x" * 300, "x" * 5000]
)
def test_manifest_paths_outside_folder_are_rejected(tmp_path: Path, name: str) -> None:
    """Prevents a manifest from vouching for, or reading, files outside its folder."""
    (tmp_path / "secret").write_text("x")
    write_checksummed_json(
        tmp_path / "folder" / "manifest.json", {"files": {name: {"bytes": 1, "sha256": "0" * 64}}}
    )
    assert check_manifest(tmp_path / "folder")


KEYS = ["files", "bytes", "sha256", "shards", "fingerprints", "data", "set", "format", "kind"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(value=JSON)
@QUICK
def test_arbitrary_json_in_metadata_files_gives_one_line_error(
    tmp_path: Path, value: object
) -> None:
    """Prevents a KeyError for a run or shard set that someone else wrote."""
    folder = tmp_path / "metadata"
    write_json(folder / "manifest.json", value)
    assert check_manifest(folder) or value.get("files") == {}  # type: ignore[attr-defined]
    for name, reader in (
        ("manifest.json", ShardSet.open),
        ("run.json", load_run_shard_set),
        ("template.json", load_template),
    ):
        write_json(folder / name, value)
        with pytest.raises(UserError):
            reader(folder)
    with pytest.raises(UserError):
        LlamaConfig.from_hf(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"path": 3, "relative": "x", "sha256": "x"},
        {"path": "SELF", "relative": "x", "sha256": "x"},
        {"path": "x", "relative": None},
    ],
)
def test_invalid_adapter_base_gives_one_line_error(tmp_path: Path, value: object) -> None:
    """Prevents tracebacks and endless loops for a malformed base.json."""
    (tmp_path / "adapter_model.safetensors").touch()
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    if isinstance(value, dict) and value.get("path") == "SELF":
        value = {**value, "path": str(tmp_path)}
    write_json(tmp_path / "base.json", value)
    with pytest.raises(UserError, match=r"base"):
        weights.load_checkpoint(tmp_path, CPU)


def test_malformed_step_folders_are_ignored(tmp_path: Path) -> None:
    """Prevents digits that are not ASCII from being parsed as steps."""
    for name in ("step-00000003", "step-²", "step-", "step-٣"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert run_layout.list_steps(tmp_path) == [3]


def test_run_without_provenance_gives_one_line_error(tmp_path: Path) -> None:
    """Prevents a KeyError for one broken run that does not say which it is."""
    (tmp_path / "a" / "checkpoints" / "step-00000001").mkdir(parents=True)
    for value in ([], {}, {"fingerprints": None}):
        write_json(tmp_path / "a" / "run.json", value)
        with pytest.raises(UserError, match=r"a/run\.json has no fingerprints"):
            find_newest_run_of("pretrain", tmp_path)


# Folders of a model, each JSON file with one value changed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a Hugging Face folder, its run, a step without a manifest, and an adapter on it."""
    root = tmp_path_factory.mktemp("folders")
    folders_by_name = {name: root / name for name in ("theirs", "run", "step", "adapter")}
    _theirs(folders_by_name["theirs"])
    import_hf(folders_by_name["theirs"], folders_by_name["run"])
    shutil.copytree(locate.resolve_checkpoint(folders_by_name["run"]), folders_by_name["step"])
    (folders_by_name["step"] / "manifest.json").unlink()
    Template().save(folders_by_name["step"])
    (folders_by_name["run"] / "config.yaml").write_text(
        "adapter: lora\nlora: {rank: 2, targets: [q_proj]}\n"
    )
    (folders_by_name["run"] / "results").mkdir()
    write_json(
        folders_by_name["run"] / "results" / "perplexity.json", {"step": 0, "scores": {"loss": 1.5}}
    )
    model, _ = weights.load_checkpoint(folders_by_name["step"], CPU)
    attach_adapter(
        model,
        Adapter(
            LoraOptions(rank=2),
            folders_by_name["step"],
            locate.weights_sha256(folders_by_name["step"]),
        ),
        seed=0,
    )
    folders_by_name["adapter"].mkdir()
    weights.save_weights(model, folders_by_name["adapter"])
    return folders_by_name


def _theirs(folder: Path) -> None:
    """Write a small Llama with a byte-level tokenizer and two weights files, as transformers."""
    import tokenizers
    from safetensors.torch import load_file, save_file
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = ["<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(
        models.BPE({text: index for index, text in enumerate(alphabet)}, [])
    )
    backend.add_special_tokens(alphabet[:2])
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    folder.mkdir()
    write_json(folder / "tokenizer.json", json.loads(backend.to_str()))
    write_json(
        folder / "tokenizer_config.json",
        {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}},
    )
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    weights.save_weights(Llama(config).init_weights(0), folder)
    scaling = {"rope_type": "linear", "factor": 2.0}
    write_json(
        folder / "config.json", {**config.to_hf(), "rope_scaling": scaling, "eos_token_id": [1, 3]}
    )
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names_by_file = {
        f"part-{number}.safetensors": sorted(tensors)[number::2] for number in range(2)
    }
    for file, names in names_by_file.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    names_to_files = {name: file for file, names in names_by_file.items() for name in names}
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": names_to_files}
    )


def _use(folder: Path, out: Path) -> None:
    """Load a model, encode a prompt for it, and export it."""
    _, tokenizer = weights.load_checkpoint(folder, CPU)
    ids = load_template(locate.resolve_checkpoint(folder)).encode_prompt(
        tokenizer, [("你好", "hello")], "问", "资料"
    )
    tokenizer.decode(ids)  # to nothing, if its pieces are nothing
    assert len(tokenizer.characters_per_id) == tokenizer.vocab_size
    export_hf(folder, out)


REMOVED = object()
VALUES = [
    REMOVED,
    None,
    [],
    {},
    "",
    "x",
    "\0",
    "\ud800",
    "x" * 5000,
    True,
    0,
    -1,
    1.5,
    2**31,
    10**400,
    float("inf"),
    float("nan"),
    [None],
    [[]],
    [{}],
    {"a": None},
]


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to a JSON value and to all inside it; of long lists and dicts the start."""
    yield place
    keys = (
        list(value)[:16]
        if isinstance(value, dict)
        else range(min(len(value), 2))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield from _places(value[key], (*place, key))


@contextlib.contextmanager
def _changed(file: Path, place: tuple[Any, ...], new: Any) -> Iterator[None]:
    """Change one value of a JSON file while the block runs."""
    original = file.read_bytes()
    value = {"": json.loads(original)}
    *before, last = ("", *place)
    node: Any = value
    for key in before:
        node = node[key]
    node[last] = copy.deepcopy(new)
    if new is REMOVED:
        del node[last]
    file.write_text(json.dumps(value.get("")))
    try:
        yield
    finally:
        file.write_bytes(original)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *(
            ("theirs", name)
            for name in (
                "tokenizer.json",
                "tokenizer_config.json",
                "config.json",
                "model.safetensors.index.json",
            )
        ),
        *(("step", name) for name in (IMPORTED_TOKENIZER_FILE, "template.json", "config.json")),
        *(
            ("adapter", name)
            for name in (locate.ADAPTER_CONFIG_FILE, locate.BASE_FILE, "config.json")
        ),
        *(("run", name) for name in ("run.json", "results/perplexity.json")),
    ],
)
@given(data=st.data())
@settings(QUICK, max_examples=12)
def test_arbitrary_values_in_model_files_are_harmless_or_one_line(
    folders: dict[str, Path], tmp_path: Path, folder: str, name: str, data: st.DataObject
) -> None:
    """Prevents a KeyError from inside a library for a hostile or incomplete folder."""
    file = folders[folder] / name
    place, new = (
        data.draw(st.sampled_from(list(_places(read_json(file))))),
        data.draw(st.sampled_from(VALUES)),
    )
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    with _changed(file, place, new):
        try:
            if folder == "theirs":
                import_hf(folders[folder], tmp_path / "run")
            _use(tmp_path / "run" if folder == "theirs" else folders[folder], tmp_path / "out")
        except UserError as error:
            assert all(str(folders[folder]) in line for line in str(error).splitlines()), str(error)
        except OSError as error:
            assert describe_disk_error(error), error


@pytest.mark.parametrize(
    ("place", "new"),
    [
        ((), {}),
        (("fingerprints",), REMOVED),
        (("fingerprints",), None),
        (("fingerprints", "data"), None),
        (("fingerprints", "data"), [{}]),
        (("fingerprints", "data"), [None]),
    ],
)
def test_model_card_is_written_without_data_provenance(
    folders: dict[str, Path], tmp_path: Path, place: tuple[Any, ...], new: Any
) -> None:
    """Catches the provenance values that the random changes above may miss."""
    with _changed(folders["run"] / "run.json", place, new):
        export_hf(folders["run"], tmp_path / "out")
    assert "perplexity" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# Adapters


def _adapter(base: Path, folder: Path, **changes: Any) -> Path:
    """Write an adapter on a base; change `tensors` by part of the name, the rest in the config."""
    model, _ = weights.load_checkpoint(base, CPU)
    attach_adapter(
        model,
        Adapter(LoraOptions(rank=2, targets=("q_proj",)), base, locate.weights_sha256(base)),
        seed=0,
    )
    folder.mkdir()
    weights.save_weights(model, folder)
    from safetensors.torch import load_file, save_file

    state = load_file(folder / locate.ADAPTER_WEIGHTS_FILE)
    for key, tensor in changes.pop("tensors", {}).items():
        state[next(name for name in state if key in name)] = tensor
    save_file(state, folder / locate.ADAPTER_WEIGHTS_FILE)
    write_json(
        folder / locate.ADAPTER_CONFIG_FILE,
        {**read_json(folder / locate.ADAPTER_CONFIG_FILE), **changes},
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tensors": {"lora_A": torch.zeros(0, 8), "lora_B": torch.zeros(8, 0)}},
            "do not fit each other",
        ),
        (
            {"tensors": {"lora_A": torch.tensor(1.0), "lora_B": torch.tensor(1.0)}},
            "do not fit each other",
        ),
        ({"tensors": {"lora_A": torch.zeros(2, 8, 1)}}, "do not fit each other"),
        ({"tensors": {"lora_A": torch.full((2, 8), torch.nan)}}, "values that are not finite"),
        ({"tensors": {"lora_B": torch.full((8, 2), torch.inf)}}, "values that are not finite"),
        (
            {"tensors": {"lora_A": torch.zeros(2, 8, dtype=torch.int8)}},
            "is int8, not fp32, fp16, bf16 or fp64",
        ),
        (
            {"tensors": {"lora_A": torch.zeros(2, 8, dtype=torch.complex64)}},
            "is complex64, not fp32, fp16, bf16 or fp64",
        ),
        (
            {"tensors": {"lora_A": torch.full((2, 8), 1e30), "lora_B": torch.full((8, 2), 1e30)}},
            "the merged weight overflows",
        ),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": -float("inf")}, "lora_alpha is -inf"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": "8"}, "lora_alpha is 8; expected a finite number"),
    ],
)
def test_non_finite_adapter_gives_one_line_error(
    model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Prevents ZeroDivisionError, TypeError, or a model of NaN without an error."""
    folder = _adapter(model, tmp_path / "adapter", **changes)
    with pytest.raises(UserError, match=rf"^{folder}[^\n]*{message}[^\n]*$"):
        weights.load_checkpoint(folder, CPU)


@pytest.mark.slow
def test_adapter_config_must_be_an_object(model: Path, tmp_path: Path) -> None:
    """Prevents an AttributeError for a list."""
    folder = _adapter(model, tmp_path / "adapter")
    for value in ([], "x", None, 3):
        write_json(folder / locate.ADAPTER_CONFIG_FILE, value)
        with pytest.raises(UserError, match=r"adapter_config\.json: expected keys and values, got"):
            weights.load_checkpoint(folder, CPU)


@pytest.mark.slow
def test_circular_adapter_bases_give_one_line_error(model: Path, tmp_path: Path) -> None:
    """Prevents endless recursion."""
    pair = [_adapter(model, tmp_path / name) for name in ("a", "b")]
    for folder, other in zip(pair, reversed(pair), strict=True):
        write_json(
            folder / locate.BASE_FILE,
            {"path": str(other), "relative": "x", "sha256": locate.weights_sha256(other)},
        )
    with pytest.raises(UserError, match="is an adapter that is its own base"):
        weights.load_checkpoint(pair[0], CPU)


def test_non_finite_weights_give_one_line_error(model: Path) -> None:
    """Prevents a model that loads and fails, or answers nothing, at the first token."""
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    state["model.norm.weight"][3] = torch.nan
    save_file(state, model / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight holds values that are not finite"):
        weights.load_checkpoint(model, CPU)
