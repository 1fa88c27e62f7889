"""Read datasets of the Hugging Face hub, streamed or downloaded first.

`hub` streams: it needs no disk space, and the network until the end. `hub-download` fetches the
whole dataset into the cache of `datasets` (`HF_HOME`), resumes an interrupted download, and needs
no network afterwards. Both yield the same records.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from data.readers.files import RawRecord, encode_json_value

STREAM_PREFIX, DOWNLOAD_PREFIX = "hub", "hub-download"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset on the Hugging Face hub, as the arguments of `datasets.load_dataset`.

    With `data_files`, a pattern in which `{folder}` stands for the folder of a configuration, the
    native files are read line by line: for repositories whose tables `datasets` cannot read.
    Without it the configuration is loaded by its name.
    """

    path: str
    config: str
    data_files: str | None = None


def is_hub_input(input_: str) -> bool:
    """Return whether an input is `hub[:CONFIG]` or `hub-download[:CONFIG]`, not a file."""
    return input_.partition(":")[0] in (STREAM_PREFIX, DOWNLOAD_PREFIX)


def resolve_hub_config(dataset: HubDataset, hub_input: str) -> str:
    """Return the CONFIG of an input `hub:CONFIG`, or the dataset's default if it names none."""
    return hub_input.partition(":")[2] or dataset.config


def read_hub_records(dataset: HubDataset, hub_input: str) -> Iterator[RawRecord]:
    """Yield the rows of a dataset as raw records: JSON, or the lines of its native files.

    `hub_input` is `hub[:CONFIG]` to stream the dataset, `hub-download[:CONFIG]` to download it
    first. Raises UserError if it cannot be fetched.
    """
    # Imported here: `datasets` takes seconds to load, and most inputs are files.
    import datasets
    import orjson

    config = resolve_hub_config(dataset, hub_input)
    streaming = hub_input.partition(":")[0] == STREAM_PREFIX
    name = f"hub:{dataset.path}:{config}"
    try:
        for number, row in enumerate(_load_rows(dataset, config, streaming=streaming), 1):
            if dataset.data_files is None:
                data = orjson.dumps(row, default=encode_json_value)
            else:
                data = row["text"].encode()
            # A blank line is not a record.
            if data.strip():
                yield RawRecord(name, number, data)
    # `datasets` passes on the errors of its network, archive and file libraries.
    except (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        zlib.error,
        datasets.exceptions.DatasetsError,
    ) as error:
        # The error of a failed download has its reason in the error that caused it.
        reason = " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
        action = "streamed" if streaming else "downloaded"
        raise UserError(
            f"--input {hub_input}: {dataset.path} ({config}) cannot be {action}: {reason}"
        ) from None


def _load_rows(dataset: HubDataset, config: str, *, streaming: bool) -> Any:
    """Return an iterable of rows: the dataset's own, or {"text": line} of its native files."""
    import datasets

    if dataset.data_files is None:
        return datasets.load_dataset(dataset.path, config, split="train", streaming=streaming)
    # Native files are read as lines of any content: `datasets` refuses a column whose type varies
    # (ids that are numbers in one row and text in another).
    return datasets.load_dataset(
        "text",
        data_files=dataset.data_files.replace("{folder}", _config_folder(config)),
        encoding_errors="replace",
        split="train",
        streaming=streaming,
    )


def _config_folder(config: str) -> str:
    """Return the folder pattern of an MNBVC configuration: qa/*/zhihu for `qa_zhihu`.

    A configuration that is a path, such as news/20230196, is returned as it is.
    """
    category, _, name = config.partition("_")
    return config if "/" in config or not name else f"{category}/*/{name}"
