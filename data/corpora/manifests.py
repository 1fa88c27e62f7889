"""Manifests of what can be downloaded by name: `assets/manifests/NAME.yaml`."""

import difflib
import functools
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from common.errors import UserError
from common.options import Options
from common.yaml_files import load_yaml
from data.derivations import derivation_names

PROJECT_ROOT = Path(__file__).resolve().parents[2]
MANIFESTS_FOLDER = PROJECT_ROOT / "assets" / "manifests"
TOKENIZER_NAME = "tokenizer"
HUB_URL = "https://huggingface.co"


class CorpusFile(Options):
    """One file to download."""

    path: str = Field(
        pattern=r"^\w[\w/-]*(\.[\w/-]+)*$",
        description="path at a mirror, and below downloads/NAME",
    )
    part: str | None = Field(None, description="the part of the corpus that it belongs to")
    size: int | None = Field(None, gt=0, description="bytes, if published")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="if published")
    role: Literal["train", "dev", "test"] = Field(
        "train", description="the split that the release means it for"
    )
    unpack: str | None = Field(
        None, description="for a .zip: a pattern for the files of the corpus in it"
    )


class Corpus(Options):
    """One manifest: a corpus, its license and its files."""

    description: str
    source: str | None = Field(None, description="the source that reads it; none for the tokenizer")
    license: str
    homepage: str
    megabytes: int = Field(description="size of the download, as printed")
    mirrors: tuple[str, ...] = Field(
        min_length=1, description="URLs, tried in order; {path} becomes the file's path"
    )
    parts: tuple[str, ...] = Field((), description="the parts that are downloaded by default")
    files: tuple[CorpusFile, ...] = Field(min_length=1)

    def select_files(self, parts: tuple[str, ...]) -> list[CorpusFile]:
        """Return the files of these parts, of the default parts if `parts` is empty.

        Files that do not belong to a part are always included. Raises UserError for an unknown
        part.
        """
        # A dictionary rather than a set: it keeps the order of the manifest.
        part_names = list(dict.fromkeys(file.part for file in self.files if file.part))
        for part in parts:
            if part not in part_names:
                hint = "this corpus has no parts"
                if part_names:
                    hint = f"the parts are {', '.join(part_names)}"
                raise UserError(f"--parts {part}: unknown part; {hint}")
        selected_parts = parts or self.parts
        return [file for file in self.files if file.part is None or file.part in selected_parts]

    def urls(self, file: CorpusFile) -> list[str]:
        """Return the URLs of a file in the order to try, the hub mirror in `HF_ENDPOINT` first."""
        urls = [mirror.replace("{path}", file.path) for mirror in self.mirrors]
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        if endpoint:
            hub_urls = [url for url in urls if url.startswith(HUB_URL + "/")]
            urls = [endpoint + url.removeprefix(HUB_URL) for url in hub_urls] + urls
        # Drop duplicates: HF_ENDPOINT may be the hub itself.
        return list(dict.fromkeys(urls))


# Reading thirteen files with PyYAML takes 0.2 s, and resolving one name needs them several times.
@functools.cache
def load_corpora(folder: Path = MANIFESTS_FOLDER) -> dict[str, Corpus]:
    """Load all manifests, by the name of their files.

    Raises UserError for an invalid one, with file and key.
    """
    corpora = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            corpora[path.stem] = Corpus.model_validate(load_yaml(path, error_prefix=""))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path}: {key}: {first['msg']}") from None
    return corpora


def unknown_corpus_error(name: str, detail: str = "", *, data_only: bool = False) -> UserError:
    """Return the error for an unknown corpus name, with suggestions.

    `detail` is added to the problem. With `data_only`, for commands that need records, the
    tokenizer is not suggested; its name is then an error too.
    """
    corpora = load_corpora()
    names = ["sample"]
    names += [
        known_name for known_name, corpus in corpora.items() if corpus.source or not data_only
    ]
    if name in corpora:
        return UserError(
            f"DATA={name}: holds no records ({corpora[name].description}); the names are "
            f"{', '.join(names)}"
        )
    if re.match(rf"({'|'.join(derivation_names())})\(", name):
        return UserError(f"DATA={name}: not a name such as long(wikipedia,4096): mind the brackets")
    problem = f"DATA={name}: unknown data set"
    # Several names in one, with any separator, and perhaps weights as in csl:0.1.
    mixture = [part for part in re.split(r"[,，、;；+\s]+", name) if part]
    mixture_names = [re.sub(r":[\d.]+$", "", part) for part in mixture]
    if len(mixture) > 1 and all(part in names for part in mixture_names):
        # Training takes a mixture, `make data` one name.
        if data_only:
            return UserError(f"{problem}; did you mean {'+'.join(mixture)}?")
        return UserError(f"{problem}; one name at a time, such as DATA={mixture[0]}")
    close_matches = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    if close_matches:
        return UserError(f"{problem}{detail}; did you mean {' or '.join(close_matches)}?")
    return UserError(f"{problem}{detail}; the names are {', '.join(names)}")
