"""Fetch the introduction of a Chinese Wikipedia article, in simplified characters, with a cache."""

import contextlib
import hashlib
import warnings
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import requests
import wikipedia
from requests.adapters import HTTPAdapter

from chat.errors import ChatError
from common.errors import UserError
from common.files import read_json, write_json
from data.sources.wikipedia import strip_markup, to_simplified

API_URL = "https://zh.wikipedia.org/w/api.php"
TIMEOUT_SECONDS = 10.0  # without a byte from the server
MAX_CHOICES = 10
# Wikimedia blocks the default user agent of the package `wikipedia`, which many programs share.
USER_AGENT = "babyllama-chat/0.1 (python-wikipedia)"
FALLBACK_ADVICE = "或用 /资料 直接输入文字"


@dataclass(frozen=True)
class Passage:
    """The introduction of an article."""

    title: str
    text: str
    url: str
    others: tuple[str, ...]  # titles of the other search results, if none matches exactly
    fetched: str  # ISO date of the download


def get_passage(keyword: str, cache_folder: Path) -> tuple[Passage, bool]:
    """Return the passage for a keyword, and whether it comes from `cache_folder`.

    Raises ChatError if Wikipedia cannot be reached, or if it has no article or several articles of
    that name.
    """
    keyword = to_simplified(" ".join(keyword.split()))
    file = cache_folder / f"{hashlib.sha256(keyword.encode()).hexdigest()[:32]}.json"
    if (cached_passage := _read_cached(file, keyword)) is not None:
        return cached_passage, True
    passage = _fetch(keyword)
    # A cache that cannot be written costs another download, not the passage.
    with contextlib.suppress(OSError):
        write_json(file, {"keyword": keyword, **asdict(passage)})
    return passage, False


def _read_cached(file: Path, keyword: str) -> Passage | None:
    """Return the passage in a cache file, or None if the file is missing or cannot be used."""
    if not file.is_file():
        return None
    try:
        values = read_json(file)
        # The name of the file is a shortened hash, which two keywords could share.
        if values.pop("keyword") == keyword:
            return Passage(**{**values, "others": tuple(values["others"])})
    except (UserError, AttributeError, KeyError, TypeError):
        pass  # damaged, or of another version: downloaded again and overwritten
    return None


def _fetch(keyword: str) -> Passage:
    """Download a passage. Raises ChatError for every failure of the package `wikipedia`."""
    _configure_package()
    try:
        return _search_article(keyword)
    except wikipedia.PageError:
        raise ChatError(f"维基百科中找不到“{keyword}”：请换一个关键词，{FALLBACK_ADVICE}") from None
    except requests.Timeout:
        raise ChatError(
            f"维基百科 {TIMEOUT_SECONDS:g} 秒没有响应：请检查网络后重试，{FALLBACK_ADVICE}"
        ) from None
    except requests.ConnectionError:
        raise ChatError(f"无法连接维基百科：请检查网络后重试，{FALLBACK_ADVICE}") from None
    except (requests.RequestException, wikipedia.WikipediaException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ChatError(
            f"维基百科暂时无法使用（{reason}）：请稍后重试，{FALLBACK_ADVICE}"
        ) from None
    except (AssertionError, KeyError, IndexError, TypeError) as error:
        # The package raises these for a response with a structure that it does not expect.
        raise ChatError(
            f"维基百科返回的内容无法解析（{error!r}）：请换一个关键词，{FALLBACK_ADVICE}"
        ) from None


class _TimeoutAdapter(HTTPAdapter):
    """Transport with a timeout for every request."""

    def send(self, request: Any, *arguments: Any, **options: Any) -> requests.Response:
        """Send `request`. Raises requests.Timeout after TIMEOUT_SECONDS without a byte."""
        return super().send(request, *arguments, **{**options, "timeout": TIMEOUT_SECONDS})


def _raise_for_status(response: requests.Response, **_: Any) -> None:
    response.raise_for_status()


def _configure_package() -> None:
    """Point the package at the Chinese Wikipedia, over HTTPS, with a timeout and status checks.

    The package calls `requests.get` without a timeout, ignores HTTP errors, and has no setting for
    either or for HTTPS. Its global `requests` is therefore replaced by a session, which has the
    same `get`, and whose adapters and response hooks add the timeout and the status check.
    """
    session = requests.Session()
    session.mount("https://", _TimeoutAdapter())
    session.mount("http://", _TimeoutAdapter())
    session.hooks["response"].append(_raise_for_status)
    wikipedia.wikipedia.requests = session
    wikipedia.wikipedia.API_URL = API_URL
    wikipedia.set_user_agent(USER_AGENT)
    # A search without results would otherwise be remembered for as long as the chat runs.
    wikipedia.search.clear_cache()


def _search_article(keyword: str) -> Passage:
    """Return the introduction of the article named `keyword`, else of the first search result.

    Searches even for an exact title, because only the search treats traditional and simplified
    titles as equal.
    """
    titles = wikipedia.search(keyword, results=MAX_CHOICES)
    if not titles:
        raise wikipedia.PageError(None, keyword)
    exact_matches = (title for title in titles if to_simplified(title) == keyword)
    title = next(exact_matches, titles[0])
    simplified_title = to_simplified(title)
    other_titles = [to_simplified(other) for other in titles if other != title]
    try:
        with warnings.catch_warnings():
            # BeautifulSoup warns that the package does not choose a parser.
            warnings.simplefilter("ignore")
            page = wikipedia.page(title, auto_suggest=False)
    except wikipedia.DisambiguationError as error:
        options = [to_simplified(option.strip()) for option in error.options]
        # dict.fromkeys removes duplicates and keeps the order.
        choices = [
            choice
            for choice in dict.fromkeys(options + other_titles)
            if choice not in ("", simplified_title)
        ]
        raise ChatError(
            f"“{simplified_title}”有多个含义，请选一个再查：{'、'.join(choices[:MAX_CHOICES])}"
        ) from None
    # A few articles have no text above their first heading; then the whole article is used.
    introduction = strip_markup(to_simplified(page.summary)).strip()
    text = introduction or strip_markup(to_simplified(page.content)).strip()
    if not text:
        raise ChatError(
            f"维基百科条目“{simplified_title}”没有正文：请换一个关键词，{FALLBACK_ADVICE}"
        )
    is_exact_match = simplified_title == keyword
    return Passage(
        title=to_simplified(page.title),
        text=text,
        url=page.url,
        others=() if is_exact_match else tuple(other_titles),
        fetched=date.today().isoformat(),
    )
