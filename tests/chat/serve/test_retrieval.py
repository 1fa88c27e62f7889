"""Passages that the server finds in an index, through HTTP and OpenAI's client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from chat.passage_lookup import FoundPassage, PassageLookup
from chat.serve.errors import ProtocolError
from chat.serve.protocol import MAX_HITS, RequestConversation
from chat.serve.retrieval import MAX_QUERY_CHARACTERS, Retriever
from data.index.build import write_index
from data.index.options import WindowOptions
from data.index.passages import Passage
from data.index.tokens import character_tokens
from tests.chat.conftest import BAI_REFERENCE, GU_REFERENCE, MAYOR_QUESTION
from tests.helpers.server import ServerHandle, running_server

TOWN = Passage("", BAI_REFERENCE, "towns.jsonl:1")
LAKE = Passage("西湖", "这片湖水在杭州，湖上有一座断桥，游人很多。", "lakes.jsonl:7")
LONG = Passage("", "大运河从北京流到余杭。" + "河上的船来来往往，非常热闹。" * 60, "canals.jsonl:2")
PASSAGES = [TOWN, LAKE, LONG]
LAKE_QUESTION = "西湖上有什么桥？"
UNKNOWN_QUESTION = "光合作用需要什么？"
CANAL_QUESTION = "大运河从北京流到余杭吗？"


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> PassageLookup:
    """A look-up in a small index."""
    folder = tmp_path_factory.mktemp("indexed")
    return PassageLookup(write_index(iter(PASSAGES), folder, WindowOptions(), character_tokens))


@pytest.fixture(scope="module")
def reading(talker: Path, lookup: PassageLookup) -> Iterator[ServerHandle]:
    """A server with an index, for the model that memorized a few dialogues."""
    with running_server(talker, lookup=lookup) as server:
        yield server


@pytest.fixture(scope="module")
def talking(talker: Path) -> Iterator[ServerHandle]:
    """The same server without an index."""
    with running_server(talker) as server:
        yield server


def ask(server: ServerHandle, *texts: str, **options: Any) -> dict[str, Any]:
    """Return the whole answer to the last of alternating messages."""
    response = server.post(server.request_body(*texts, **{"retrieve": True, **options}))
    assert response.status_code == 200, response.text
    return response.json()


def prompt_length(
    server: ServerHandle, question: str, reference: str, turns: list[tuple[str, str]]
) -> int:
    """Return the number of ids that training makes of the prompt."""
    loaded = server.loaded_model
    return len(loaded.template.encode_prompt(loaded.tokenizer, turns, question, reference))


def test_answer_has_the_passage_that_was_found(
    reading: ServerHandle, lookup: PassageLookup
) -> None:
    """Prevents an answer without the passage that was looked up, or that does not name it."""
    completion = ask(reading, MAYOR_QUESTION)
    assert completion["choices"][0]["message"]["content"] == "白云飞"
    found = lookup.find(MAYOR_QUESTION)
    assert found is not None
    assert completion["babyllama"] == {
        "passage": {
            "title": "",
            "text": TOWN.text,
            "score": round(found.hit.score, 2),
            "source": TOWN.source,
            "kept": False,
        },
        "dropped_turns": 0,
        "ended": "eos",
        "copied": {"share": 1.0, "answer_parts": [[0, 3]], "passage_parts": [[7, 10]]},
    }
    assert TOWN.text[7:10] == "白云飞"
    length = prompt_length(reading, MAYOR_QUESTION, TOWN.text, [])
    assert completion["usage"]["prompt_tokens"] == length


def test_openai_client_streams_the_passage_first(reading: ServerHandle) -> None:
    """Prevents a stream that OpenAI's client cannot read, and a passage after its answer."""
    chunks = list(
        reading.client.chat.completions.create(
            model=reading.model_name,
            messages=[{"role": "user", "content": MAYOR_QUESTION}],
            extra_body={"retrieve": True},
            stream=True,
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "白云飞"
    additions = [(chunk.model_extra or {}).get("babyllama") for chunk in chunks]
    assert additions[0]["passage"]["text"] == TOWN.text
    assert additions[1:-1] == [None] * (len(chunks) - 2) and len(chunks) > 3
    assert additions[-1]["copied"]["answer_parts"] == [[0, 3]]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_follow_up_keeps_the_passage_and_its_turns(reading: ServerHandle) -> None:
    """Prevents a follow-up without its passage: the server remembers nothing of the conversation.

    Turns about another passage are left out, because training has one passage a conversation.
    """
    completion = ask(reading, MAYOR_QUESTION, "白云飞", "为什么？")
    passage = completion["babyllama"]["passage"]
    assert (passage["text"], passage["kept"]) == (TOWN.text, True)
    turns = [(MAYOR_QUESTION, "白云飞")]
    expected = prompt_length(reading, "为什么？", TOWN.text, turns)
    assert completion["usage"]["prompt_tokens"] == expected
    completion = ask(reading, MAYOR_QUESTION, "白云飞", "为什么？", "不知道。", LAKE_QUESTION)
    passage = completion["babyllama"]["passage"]
    assert (passage["title"], passage["text"]) == ("西湖", LAKE.text) and not passage["kept"]
    expected = prompt_length(reading, LAKE_QUESTION, f"西湖\n{LAKE.text}", [])
    assert completion["usage"]["prompt_tokens"] == expected
    assert completion["babyllama"]["dropped_turns"] == 0


def test_nothing_found_is_said(reading: ServerHandle) -> None:
    """Prevents an answer out of the blue that looks as if it rested on a passage."""
    completion = ask(reading, UNKNOWN_QUESTION)
    assert completion["babyllama"]["passage"] is None and "copied" not in completion["babyllama"]
    length = prompt_length(reading, UNKNOWN_QUESTION, "", [])
    assert completion["usage"]["prompt_tokens"] == length


def test_long_passage_is_cut_to_the_context(reading: ServerHandle) -> None:
    """Prevents a refusal of what the client did not choose, and a text that the model never saw."""
    completion = ask(reading, CANAL_QUESTION)
    text = completion["babyllama"]["passage"]["text"]
    assert LONG.text.startswith(text) and 50 < len(text) < len(LONG.text)
    length = prompt_length(reading, CANAL_QUESTION, text, [])
    assert completion["usage"]["prompt_tokens"] == length


def test_copied_parts_of_a_document(talking: ServerHandle) -> None:
    """Prevents figures for retrieved passages alone, and for answers without any passage."""
    documents = [{"text": GU_REFERENCE}]
    addition = ask(talking, MAYOR_QUESTION, retrieve=False, documents=documents)["babyllama"]
    assert addition["copied"] == {
        "share": 1.0,
        "answer_parts": [[0, 3]],
        "passage_parts": [[7, 10]],
    }
    assert "passage" not in addition
    assert "copied" not in ask(talking, MAYOR_QUESTION, retrieve=False)["babyllama"]
    other = [{"text": "这里没有人住。"}]
    copied = ask(talking, MAYOR_QUESTION, retrieve=False, documents=other)["babyllama"]["copied"]
    assert copied["share"] == 0 and copied["answer_parts"] == copied["passage_parts"] == []


def test_many_requests_look_up_at_the_same_time(reading: ServerHandle) -> None:
    """Prevents passages that are mixed up between the threads of several requests."""
    questions = [MAYOR_QUESTION, LAKE_QUESTION, UNKNOWN_QUESTION] * 3
    expected = [TOWN.text, LAKE.text, None] * 3
    with ThreadPoolExecutor(9) as pool:
        completions = list(pool.map(lambda question: ask(reading, question), questions))
    passages = [completion["babyllama"]["passage"] for completion in completions]
    assert [passage and passage["text"] for passage in passages] == expected


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"documents": [{"text": "一"}]}, "retrieve", "invalid_value"),
        ({"retrieve": "true"}, "retrieve", "invalid_value"),
        ({"messages": [{"role": "user", "content": "问" * 501}]}, "messages", "query_too_long"),
    ],
)
def test_bad_request_to_retrieve(
    reading: ServerHandle, change: dict[str, Any], param: str, code: str
) -> None:
    """Prevents a document that is silently ignored, and searches without a limit."""
    body = reading.request_body(MAYOR_QUESTION, retrieve=True)
    response = reading.post({**body, **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert param in error["message"]


def test_server_without_index_says_so(talking: ServerHandle, reading: ServerHandle) -> None:
    """Prevents an answer without a passage to a client that asked for one."""
    for body, status in ((True, 400), (False, 200), (None, 200)):
        response = talking.post(talking.request_body(MAYOR_QUESTION, retrieve=body))
        assert response.status_code == status
        if status == 400:
            assert response.json()["error"]["code"] == "no_index"
            assert "--index" in response.json()["error"]["message"]
    response = requests.get(f"{talking.url}v1/search", {"q": "西湖"}, timeout=10)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "no_index")
    for server, count in ((talking, 0), (reading, len(PASSAGES))):
        model = server.client.models.retrieve(server.model_name)
        assert (model.model_extra or {})["indexed_passages"] == count


def search(server: ServerHandle, **parameters: Any) -> requests.Response:
    """GET the search route."""
    return requests.get(f"{server.url}v1/search", parameters, timeout=10)


def test_search_lists_passages(reading: ServerHandle, lookup: PassageLookup) -> None:
    """Prevents a list in another order than the terminal's, or without its limit."""
    hits = lookup.search("湖水 镇长", 5)
    listed = search(reading, q="湖水 镇长").json()["data"]
    assert [(each["title"], each["text"], each["source"]) for each in listed] == [
        (hit.title, hit.text, hit.source) for hit in hits
    ]
    assert [each["score"] for each in listed] == [round(hit.score, 2) for hit in hits]
    assert len(listed) == 2
    assert len(search(reading, q="湖水 镇长", limit=1).json()["data"]) == 1
    assert search(reading, q="quantum").json()["data"] == []


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({}, "q", "missing_required_parameter"),
        ({"q": " "}, "q", "invalid_value"),
        ({"q": "问" * (MAX_QUERY_CHARACTERS + 1)}, "q", "query_too_long"),
        ({"q": "西湖", "limit": 0}, "limit", "invalid_value"),
        ({"q": "西湖", "limit": MAX_HITS + 1}, "limit", "invalid_value"),
        ({"q": "西湖", "limit": "many"}, "limit", "invalid_value"),
        ({"q": "西湖", "page": 2}, "page", "unknown_parameter"),
    ],
)
def test_bad_search_names_the_parameter(
    reading: ServerHandle, parameters: dict[str, Any], param: str, code: str
) -> None:
    """Prevents searches without a limit, and a parameter that is ignored."""
    response = search(reading, **parameters)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


class CountingLookup(PassageLookup):
    """A look-up that remembers its questions."""

    def __init__(self, lookup: PassageLookup) -> None:
        self._lookup = lookup
        self.questions: list[str] = []

    def find(self, question: str, before: FoundPassage | None = None) -> FoundPassage | None:
        self.questions.append(question)
        return self._lookup.find(question, before)


def test_only_new_questions_are_looked_up(lookup: PassageLookup) -> None:
    """Prevents a search for each of thousands of questions, and one again for each further one."""
    counting = CountingLookup(lookup)
    retriever = Retriever(counting)
    turns = [(f"西湖的第{number}座桥？", "断桥。") for number in range(1000)]
    retrieved = retriever.retrieve(RequestConversation("", turns, "为什么？"))
    assert counting.questions == [*(question for question, _ in turns[-8:]), "为什么？"]
    assert retrieved.passage is not None and retrieved.passage.hit.text == LAKE.text
    assert retrieved.turns == turns[-8:]
    counting.questions.clear()
    short = [(LAKE_QUESTION, "断桥。")]
    retriever.retrieve(RequestConversation("", [], LAKE_QUESTION))
    retriever.retrieve(RequestConversation("", short, "为什么？"))
    retriever.retrieve(RequestConversation("", [*short, ("为什么？", "不知道。")], "在哪里？"))
    assert counting.questions == [LAKE_QUESTION, "为什么？", "在哪里？"]


def test_earlier_question_of_any_length_has_no_passage(lookup: PassageLookup) -> None:
    """Prevents long searches for questions that were refused when they were asked."""
    retriever = Retriever(lookup)
    long_question = LAKE_QUESTION * 100
    turns = [(LAKE_QUESTION, "断桥。"), (long_question, "好。")]
    retrieved = retriever.retrieve(RequestConversation("", turns, "为什么？"))
    assert retrieved.passage is None and retrieved.turns == turns[1:]
    with pytest.raises(ProtocolError, match="up to 500 characters"):
        retriever.retrieve(RequestConversation("", [], long_question))
