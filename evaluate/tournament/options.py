"""Options of the commands of `python -m evaluate.tournament`."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from common.options import CliVariadicArg, Options, OutputFile
from evaluate.options import DeviceOptions

_COMPLETIONS_ROUTE = "/chat/completions"


def _complete_url(url: str) -> str:
    """Return the URL of the completions route below the base URL of an endpoint.

    Raises ValueError unless it is a plain http or https URL. The URL is printed and stored, so that
    it must not have a password in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give a URL such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "give a URL without user name, ? and #; the key comes from the environment "
            "(--key_variable)"
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("a URL has only visible ASCII characters")
    # Raises ValueError for a port that is none.
    _ = parts.port
    return url.rstrip("/").removesuffix(_COMPLETIONS_ROUTE) + _COMPLETIONS_ROUTE


class AnswerOptions(DeviceOptions):
    """Options of `python -m evaluate.tournament answer`."""

    checkpoint: Path = Field(description="a run, one of its steps, or an exported folder")
    questions: Path = Field(
        description='JSON list or JSON lines of {"question_id", "category", "translation", '
        '"question" or "text"}: the first of the last three is asked'
    )
    predictions: OutputFile = Field(
        description="write the answers to this file; its name becomes that of the model"
    )
    limit: int | None = Field(None, ge=1, description="ask only this many questions at the start")
    max_new_tokens: int = Field(256, ge=1, description="longest answer in tokens")
    batch: int = Field(16, ge=1, description="number of answers that are decoded together")


class JudgeOptions(Options):
    """Options of `python -m evaluate.tournament judge`."""

    answers: CliVariadicArg[tuple[Path, ...]] = Field(
        description="files of answers, one for each model, named after it"
    )
    battles: OutputFile = Field(description="write the votes to this file")
    endpoint: Annotated[str, AfterValidator(_complete_url)] | None = Field(
        None, description="base URL of the judge's server, such as http://127.0.0.1:8000/v1"
    )
    person: bool = Field(False, description="judge yourself, in this terminal")
    judge: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="model that the endpoint shall use; with --person your name",
    )
    key_variable: str = Field(
        "OPENAI_API_KEY",
        description="environment variable with the key of the endpoint; unset: send none",
    )
    dry_run: bool = Field(
        False, description="show what would be sent, and how much; send and write nothing"
    )
    limit: int | None = Field(None, ge=1, description="only this many questions at the start")
    temperature: float | None = Field(
        0.0, ge=0, le=2, description="of the judge; null: what the server prefers"
    )
    max_tokens: int | None = Field(
        512, ge=1, description="longest reply of the judge; null: no limit"
    )
    timeout: float = Field(
        60.0, gt=0, le=3600, description="seconds without a byte from the server"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="draws the order in which a person judges")

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if len(self.answers) < 2:
            lines.append("--answers: name the files of at least two models")
        if bool(self.endpoint) == self.person:
            lines.append("give the judge: either --endpoint URL --judge MODEL, or --person")
        elif self.endpoint and not self.judge:
            lines.append("--endpoint needs --judge MODEL, the model that shall judge")
        if self.dry_run and self.person:
            lines.append("--dry_run is for --endpoint: a person costs no tokens")
        if self.judge is not None and not self.judge.isprintable():
            lines.append("--judge: a name has only printable characters")
        return lines


class RateOptions(Options):
    """Options of `python -m evaluate.tournament rate`."""

    battles: CliVariadicArg[tuple[Path, ...]] = Field(description="files of votes")
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the shuffled orders and resamples")
