"""Examples to try a model on: records of the sample's test split, which it was not trained on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from common.errors import UserError
from data.corpora.resolver import find_test_split, replaced_corpus_name
from data.kinds.base import ChatExample
from data.shards import ShardSet, load_run_shard_sets
from data.sources import find_source

# Of each set. The page gets all of them at once.
MAX_EXAMPLES = 50


def find_examples(checkpoint: Path) -> tuple[ChatExample, ...]:
    """Return examples for a model that was fine-tuned on parts of the shipped sample.

    There are none for any other model, nor if its run does not say what it was trained on.
    """
    try:
        return tuple(
            example
            for shards in load_run_shard_sets(checkpoint)
            for example in islice(_iter_examples(shards), MAX_EXAMPLES)
        )
    except UserError:
        return ()  # an export, or a run whose data is gone, or a project without its sample


def _iter_examples(shards: ShardSet) -> Iterator[ChatExample]:
    """Yield the examples in the test split of a set, none if the set is no part of the sample."""
    # Text, such as the replayed part of a mixture, has no test split.
    if shards.kind.is_text or replaced_corpus_name(shards.folder) is None:
        return
    source, files = find_test_split(shards)
    for file in files:
        for record in find_source(source).iter_records(file):
            if isinstance(record, shards.kind.record_type):
                example = shards.kind.chat_example(record)
                if example is not None:
                    yield example
