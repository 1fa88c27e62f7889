"""Passages of Wikipedia, from a server on this machine that answers as Wikipedia's does."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from chat.terminal import wikipedia
from common.errors import UserError
from tests.chat.conftest import ABOUT_BAI, MAYOR, Chat, Process

SEARCHES = {
    "青禾镇": ["青禾鎮站", "青禾鎮"],
    "青禾": ["青禾鎮", "青禾鎮站"],
    "长河": ["長河"],
    "长河（人名）": ["長河（人名）"],
    "坏了": ["壞了"],
    "空白": ["空白"],
}
INTRODUCTIONS = {
    "青禾鎮": "青禾鎮的鎮長是白雲飛。\n{{青禾模板}}",
    "青禾鎮站": "青禾鎮站是一座車站。",
    "空白": "",
    "長河（人名）": "顧長河是一個人。",
}
AMBIGUOUS = {
    "長河": '<ul><li><a href="#">長河（人名）</a>，一個人</li><li>無鏈接</li><li><a href="#">長河鎮</a></li></ul>'
}


class Wikipedia(BaseHTTPRequestHandler):
    """`action=query` as far as the wikipedia package asks."""

    asked: ClassVar[list[dict[str, str]]] = []
    agents: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        query = {
            name: values[0]
            for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()
        }
        self.asked.append(query)
        self.agents.add(self.headers["User-Agent"])
        title = query.get("titles", "")
        if "srsearch" in query:
            if query["srsearch"] == "很慢":
                time.sleep(2)
            if query["srsearch"] == "挡住":
                return self.send(503, b"<html>blocked</html>")
            if query["srsearch"] == "网页":
                return self.send(200, b"<html>log in first</html>")
            return self.query(
                search=[{"ns": 0, "title": found} for found in SEARCHES.get(query["srsearch"], [])]
            )
        if title not in INTRODUCTIONS and title not in AMBIGUOUS:
            return self.send(200, b'{"query": {}}')
        page: dict[str, Any] = {
            "pageid": 7,
            "title": title,
            "fullurl": f"https://zh.wikipedia.org/wiki/{title}",
        }
        if "revisions" in query["prop"]:
            page["revisions"] = [{"*": AMBIGUOUS.get(title), "revid": 1, "parentid": 0}]
        if "extracts" in query["prop"]:
            page["extract"] = INTRODUCTIONS[title]
        if "pageprops" in query["prop"] and title in AMBIGUOUS:
            page["pageprops"] = {"disambiguation": ""}
        self.query(pages={"7": page})

    def query(self, **facts: Any) -> None:
        self.send(200, json.dumps({"batchcomplete": "", "query": facts}).encode())

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Wikipedia)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(wikipedia, "API_URL", f"http://127.0.0.1:{server.server_port}/w/api.php")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Wikipedia.asked.clear()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia, "API_URL", "http://127.0.0.1:9/w/api.php")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_an_article_becomes_the_reference(chat: Chat, server: ThreadingHTTPServer) -> None:
    """A passage in traditional characters, of another article than was asked for, or one that is not in the prompt."""
    done = chat(f"{MAYOR}\n/wiki 青禾\n/资料\n{MAYOR}\n/维基\n", "--wikipedia", "青禾鎮")
    assert done.out.splitlines() == ["白云飞", ABOUT_BAI, "白云飞"], done.err
    assert (
        "没有同名的条目，取最相近的“青禾镇”；另有：青禾镇站" in done.err
        and done.err.count("没有同名的条目") == 1
    )
    assert (
        "资料：11 字（维基百科“青禾镇”，https://zh.wikipedia.org/wiki/青禾鎮）" in done.err
        and "请给一个关键词" in done.err
    )
    assert Wikipedia.agents == {wikipedia.USER_AGENT}


@pytest.mark.slow
def test_fetched_article_is_cached_offline(
    chat: Chat,
    server: ThreadingHTTPServer,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A passage fetched again every time, or lost when the network is; a damaged cache that ends the chat."""
    chat("", "--wikipedia", "青禾镇")
    asked = len(Wikipedia.asked)
    with monkeypatch.context() as away:
        away.setattr(wikipedia, "API_URL", "http://127.0.0.1:9/w/api.php")
        done = chat(f"/维基 青禾鎮\n/wiki  青禾镇 \n{MAYOR}\n/wiki 青禾\n")
    assert (
        done.out == "白云飞\n"
        and done.err.count("本地缓存，") == 2
        and "连不上维基百科" in done.err
    )
    assert len(Wikipedia.asked) == asked
    (file,) = (Path(environment["XDG_CACHE_HOME"]) / "babyllama/wikipedia").iterdir()
    other = {
        "keyword": "别的",
        "title": "别的",
        "text": "别的",
        "url": "",
        "others": [],
        "fetched": "2026-11-21",
    }
    for damage in ("{", "[]", '{"keyword": "青禾镇"}', json.dumps(other)):
        file.write_text(damage, encoding="utf-8")
        assert chat(MAYOR, "--wikipedia", "青禾镇").out == "白云飞\n"
        assert json.loads(file.read_text(encoding="utf-8"))["title"] == "青禾镇"


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("没有这个", "没有找到“没有这个”"),
        ("长河", "“长河”有几种意思，请选一个再查：长河（人名）、长河镇"),
        ("很慢", "0.5 秒没有回应"),
        ("挡住", "维基百科这次答不了（503"),
        ("网页", "维基百科这次答不了（"),
        ("坏了", "读不懂"),
        ("空白", "没有正文"),
    ],
)
def test_unavailable_article_gives_one_line_error(
    server: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keyword: str,
    words: str,
) -> None:
    """A traceback, a wait without end, a page of HTML as a reference; a failure that is remembered."""
    monkeypatch.setattr(wikipedia, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(UserError) as failure:
        wikipedia.get_passage(keyword, tmp_path)
    assert (
        words in str(failure.value)
        and "\n" not in str(failure.value)
        and not list(tmp_path.iterdir())
    )


def test_missing_article_is_not_cached(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search without result that the package remembers for as long as the chat runs."""
    with pytest.raises(UserError, match="没有找到"):
        wikipedia.get_passage("新条目", tmp_path)
    monkeypatch.setitem(SEARCHES, "新条目", ["青禾鎮"])
    assert wikipedia.get_passage("新条目", tmp_path)[0].title == "青禾镇"


def test_disambiguation_option_can_be_looked_up(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """A list of choices none of which leads anywhere: they are shown simplified and must be found so."""
    assert wikipedia.get_passage("长河（人名）", tmp_path)[0].text == "顾长河是一个人。"


@pytest.mark.slow
def test_offline_startup_without_reference_gives_one_line_error(process: Process) -> None:
    """An answer without the passage that was asked for, as if it stood on it."""
    done = process(f"{MAYOR}\n".encode(), "--wikipedia", "青禾镇")
    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 2 and not done.stdout and last.startswith("error: 连不上维基百科")
    assert b"Traceback" not in done.stderr


def test_offline_lookup_keeps_conversation_unchanged(chat: Chat, offline: None) -> None:
    """A conversation lost because Wikipedia was."""
    done = chat("我叫书白。\n/wiki 青禾镇\n我叫什么？\n")
    assert done.out == "好的。\n书白\n" and "连不上维基百科" in done.err
