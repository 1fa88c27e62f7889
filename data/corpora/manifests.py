"""What can be downloaded by name: one YAML in assets/manifests for each corpus, and one for the tokenizer."""

import difflib
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from common.errors import UserError
from common.options import Options, load_yaml

PROJECT_ROOT = Path(__file__).resolve().parents[2]
MANIFESTS_FOLDER = PROJECT_ROOT / "assets" / "manifests"
TOKENIZER_NAME = "tokenizer"
HUB_URL = "https://huggingface.co"


class CorpusFile(Options):
    """One file to download."""

    path: str = Field(
        pattern=r"^\w[\w/-]*(\.[\w/-]+)*$",
        description="its place at a mirror, and below downloads/NAME",
    )
    part: str | None = Field(None, description="the part of the corpus it belongs to")
    size: int | None = Field(None, gt=0, description="bytes, where they are known exactly")
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="where it is known, never guessed"
    )
    role: Literal["train", "dev", "test"] = Field(
        "train", description="what the release means it for"
    )
    unpack: str | None = Field(
        None, description="for a .zip: the pattern of the files in it that are the corpus"
    )


class Corpus(Options):
    """One manifest: what it is, under which terms, and where its files are."""

    description: str
    source: str | None = Field(None, description="the source that reads it; a tokenizer has none")
    licence: str
    homepage: str
    megabytes: int = Field(description="size of the download, for the reader")
    mirrors: tuple[str, ...] = Field(
        min_length=1, description="addresses, tried in order; {path} is the file's"
    )
    parts: tuple[str, ...] = Field((), description="the parts that are downloaded by default")
    files: tuple[CorpusFile, ...] = Field(min_length=1)

    def select_files(self, parts: tuple[str, ...]) -> list[CorpusFile]:
        """The files of these parts (default: the manifest's); UserError for a part that it does not have."""
        part_names = list(dict.fromkeys(file.part for file in self.files if file.part))
        for part in parts:
            if part not in part_names:
                raise UserError(
                    f"--parts {part}: there is no such part; expected {', '.join(part_names) or 'none here'}"
                )
        selected_parts = parts or self.parts
        return [file for file in self.files if file.part is None or file.part in selected_parts]

    def urls(self, file: CorpusFile) -> list[str]:
        """The addresses of a file; `HF_ENDPOINT` in the environment puts that copy of the Hugging Face hub first."""
        urls = [mirror.replace("{path}", file.path) for mirror in self.mirrors]
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        endpoint_urls = (
            [endpoint + url.removeprefix(HUB_URL) for url in urls if url.startswith(HUB_URL + "/")]
            if endpoint
            else []
        )
        return list(dict.fromkeys(endpoint_urls + urls))


def load_corpora(folder: Path = MANIFESTS_FOLDER) -> dict[str, Corpus]:
    """All manifests by name. UserError naming the file and key of one that is wrong."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            found[path.stem] = Corpus.model_validate(load_yaml(path, error_prefix=""))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
            ) from None
    return found


def unknown_corpus_error(name: str, detail: str = "", *, data_only: bool = False) -> UserError:
    """The one line for a name that means nothing, with what may have been meant; `data_only`: only what holds records."""
    corpora_by_name = load_corpora()
    names = [
        "sample",
        *(each for each in corpora_by_name if corpora_by_name[each].source or not data_only),
    ]
    if name in corpora_by_name:
        return UserError(
            f"DATA={name}: holds no records ({corpora_by_name[name].description}); the names are {', '.join(names)}"
        )
    requested_names = [part for part in re.split(r"[,，、;；+\s]+", name) if part]
    if len(requested_names) > 1 and all(
        re.sub(r":[\d.]+$", "", part) in names for part in requested_names
    ):
        suggestion = (
            f"did you mean {'+'.join(requested_names)}?"
            if data_only
            else f"one name at a time, such as DATA={requested_names[0]}"
        )
        return UserError(f"DATA={name}: there is no such data set; {suggestion}")
    close_matches = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(close_matches)}?"
        if close_matches
        else f"the names are {', '.join(names)}"
    )
    return UserError(f"DATA={name}: there is no such data set{detail}; {hint}")
