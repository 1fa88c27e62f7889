"""The web page, as a file and in a browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from chat.examples import MAX_EXAMPLES, find_examples
from chat.passage_lookup import PassageLookup
from chat.serve.page import PAGE_FILE
from data.index.build import write_index
from data.index.options import WindowOptions
from data.index.passages import Passage
from data.index.tokens import character_tokens
from data.shards import ShardSet
from tests.chat.conftest import BAI_REFERENCE, GU_REFERENCE, MAYOR_QUESTION, write_run_on
from tests.helpers.browser import Browser
from tests.helpers.server import running_server

LAST_ANSWER = "[...document.querySelectorAll('.assistant')].pop()?.textContent"
IS_READY = "!document.querySelector('#send').hidden"


@pytest.mark.slow
def test_page_is_self_contained(talker: Path) -> None:
    """Prevents a page that needs a network, or that would run an injected script."""
    with running_server(talker) as server:
        response = requests.get(server.url, timeout=10)
    html, policy = response.text, response.headers["content-security-policy"]
    assert html == PAGE_FILE.read_text(encoding="utf-8")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.findall(r"https?:|//\w|@import|url\(|\bsrc=|<iframe|<object", html)
    html_injection = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write"
    assert not re.findall(rf"{html_injection}|eval\(|\bon\w+=|\bstyle=", html)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == 2


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser with an empty profile."""
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.mark.slow
def test_answer_streams_into_page(browser: Browser, talker: Path) -> None:
    """Prevents an answer in one piece, and a reference or turns that are not sent."""
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.evaluate(f"""window.shownAnswers = [];
            new MutationObserver(() => window.shownAnswers.push({LAST_ANSWER}))
                .observe(document.querySelector('#talk'),
                         {{childList: true, subtree: true, characterData: true}})""")
        browser.click("#about summary")
        browser.insert_text("#reference", BAI_REFERENCE)
        browser.insert_text("#question", MAYOR_QUESTION)
        browser.press_enter()
        browser.wait_for(f"{LAST_ANSWER} === '白云飞' && {IS_READY}")
        shown_answers = browser.evaluate("window.shownAnswers")
        assert {"", "白", "白云"} <= set(shown_answers), "the answer came in one piece"
        browser.evaluate("document.querySelector('#reference').value = ''")
        for question, answer in (("我叫书白。", "好的。"), ("我叫什么？", "书白")):
            browser.insert_text("#question", question)
            browser.click("#send")
            browser.wait_for(f"{LAST_ANSWER} === {answer!r} && {IS_READY}")
        assert "对话重新开始" in browser.evaluate("document.querySelector('#talk').innerText")
        browser.click("#clear")
        browser.wait_for("document.querySelector('#talk').childElementCount === 0")
        browser.insert_text("#question", "我叫什么？")
        browser.press_enter()
        browser.wait_for(f"{LAST_ANSWER} === '你没有说过。'")
        assert browser.errors_and_external_requests() == []


def test_answer_can_be_stopped_and_errors_are_shown(browser: Browser, endless: Path) -> None:
    """Prevents an endless answer that only closing the page ends, and silent errors."""
    with running_server(endless, max_new_tokens=15_000) as server:
        browser.open_page(server.url, width=375, height=667, dark=True)
        browser.insert_text("#question", "说个不停")
        browser.press_enter()
        browser.wait_for(f"({LAST_ANSWER} ?? '').length > 20")
        browser.click("#stop")
        browser.wait_for(
            f"{IS_READY} && document.querySelector('#talk').innerText.includes('已停止')"
        )
        assert browser.evaluate("document.documentElement.scrollWidth") <= 375, (
            "the page is wider than a phone"
        )
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(22, 22, 23)", "the dark colors are not used"
        browser.evaluate("document.querySelector('#max_tokens').value = '-3'")
        browser.insert_text("#question", "短")
        browser.press_enter()
        browser.wait_for("document.querySelector('.bad')?.textContent.includes('max_tokens')")


@pytest.mark.slow
def test_example_fills_reference_and_its_questions_can_be_clicked(
    browser: Browser, talker: Path, sample_sets: dict[str, ShardSet], tmp_path: Path
) -> None:
    """Prevents a button that shows a passage which is not sent, or after other turns."""
    run = write_run_on(tmp_path / "run", talker, [sample_sets["redgpt"], sample_sets["csl"]])
    found = find_examples(run)
    first, second, title = found[0], found[1], found[MAX_EXAMPLES]
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.wait_for("document.querySelector('#model').textContent.includes('256')")
        assert browser.evaluate("document.querySelector('#example').hidden"), "there is no example"
    with running_server(run) as server:
        browser.open_page(server.url)
        browser.wait_for("!document.querySelector('#example').hidden")
        browser.evaluate("""{
            const originalFetch = window.fetch;
            window.sent = [];
            window.fetch = (path, options) => {
                window.sent.push(JSON.parse(options.body));
                return originalFetch(path, options);
            };
        }""")
        for example in (first, second):
            browser.click("#example")
            buttons = "[...document.querySelectorAll('#suggestions button')]"
            questions = f"{buttons}.map((button) => button.textContent)"
            browser.wait_for(f"{questions}[0] === {example.questions[0]!r}")
            assert browser.evaluate(questions) == list(example.questions)
            shown = browser.evaluate("document.querySelector('#reference').value")
            assert shown == example.reference
            assert browser.evaluate("document.querySelector('#about').open"), "it is not seen"
            browser.click("#suggestions button")
            browser.wait_for(f"{LAST_ANSWER} && {IS_READY}")
            request = browser.evaluate("window.sent.pop()")
            assert request["documents"] == [{"text": example.reference}]
            assert request["messages"] == [{"role": "user", "content": example.questions[0]}]
        browser.insert_text("#reference", "另一段。")
        assert browser.evaluate(f"{buttons}.length") == 0, "they are about another passage"
        for _ in range(MAX_EXAMPLES - 1):
            browser.click("#example")
        browser.wait_for(f"{questions}[0] === {title.questions[0]!r}")
        assert not browser.evaluate("document.querySelector('#about').open")
        browser.click("#suggestions button")
        browser.wait_for(f"{LAST_ANSWER} && {IS_READY}")
        request = browser.evaluate("window.sent.pop()")
        assert "documents" not in request
        assert request["messages"] == [{"role": "user", "content": title.questions[0]}]
        assert browser.errors_and_external_requests() == []


def test_question_with_interrupted_answer_is_sent_once(browser: Browser, talker: Path) -> None:
    """Prevents a question sent twice because its first answer failed half-way."""
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.wait_for("document.querySelector('#model').textContent.includes('256')")
        # The first request gets half an answer and an error; the server answers the others.
        browser.evaluate("""{
            const originalFetch = window.fetch;
            const event = (data) => 'data: ' + JSON.stringify(data) + '\\n\\n';
            window.sentMessages = [];
            window.fetch = async (path, options) => {
                window.sentMessages.push(JSON.parse(options.body).messages);
                if (window.sentMessages.length > 1) return originalFetch(path, options);
                return new Response(event({choices: [{delta: {content: '半'}}]})
                                    + event({error: {message: 'a fault'}}));
            };
        }""")
        browser.insert_text("#question", MAYOR_QUESTION)
        browser.press_enter()
        browser.wait_for(f"{IS_READY} && document.querySelector('.bad')?.textContent === 'a fault'")
        assert browser.evaluate("document.querySelector('#question').value") == MAYOR_QUESTION
        browser.press_enter()
        browser.wait_for(f"{IS_READY} && {LAST_ANSWER} === '我不知道。'")
        assert browser.evaluate("window.sentMessages.map((messages) => messages.length)") == [1, 1]


def test_text_is_escaped_in_page(browser: Browser, talker: Path) -> None:
    """Prevents a script in a question, an answer or an error from running on the page."""
    injection = '<img src=x onerror="window.ran=1"><script>window.ran=1</script><b>粗</b>'
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.wait_for("document.querySelector('#model').textContent.includes('256')")
        # Echo the question as an answer, or as an error: no model could be made to say this.
        browser.evaluate("""window.fetch = async (path, options) => {
            const text = JSON.parse(options.body).messages.pop().content;
            if (text.startsWith('错')) {
                return new Response(JSON.stringify({error: {message: text}}), {status: 400});
            }
            const chunk = {choices: [{delta: {content: text}}]};
            return new Response('data: ' + JSON.stringify(chunk) + '\\n\\ndata: [DONE]\\n\\n');
        }""")
        last_line = "document.querySelector('#talk').lastChild.textContent"
        for text in (injection, "错" + injection):
            browser.insert_text("#question", text)
            browser.press_enter()
            browser.wait_for(f"{IS_READY} && {last_line}.endsWith('</b>')")
            browser.evaluate("document.querySelector('#question').value = ''")
        injected = "document.querySelectorAll('#talk img, #talk script, #talk b').length"
        assert browser.evaluate(injected) == 0
        assert browser.evaluate("document.querySelectorAll('.user').length") == 2
        assert browser.evaluate("window.ran") is None
        # Even as HTML, the content security policy would not let it run.
        browser.evaluate(f"document.querySelector('#talk').innerHTML = {injection!r}")
        browser.evaluate("new Promise((done) => setTimeout(done, 100))")
        assert browser.evaluate("window.ran") is None


MARKED = "[...document.querySelectorAll('{}')].map((mark) => mark.textContent)"


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> PassageLookup:
    """A look-up in two passages."""
    passages = [
        Passage("", BAI_REFERENCE, "towns.jsonl:1"),
        Passage("西湖", "这片湖水在杭州，湖上有一座断桥，游人很多。", "lakes.jsonl:7"),
    ]
    folder = tmp_path_factory.mktemp("indexed")
    return PassageLookup(write_index(iter(passages), folder, WindowOptions(), character_tokens))


@pytest.mark.slow
def test_passage_is_found_shown_and_marked(
    browser: Browser, talker: Path, lookup: PassageLookup
) -> None:
    """Prevents a passage that is used and not shown, and turns of another one that are kept."""
    talk = "document.querySelector('#talk').innerText"
    with running_server(talker, lookup=lookup) as server:
        browser.open_page(server.url, width=375, height=667)
        browser.wait_for("!document.querySelector('#automatic').hidden")
        assert browser.evaluate("document.querySelector('#retrieve').checked")
        browser.insert_text("#question", MAYOR_QUESTION)
        browser.press_enter()
        browser.wait_for(f"{LAST_ANSWER} === '白云飞' && {IS_READY}")
        hit = lookup.search(MAYOR_QUESTION, 1)[0]
        summary = browser.evaluate("document.querySelector('#talk summary').textContent")
        assert (
            summary == f"资料：{BAI_REFERENCE[:12]}……，得分 {hit.score:.1f}，回答的 100% 出自其中"
        )
        assert not browser.evaluate("document.querySelector('#talk .passage').open")
        browser.click("#talk summary")
        assert BAI_REFERENCE in browser.evaluate(talk)
        for marks in (".assistant mark", "#talk .passage mark"):
            assert browser.evaluate(MARKED.format(marks)) == ["白云飞"]
        browser.insert_text("#question", "为什么？")
        browser.press_enter()
        browser.wait_for(f"{talk}.includes('沿用上一段') && {IS_READY}")
        browser.insert_text("#question", "光合作用需要什么？")
        browser.press_enter()
        browser.wait_for(f"{talk}.includes('没有找到与问题相关的资料') && {IS_READY}")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 375
        # The passage that somebody types replaces those that are found, and is marked as well.
        browser.click("#clear")
        browser.wait_for("document.querySelector('#talk').childElementCount === 0")
        browser.click("#retrieve")
        browser.click("#about summary")
        browser.insert_text("#reference", GU_REFERENCE)
        browser.insert_text("#question", MAYOR_QUESTION)
        browser.press_enter()
        browser.wait_for(f"{LAST_ANSWER} === '顾长河' && {IS_READY}")
        for marks in (".assistant mark", "#talk .passage mark"):
            assert browser.evaluate(MARKED.format(marks)) == ["顾长河"]
        browser.click("#retrieve")
        browser.insert_text("#question", MAYOR_QUESTION)
        browser.press_enter()
        browser.wait_for(f"{LAST_ANSWER} === '白云飞' && {IS_READY}")
        assert "对话重新开始" in browser.evaluate(talk)
        assert browser.errors_and_external_requests() == []


@pytest.mark.slow
def test_passages_can_be_searched_and_used(
    browser: Browser, talker: Path, lookup: PassageLookup
) -> None:
    """Prevents a search that shows nothing, and a passage that cannot be taken as the reference."""
    found = "document.querySelector('#found').innerText"
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.wait_for("document.querySelector('#model').textContent.includes('256')")
        for hidden in ("#automatic", "#search"):
            assert browser.evaluate(f"document.querySelector('{hidden}').hidden")
    with running_server(talker, lookup=lookup) as server:
        browser.open_page(server.url)
        browser.wait_for("!document.querySelector('#search').hidden")
        browser.click("#about summary")
        for words, expected in (
            ("quantum", "没有一段资料含有这些字词"),
            ("湖" * 600, "请缩短"),
            ("湖水", "资料：西湖，得分"),
        ):
            browser.evaluate("document.querySelector('#words').value = ''")
            browser.insert_text("#words", words)
            browser.press_enter()
            browser.wait_for(f"{found}.includes('{expected}')")
        assert browser.evaluate("document.querySelector('#reference').disabled")
        browser.click("#found button")
        assert "断桥" in browser.evaluate("document.querySelector('#reference').value")
        assert not browser.evaluate("document.querySelector('#retrieve').checked")
        assert not browser.evaluate("document.querySelector('#reference').disabled")
        assert browser.errors_and_external_requests() != [], "the refused search is a log entry"


def test_marks_are_of_characters_and_titles_are_escaped(browser: Browser, talker: Path) -> None:
    """Prevents marks beside their text after an emoji, and a script in a passage that runs."""
    injection = '<img src=x onerror="window.ran=1"><b>粗</b>'
    passage = {"title": injection, "text": f"😀{injection}白云飞", "score": 1.5, "kept": False}
    copied = {
        "share": 0.5,
        "answer_parts": [[0, 1], [2, 5]],
        "passage_parts": [[len(injection) + 1, len(injection) + 4]],
    }
    finish = {"dropped_turns": 0, "ended": "eos", "copied": copied}
    choices = [
        {"delta": {"content": ""}, "finish_reason": None},
        {"delta": {"content": "😀😀白云飞"}, "finish_reason": None},
        {"delta": {}, "finish_reason": "stop"},
    ]
    chunks = [{"choices": [choice]} for choice in choices]
    chunks[0]["babyllama"] = {"passage": passage}  # type: ignore[assignment]
    chunks[2]["babyllama"] = finish  # type: ignore[assignment]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.wait_for("document.querySelector('#model').textContent.includes('256')")
        browser.evaluate(f"window.fetch = async () => new Response({json.dumps(events)})")
        browser.insert_text("#question", "问")
        browser.press_enter()
        browser.wait_for(f"{LAST_ANSWER} === '😀😀白云飞' && {IS_READY}")
        assert browser.evaluate(MARKED.format(".assistant mark")) == ["😀", "白云飞"]
        assert browser.evaluate(MARKED.format("#talk .passage mark")) == ["白云飞"]
        summary = browser.evaluate("document.querySelector('#talk summary').textContent")
        assert summary == f"资料：{injection}，得分 1.5，回答的 50% 出自其中"
        assert browser.evaluate("document.querySelectorAll('#talk img, #talk b').length") == 0
        assert browser.evaluate("window.ran") is None
