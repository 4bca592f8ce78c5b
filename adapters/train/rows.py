"""Rows of texts and labels: reading them, splitting them, writing them.

Knows files and lists; knows no model.
"""

import csv
import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A text and what it should be called."""

    text: str
    label: str


class BadRows(Exception):
    """The CSV file cannot be used; says where and why."""


def read(path: Path, text_column: str, label_column: str) -> list[Row]:
    """Reads the rows of a CSV file with a header."""
    # Spreadsheets begin their files with a mark of the byte order.
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for column in (text_column, label_column):
                if column not in (reader.fieldnames or []):
                    raise BadRows(f"{path}: there is no column {column!r}; there are {reader.fieldnames}")
            rows = []
            for record in reader:
                text, label = record[text_column], record[label_column]
                if not text or not label:
                    raise BadRows(f"{path}, line {reader.line_num}: the text or the label is empty")
                rows.append(Row(text, label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadRows(f"{path}: {error}") from error
    if len({row.label for row in rows}) < 2:
        raise BadRows(f"{path}: there must be rows of at least two labels")
    return rows


def labels_of(rows: list[Row]) -> list[str]:
    """All labels in order of the alphabet."""
    return sorted({row.label for row in rows})


def split(rows: list[Row], held_back: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Holds back a part of each label's rows, and of none all: (to train on, held back).

    Both keep the order of the file. The same seed holds back the same rows.
    """
    by_label: dict[str, list[int]] = {}
    for idx, row in enumerate(rows):
        by_label.setdefault(row.label, []).append(idx)
    generator = random.Random(seed)
    chosen: set[int] = set()
    for label in sorted(by_label):
        places = by_label[label]
        count = min(round(len(places) * held_back), len(places) - 1)
        chosen.update(generator.sample(places, count))
    kept = [row for idx, row in enumerate(rows) if idx not in chosen]
    return kept, [row for idx, row in enumerate(rows) if idx in chosen]


def write(path: Path, rows: list[Row]) -> None:
    """Writes rows with the columns text and label."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows((row.text, row.label) for row in rows)
