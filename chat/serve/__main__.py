"""`python -m chat.serve`: a model behind the OpenAI chat-completions protocol."""

import errno
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

from chat.errors import ChatError, describe_os_error, translate_errors
from chat.serve.options import parse_serve_options
from common.errors import run_main

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from chat.serve.engine import Engine

SHUTDOWN_GRACE_SECONDS = 2  # seconds that responses have to end after Ctrl-C


def main() -> None:
    """Entry point."""
    with translate_errors("没有做成：按详情改正后，再运行一次"):
        _run_server()


def _run_server() -> None:
    options = parse_serve_options(sys.argv[1:])
    # Before the model is loaded: a port that is taken is said at once.
    with open_listener(options.host, options.port) as listener:
        from chat import load_model
        from chat.serve.app import Limits, Service
        from chat.serve.engine import Engine

        checkpoint = options.checkpoint or load_model.find_default_run()
        loaded = load_model.load_chat_model(
            checkpoint,
            load_model.resolve_chat_device(options.device),
            options.precision,
            options.quantize,
        )
        engine = Engine(loaded, max_sequences=options.rows, max_queued=options.waiting)
        limits = Limits(options.max_new_tokens, options.timeout, options.max_body)
        service = Service(checkpoint.resolve().name, loaded, engine, options.to_sampling(), limits)
        _print_note(f"模型：{loaded.description}")
        if (hint := load_model.capability_hint(loaded)) is not None:
            _print_note(hint)
        if not _is_loopback(listener) and options.api_key is None:
            _print_note(
                f"提示：--host {options.host} 让别的机器也连得上，而没有 --api_key：谁都可以用"
            )
        _print_note(
            f"{server_url(listener)} （协议：{server_url(listener)}v1，模型名：{service.name}），Ctrl-C 结束"
        )
        serve(service.application(options.host, options.api_key), engine, listener)


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens there. ChatError if that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except UnicodeError:
        raise ChatError(f"--host {host[:100]}：不是地址，也不是主机名") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ChatError(
                f"{host}:{port} 已经有程序在用：换一个 --port，或先结束那个程序"
            ) from None
        raise ChatError(
            f"--host {host} --port {port}：不能在这里监听（{describe_os_error(error)}）"
        ) from None


def server_url(listener: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(application: "Starlette", engine: "Engine", listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, which end the answers that are being made."""
    import uvicorn

    from chat.serve.connection_limits import BACKLOG, LimitedConnection

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            engine.stop()
            super().handle_exit(sig, frame)

    engine.start()
    config = uvicorn.Config(
        application,
        http=LimitedConnection,
        backlog=BACKLOG,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_SECONDS,
    )
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        _print_note("结束")
    finally:
        engine.stop()
        engine.join()


def _is_loopback(listener: socket.socket) -> bool:
    from ipaddress import ip_address

    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _print_note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_main(main)
