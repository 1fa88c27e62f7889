"""The command line, in Chinese and English."""

import argparse
import re

from chat.errors import ChatError
from chat.options import ChatParser, add_model_options, add_sampling_options, bounded_int

DESCRIPTION = """以 OpenAI chat-completions 协议提供一个模型；浏览器打开 / 就能与它对话。
Serve a model by the OpenAI chat-completions protocol; open / in a browser to talk to it.
请求没有说的设置，以下面的为准。
What a request does not say is as the options below say."""


def parse_serve_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; exits on `--help`. ChatError for a value that is out of range."""
    parser = ChatParser("python -m chat.serve", DESCRIPTION)
    add = parser.add_argument
    add_model_options(parser)
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="监听的地址（默认 127.0.0.1，只有本机连得上）；0.0.0.0 为所有网卡\n"
        "address to listen on (default 127.0.0.1, this machine only); 0.0.0.0: all interfaces",
    )
    add(
        "--port",
        type=bounded_int("--port", 0, 65535),
        default=8000,
        metavar="N",
        help="端口（默认 8000）；0 为任选一个空闲的\nport (default 8000); 0: any free one",
    )
    add(
        "--api_key",
        metavar="KEY",
        help="请求要带的密钥；默认不要\nkey that requests must carry; default: none",
    )
    for name, default, chinese, english in (
        ("rows", 8, "同时回答多少个请求", "requests answered at the same time"),
        (
            "waiting",
            32,
            "另外最多多少个请求排队，再多的答 429",
            "requests that may wait besides; more get 429",
        ),
        (
            "max_new_tokens",
            256,
            "一个回答最多多少个词元，不管请求要多少",
            "most tokens of an answer, whatever is asked for",
        ),
        (
            "timeout",
            300,
            "一个请求最多多少秒，排队在内",
            "most seconds of a request, waiting counted",
        ),
        ("max_body", 1 << 20, "请求体最多多少字节", "most bytes of a request's body"),
    ):
        add(
            f"--{name}",
            type=bounded_int(f"--{name}", 0 if name == "waiting" else 1),
            default=default,
            metavar="N",
            help=f"{chinese}（默认 {default}）\n{english} (default {default})",
        )
    add_sampling_options(parser)
    options = parser.parse_args(arguments)
    if options.api_key is not None and not re.fullmatch("[!-~]+", options.api_key):
        raise ChatError("--api_key：密钥要由可见的 ASCII 字符组成，中间没有空格")
    return options
