"""Divide the records of a source into passages: windows of sentences, with a title where known."""

import math
import re
from dataclasses import dataclass

import numpy as np

from data.index.options import WindowOptions
from data.prepare.clean import clean
from data.prepare.options import CleanOptions
from data.records import Conversation, Document, Record, Summary

# With the marks that close what the sentence was part of, and the white space after it.
_SENTENCE_END = re.compile(r"""(?:[。！？!?…；\n]|\.(?=\s))[”’」』）》】")]*\s*""")
_CLEAN = CleanOptions()


@dataclass(frozen=True, slots=True)
class Passage:
    """A window of a document, with the title and the source of the document."""

    title: str
    text: str
    source: str

    @property
    def titled_text(self) -> str:
        """Return the text that is indexed: the title, if there is one, and the window."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class TitledDocument:
    """A whole document. The title may be empty; `source` says where the document is from."""

    title: str
    text: str
    source: str


def clean_document(document: TitledDocument) -> TitledDocument:
    """Return a document of unknown origin in clean characters, its title in one line."""
    title = " ".join(clean(document.title, _CLEAN).split())
    return TitledDocument(title, clean(document.text, _CLEAN), document.source)


def extract_document(record: Record, has_title_line: bool) -> tuple[str, str]:
    """Return the title, or "", and the text of a record.

    Of a conversation that is its reference or, without one, questions and answers; of a summary the
    article. `has_title_line` says that documents begin with a line of title.
    """
    match record:
        case Conversation(reference=reference) if reference:
            return "", reference
        case Summary(article=article, title=title):
            return title.strip(), article
        case Document(text=text):
            text = clean(text, _CLEAN)
            title, _, rest = text.partition("\n")
            return (title.strip(), rest) if has_title_line and rest else ("", text)
        case _:
            return "", record.plain_text()


def split_windows(text: str, options: WindowOptions) -> list[str]:
    """Return the fewest windows of about equal length, on average `options.characters` at most.

    A text of that length or less is one window. The others end where a sentence ends or, if none
    does within half a window, anywhere. Windows that would be blank are left out.
    """
    text = text.strip()
    if len(text) <= options.characters:
        return [text] if text else []
    num_windows = math.ceil(len(text) / options.characters)
    length = len(text) / num_windows
    sentence_ends = (match.end() for match in _SENTENCE_END.finditer(text))
    ends = np.array(sorted({0, *sentence_ends, len(text)}))
    targets = np.arange(1, num_windows) * length
    following = np.searchsorted(ends, targets)
    before, after = ends[following - 1], ends[following]
    nearest = np.where(targets - before <= after - targets, before, after)
    stops = np.where(np.abs(nearest - targets) < length / 2, nearest, targets).astype(np.int64)
    # The first sentence that begins at most `overlap` characters before the window.
    starts = np.minimum(ends[np.searchsorted(ends, stops - options.overlap)], stops)
    windows = [
        text[start:stop].strip()
        for start, stop in zip([0, *starts.tolist()], [*stops.tolist(), len(text)], strict=True)
    ]
    return [window for window in windows if window]
