"""The files that no model may be trained on: the dev and test splits of all known corpora."""

from collections.abc import Sequence
from pathlib import Path

from data.corpora.manifests import load_corpora
from data.corpora.resolver import download_paths
from data.corpora.sample import SAMPLE_SFT_FILES


def held_out_files(splits: Sequence[str] = ("dev", "test")) -> list[tuple[str, Path]]:
    """Return source and path of the dev and test files of the sample, and of what is downloaded.

    `splits` may name one of the two alone.
    """
    corpora = list(SAMPLE_SFT_FILES.items())
    corpora += [
        (corpus.source, download_paths(name, corpus))
        for name, corpus in load_corpora().items()
        if corpus.source is not None
    ]
    return [
        (source, path)
        for source, files in corpora
        for split in splits
        for path in getattr(files, split)
        if path.exists()
    ]
