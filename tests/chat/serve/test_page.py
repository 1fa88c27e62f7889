"""The page at `/`, as a file and in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from chat.serve.page import PAGE_FILE
from tests.chat.conftest import ABOUT_BAI, MAYOR
from tests.helpers.browser import Browser
from tests.helpers.server import running_server

ANSWER = "[...document.querySelectorAll('.assistant')].pop()?.textContent"
READY = "!document.querySelector('#send').hidden"


def test_page_is_self_contained(talker: Path) -> None:
    """A page that needs a network, or that would run a script somebody smuggled in."""
    with running_server(talker) as server:
        response = requests.get(server.url, timeout=10)
    html, policy = response.text, response.headers["content-security-policy"]
    assert (
        html == PAGE_FILE.read_text(encoding="utf-8")
        and response.headers["content-type"] == "text/html; charset=utf-8"
    )
    assert not re.findall(r"https?:|//\w|@import|url\(|\bsrc=|<iframe|<object", html)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=|\bstyle=", html
    )
    assert (
        "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    )


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser of its own."""
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.mark.slow
def test_answer_streams_into_page(browser: Browser, talker: Path) -> None:
    """A page that does not work: no answer, an answer in one piece, a reference that is not sent, turns that are not."""
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.evaluate("""window.seen = [];
            new MutationObserver(() => window.seen.push([...document.querySelectorAll('.assistant')].pop()?.textContent))
                .observe(document.querySelector('#talk'), {childList: true, subtree: true, characterData: true})""")
        browser.click("#about summary")
        browser.insert_text("#reference", ABOUT_BAI)
        browser.insert_text("#question", MAYOR)
        browser.press_enter()
        browser.wait_for(f"{ANSWER} === '白云飞' && {READY}")
        seen = browser.evaluate("window.seen")
        assert {"", "白", "白云"} <= set(seen), "it did not stream"
        browser.evaluate("document.querySelector('#reference').value = ''")
        for question, answer in (("我叫书白。", "好的。"), ("我叫什么？", "书白")):
            browser.insert_text("#question", question)
            browser.click("#send")
            browser.wait_for(f"{ANSWER} === {answer!r} && {READY}")
        assert "对话从头开始" in browser.run("document.querySelector('#talk').innerText")
        browser.click("#clear")
        browser.wait_for("document.querySelector('#talk').childElementCount === 0")
        browser.insert_text("#question", "我叫什么？")
        browser.press_enter()
        browser.wait_for(f"{ANSWER} === '你没有说过。'")
        assert browser.errors_and_external_requests() == []


@pytest.mark.slow
def test_answer_can_be_stopped_and_errors_are_shown(browser: Browser, endless: Path) -> None:
    """An endless answer that only closing the page ends; a refusal that shows nothing."""
    with running_server(endless, max_tokens=15_000) as server:
        browser.open_page(server.url, width=375, height=667, dark=True)
        browser.insert_text("#question", "说个不停")
        browser.press_enter()
        browser.wait_for(f"({ANSWER} ?? '').length > 20")
        browser.click("#stop")
        browser.wait_for(f"{READY} && document.querySelector('#talk').innerText.includes('已停止')")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 375, (
            "the page is wider than a phone"
        )
        assert (
            browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 23)"
        )
        browser.evaluate("document.querySelector('#max_tokens').value = '-3'")
        browser.insert_text("#question", "短")
        browser.press_enter()
        browser.wait_for("document.querySelector('.bad')?.textContent.includes('max_tokens')")


@pytest.mark.slow
def test_question_with_interrupted_answer_is_sent_once(browser: Browser, talker: Path) -> None:
    """A question that the model reads twice, with half an answer between, because the first answer failed half-way."""
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.wait_for("document.querySelector('#model').textContent.includes('256')")
        # A fault in mid-stream, once, is made up here; then the server answers.
        browser.evaluate("""{
            const real = window.fetch;
            window.sent = [];
            window.fetch = async (path, options) => {
                window.sent.push(JSON.parse(options.body).messages);
                if (window.sent.length > 1) return real(path, options);
                const event = (data) => 'data: ' + JSON.stringify(data) + '\\n\\n';
                return new Response(event({choices: [{delta: {content: '半'}}]}) + event({error: {message: 'a fault'}}));
            };
        }""")
        browser.insert_text("#question", MAYOR)
        browser.press_enter()
        browser.wait_for(f"{READY} && document.querySelector('.bad')?.textContent === 'a fault'")
        assert browser.evaluate("document.querySelector('#question').value") == MAYOR
        browser.press_enter()
        browser.wait_for(f"{READY} && {ANSWER} === '我不知道。'")
        assert browser.evaluate("window.sent.map((messages) => messages.length)") == [1, 1]


@pytest.mark.slow
def test_text_is_escaped_in_page(browser: Browser, talker: Path) -> None:
    """A script in a question, a model's answer or an error that runs on the page."""
    evil = '<img src=x onerror="window.ran=1"><script>window.ran=1</script><b>粗</b>'
    with running_server(talker) as server:
        browser.open_page(server.url)
        browser.wait_for("document.querySelector('#model').textContent.includes('256')")
        # What the server sends is made up here: a model cannot be made to say this.
        browser.evaluate("""window.fetch = async (path, options) => {
            const said = JSON.parse(options.body).messages.pop().content;
            const event = (data) => 'data: ' + JSON.stringify(data) + '\\n\\n';
            if (said.startsWith('错')) return new Response(JSON.stringify({error: {message: said}}), {status: 400});
            return new Response(event({choices: [{delta: {content: said}}]}) + 'data: [DONE]\\n\\n');
        }""")
        for said in (evil, "错" + evil):
            browser.insert_text("#question", said)
            browser.press_enter()
            browser.wait_for(
                f"{READY} && document.querySelector('#talk').lastChild.textContent.endsWith('</b>')"
            )
            browser.evaluate("document.querySelector('#question').value = ''")
        assert (
            browser.evaluate("document.querySelectorAll('#talk img, #talk script, #talk b').length")
            == 0
        )
        assert (
            browser.evaluate("window.ran") is None
            and browser.evaluate("document.querySelectorAll('.user').length") == 2
        )
        # Were it not text, the policy would still not let it run.
        browser.evaluate(f"document.querySelector('#talk').innerHTML = {evil!r}")
        browser.evaluate("new Promise((done) => setTimeout(done, 100))")
        assert browser.evaluate("window.ran") is None
