"""What derivations for training have in common: none shares a passage with a test set.

The test files of all known corpora are held out, the dev files too unless a derivation keeps a dev
split, and so are files that follow the name of the source: `titles(wikipedia,csl/test.tsv)`.
"""

from pathlib import Path
from typing import ClassVar, TypeVar

from data.corpora.detect import detect_source
from data.corpora.held_out import held_out_files
from data.derivations.base import Arguments, Transformation
from data.records import Record

R = TypeVar("R", bound=Record)


class WithoutTestPassages(Transformation[R]):
    """Records of which none shares a passage with a test set."""

    held_out_splits: ClassVar[tuple[str, ...]] = ("dev", "test")  # of all known corpora

    def parse_arguments(self, arguments: tuple[str, ...]) -> Arguments:
        """Return the paths of the test files. Raises ValueError if one does not exist."""
        for path in arguments:
            if not Path(path).is_file():
                raise ValueError(f"{path or 'the last argument'} is no file")
        return {"test_files": list(arguments)}

    def held_out_files(self, arguments: Arguments) -> list[tuple[str, Path]]:
        """See `Derivation`."""
        paths = [Path(name) for name in arguments["test_files"]]
        return held_out_files(self.held_out_splits) + [
            (detect_source([path]), path) for path in paths
        ]
