"""Guess the encoding of text that is not UTF-8, and name the command that converts it."""

import codecs
import re
import shlex
from pathlib import Path

# Enough to guess from, and little work for a long line.
_SAMPLE_BYTES = 1 << 12
# The name of each encoding for `iconv`, and its name for people.
_NAMES = {
    "utf-32": "UTF-32",
    "utf-16": "UTF-16",
    "utf-16le": "UTF-16",
    "utf-16be": "UTF-16",
    "gb18030": "GBK",
    "big5": "Big5",
}
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# The lead bytes of punctuation and of the common characters, which both tables have apart from the
# rare ones. Text in one of the encodings has few others; other bytes that happen to decode have.
_GBK_LEADS = (range(0xA1, 0xA4), range(0xB0, 0xD8))
_BIG5_LEADS = (range(0xA1, 0xC7),)
_CHINESE = re.compile("[\t-\r -~\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
_MIN_COMMON_SHARE = 0.7
# Text of ASCII alone has a zero in every second byte of its UTF-16.
_MIN_ZERO_SHARE = 0.2


def is_utf8(data: bytes) -> bool:
    """Return whether bytes are UTF-8, and not the ASCII characters of a text in UTF-16.

    A last character may be cut off.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return data.count(0) < _MIN_ZERO_SHARE * max(len(data), 1)


def describe_encoding(data: bytes, path: Path | None = None) -> str:
    """Return why bytes are not text in UTF-8, and how to convert the file that they are from.

    For example "not UTF-8 but GBK: convert it: iconv -f gb18030 -t utf-8". With `path`, the command
    is a whole one.
    """
    encoding = guess_encoding(data)
    if encoding is None:
        return (
            f"not UTF-8 (byte 0x{_first_bad_byte(data):02x}), nor GBK, Big5 or UTF-16: correct it"
        )
    command = f"iconv -f {encoding} -t utf-8"
    if path is not None:
        converted = path.with_name(f"{path.name.removesuffix(path.suffix)}.utf8{path.suffix}")
        command += f" {shlex.quote(str(path))} > {shlex.quote(str(converted))}"
    return f"not UTF-8 but {_NAMES[encoding]}: convert it: {command}"


def guess_encoding(data: bytes) -> str | None:
    """Return the likely encoding of bytes that are not UTF-8, as iconv calls it, or None."""
    data = data[:_SAMPLE_BYTES]
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if 0 in data:
        shares = {name: _chinese_share(data, name) for name in ("utf-16le", "utf-16be")}
    else:
        shares = {
            "gb18030": _common_share(data, "gb18030", _GBK_LEADS, 0xA1),
            "big5": _common_share(data, "big5", _BIG5_LEADS, 0x40),
        }
    encoding = max(shares, key=shares.__getitem__)
    return encoding if shares[encoding] >= _MIN_COMMON_SHARE else None


def _chinese_share(data: bytes, encoding: str) -> float:
    """Return the share of ASCII, Chinese characters and their punctuation in the decoded text."""
    text = data.decode(encoding, "replace")
    return len(_CHINESE.findall(text)) / max(len(text), 1)


def _common_share(data: bytes, encoding: str, leads: tuple[range, ...], min_trail: int) -> float:
    """Return the share of common ones among the decoded characters that are not ASCII."""
    codes = [
        character.encode(encoding)
        for character in data.decode(encoding, "ignore")
        if not character.isascii()
    ]
    common = sum(
        len(code) == 2 and code[1] >= min_trail and any(code[0] in lead for lead in leads)
        for code in codes
    )
    return common / max(len(codes), 1)


def _first_bad_byte(data: bytes) -> int:
    """Return the first byte that is not UTF-8, or 0 if there is none (a text of zeros)."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data[error.start]
    return 0
