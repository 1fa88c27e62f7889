"""Passages of Wikipedia, from a local server that answers like Wikipedia's API."""

import contextlib
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
from tests.chat.conftest import BAI_REFERENCE, MAYOR_QUESTION, Chat

SEARCH_RESULTS = {
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
DISAMBIGUATION_PAGES = {
    "長河": '<ul><li><a href="#">長河（人名）</a>，一個人</li><li>無鏈接</li>'
    '<li><a href="#">長河鎮</a></li></ul>'
}
UNREACHABLE_URL = "http://127.0.0.1:9/w/api.php"


class WikipediaHandler(BaseHTTPRequestHandler):
    """The part of `action=query` that the wikipedia package uses."""

    queries: ClassVar[list[dict[str, str]]] = []
    user_agents: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        parameters = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        query = {name: values[0] for name, values in parameters.items()}
        self.queries.append(query)
        self.user_agents.add(self.headers["User-Agent"])
        if "srsearch" in query:
            self.send_search_results(query["srsearch"])
        else:
            self.send_page(query.get("titles", ""), query["prop"])

    def send_search_results(self, keyword: str) -> None:
        if keyword == "很慢":
            time.sleep(0.6)
        if keyword == "挡住":
            return self.send(503, b"<html>blocked</html>")
        if keyword == "网页":
            return self.send(200, b"<html>log in first</html>")
        titles = SEARCH_RESULTS.get(keyword, [])
        self.send_query_result(search=[{"ns": 0, "title": title} for title in titles])

    def send_page(self, title: str, properties: str) -> None:
        if title not in INTRODUCTIONS and title not in DISAMBIGUATION_PAGES:
            return self.send(200, b'{"query": {}}')
        page: dict[str, Any] = {
            "pageid": 7,
            "title": title,
            "fullurl": f"https://zh.wikipedia.org/wiki/{title}",
        }
        if "revisions" in properties:
            text = DISAMBIGUATION_PAGES.get(title)
            page["revisions"] = [{"*": text, "revid": 1, "parentid": 0}]
        if "extracts" in properties:
            page["extract"] = INTRODUCTIONS[title]
        if "pageprops" in properties and title in DISAMBIGUATION_PAGES:
            page["pageprops"] = {"disambiguation": ""}
        self.send_query_result(pages={"7": page})

    def send_query_result(self, **result: Any) -> None:
        self.send(200, json.dumps({"batchcomplete": "", "query": result}).encode())

    def send(self, status: int, body: bytes) -> None:
        # A client that did not wait has closed the connection.
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the chat use a local Wikipedia."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), WikipediaHandler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(wikipedia, "API_URL", f"http://127.0.0.1:{server.server_port}/w/api.php")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    WikipediaHandler.queries.clear()
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection to Wikipedia succeed."""
    monkeypatch.setattr(wikipedia, "API_URL", UNREACHABLE_URL)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.slow
def test_article_becomes_the_reference(chat: Chat, server: None) -> None:
    """Prevents traditional characters, another article, or a passage that is not used."""
    lines = [MAYOR_QUESTION, "/wiki 青禾", "/资料", MAYOR_QUESTION, "/维基"]
    result = chat("\n".join(lines), "--wikipedia", "青禾鎮")
    assert result.out.splitlines() == ["白云飞", BAI_REFERENCE, "白云飞"], result.err
    assert result.err.count("没有同名条目") == 1
    assert "没有同名条目，已选用最接近的“青禾镇”；其他结果：青禾镇站" in result.err
    url = "https://zh.wikipedia.org/wiki/青禾鎮"
    assert f"资料：11 字（维基百科“青禾镇”，{url}）" in result.err
    assert "请给出关键词" in result.err
    assert WikipediaHandler.user_agents == {wikipedia.USER_AGENT}


@pytest.mark.slow
def test_article_is_added_to_an_index(chat: Chat, server: None, index: Path) -> None:
    """Prevents an article without its title, or that the next chat does not find."""
    result = chat("/维基 青禾镇\n/收录\n", "--index", str(index))
    assert "/收录 可把它加入资料库" in result.err
    # Its text was there already.
    assert "资料库中已有这份资料；现在共 2 段" in result.err
    result = chat("/维基 长河（人名）\n/收录\n/查 顾长河\n", "--index", str(index))
    assert "已加入资料库：1 段；现在共 3 段" in result.err
    assert result.out.startswith("1. 长河（人名）｜顾长河是一个人。（得分 "), result.out
    assert "维基百科“长河（人名）”，https://zh.wikipedia.org/wiki/" in result.out


@pytest.mark.slow
def test_fetched_article_is_cached(
    chat: Chat,
    server: None,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents a passage downloaded every time, or one that needs the network again."""
    chat("", "--wikipedia", "青禾镇")
    num_queries = len(WikipediaHandler.queries)
    monkeypatch.setattr(wikipedia, "API_URL", UNREACHABLE_URL)
    result = chat(f"/维基 青禾鎮\n/wiki  青禾镇 \n{MAYOR_QUESTION}\n/wiki 青禾\n")
    assert result.out == "白云飞\n" and result.err.count("本地缓存，") == 2
    assert "无法连接维基百科" in result.err
    assert len(WikipediaHandler.queries) == num_queries


@pytest.mark.slow
def test_damaged_cache_is_replaced(chat: Chat, server: None, environment: dict[str, str]) -> None:
    """Prevents a damaged cache file from ending the chat, or from being used."""
    chat("", "--wikipedia", "青禾镇")
    (file,) = (Path(environment["XDG_CACHE_HOME"]) / "babyllama/wikipedia").iterdir()
    passage_of_other_keyword = {
        "keyword": "别的",
        "title": "别的",
        "text": "别的",
        "url": "",
        "others": [],
        "fetched": "2026-11-21",
    }
    for damage in ("{", "[]", '{"keyword": "青禾镇"}', json.dumps(passage_of_other_keyword)):
        file.write_text(damage, encoding="utf-8")
        assert chat(MAYOR_QUESTION, "--wikipedia", "青禾镇").out == "白云飞\n"
        assert json.loads(file.read_text(encoding="utf-8"))["title"] == "青禾镇"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ("没有这个", "维基百科中找不到“没有这个”"),
        ("长河", "“长河”有多个含义，请选一个再查：长河（人名）、长河镇"),
        ("很慢", "0.2 秒没有响应"),
        ("挡住", "维基百科暂时无法使用（503"),
        ("网页", "维基百科暂时无法使用（"),
        ("坏了", "无法解析"),
        ("空白", "没有正文"),
    ],
)
def test_unavailable_article_gives_one_line_error(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str, expected: str
) -> None:
    """Prevents a traceback, an endless wait, HTML as a reference, and cached failures."""
    monkeypatch.setattr(wikipedia, "TIMEOUT_SECONDS", 0.2 if keyword == "很慢" else 30.0)
    with pytest.raises(UserError) as failure:
        wikipedia.get_passage(keyword, tmp_path)
    message = str(failure.value)
    assert expected in message and "\n" not in message
    assert not list(tmp_path.iterdir())


def test_missing_article_is_not_cached(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the package from remembering an empty search for as long as the chat runs."""
    with pytest.raises(UserError, match="找不到"):
        wikipedia.get_passage("新条目", tmp_path)
    monkeypatch.setitem(SEARCH_RESULTS, "新条目", ["青禾鎮"])
    assert wikipedia.get_passage("新条目", tmp_path)[0].title == "青禾镇"


def test_disambiguation_option_can_be_looked_up(server: None, tmp_path: Path) -> None:
    """Prevents choices, shown in simplified characters, that the search does not find."""
    assert wikipedia.get_passage("长河（人名）", tmp_path)[0].text == "顾长河是一个人。"


def test_offline_startup_gives_one_line_error(chat: Chat, offline: None) -> None:
    """Prevents an answer that seems to rest on a passage that was never loaded."""
    result = chat(f"{MAYOR_QUESTION}\n", "--wikipedia", "青禾镇")
    assert result.code == 2 and not result.out
    assert result.err.splitlines()[-1].startswith("error: 无法连接维基百科")


@pytest.mark.slow
def test_offline_lookup_keeps_the_conversation(chat: Chat, offline: None) -> None:
    """Prevents the loss of a conversation because Wikipedia cannot be reached."""
    result = chat("我叫书白。\n/wiki 青禾镇\n我叫什么？\n")
    assert result.out == "好的。\n书白\n" and "无法连接维基百科" in result.err
