"""The routes: requests to jobs, events to responses."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from chat.serve import page
from chat.serve.responses import DONE, Answer, packed
from chat.serve.connection_limits import PATIENCE
from chat.serve.engine import FAULT, STOPPING, Busy, Engine
from chat.serve.errors import ProtocolError
from chat.serve.auth import Guard
from chat.serve.prompt import Prompt, fit
from chat.serve.protocol import Body, read, sampling, talk
from chat.serve.sequence import Event, Failed, Job, Over, Said
from chat.load_model import Weights
from model.decode.generate import Sampling, prompt_room

RETRY_AFTER = 2  # seconds
BODY_SECONDS = PATIENCE - 5.0  # so that it is told, before its connection is closed
NO_ANSWER = Response(status_code=499)  # to nobody: the one who asked has gone


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    tokens: int  # of an answer
    seconds: float  # of a request, waiting counted
    body: int  # bytes


class Mailbox:
    """Events from the engine's thread to a coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.next = self._events.get

    def put(self, event: Event) -> None:
        """May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Service:
    """A model under a name, and the engine that answers for it."""

    def __init__(self, name: str, weights: Weights, engine: Engine, defaults: Sampling, limits: Limits) -> None:
        self.name, self._weights, self._engine, self._defaults, self._limits = name, weights, engine, defaults, limits
        self._created = int(weights.folder.stat().st_mtime)

    def application(self, host: str, api_key: str | None) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", page.response), Route("/health", self.health), Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model), Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {ProtocolError: _refuse, HTTPException: _refuse, Exception: _refuse}
        return Starlette(routes=routes, exception_handlers=handlers,
                         middleware=[Middleware(Guard, host=host, api_key=api_key)])

    async def health(self, request: Request) -> Response:
        """Whether the engine works, and how many requests it has."""
        running, waiting = self._engine.load
        facts = {"status": "ok" if self._engine.alive else "stopping", "running": running, "waiting": waiting}
        return JSONResponse(facts, 200 if self._engine.alive else 503)

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        return JSONResponse({"object": "list", "data": [self._facts]})

    async def model(self, request: Request) -> Response:
        """The model of a name."""
        self._check(request.path_params["name"])
        return JSONResponse(self._facts)

    @property
    def _facts(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._created, "owned_by": "babyllama",
                "context_length": self._weights.context, "converses": self._weights.converses}

    def _check(self, name: str) -> None:
        if name != self.name:
            raise ProtocolError(404, f"there is no model {name!r} here; there is {self.name!r}",
                                param="model", code="model_not_found")

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        try:
            body = read(await self._body(request))
        except ClientDisconnect:
            return NO_ANSWER
        self._check(body.model)
        most = min(self._limits.tokens, body.max_completion_tokens or body.max_tokens or self._limits.tokens)
        prompt = await asyncio.to_thread(
            fit, self._weights.tokenizer, self._weights.template, talk(body.messages),
            prompt_room(self._weights.context, most))
        mailbox = Mailbox()
        job = self._job(body, prompt, most, mailbox)
        # Nothing more comes from the client but word that it has gone.
        watch = asyncio.create_task(_watch(request, job))
        try:
            first = await mailbox.next()
            if isinstance(first, Failed):
                raise ProtocolError(first.status, first.message, retry_after=RETRY_AFTER if first.status == 503 else None)
            answer = Answer(self.name, prompt)
            if body.stream:
                return Stream(_stream(first, mailbox, answer, body.stream_options.include_usage), job)
            return await _whole(first, mailbox, answer)
        finally:
            watch.cancel()

    def _job(self, body: Body, prompt: Prompt, most: int, mailbox: Mailbox) -> Job:
        if not self._engine.alive:
            raise ProtocolError(503, STOPPING)
        seed = body.seed if body.seed is not None else secrets.randbits(63)
        job = Job(prompt.ids, most, sampling(body, self._defaults), seed, time.monotonic() + self._limits.seconds,
                  mailbox.put, body.frequency_penalty, body.presence_penalty, body.stop)
        try:
            self._engine.submit(job)
        except Busy:
            raise ProtocolError(429, "too many requests are running and waiting: try again later",
                                code="rate_limit_exceeded", retry_after=RETRY_AFTER) from None
        return job

    async def _body(self, request: Request) -> bytes:
        """The body, JSON by its own account: a page elsewhere cannot send that without asking first (CORS)."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ProtocolError(415, "send JSON, with the header Content-Type: application/json")

        async def arrived() -> bytes:
            raw = b""
            async for block in request.stream():
                raw += block
                if len(raw) > self._limits.body:
                    raise ProtocolError(413, f"the body is larger than {self._limits.body:,} bytes", code="body_too_large")
            return raw

        try:
            return await asyncio.wait_for(arrived(), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise ProtocolError(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None


class Stream(StreamingResponse):
    """Events of a job, which nobody needs any more when the response is over, however it ended."""

    def __init__(self, events: AsyncIterator[bytes], job: Job) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.gone = True


async def _watch(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.gone = True


async def _whole(first: Said | Over, mailbox: Mailbox, answer: Answer) -> Response:
    texts: list[str] = []
    event: Event = first
    while isinstance(event, Said):
        texts.append(event.text)
        event = await mailbox.next()
    if isinstance(event, Failed):
        raise ProtocolError(event.status, event.message)
    return NO_ANSWER if event.end == "gone" else JSONResponse(answer.whole("".join(texts), event))


async def _stream(first: Said | Over, mailbox: Mailbox, answer: Answer, usage: bool) -> AsyncIterator[bytes]:
    yield packed(answer.piece({"role": "assistant", "content": ""}))
    event: Event = first
    while isinstance(event, Said):
        yield packed(answer.piece({"content": event.text}))
        event = await mailbox.next()
    if isinstance(event, Failed):
        yield packed(ProtocolError(event.status, event.message).body)
        return
    yield packed(answer.piece({}, event))
    if usage:
        yield packed(answer.usage(event))
    yield DONE


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ProtocolError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    elif not isinstance(error, ProtocolError):
        error = ProtocolError(500, FAULT)
    return JSONResponse(error.body, error.status, error.headers)
