"""Blind sheets: the same crop by several methods under letters in random order, and a summary of viewers' scores.

    python evaluate.py sheets --data FOLDER         writes results/sheets
    python evaluate.py sheets --tally anna.csv ...  sums up viewers' scores

A viewer opens ``index.html``, gives each letter of each sheet a score from 1 (bad) to 5 (excellent), and saves
``scores.csv``, or fills in the empty one. ``key.json``, which viewers must not see, maps letters to methods.
"""

import hashlib
import json
import string
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from benchmark.page import load_template
from degradation import DataError
from images import Picture, write_image
from utils import write_text

ENLARGEMENT, COLUMNS = 2, 3
MARGIN, TITLE = 8, 28  # pixels between crops, and above them for their letters


def make_sheets(folder, scenes, seed=0):
    """Write ``pictures/sheet-NN.png`` for each scene, ``index.html``, an empty ``scores.csv`` and ``key.json``.

    Args:
        scenes: list of ``(name, {method: crop})``, crops BGR uint8 `(H, W, 3)`; all have the same methods.
        seed: of the order of scenes and letters.
    """
    folder, rng, key, seen = Path(folder), np.random.default_rng(seed), {}, hashlib.sha256()
    for number, scene in enumerate(rng.permutation(len(scenes)), 1):
        name, crops = scenes[scene]
        letters = dict(zip(string.ascii_uppercase, rng.permutation(list(crops)).tolist(), strict=False))
        sheet = f"sheet-{number:02d}"
        key[sheet] = {"scene": name, "methods": letters}
        picture = draw_sheet({letter: crops[letters[letter]] for letter in letters})
        write_image(folder / "pictures" / f"{sheet}.png", Picture(picture))
        seen.update(picture)
    page = load_template("sheets.html").render(sheets=list(key), letters=list(letters), identity=seen.hexdigest()[:16])
    empty = pd.DataFrame(columns=list(letters), index=pd.Index(key, name="sheet")).to_csv(lineterminator="\n")
    write_text(folder / "key.json", json.dumps(key, indent=1))
    write_text(folder / "index.html", page)
    write_text(folder / "scores.csv", empty)


def draw_sheet(crops):
    """Draw crops, a dict of letter -> uint8 BGR, three a row, each under its letter."""
    cells = []
    for letter, crop in crops.items():
        crop = cv2.resize(crop, None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_CUBIC)
        cell = cv2.copyMakeBorder(crop, TITLE, MARGIN, MARGIN, MARGIN, cv2.BORDER_CONSTANT, value=(128, 128, 128))
        cv2.putText(cell, letter, (MARGIN, TITLE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
        cells.append(cell)
    columns = min(COLUMNS, len(cells))
    cells += [np.full_like(cells[0], 128)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])


def read_scores(path, key):
    """Read a viewer's scores: a table with a row for each sheet and a column for each method, NaN if not given.

    Raises:
        DataError: the file is no such table, names an unknown sheet or letter, or a score is not from 1 to 5.
    """
    try:
        table = pd.read_csv(path, index_col="sheet", encoding="utf-8-sig").astype(float)
        scores = pd.DataFrame(
            [row.rename(key[sheet]["methods"], errors="raise") for sheet, row in table.iterrows()], table.index
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is not a filled-in copy of scores.csv: {error}") from error
    if not (scores.isna() | scores.ge(1) & scores.le(5)).all(axis=None):
        raise DataError(f"{path} is not a filled-in copy of scores.csv: scores are from 1 to 5")
    return scores


def tally(folder, paths, method="student"):
    """Summarise viewers' ``scores.csv`` for the sheets in a folder, one file a viewer, as a Markdown table.

    Each method has its mean score, the number of sheets on which it was worst, and how often `method` was before it,
    ties counting half.

    Raises:
        DataError: a file is not a copy of ``scores.csv``, or the key is damaged.
        OSError: there is no key, or no such file.
    """
    try:
        key = json.loads((Path(folder) / "key.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{Path(folder) / 'key.json'} is damaged: make the sheets anew") from error
    scores = pd.concat([read_scores(path, key) for path in paths], ignore_index=True)
    lowest = scores.eq(scores.min(axis=1), axis=0)
    worst = lowest[lowest.sum(axis=1) == 1].sum()
    lines = [f"| method | mean score | worst | {method} before it |", "| --- | --- | --- | --- |"]
    for name, mean in scores.mean().dropna().sort_values(ascending=False, kind="stable").items():
        before = (np.sign(scores[method] - scores[name]).mean() + 1) / 2
        share = "–" if name == method or np.isnan(before) else f"{100 * before:.0f} %"
        lines.append(f"| {name} | {mean:.2f} | {worst[name]} of {scores[name].count()} | {share} |")
    return "\n".join(lines)
