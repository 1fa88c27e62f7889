"""`python -m chat.serve`: serve a model over the OpenAI chat-completions protocol."""

import errno
import socket
import sys
from ipaddress import ip_address
from types import FrameType
from typing import TYPE_CHECKING

from chat.errors import COMMAND_FAILED, ChatError, describe_os_error, translate_errors
from chat.serve.options import parse_serve_options
from common.errors import run_main

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from chat.serve.engine import Engine

SHUTDOWN_GRACE_SECONDS = 2  # time for open responses to end after Ctrl-C


def main() -> None:
    """Run the command; every error becomes one line in Chinese."""
    with translate_errors(COMMAND_FAILED):
        _run_server()


def _run_server() -> None:
    """Load the model, and serve it until SIGINT or SIGTERM."""
    options = parse_serve_options(sys.argv[1:])
    # Opened before the model is loaded, so that a port in use is reported at once.
    with open_listener(options.host, options.port) as listener:
        # Imported here so that --help and invalid options answer without loading PyTorch.
        from chat import load_model
        from chat.passage_lookup import PassageLookup
        from chat.serve.app import Limits, Service
        from chat.serve.engine import Engine
        from chat.serve.retrieval import Retriever

        retriever = None
        if options.index is not None:
            retriever = Retriever(PassageLookup.open(options.index))
        checkpoint = options.checkpoint or load_model.find_default_run()
        loaded_model = load_model.load_chat_model(
            checkpoint,
            load_model.resolve_chat_device(options.device),
            options.precision,
            options.quantize,
            options.kv_cache,
        )
        engine = Engine(loaded_model, max_sequences=options.rows, max_queued=options.waiting)
        service = Service(
            checkpoint.resolve().name,
            loaded_model,
            engine,
            options.to_sampling(),
            Limits(options.max_new_tokens, options.timeout, options.max_body),
            retriever,
        )
        _print_note(f"模型：{loaded_model.description}")
        if retriever is not None:
            _print_note(f"资料库：{options.index}（{len(retriever)} 段）")
        if (hint := load_model.capability_hint(loaded_model)) is not None:
            _print_note(hint)
        if not _is_loopback(listener) and options.api_key is None:
            _print_note(
                f"提示：--host {options.host} 允许其他机器访问，但没有设置 --api_key："
                "任何人都可以使用"
            )
        url = server_url(listener)
        _print_note(f"{url} （API 地址：{url}v1，模型名：{service.name}），按 Ctrl-C 停止")
        serve(service.application(options.host, options.api_key), engine, listener)


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket, on IPv4 or IPv6. Raises ChatError if it cannot be opened."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # An IPv6 address has two more parts, which create_server does not take.
        return socket.create_server(address[:2], family=family, backlog=128)
    except UnicodeError:  # a host name that IDNA cannot encode
        raise ChatError(f"--host {host[:100]}：不是有效的地址或主机名") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ChatError(
                f"{host}:{port} 已被占用：请换一个 --port，或先关闭占用它的程序"
            ) from None
        raise ChatError(
            f"--host {host} --port {port}：无法监听（{describe_os_error(error)}）"
        ) from None


def server_url(listener: socket.socket) -> str:
    """Return the URL under which a browser on this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    # "All interfaces" is not an address to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    if ":" in host:  # IPv6
        host = f"[{host}]"
    return f"http://{host}:{port}/"


def serve(application: "Starlette", engine: "Engine", listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, which also end the running answers."""
    import uvicorn

    from chat.serve.connection_limits import BACKLOG, LimitedConnection

    class Server(uvicorn.Server):
        """A uvicorn server whose signal handler ends the running answers, too."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # uvicorn waits for open responses, which only end when the engine stops.
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
        # uvicorn raises the signal again after its shutdown. SIGINT arrives here; SIGTERM ends the
        # process before.
        _print_note("已停止")
    finally:
        engine.stop()
        engine.join()


def _is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach the socket."""
    # An IPv6 address may end in the name of an interface: fe80::1%eth0.
    address, _, _ = listener.getsockname()[0].partition("%")
    return ip_address(address).is_loopback


def _print_note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
