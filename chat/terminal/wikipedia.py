"""A passage of Chinese Wikipedia for a keyword, in simplified characters, kept so that it is fetched once."""

import contextlib
import hashlib
import warnings
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from chat.errors import ChatError
from common.errors import UserError
from common.files import read_json, write_json
from data.sources.wikipedia import simplified_converter, strip_markup

API_URL = "https://zh.wikipedia.org/w/api.php"
TIMEOUT_SECONDS = 10.0  # seconds without a byte
MAX_CHOICES = 10
# Wikimedia turns away the package's own name, which too many programs share.
USER_AGENT = "babyllama-chat/0.1 (python-wikipedia)"
FALLBACK_ADVICE = "也可以用 /资料 直接给出文字"


@dataclass(frozen=True)
class Passage:
    """The introduction of an article. `others` are titles that were found besides; `fetched` is an ISO date."""

    title: str
    text: str
    url: str
    others: tuple[str, ...]
    fetched: str


def get_passage(keyword: str, cache_folder: Path) -> tuple[Passage, bool]:
    """The passage for a keyword, and whether `cache_folder` had it already.

    ChatError when Wikipedia cannot be reached, has no such article or several to choose from.
    """
    keyword = simplified_converter().convert(" ".join(keyword.split()))
    file = cache_folder / f"{hashlib.sha256(keyword.encode()).hexdigest()[:32]}.json"
    if (cached := _read_cached(file, keyword)) is not None:
        return cached, True
    fetched = _fetch(keyword)
    with contextlib.suppress(
        OSError
    ):  # a cache that cannot be written costs another fetch, not the passage
        write_json(file, {"keyword": keyword, **asdict(fetched)})
    return fetched, False


def _read_cached(file: Path, keyword: str) -> Passage | None:
    if not file.is_file():
        return None
    try:
        values = read_json(file)
        if values.pop("keyword") == keyword:
            return Passage(**{**values, "others": tuple(values["others"])})
    except (UserError, AttributeError, KeyError, TypeError):
        pass  # damaged, or of another version: fetched anew and written over
    return None


def _fetch(keyword: str) -> Passage:
    import requests
    import wikipedia

    _configure_client(wikipedia, requests)
    try:
        return _search_article(wikipedia, keyword)
    except wikipedia.PageError:
        raise ChatError(
            f"维基百科里没有找到“{keyword}”：换个关键词试试，{FALLBACK_ADVICE}"
        ) from None
    except requests.Timeout:
        raise ChatError(
            f"维基百科 {TIMEOUT_SECONDS:g} 秒没有回应：检查网络后再试，{FALLBACK_ADVICE}"
        ) from None
    except requests.ConnectionError:
        raise ChatError(f"连不上维基百科：检查网络后再试，{FALLBACK_ADVICE}") from None
    except (requests.RequestException, wikipedia.WikipediaException) as error:
        raise ChatError(
            f"维基百科这次答不了（{' '.join(str(error).split())[:200]}）：过一会儿再试，{FALLBACK_ADVICE}"
        ) from None
    except (AssertionError, KeyError, IndexError, TypeError) as error:
        # How the package fails on answers of a shape it does not know.
        raise ChatError(
            f"维基百科的回答读不懂（{error!r}）：换个关键词试试，{FALLBACK_ADVICE}"
        ) from None


def _configure_client(wikipedia: Any, requests: Any) -> None:
    """Point the package at the Chinese Wikipedia, and give it what it lacks: a timeout, and an eye for HTTP errors."""

    class Requests:
        @staticmethod
        def get(url: str, **options: Any) -> Any:
            answer = requests.get(url, timeout=TIMEOUT_SECONDS, **options)
            answer.raise_for_status()
            return answer

    wikipedia.wikipedia.requests = Requests
    wikipedia.wikipedia.API_URL = API_URL
    wikipedia.set_user_agent(USER_AGENT)
    wikipedia.search.clear_cache()


def _search_article(wikipedia: Any, keyword: str) -> Passage:
    """Search, then the introduction of the article of that very name, or else of the first that was found."""
    convert = simplified_converter().convert
    # Found by searching and not by title, because only the search knows that both ways to write a name are one.
    titles = wikipedia.search(keyword, results=MAX_CHOICES)
    if not titles:
        raise wikipedia.PageError(None, keyword)
    title = next((title for title in titles if convert(title) == keyword), titles[0])
    others = [convert(other) for other in titles if other != title]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BeautifulSoup's, that the package names it no parser
            page = wikipedia.page(title, auto_suggest=False)
    except wikipedia.DisambiguationError as error:
        options = dict.fromkeys([*(convert(option.strip()) for option in error.options), *others])
        choices = [choice for choice in options if choice not in ("", convert(title))]
        raise ChatError(
            f"“{convert(title)}”有几种意思，请选一个再查：{'、'.join(choices[:MAX_CHOICES])}"
        ) from None
    text = (
        strip_markup(convert(page.summary)).strip() or strip_markup(convert(page.content)).strip()
    )
    if not text:
        raise ChatError(f"维基百科的“{convert(title)}”没有正文：换个关键词试试，{FALLBACK_ADVICE}")
    others = [] if convert(title) == keyword else others
    return Passage(convert(page.title), text, page.url, tuple(others), date.today().isoformat())
