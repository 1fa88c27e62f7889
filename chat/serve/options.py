"""Options of `python -m chat.serve`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from chat.options import (
    Count,
    ModelOptions,
    SamplingOptions,
    integer_between,
    parse_bilingual_options,
)
from model.decode.sampling import DEFAULT_MAX_NEW_TOKENS

DESCRIPTION = """通过 OpenAI chat-completions 协议提供模型服务；用浏览器打开 / 即可对话。
Serve a model over the OpenAI chat-completions protocol; open / in a browser to talk to it.
请求中没有给出的设置，以下面的选项为准。
A setting that a request leaves out has the value of the option below."""


class ServeOptions(SamplingOptions, ModelOptions):
    """Options of `python -m chat.serve`: index, address, API key and limits."""

    index: Path | None = Field(
        None,
        description='资料库（make index 建立）：请求中 "retrieve": true 时，先找一段资料再回答；'
        "网页上自动打开\n"
        'index of passages (make index): looked up for requests with "retrieve": true, '
        "and by the page",
    )
    host: str = Field(
        "127.0.0.1",
        description="监听地址；默认只有本机能访问，0.0.0.0 表示所有网卡\n"
        "address to listen on; by default this machine only, 0.0.0.0: all interfaces",
    )
    port: Annotated[int, integer_between(0, 65535)] = Field(
        8000, description="端口；0 表示任选一个空闲端口\nport; 0: any free one"
    )
    api_key: str | None = Field(
        None,
        description="请求必须携带的密钥；默认不需要\nkey that requests must carry; default: none",
    )
    rows: Count = Field(
        8, description="同时处理的请求数\nrequests that are answered at the same time"
    )
    waiting: Annotated[int, integer_between(0)] = Field(
        32,
        description="另外可以排队的请求数，再多则返回 429\n"
        "requests that may wait besides; more get status 429",
    )
    max_new_tokens: Count = Field(
        DEFAULT_MAX_NEW_TOKENS,
        description="每个回答的最大词元数，请求中只能设得更小\n"
        "maximum number of tokens of an answer; requests can only lower it",
    )
    timeout: Count = Field(
        300,
        description="每个请求的时限（秒），包括排队\n"
        "time limit of a request in seconds, waiting included",
    )
    max_body: Count = Field(
        1 << 20, description="请求体的最大字节数\nmaximum size of a request's body in bytes"
    )

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[!-~]+", value):
            raise ValueError("密钥只能由可见的 ASCII 字符组成，不能有空格")
        return value


def parse_serve_options(arguments: Sequence[str]) -> ServeOptions:
    """Return the options of `python -m chat.serve`. Raises ChatError if any is invalid."""
    return parse_bilingual_options(
        ServeOptions, arguments, name="chat.serve", description=DESCRIPTION
    )
