"""Datasets on the Hugging Face hub, streamed: nothing but the rows under way is kept."""

from collections.abc import Iterator

from common.errors import UserError
from data.reading import RawRecord, json_value
from data.sources.base import Source

PREFIX = "hub"


def is_hub(text: str) -> bool:
    """Whether an input is `hub` or `hub:CONFIG` rather than a file."""
    return text == PREFIX or text.startswith(f"{PREFIX}:")


def hub_config(source: Source, text: str) -> str:
    """The configuration that `hub` or `hub:CONFIG` means for a source. UserError if it is not on the hub."""
    if source.hub is None:
        raise UserError(f"--input {text}: source {source.name} has no place on the hub; give its files")
    return text.partition(":")[2] or source.hub.config


def stream(source: Source, text: str) -> Iterator[RawRecord]:
    """The rows of a source's dataset as raw records for its `parse`.

    Native files are streamed as lines, whatever they hold: `datasets` would refuse a column whose type varies (ids
    that are numbers here and text there). UserError if the dataset is not to be had.
    """
    import datasets
    import orjson

    hub, config = source.hub, hub_config(source, text)
    assert hub is not None
    label = f"hub:{hub.path}:{config}"
    try:
        if hub.files is None:
            rows = datasets.load_dataset(hub.path, config, split="train", streaming=True)
        else:
            rows = datasets.load_dataset(
                "text", data_files=hub.files.replace("{folder}", _folder(config)), encoding_errors="replace",
                split="train", streaming=True,
            )
        for number, row in enumerate(rows, 1):
            data = orjson.dumps(row, default=json_value) if hub.files is None else row["text"].encode()
            if data.strip():
                yield RawRecord(label, number, data)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"--input {text}: {hub.path} ({config}) cannot be streamed: {reason}") from None


def _folder(config: str) -> str:
    """The folders of a repository that a configuration means: `qa_zhihu` lies in qa/DATE/zhihu; a path is itself."""
    part, _, rest = config.partition("_")
    return config if "/" in config or not rest else f"{part}/*/{rest}"
