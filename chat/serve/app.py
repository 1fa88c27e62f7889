"""The HTTP routes: turn HTTP requests into generation requests, and their events into responses."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from chat.load_model import LoadedModel
from chat.prompt import FittedPrompt, PromptTooLongError, fit_prompt
from chat.serve import page
from chat.serve.auth import AuthMiddleware
from chat.serve.connection_limits import IDLE_TIMEOUT_SECONDS
from chat.serve.engine import INTERNAL_ERROR_MESSAGE, SHUTDOWN_MESSAGE, Engine, QueueFull
from chat.serve.errors import ProtocolError
from chat.serve.protocol import (
    CompletionRequest,
    conversation_from_messages,
    parse_request,
    parse_search,
    resolve_sampling,
)
from chat.serve.responses import (
    DONE_EVENT,
    SCORE_DIGITS,
    CompletionResponse,
    encode_sse_event,
)
from chat.serve.retrieval import Retriever
from chat.serve.sequence import AnswerEvent, Failure, Finish, GenerationRequest, TextDelta
from model.decode.generate import max_prompt_tokens
from model.decode.sampling import Sampling

RETRY_AFTER_SECONDS = 2
NO_INDEX_CODE = "no_index"
NO_INDEX_MESSAGE = "this server has no index of passages: start it with --index DIR"
# Shorter than the connection's own timeout, so that the client gets an error before it is closed.
BODY_TIMEOUT_SECONDS = IDLE_TIMEOUT_SECONDS - 5.0
CLIENT_CLOSED_RESPONSE = Response(status_code=499)  # nobody receives it: the client has gone


@dataclass(frozen=True)
class Limits:
    """Upper limits for one request."""

    max_new_tokens: int
    timeout_seconds: float  # from the arrival of the request, time in the queue included
    max_body_bytes: int


class AsyncEventQueue:
    """Events that the engine's thread sends to the coroutine of one request."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[AnswerEvent] = asyncio.Queue()
        self.get = self._events.get

    def put(self, event: AnswerEvent) -> None:
        """Append an event. Safe in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Service:
    """The application: a model under a name, and the engine that runs it."""

    def __init__(
        self,
        name: str,
        loaded_model: LoadedModel,
        engine: Engine,
        default_sampling: Sampling,
        limits: Limits,
        retriever: Retriever | None = None,
    ) -> None:
        self.name = name
        self._loaded_model = loaded_model
        self._engine = engine
        self._default_sampling = default_sampling
        self._limits = limits
        self._retriever = retriever
        self._created = int(loaded_model.folder.stat().st_mtime)

    def application(self, host: str, api_key: str | None) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/", page.get_page),
            Route("/health", self.health),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.get_model),
            Route("/v1/examples", self.list_examples),
            Route("/v1/search", self.search),
            Route("/v1/chat/completions", self.create_chat_completion, methods=["POST"]),
        ]
        exception_handlers: dict[Any, Any] = {
            ProtocolError: _error_response,
            HTTPException: _error_response,
            Exception: _error_response,
        }
        return Starlette(
            routes=routes,
            exception_handlers=exception_handlers,
            middleware=[Middleware(AuthMiddleware, host=host, api_key=api_key)],
        )

    async def health(self, request: Request) -> Response:
        """GET /health: return the engine's status and its numbers of requests."""
        num_running, num_waiting = self._engine.request_counts
        is_alive = self._engine.is_alive
        status = {
            "status": "ok" if is_alive else "stopping",
            "running": num_running,
            "waiting": num_waiting,
        }
        return JSONResponse(status, 200 if is_alive else 503)

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models: return a list with the one model."""
        return JSONResponse({"object": "list", "data": [self._model_info]})

    async def get_model(self, request: Request) -> Response:
        """GET /v1/models/NAME: return the model, or 404 for any other name."""
        self._check_model_name(request.path_params["name"])
        return JSONResponse(self._model_info)

    async def list_examples(self, request: Request) -> Response:
        """GET /v1/examples, this server's addition: return examples to try the model on."""
        examples = [asdict(example) for example in self._loaded_model.examples]
        return JSONResponse({"object": "list", "data": examples})

    async def search(self, request: Request) -> Response:
        """GET /v1/search?q=WORDS, this server's addition: return passages, without an answer."""
        if self._retriever is None:
            raise ProtocolError(404, NO_INDEX_MESSAGE, code=NO_INDEX_CODE)
        query = parse_search(request.query_params)
        hits = await asyncio.to_thread(self._retriever.search, query.q, query.limit)
        passages = [
            {
                "title": hit.title,
                "text": hit.text,
                "score": round(hit.score, SCORE_DIGITS),
                "source": hit.source,
            }
            for hit in hits
        ]
        return JSONResponse({"object": "list", "data": passages})

    @property
    def _model_info(self) -> dict[str, Any]:
        """The protocol's object of the model; the last three fields are this server's additions."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "babyllama",
            "context_length": self._loaded_model.context_length,
            "converses": self._loaded_model.is_chat_tuned,
            "indexed_passages": 0 if self._retriever is None else len(self._retriever),
        }

    def _check_model_name(self, name: str) -> None:
        """Raise ProtocolError (404) if `name` is not that of this server's model."""
        if name != self.name:
            raise ProtocolError(
                404,
                f"the model {name!r} does not exist; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def create_chat_completion(self, request: Request) -> Response:
        """POST /v1/chat/completions: return the answer, whole or as a stream of events."""
        try:
            body = parse_request(await self._read_body(request))
        except ClientDisconnect:
            return CLIENT_CLOSED_RESPONSE
        self._check_model_name(body.model)
        # `max_tokens` is the protocol's old name of `max_completion_tokens`.
        requested_tokens = body.max_completion_tokens or body.max_tokens
        max_new_tokens = self._limits.max_new_tokens
        if requested_tokens is not None:
            max_new_tokens = min(requested_tokens, max_new_tokens)
        # In a thread, because a search, or encoding a long text, would block all other connections.
        prompt, response = await asyncio.to_thread(self._prepare, body, max_new_tokens)
        events = AsyncEventQueue()
        generation_request = self._add_request(body, prompt, max_new_tokens, events)
        # The client sends nothing after its body: the next message can only be the disconnect.
        disconnect_watcher = asyncio.create_task(_watch_disconnect(request, generation_request))
        try:
            # Awaited before the response begins, so that a failure can have its own HTTP status.
            first_event = await events.get()
            if isinstance(first_event, Failure):
                # 503: the server is busy or shutting down, and another attempt may succeed.
                retry_after = RETRY_AFTER_SECONDS if first_event.status == 503 else None
                raise ProtocolError(
                    first_event.status, first_event.message, retry_after=retry_after
                )
            if not body.stream:
                return await _collect_response(first_event, events, response)
            include_usage = body.stream_options.include_usage
            chunks = _stream_chunks(first_event, events, response, include_usage)
            return EventStreamResponse(chunks, generation_request)
        finally:
            disconnect_watcher.cancel()

    def _prepare(
        self, body: CompletionRequest, max_new_tokens: int
    ) -> tuple[FittedPrompt, CompletionResponse]:
        """Return the prompt of a request, and the response that is to be filled.

        Raises ProtocolError if the prompt does not fit, or if a passage is to be retrieved and
        there is no index.
        """
        conversation = conversation_from_messages(body.messages)
        turns = conversation.turns
        reference = body.documents[0].text if body.documents else ""
        retrieved = None
        if body.retrieve:
            if self._retriever is None:
                raise ProtocolError(
                    400, f"retrieve: {NO_INDEX_MESSAGE}", param="retrieve", code=NO_INDEX_CODE
                )
            retrieved = self._retriever.retrieve(conversation)
            turns = retrieved.turns
            reference = retrieved.passage.reference if retrieved.passage else ""
        try:
            prompt = fit_prompt(
                self._loaded_model.tokenizer,
                self._loaded_model.template,
                turns,
                conversation.question,
                reference,
                max_prompt_tokens(self._loaded_model.context_length, max_new_tokens),
                truncate_reference=body.retrieve,  # the client did not choose it
                system=conversation.system,
            )
        except PromptTooLongError as error:
            raise ProtocolError(
                400,
                f"the document, the system message and the question have {error.num_tokens} "
                f"tokens, and the limit is {error.prompt_budget}: shorten them",
                param="messages",
                code="context_length_exceeded",
            ) from None
        return prompt, CompletionResponse(self.name, prompt, reference, retrieved)

    def _add_request(
        self,
        body: CompletionRequest,
        prompt: FittedPrompt,
        max_new_tokens: int,
        events: AsyncEventQueue,
    ) -> GenerationRequest:
        """Queue a request in the engine. Raises ProtocolError if the engine is full or stopping."""
        if not self._engine.is_alive:
            raise ProtocolError(503, SHUTDOWN_MESSAGE)
        generation_request = GenerationRequest(
            prompt.ids,
            max_new_tokens,
            resolve_sampling(body, self._default_sampling),
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            deadline=time.monotonic() + self._limits.timeout_seconds,
            emit=events.put,
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            stop_strings=body.stop,
        )
        try:
            self._engine.add_request(generation_request)
        except QueueFull:
            raise ProtocolError(
                429,
                "too many requests are running and waiting: try again later",
                code="rate_limit_exceeded",
                retry_after=RETRY_AFTER_SECONDS,
            ) from None
        return generation_request

    async def _read_body(self, request: Request) -> bytes:
        """Return the body. Raises ProtocolError if it is late, too large or not sent as JSON.

        A web page of another origin cannot send JSON without asking first (CORS preflight), which
        this server never allows.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise ProtocolError(415, "send JSON, with the header Content-Type: application/json")

        # Block by block: the Content-Length header need not be there, or true.
        async def read_limited() -> bytes:
            body = b""
            async for block in request.stream():
                body += block
                if len(body) > self._limits.max_body_bytes:
                    raise ProtocolError(
                        413,
                        f"the body is larger than {self._limits.max_body_bytes:,} bytes",
                        code="body_too_large",
                    )
            return body

        try:
            return await asyncio.wait_for(read_limited(), BODY_TIMEOUT_SECONDS)
        except asyncio.TimeoutError:
            raise ProtocolError(
                408, f"the body did not arrive within {BODY_TIMEOUT_SECONDS:g} seconds"
            ) from None


class EventStreamResponse(StreamingResponse):
    """A stream of server-sent events that cancels its request when it ends for any reason.

    A `finally` in the generator of chunks is not enough: it does not run if the client disconnects
    before the first chunk is sent. Cancelling a request that is complete has no effect.
    """

    def __init__(self, chunks: AsyncIterator[bytes], generation_request: GenerationRequest) -> None:
        super().__init__(
            chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._generation_request = generation_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation_request.is_cancelled = True


async def _watch_disconnect(request: Request, generation_request: GenerationRequest) -> None:
    """Cancel the generation once the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation_request.is_cancelled = True


async def _collect_response(
    first_event: TextDelta | Finish, events: AsyncEventQueue, response: CompletionResponse
) -> Response:
    """Return the whole answer as one response. Raises ProtocolError if the generation fails."""
    pieces: list[str] = []
    event: AnswerEvent = first_event
    while isinstance(event, TextDelta):
        pieces.append(event.text)
        event = await events.get()
    if isinstance(event, Failure):
        raise ProtocolError(event.status, event.message)
    if event.finish_reason == "cancelled":
        return CLIENT_CLOSED_RESPONSE
    completion = await asyncio.to_thread(response.completion, "".join(pieces), event)
    return JSONResponse(completion)


async def _stream_chunks(
    first_event: TextDelta | Finish,
    events: AsyncEventQueue,
    response: CompletionResponse,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Yield the server-sent events of an answer.

    A failure after the first one becomes an error event, because the HTTP status has been sent.
    """
    yield encode_sse_event(response.first_chunk())
    pieces: list[str] = []
    event: AnswerEvent = first_event
    while isinstance(event, TextDelta):
        pieces.append(event.text)
        yield encode_sse_event(response.text_chunk(event.text))
        event = await events.get()
    if isinstance(event, Failure):
        yield encode_sse_event(ProtocolError(event.status, event.message).body)
        return
    last_chunk = await asyncio.to_thread(response.last_chunk, "".join(pieces), event)
    yield encode_sse_event(last_chunk)
    if include_usage:
        yield encode_sse_event(response.usage_chunk(event))
    yield DONE_EVENT


async def _error_response(request: Request, error: Exception) -> Response:
    """Return any exception as the protocol's error object, a bug as status 500."""
    if isinstance(error, HTTPException):
        error = ProtocolError(
            error.status_code, f"{request.method} {request.url.path}: {error.detail}"
        )
    elif not isinstance(error, ProtocolError):
        error = ProtocolError(500, INTERNAL_ERROR_MESSAGE)
    return JSONResponse(error.body, error.status, error.headers)
