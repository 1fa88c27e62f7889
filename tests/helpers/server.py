"""Servers in this process, on real sockets."""

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
from openai import OpenAI

from chat import load_model
from chat.serve.__main__ import listen, url
from chat.serve.app import Limits, Service
from chat.serve.connection_limits import BACKLOG, Limited
from chat.serve.engine import Engine
from model.decode.generate import Sampling

GREEDY = Sampling(temperature=0.0)


class Served:
    """A running server."""

    def __init__(self, address: str, engine: Engine, loaded: load_model.Weights, name: str, key: str | None) -> None:
        self.url, self.engine, self.weights, self.name = address, engine, loaded, name
        self.client = OpenAI(base_url=f"{address}v1", api_key=key or "none", max_retries=0, timeout=60)

    def post(self, body: Any = None, **options: Any) -> requests.Response:
        """A request, whatever its body."""
        return requests.post(f"{self.url}v1/chat/completions", json=body, timeout=60, **options)

    def ask(self, *said: str, reference: str = "", **options: Any) -> dict[str, Any]:
        """A request whose messages are a reference and turns."""
        messages = [{"role": "system", "content": reference}] if reference else []
        messages += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
        return {"model": self.name, "messages": messages, **options}


@contextmanager
def served(checkpoint: Path, *, rows: int = 4, waiting: int = 8, tokens: int = 100, seconds: float = 60.0,
           body: int = 100_000, key: str | None = None, http: type[Limited] = Limited,
           unread: int | None = None) -> Iterator[Served]:
    """A server for a checkpoint; greedy where a request does not say otherwise.

    The system holds `unread` bytes for a client that does not read.
    """
    loaded = load_model.load(checkpoint, torch.device("cpu"), "auto")
    engine = Engine(loaded, rows=rows, waiting=waiting)
    service = Service(checkpoint.name, loaded, engine, GREEDY, Limits(tokens, seconds, body))
    with listen("127.0.0.1", 0) as listener:
        if unread is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, unread)
        server = uvicorn.Server(uvicorn.Config(
            service.application("127.0.0.1", key), http=http, backlog=BACKLOG, ws="none", lifespan="off", log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        engine.start()
        thread.start()
        try:
            yield Served(url(listener), engine, loaded, checkpoint.name, key)
        finally:
            server.should_exit = True
            engine.stop()
            thread.join(30)
            engine.join()
