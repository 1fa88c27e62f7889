"""Options of `python -m chat.serve`."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator

from chat.options import (
    Count,
    ModelOptions,
    SamplingOptions,
    integer_between,
    parse_bilingual_options,
)

DESCRIPTION = """以 OpenAI chat-completions 协议提供一个模型；浏览器打开 / 就能与它对话。
Serve a model by the OpenAI chat-completions protocol; open / in a browser to talk to it.
请求里没有写的设置，以下面的选项为准。
A setting that a request leaves out has the value of the option below."""


class ServeOptions(SamplingOptions, ModelOptions):
    """Where the server listens, and what its requests may cost."""

    host: str = Field(
        "127.0.0.1",
        description="监听的地址；默认只有本机连得上，0.0.0.0 为所有网卡\n"
        "address to listen on; by default this machine only, 0.0.0.0: all interfaces",
    )
    port: Annotated[int, integer_between(0, 65535)] = Field(
        8000, description="端口；0 为任选一个空闲的\nport; 0: any free one"
    )
    api_key: str | None = Field(
        None,
        description="请求要带的密钥；默认不要\nkey that requests must carry; default: none",
    )
    rows: Count = Field(
        8, description="同时回答多少个请求\nrequests that are answered at the same time"
    )
    waiting: Annotated[int, integer_between(0)] = Field(
        32,
        description="另外最多多少个请求排队，再多的答 429\n"
        "requests that may wait besides; more get status 429",
    )
    max_new_tokens: Count = Field(
        256,
        description="一个回答最多多少个词元，不管请求要多少\n"
        "most tokens of an answer, whatever a request asks for",
    )
    timeout: Count = Field(
        300,
        description="一个请求最多多少秒，排队在内\nmost seconds of a request, waiting included",
    )
    max_body: Count = Field(
        1 << 20, description="请求体最多多少字节\nmost bytes of the body of a request"
    )

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[!-~]+", value):
            raise ValueError("密钥要由可见的 ASCII 字符组成，中间没有空格")
        return value


def parse_serve_options(arguments: Sequence[str]) -> ServeOptions:
    """Return the options of `python -m chat.serve`; raises ChatError for mistakes."""
    return parse_bilingual_options(
        ServeOptions, arguments, name="chat.serve", description=DESCRIPTION
    )
