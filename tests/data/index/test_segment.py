"""Files of segments."""

from pathlib import Path

import pytest

from common.files import check_manifest
from data.index.passages import Passage
from data.index.segment import Segment, merge_segments, write_segment
from data.index.tokens import character_tokens
from tests.helpers.index import random_passages


@pytest.mark.parametrize("bounds", [(0, 13, 20), (0, 1, 2, 20)])
def test_merged_segments_are_one_written_at_once(tmp_path: Path, bounds: tuple[int, ...]) -> None:
    """Prevents lost or shifted postings, counts, lines or digests, and a damaged manifest.

    One passage has more than 255 times the same token, which needs wider counts than the others.
    """
    passages = [*random_passages(19), Passage("", "哈" * 300, "a:19")]
    write_segment(tmp_path / "expected", passages, range(20), character_tokens, {"key": "value"})
    segments = []
    for number, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        folder = tmp_path / str(number)
        digests = range(start, stop)[::-1]
        write_segment(folder, passages[start:stop], digests, character_tokens, {})
        segments.append(Segment(folder))
    merge_segments(tmp_path / "merged", segments, {"key": "value"})
    assert check_manifest(tmp_path / "merged") is None
    files = {path.name for path in (tmp_path / "expected").iterdir()}
    assert files == {path.name for path in (tmp_path / "merged").iterdir()}
    for name in files:
        assert (tmp_path / "merged" / name).read_bytes() == (
            tmp_path / "expected" / name
        ).read_bytes(), name
