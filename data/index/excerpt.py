"""The part of a passage that has most of what was searched for."""

import numpy as np

from data.index.tokens import fold_text


def find_excerpt(text: str, query: str, length: int = 80) -> str:
    """Return at most `length` characters of a text, in one line; … stands for what is left out.

    They are those with the most characters in pairs that the query has too, the first of several.
    """
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    folded, folded_query = fold_text(line), fold_text(query)
    pairs = {folded_query[i : i + 2] for i in range(len(folded_query) - 1)}
    is_found = np.array([folded[i : i + 2] in pairs for i in range(len(folded) - 1)])
    sums = np.cumsum(np.append(0, is_found))
    size = length - 2  # with room for … on both sides
    start = int(np.argmax(sums[size - 1 :] - sums[: len(sums) - size + 1]))
    # What was found stands in the middle rather than at the end.
    found = np.flatnonzero(is_found[start : start + size - 1])
    if len(found):
        start += (int(found[0] + found[-1]) + 2 - size) // 2
    start = min(max(start, 0), len(line) - size)
    before = "…" if start else ""
    after = "…" if start + size < len(line) else ""
    return before + line[start : start + size] + after
