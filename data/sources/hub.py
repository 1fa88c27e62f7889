"""Datasets on the Hugging Face hub, streamed (nothing but the rows under way is kept) or downloaded first.

`hub` streams: it needs no disk, and the network until the end. `hub-download` fetches the dataset into the cache of
`datasets` (`HF_HOME`), goes on where a download broke off, and afterwards needs no network. Both yield the same records.
"""

import zlib
from collections.abc import Iterator

from common.errors import UserError
from data.readers.files import RawRecord, encode_json_value
from data.sources.base import Source

STREAM_PREFIX, DOWNLOAD_PREFIX = "hub", "hub-download"


def is_hub_input(text: str) -> bool:
    """Whether an input is `hub`, `hub:CONFIG`, `hub-download` or `hub-download:CONFIG` rather than a file."""
    return text.partition(":")[0] in (STREAM_PREFIX, DOWNLOAD_PREFIX)


def resolve_hub_config(source: Source, text: str) -> str:
    """The configuration that an input (see `is_hub`) means for a source. UserError if it is not on the hub."""
    if source.hub is None:
        raise UserError(
            f"--input {text}: source {source.name} has no place on the hub; give its files"
        )
    return text.partition(":")[2] or source.hub.config


def read_hub_records(source: Source, text: str) -> Iterator[RawRecord]:
    """The rows of a source's dataset as raw records for its `parse`.

    Native files are read as lines, whatever they hold: `datasets` would refuse a column whose type varies (ids
    that are numbers here and text there). UserError if the dataset is not to be had.
    """
    import datasets
    import orjson

    hub, config, streaming = (
        source.hub,
        resolve_hub_config(source, text),
        text.partition(":")[0] == STREAM_PREFIX,
    )
    assert hub is not None
    label = f"hub:{hub.path}:{config}"
    try:
        if hub.data_files is None:
            rows = datasets.load_dataset(hub.path, config, split="train", streaming=streaming)
        else:
            rows = datasets.load_dataset(
                "text",
                data_files=hub.data_files.replace("{folder}", _config_folder(config)),
                encoding_errors="replace",
                split="train",
                streaming=streaming,
            )
        for number, row in enumerate(rows, 1):
            data = (
                orjson.dumps(row, default=encode_json_value)
                if hub.data_files is None
                else row["text"].encode()
            )
            if data.strip():
                yield RawRecord(label, number, data)
    except (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        zlib.error,
        datasets.exceptions.DatasetsError,
    ) as error:
        # A download that fails says only that it failed, and why in the error behind it.
        reason = " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
        done = "streamed" if streaming else "downloaded"
        raise UserError(
            f"--input {text}: {hub.path} ({config}) cannot be {done}: {reason}"
        ) from None


def _config_folder(config: str) -> str:
    """The folders of a repository that a configuration means: `qa_zhihu` lies in qa/DATE/zhihu; a path is itself."""
    part, _, rest = config.partition("_")
    return config if "/" in config or not rest else f"{part}/*/{rest}"
