"""What a derivation has to define so that a shard set can be made of another one.

`Selection` keeps some records as they are stored, `Transformation` makes new ones of each. The
splits stay: what is held out of the source is held out of the derived set, so that a model that was
trained on the one is not scored on text that it knows from the other. `data.corpora.derived` writes
the sets.
"""

import abc
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from data.batching.examples import ExampleLengths, Examples
from data.kinds.base import RecordKind
from data.records import Record, SkippedRecord
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

R = TypeVar("R", bound=Record)
# The arguments of a derivation by their names, as in the manifest of a derived set.
Arguments = dict[str, Any]


class Derivation(abc.ABC, Generic[R]):
    """How a shard set is made of another one, whose records are `R`."""

    name: ClassVar[str]  # that of the module
    usage: ClassVar[str]  # such as long(NAME,TOKENS)
    description: ClassVar[str]
    # Raise this when a change makes other records of the same source: sets of another version are
    # then derived again.
    version: ClassVar[int] = 1
    source_kind: RecordKind[R]
    kind: RecordKind[Any]  # of the derived records

    def for_kind(self, source_kind: RecordKind[Any]) -> "Derivation[Any] | None":
        """Return this derivation for source sets of a kind, or None if it does not take them."""
        return self if source_kind is self.source_kind else None

    @abc.abstractmethod
    def parse_arguments(self, arguments: tuple[str, ...]) -> Arguments:
        """Return the arguments by name. Raises ValueError if one is missing or wrong."""

    def held_out_files(self, arguments: Arguments) -> list[tuple[str, Path]]:
        """Return source and path of the files with which no derived record may share a passage.

        By default there are none. For transformations only.
        """
        return []

    def describe_source(self, split: Any, arguments: Arguments) -> str:
        """Return what to say of a training split of which nothing is left; by default nothing."""
        return ""

    def examples(
        self,
        split: Any,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
        arguments: Arguments,
    ) -> Examples:
        """Return the training examples of a split of a derived set; see `RecordKind.examples`."""
        return self.kind.examples(split, length, tokenizer, template, seed)

    def example_lengths(
        self,
        split: Any,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
        arguments: Arguments,
    ) -> ExampleLengths:
        """Return the lengths of `examples` of any row length, for kinds other than text."""
        return self.kind.example_lengths(tokenizer, template, seed)


class Selection(Derivation[R]):
    """Keeps some records of a set as they are stored."""

    @abc.abstractmethod
    def select(self, split: Any, arguments: Arguments) -> np.ndarray:
        """Return which records of a split are kept, bool[n].

        `split` is the `Sequences` of text, or the `StoredRecords` of another kind.
        """

    @abc.abstractmethod
    def reason(self, arguments: Arguments) -> str:
        """Return why the others are left out, for the report: `shorter than 4,096 tokens`."""


class Transformation(Derivation[R]):
    """Makes new records of each record of a set, in worker processes."""

    @abc.abstractmethod
    def derive(
        self, record: R, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """Return the records that are made of one, of the kind `kind`; skipped ones are counted.

        `has_title_line` says that the first line of every document of the set is its title.
        """


def parse_positive(text: str, what: str) -> int:
    """Return a whole number above 0; `what` names it in the ValueError for anything else."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"{what} has to be a whole number above 0, not {text or 'nothing'}")
    return int(text)


def find_derivation(name: str) -> Derivation[Any]:
    """Return the derivation called `name`, which `derivation_names` has."""
    # Imported by name, so that a new derivation is a new module and no list needs a change.
    derivation: Derivation[Any] = importlib.import_module(f"data.derivations.{name}").DERIVATION
    return derivation
