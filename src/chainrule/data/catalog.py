"""Labelled data that needs no hub: each set comes from the package index (see system/assets.py) as one plain file.

Why it is safe: the archives are pinned by SHA-256, text and YAML are read as text (YAML without tags, so that it can
build nothing but strings and lists), and nothing in the archives is run, imported or unpickled.

The sentiment sets are those of Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text", ICWSM 2014: sentences with the mean rating of 20 or more people, from −4 to 4. Their CSV columns:

    id      the sentence's identifier in the source ("12" or "review_sentence")
    text    the sentence, exactly as in the source (also its HTML entities and doubled apostrophes)
    label   negative below −0.5, positive above 0.5, neutral from −0.5 to 0.5: see `label_of`
    score   the mean rating, digit for digit as in the source; the target for regression
            (for 199 of the 4,200 tweets the source's table of single ratings gives another mean; no label differs)

The techsupport set has JSON lines {"prompt": question, "completion": answer}. Of its 1,050 pairs only 10 differ:
it is small talk for trying things out, and a fine case for the check for duplicates.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from chainrule.errors import AssetError, Problem, Where
from chainrule.system.assets import Asset, cache_folder, cached, extract

NEUTRAL = 0.5


@dataclass(frozen=True)
class CatalogData:
    """A data set of the catalog.

    Attributes:
        asset: where it comes from; several sets may share one.
        member: the file that is read, by its name in the archive.
        file: the name of the file that is made.
        convert: reads the member and writes the file; returns the number of rows.
        rows: how many rows there are.
        columns: the columns of the file.
        tasks: what the set is for.
        edition: raised when the way the file is made changes.
    """

    asset: Asset
    member: str
    file: str
    convert: Callable[[Path, Path], int]
    rows: int
    columns: tuple[str, ...]
    tasks: str
    edition: int = 1

    @property
    def key(self) -> str:
        """The folder of the cache that holds the file."""
        return f"data/{Path(self.file).stem}-{self.asset.sha256[:12]}-{self.edition}"


def label_of(rating: float) -> str:
    """The class of a mean rating: negative below −0.5, positive above 0.5, neutral from −0.5 to 0.5."""
    if rating < -NEUTRAL:
        return "negative"
    return "positive" if rating > NEUTRAL else "neutral"


def dataset_file(name: str) -> Path | None:
    """The file of a catalog data set, fetched the first time; None where the catalog has no such name.

    Raises:
        AssetError: the set is not in the cache and cannot be fetched.
    """
    data = DATASETS.get(name)
    return None if data is None else cached(data.key, partial(_build, data)) / data.file


def list_datasets() -> list[dict[str, Any]]:
    """The rows of `chainrule show catalog` for data; downloads nothing."""
    return [
        {
            "name": name,
            "kind": "data",
            "rows": data.rows,
            "columns": list(data.columns),
            "licence": data.asset.licence,
            "download_mb": round(data.asset.size / 1e6, 1),
            "cached": (cache_folder() / data.key).is_dir(),
            "purpose": data.tasks,
        }
        for name, data in DATASETS.items()
    ]


def _build(data: CatalogData, folder: Path) -> None:
    extract(data.asset, folder)
    source = folder / data.member
    rows = data.convert(source, folder / data.file)
    if rows != data.rows:
        raise _unexpected(data.member, f"{data.rows:,} rows", f"{rows:,}")
    for file in set(folder.iterdir()) - {folder / data.file}:
        file.unlink()


def _convert_sentiment(source: Path, target: Path) -> int:
    """Tab-separated UTF-8 lines (id, mean rating, text), CRLF line ends, no header, no quoting -> CSV."""
    lines = source.read_bytes().decode("utf-8-sig").removesuffix("\r\n").split("\r\n")
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "text", "label", "score"])
        for number, line in enumerate(lines, 1):
            fields = line.split("\t")
            if len(fields) != 3:
                raise _unexpected(source.name, "3 tab-separated fields", f"{len(fields)}", number)
            identifier, rating, text = fields
            writer.writerow([identifier, text, label_of(float(rating)), rating])
    return len(lines)


def _convert_dialogues(source: Path, target: Path) -> int:
    """YAML {"conversations": [[question, answer], …]} -> JSON lines."""
    dialogues = yaml.load(source.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["conversations"]
    with target.open("w", encoding="utf-8", newline="\n") as file:
        for number, dialogue in enumerate(dialogues, 1):
            if len(dialogue) != 2:
                raise _unexpected(source.name, "a question and an answer", f"{len(dialogue)} turns in {number}")
            prompt, completion = dialogue
            file.write(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n")
    return len(dialogues)


def _unexpected(file: str, expected: str, got: str, line: int | None = None) -> AssetError:
    problem = Problem(where=Where(file=file, line=line), expected=expected, got=got, todo="Please report this.")
    return AssetError(f"The catalog's {file} is not laid out as expected.", [problem])


def _sentiment(name: str, source: str, rows: int, about: str) -> CatalogData:
    member = f"{source}_GroundTruth.txt"
    return CatalogData(
        asset=Asset(
            name=f"sentiment/{name}",
            licence="MIT",
            package="vaderSentiment",
            version="0.5",
            filename="vaderSentiment-0.5.zip",
            sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            size=2_448_964,
            members=(f"hutto_ICWSM_2014/{member}",),
            inner="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
        ),
        member=member,
        file=f"{name}.csv",
        convert=_convert_sentiment,
        rows=rows,
        columns=("id", "text", "label", "score"),
        tasks=f"{about}: text-classification (label) or regression (score)",
    )


DATASETS: Mapping[str, CatalogData] = {
    "sentiment/movies": _sentiment("movies", "movieReviewSnippets", 10_605, "sentences of film reviews"),
    "sentiment/amazon": _sentiment("amazon", "amazonReviewSnippets", 3_708, "sentences of product reviews"),
    "sentiment/tweets": _sentiment("tweets", "tweets", 4_200, "short messages"),
    "sentiment/nyt": _sentiment("nyt", "nytEditorialSnippets", 5_190, "sentences of newspaper editorials"),
    "techsupport": CatalogData(
        asset=Asset(
            name="techsupport",
            licence="BSD-3-Clause",
            package="chatterbot-corpus",
            version="1.3.3",
            filename="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
            sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            size=345_706,
            members=("chatterbot_corpus/data/english/tech_support.yml",),
        ),
        member="tech_support.yml",
        file="techsupport.jsonl",
        convert=_convert_dialogues,
        rows=1_050,
        columns=("prompt", "completion"),
        tasks="questions and answers with many repeats: checking for duplicates, text generation",
    ),
}
