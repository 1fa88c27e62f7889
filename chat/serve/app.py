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

from chat.load_model import LoadedModel
from chat.serve import page
from chat.serve.auth import AuthMiddleware
from chat.serve.connection_limits import IDLE_TIMEOUT_SECONDS
from chat.serve.engine import INTERNAL_ERROR_MESSAGE, SHUTDOWN_MESSAGE, Engine, QueueFull
from chat.serve.errors import ProtocolError
from chat.serve.prompt import FittedPrompt, fit_prompt
from chat.serve.protocol import (
    CompletionRequest,
    conversation_from_messages,
    parse_request,
    resolve_sampling,
)
from chat.serve.responses import DONE_EVENT, CompletionResponse, encode_sse_event
from chat.serve.sequence import AnswerEvent, Failure, Finish, Job, TextDelta
from model.decode.generate import Sampling, max_prompt_tokens

RETRY_AFTER_SECONDS = 2  # seconds
BODY_TIMEOUT_SECONDS = (
    IDLE_TIMEOUT_SECONDS - 5.0
)  # so that it is told, before its connection is closed
CLIENT_CLOSED_RESPONSE = Response(status_code=499)  # to nobody: the one who asked has gone


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    max_new_tokens: int  # of an answer
    timeout_seconds: float  # of a request, waiting counted
    max_body_bytes: int  # bytes


class AsyncEventQueue:
    """Events from the engine's thread to a coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[AnswerEvent] = asyncio.Queue()
        self.get = self._events.get

    def put(self, event: AnswerEvent) -> None:
        """May be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Service:
    """A model under a name, and the engine that answers for it."""

    def __init__(
        self, name: str, weights: LoadedModel, engine: Engine, defaults: Sampling, limits: Limits
    ) -> None:
        self.name, self._loaded_model, self._engine, self._defaults, self._limits = (
            name,
            weights,
            engine,
            defaults,
            limits,
        )
        self._created = int(weights.folder.stat().st_mtime)

    def application(self, host: str, api_key: str | None) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", page.get_page),
            Route("/health", self.health),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.get_model),
            Route("/v1/chat/completions", self.create_chat_completion, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            ProtocolError: _error_response,
            HTTPException: _error_response,
            Exception: _error_response,
        }
        return Starlette(
            routes=routes,
            exception_handlers=handlers,
            middleware=[Middleware(AuthMiddleware, host=host, api_key=api_key)],
        )

    async def health(self, request: Request) -> Response:
        """Whether the engine works, and how many requests it has."""
        running, waiting = self._engine.request_counts
        status = {
            "status": "ok" if self._engine.is_alive else "stopping",
            "running": running,
            "waiting": waiting,
        }
        return JSONResponse(status, 200 if self._engine.is_alive else 503)

    async def list_models(self, request: Request) -> Response:
        """The one model there is."""
        return JSONResponse({"object": "list", "data": [self._model_info]})

    async def get_model(self, request: Request) -> Response:
        """The model of a name."""
        self._check_model_name(request.path_params["name"])
        return JSONResponse(self._model_info)

    @property
    def _model_info(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "babyllama",
            "context_length": self._loaded_model.context_length,
            "converses": self._loaded_model.is_chat_tuned,
        }

    def _check_model_name(self, name: str) -> None:
        if name != self.name:
            raise ProtocolError(
                404,
                f"there is no model {name!r} here; there is {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def create_chat_completion(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        try:
            body = parse_request(await self._read_body(request))
        except ClientDisconnect:
            return CLIENT_CLOSED_RESPONSE
        self._check_model_name(body.model)
        max_new_tokens = min(
            self._limits.max_new_tokens,
            body.max_completion_tokens or body.max_tokens or self._limits.max_new_tokens,
        )
        prompt = await asyncio.to_thread(
            fit_prompt,
            self._loaded_model.tokenizer,
            self._loaded_model.template,
            conversation_from_messages(body.messages),
            max_prompt_tokens(self._loaded_model.context_length, max_new_tokens),
        )
        mailbox = AsyncEventQueue()
        job = self._submit_job(body, prompt, max_new_tokens, mailbox)
        # Nothing more comes from the client but word that it has gone.
        watch = asyncio.create_task(_watch_disconnect(request, job))
        try:
            first = await mailbox.get()
            if isinstance(first, Failure):
                raise ProtocolError(
                    first.status,
                    first.message,
                    retry_after=RETRY_AFTER_SECONDS if first.status == 503 else None,
                )
            answer = CompletionResponse(self.name, prompt)
            if body.stream:
                return EventStreamResponse(
                    _stream_events(first, mailbox, answer, body.stream_options.include_usage), job
                )
            return await _collect_response(first, mailbox, answer)
        finally:
            watch.cancel()

    def _submit_job(
        self,
        body: CompletionRequest,
        prompt: FittedPrompt,
        max_new_tokens: int,
        mailbox: AsyncEventQueue,
    ) -> Job:
        if not self._engine.is_alive:
            raise ProtocolError(503, SHUTDOWN_MESSAGE)
        seed = body.seed if body.seed is not None else secrets.randbits(63)
        job = Job(
            prompt.ids,
            max_new_tokens,
            resolve_sampling(body, self._defaults),
            seed,
            time.monotonic() + self._limits.timeout_seconds,
            mailbox.put,
            body.frequency_penalty,
            body.presence_penalty,
            body.stop,
        )
        try:
            self._engine.submit(job)
        except QueueFull:
            raise ProtocolError(
                429,
                "too many requests are running and waiting: try again later",
                code="rate_limit_exceeded",
                retry_after=RETRY_AFTER_SECONDS,
            ) from None
        return job

    async def _read_body(self, request: Request) -> bytes:
        """The body, JSON by its own account: a page elsewhere cannot send that without asking first (CORS)."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ProtocolError(415, "send JSON, with the header Content-Type: application/json")

        async def arrived() -> bytes:
            raw = b""
            async for block in request.stream():
                raw += block
                if len(raw) > self._limits.max_body_bytes:
                    raise ProtocolError(
                        413,
                        f"the body is larger than {self._limits.max_body_bytes:,} bytes",
                        code="body_too_large",
                    )
            return raw

        try:
            return await asyncio.wait_for(arrived(), BODY_TIMEOUT_SECONDS)
        except asyncio.TimeoutError:
            raise ProtocolError(
                408, f"the body did not come within {BODY_TIMEOUT_SECONDS:g} seconds"
            ) from None


class EventStreamResponse(StreamingResponse):
    """Events of a job, which nobody needs any more when the response is over, however it ended."""

    def __init__(self, events: AsyncIterator[bytes], job: Job) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.is_cancelled = True


async def _watch_disconnect(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.is_cancelled = True


async def _collect_response(
    first: TextDelta | Finish, mailbox: AsyncEventQueue, answer: CompletionResponse
) -> Response:
    texts: list[str] = []
    event: AnswerEvent = first
    while isinstance(event, TextDelta):
        texts.append(event.text)
        event = await mailbox.get()
    if isinstance(event, Failure):
        raise ProtocolError(event.status, event.message)
    return (
        CLIENT_CLOSED_RESPONSE
        if event.finish_reason == "gone"
        else JSONResponse(answer.completion("".join(texts), event))
    )


async def _stream_events(
    first: TextDelta | Finish,
    mailbox: AsyncEventQueue,
    answer: CompletionResponse,
    should_include_usage: bool,
) -> AsyncIterator[bytes]:
    yield encode_sse_event(answer.chunk({"role": "assistant", "content": ""}))
    event: AnswerEvent = first
    while isinstance(event, TextDelta):
        yield encode_sse_event(answer.chunk({"content": event.text}))
        event = await mailbox.get()
    if isinstance(event, Failure):
        yield encode_sse_event(ProtocolError(event.status, event.message).body)
        return
    yield encode_sse_event(answer.chunk({}, event))
    if should_include_usage:
        yield encode_sse_event(answer.usage_chunk(event))
    yield DONE_EVENT


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ProtocolError(
            error.status_code, f"{request.method} {request.url.path}: {error.detail}"
        )
    elif not isinstance(error, ProtocolError):
        error = ProtocolError(500, INTERNAL_ERROR_MESSAGE)
    return JSONResponse(error.body, error.status, error.headers)
