"""Import a Llama in Hugging Face format as a run that trains, evaluates, chats and exports."""

from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import read_json, read_limited
from common.machine import collect_environment
from model.chat_template.from_jinja import UnsupportedTemplateError, infer_template
from model.chat_template.template import TEMPLATE_FILE, Template, load_template
from model.chat_template.to_jinja import PRETRAINED_COMMENT, build_jinja_template
from model.checkpoint import locate, weights
from model.checkpoint.single_checkpoint import write_single_checkpoint_run
from model.config import LlamaConfig
from model.interop.hf_export import is_export
from model.llama import Llama
from model.tokenizer import load_tokenizer
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE, TOKENIZER_FILE, Tokenizer
from model.tokenizer.imported import TOKENIZER_JSON, ImportedTokenizer, load_hf_tokenizer

GENERATION_CONFIG = "generation_config.json"
_CHAT_TEMPLATE_FILE = "chat_template.jinja"
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth")
# The end of the names of buffers that older versions of transformers stored among the weights.
_IGNORED_BUFFER = "rotary_emb.inv_freq"
_DEFAULT_TEMPLATE_NOTE = "the project's own template"
_SAVE_TOKENIZER_HINT = (
    f"save {TOKENIZER_JSON} beside the weights, for example with transformers' "
    "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
)


def import_hf(folder: Path, run: Path) -> tuple[Llama, Tokenizer, str]:
    """Import the model in `folder` as the new run directory `run`.

    Returns the model, the tokenizer, and a phrase about the chat template for the user. Raises
    UserError if the folder is not a supported Llama, or if the run exists.
    """
    if run.exists():
        raise UserError(f"--run {run} exists already: name a new run")
    config_values = _read_config(folder)
    tokenizer, template, template_note = _load_tokenizer(folder, config_values)
    # The tokenizer and generation_config.json may name other ids than config.json.
    token_ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": _collect_stop_ids(folder, config_values, tokenizer),
    }
    config = LlamaConfig.from_hf({**config_values, **token_ids}, str(folder / locate.CONFIG_FILE))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids and the model "
            f"{config.vocab_size}: they do not belong together"
        )
    model = weights.load_model(
        folder, config, torch.device("cpu"), config_values, ignore_suffix=_IGNORED_BUFFER
    )
    weights.set_unused_ids(model, tokenizer)
    _write_run(folder, run, model, tokenizer, template)
    return model, tokenizer, template_note


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the contents of `config.json`.

    Raises UserError if the path is not a folder, if the folder holds an adapter or no weights in
    safetensors format, or if the file is missing or not a mapping.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: download the model first, and name the folder with its "
            f"{locate.CONFIG_FILE}"
        )
    # Before config.json is read, which PEFT does not write.
    if locate.is_adapter(folder):
        raise UserError(
            f"{folder} is an adapter, which is used without an import: import its base model, "
            "write the run directory of that import into the adapter's "
            f"{locate.ADAPTER_CONFIG_FILE} (base_model_name_or_path), and name the adapter's "
            "folder as --checkpoint"
        )
    values = read_json(folder / locate.CONFIG_FILE)
    if not isinstance(values, dict):
        raise UserError(
            f"{folder / locate.CONFIG_FILE}: expected keys and values, got {type(values).__name__}"
        )
    if not locate.has_weights(folder):
        pickles = sorted(path.name for pattern in _PICKLE_PATTERNS for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{folder}: {pickles[0]} is a pickle, which can run any code: convert it to "
                "safetensors, for example with transformers' save_pretrained"
            )
        raise UserError(
            f"{folder} has no weights: expected {locate.WEIGHTS_FILE} or "
            f"{locate.WEIGHTS_INDEX_FILE}"
        )
    return values


def _collect_stop_ids(
    folder: Path, config_values: dict[str, Any], tokenizer: Tokenizer
) -> list[int]:
    """Return the ids that end generation in the original model.

    The first is the one that ends an answer. Raises UserError if a file has no valid ids.
    """
    generation_config = {}
    if (folder / GENERATION_CONFIG).is_file():
        generation_config = read_json(folder / GENERATION_CONFIG)
    if not isinstance(generation_config, dict):
        raise UserError(
            f"{folder / GENERATION_CONFIG}: expected keys and values, got "
            f"{type(generation_config).__name__}"
        )
    stop_ids = [tokenizer.eos_id, tokenizer.eod_id]
    stop_ids += _parse_eos_ids(config_values, folder / locate.CONFIG_FILE)
    stop_ids += _parse_eos_ids(generation_config, folder / GENERATION_CONFIG)
    # Some files name ids that the model does not have. Others name ids that only the tokenizer does
    # not have: at these the original model stops, too. `from_hf` reports a size that is no number.
    vocab_size = config_values.get("vocab_size")
    limit = max(tokenizer.vocab_size, vocab_size if type(vocab_size) is int else 0)
    usable_ids = [token_id for token_id in stop_ids if token_id < limit]
    # Without duplicates, in the same order.
    return list(dict.fromkeys(usable_ids))


def _parse_eos_ids(values: dict[str, Any], path: Path) -> list[int]:
    """Return `eos_token_id` as a list. Raises UserError if it is not an id or a list of ids."""
    value = values.get("eos_token_id")
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not all(type(index) is int and index >= 0 for index in ids):
        raise UserError(
            f"{path}: eos_token_id: {value!r} is not valid; expected an id, or a list of ids"
        )
    return ids


def _load_tokenizer(
    folder: Path, config_values: dict[str, Any]
) -> tuple[Tokenizer, Template | None, str]:
    """Return the tokenizer, the chat template to save in the run, and a phrase about the template.

    The template is None if the run has to use the project's default template, with which the model
    was not trained.
    """
    has_template = (folder / TEMPLATE_FILE).is_file()
    has_imported_tokenizer = (folder / IMPORTED_TOKENIZER_FILE).is_file()
    is_own_export = is_export(folder) or has_imported_tokenizer or has_template
    if is_own_export or not (folder / TOKENIZER_JSON).is_file():
        tokenizer = _load_native_tokenizer(folder)
        if has_template:
            return tokenizer, load_template(folder), "the template of the folder"
        return tokenizer, None, _DEFAULT_TEMPLATE_NOTE
    imported = load_hf_tokenizer(folder, config_values)
    source = _read_chat_template(folder, imported)
    if not source:
        return imported, None, f"{_DEFAULT_TEMPLATE_NOTE}: it has no chat template"
    if not isinstance(source, str):
        return (
            imported,
            None,
            f"{_DEFAULT_TEMPLATE_NOTE}: it has several chat templates; keep one and import again",
        )
    # An export of this project that another program has saved again, perhaps with other line ends:
    # white space between the tags has no effect.
    own_source = source.removeprefix(PRETRAINED_COMMENT.rstrip())
    if own_source.split() == build_jinja_template(Template()).split():
        template = Template() if own_source == source else None
        return imported, template, _DEFAULT_TEMPLATE_NOTE
    try:
        template, answer_end_id = infer_template(source, imported)
    except UnsupportedTemplateError as error:
        reason = " ".join(str(error).split())[:200]
        note = f"{_DEFAULT_TEMPLATE_NOTE}: its chat template cannot be used ({reason})"
        return imported, None, note
    with_template = imported.with_chat_template(source, answer_end_id, folder / TOKENIZER_JSON)
    return with_template, template, "its own chat template"


def _read_chat_template(folder: Path, tokenizer: ImportedTokenizer) -> Any:
    """Return the Jinja source of a folder's chat template, a list of named ones, or None.

    Raises UserError if `chat_template.jinja` is too large or not UTF-8.
    """
    # transformers prefers the file to the entry in tokenizer_config.json.
    file = folder / _CHAT_TEMPLATE_FILE
    if not file.is_file():
        return tokenizer.tokenizer_config.get("chat_template")
    try:
        return read_limited(file).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8, "
            "or remove it to import without a chat template"
        ) from None


def _load_native_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a folder that this project exported.

    Raises UserError if there is none, or if it is a SentencePiece model of another project.
    """
    if not (folder / IMPORTED_TOKENIZER_FILE).is_file() and not (folder / TOKENIZER_FILE).is_file():
        raise UserError(f"{folder} has no {TOKENIZER_JSON}: {_SAVE_TOKENIZER_HINT}")
    tokenizer = load_tokenizer(folder)
    # Loading normalizes a SentencePiece model of another project, which may change its ids.
    if tokenizer.serialized != (folder / tokenizer.file_name).read_bytes():
        raise UserError(
            f"{folder}: {TOKENIZER_FILE} alone does not say how texts were split: "
            f"{_SAVE_TOKENIZER_HINT}"
        )
    return tokenizer


def _write_run(
    folder: Path, run: Path, model: Llama, tokenizer: Tokenizer, template: Template | None
) -> None:
    """Write a run with one checkpoint, at step 0; `folder` is recorded as its origin."""
    run_info = {
        "made": collect_environment(torch.device("cpu")),
        "imported_from": str(folder),
        "shards": [],
        "fingerprints": {
            "data": [],
            "tokenizer": tokenizer.fingerprint,
            "model": model.config.to_hf(),
        },
    }
    write_single_checkpoint_run(run, run_info, 0, model, tokenizer, template)
