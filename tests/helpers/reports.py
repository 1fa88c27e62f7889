"""Helpers of the tests of the report: runs without training, and a parser of its pages."""

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluate.report.page import TITLE, build_report
from evaluate.report.render import to_html
from evaluate.report.run_reader import read_run
from model.config import LlamaConfig
from train.monitoring.metrics_log import MetricsLog
from train.options import PretrainOptions
from train.run.directory import RunDir

SVG_NAMESPACE = "{http://www.w3.org/2000/svg}"
MODEL_CONFIG = LlamaConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
)
VOID_ELEMENTS = {"meta", "br", "img"}
VALIDATION_METRICS = {
    "loss": 2.5,
    "perplexity": 12.2,
    "accuracy": 0.4,
    "bits_per_character": 1.9,
    "tokens": 999,
}


class ReportParser(HTMLParser):
    """The tags, tables and images of an HTML page. Fails on unbalanced tags and event handlers.

    `tables[table][row][column]` is the text of a cell; the first row holds the headers.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str]] = []
        self.text = ""
        self._open_tags: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") for name, _ in attrs), "a page has no scripts"
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append({name: value or "" for name, value in attrs})
        elif tag == "br":
            self.handle_data("\n")
        if tag not in VOID_ELEMENTS:
            self._open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open_tags):
            self.tables[-1][-1][-1] += data

    def find_row(self, name: str, *headers: str) -> list[str]:
        """Return the other cells of the only row whose first cell is `name`.

        Looks in the tables whose first header is one of `headers`, or without any in all tables.
        """
        (cells,) = [
            row[1:]
            for table in self.tables
            for row in table[1:]
            if row[0] == name and (not headers or table[0][0] in headers)
        ]
        return cells

    def svgs_by_alt(self) -> dict[str, ET.Element]:
        """Return the SVG pictures of the page, which are base64 data URLs, by alternative text."""
        return {
            image["alt"]: ET.fromstring(base64.b64decode(image["src"].partition(",")[2]))
            for image in self.images
        }


def write_run(
    folder: Path,
    losses: list[float],
    validation: dict[int, dict[str, Any]] | None = None,
    **options: Any,
) -> Path:
    """Write a run directory as training does, without training."""
    run_options = PretrainOptions.model_validate(
        {"run": folder, "max_steps": 100, "seed": 7, **options}
    )
    run = RunDir(folder)
    fingerprints = {
        "data": [{"set": "d" * 64, "weight": 1.0}],
        "tokenizer": "e" * 64,
        "model": MODEL_CONFIG.to_hf(),
        "seed": 7,
    }
    record = {"shards": [], "fingerprints": fingerprints}
    run.open(run_options.model_dump(mode="json"), record, torch.device("cpu"))
    log = MetricsLog(folder, 0)
    for index, loss in enumerate(losses, 1):
        log.write("train", index * 10, tokens=index * 1000, loss=loss)
    for step, values in (validation or {}).items():
        log.write("validation", step, **values)
    log.close()
    return folder


def render_report(*folders: Path) -> ReportParser:
    """Return the parsed HTML report on the runs in these folders."""
    return ReportParser(to_html(TITLE, build_report([read_run(folder) for folder in folders], "x")))


def line_vertices(svg: ET.Element, run_index: int) -> np.ndarray:
    """Return the vertices of the line of a run in the units of the SVG picture, float64[n, 2]."""
    return group_vertices(svg, f"run-{run_index}")


def group_vertices(svg: ET.Element, name: str) -> np.ndarray:
    """Return the vertices of the line in the group with this id, float64[n, 2]."""
    (group,) = [group for group in svg.iter(f"{SVG_NAMESPACE}g") if group.get("id") == name]
    # The first path is the line; the next is the shape of its marker.
    line = next(group.iter(f"{SVG_NAMESPACE}path"))
    return np.array(
        [[float(x), float(y)] for x, y in re.findall(r"[ML] (\S+) (\S+)", line.get("d") or "")]
    )
