"""Chat servers inside the test process, on real sockets."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import torch
import uvicorn

from chat import load_model
from chat.passage_lookup import PassageLookup
from chat.serve.__main__ import open_listener, server_url
from chat.serve.app import Limits, Service
from chat.serve.connection_limits import BACKLOG, LimitedConnection
from chat.serve.engine import Engine
from chat.serve.retrieval import Retriever
from model.decode.sampling import Sampling

GREEDY = Sampling(temperature=0.0)


class ServerHandle:
    """A running server, and clients for it."""

    def __init__(
        self,
        url: str,
        engine: Engine,
        loaded_model: load_model.LoadedModel,
        model_name: str,
        api_key: str | None,
    ) -> None:
        self.url = url
        self.engine = engine
        self.loaded_model = loaded_model
        self.model_name = model_name
        # Imported here: it takes a second, in each worker that collects the tests.
        from openai import OpenAI

        self.client = OpenAI(
            base_url=f"{url}v1", api_key=api_key or "none", max_retries=0, timeout=60
        )

    def post(self, body: Any = None, **options: Any) -> requests.Response:
        """POST any body to the completions route."""
        return requests.post(f"{self.url}v1/chat/completions", json=body, timeout=60, **options)

    def request_body(self, *texts: str, reference: str = "", **options: Any) -> dict[str, Any]:
        """Return a request with alternating user and assistant messages, for OpenAI's client.

        A reference is in `extra_body`, whose contents that client puts into the body.
        """
        messages = [
            {"role": ("user", "assistant")[index % 2], "content": text}
            for index, text in enumerate(texts)
        ]
        if reference:
            options["extra_body"] = {"documents": [{"text": reference}]}
        return {"model": self.model_name, "messages": messages, **options}


@contextmanager
def running_server(
    checkpoint: Path,
    *,
    max_sequences: int = 4,
    max_queued: int = 8,
    max_new_tokens: int = 100,
    timeout_seconds: float = 60.0,
    max_body_bytes: int = 100_000,
    lookup: PassageLookup | None = None,
    api_key: str | None = None,
    protocol_class: type[LimitedConnection] = LimitedConnection,
    send_buffer_bytes: int | None = None,
) -> Iterator[ServerHandle]:
    """Run a server for a checkpoint; greedy unless a request sets its own sampling.

    `send_buffer_bytes` limits what the system buffers for a client that does not read.
    """
    loaded_model = load_model.load_chat_model(checkpoint, torch.device("cpu"), "auto")
    engine = Engine(loaded_model, max_sequences=max_sequences, max_queued=max_queued)
    service = Service(
        checkpoint.name,
        loaded_model,
        engine,
        GREEDY,
        Limits(max_new_tokens, timeout_seconds, max_body_bytes),
        None if lookup is None else Retriever(lookup),
    )
    with open_listener("127.0.0.1", 0) as listener:
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        server = uvicorn.Server(
            uvicorn.Config(
                service.application("127.0.0.1", api_key),
                http=protocol_class,
                backlog=BACKLOG,
                ws="none",
                lifespan="off",
                log_level="warning",
            )
        )
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        engine.start()
        thread.start()
        try:
            yield ServerHandle(server_url(listener), engine, loaded_model, checkpoint.name, api_key)
        finally:
            server.should_exit = True
            engine.stop()
            thread.join(30)
            engine.join()
