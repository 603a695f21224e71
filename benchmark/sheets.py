"""Blind sheets: the same crop by several methods under letters in random order, and what viewers' scores say.

    python evaluate.py sheets --data FOLDER         writes results/sheets/pictures/, scores.csv and key.json
    python evaluate.py sheets --tally anna.csv ...  what the filled-in copies of scores.csv say

A viewer gets ``pictures/`` and a copy of ``scores.csv``, and gives each letter of each sheet a score from 1 (bad) to 5
(excellent). ``key.json`` says which letter was which method; who scores must not see it.
"""

import csv
import string
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from benchmark.runner import write_png
from benchmark.study import StudyError, read_key, write_key
from utils import atomic_path

ENLARGEMENT, COLUMNS = 2, 3
MARGIN, TITLE = 8, 28  # pixels between crops, and above them for their letters


def make_sheets(folder, scenes, seed=0):
    """Write a sheet for each scene.

    Args:
        folder: gets ``pictures/sheet-NN.png``, ``scores.csv`` to fill in, and ``key.json``.
        scenes: list of ``(name, {method: crop})``, crops BGR uint8 `(H, W, 3)`; all have the same methods.
        seed: of the order of scenes and letters.

    Returns:
        The paths of the pictures.
    """
    folder, rng, key, paths = Path(folder), np.random.default_rng(seed), {}, []
    for number, scene in enumerate(rng.permutation(len(scenes)), 1):
        name, crops = scenes[scene]
        letters = dict(zip(string.ascii_uppercase, rng.permutation(list(crops)).tolist(), strict=False))
        sheet = f"sheet-{number:02d}"
        key[sheet] = {"scene": name, "methods": letters}
        paths.append(folder / "pictures" / f"{sheet}.png")
        write_png(paths[-1], draw_sheet({letter: crops[letters[letter]] for letter in letters}))
    write_key(folder, key)
    with atomic_path(folder / "scores.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["sheet", *letters], *([sheet, *[""] * len(letters)] for sheet in key)])
    return paths


def draw_sheet(crops):
    """Draw crops beside each other, three a row, each under its letter; `crops` is a dict of letter -> uint8 BGR."""
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
    """Read a viewer's scores: list of ``{method: score}``, one dict a sheet; sheets without scores are left out.

    Raises:
        StudyError: the file is no such table, names a sheet or letter that there is not, or a score is not from 1 to 5.
    """
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                letters = key[row.pop("sheet")]["methods"]
                given = {letters[letter]: float(score) for letter, score in row.items() if score}
                if not all(1 <= score <= 5 for score in given.values()):
                    raise ValueError(f"scores are from 1 to 5, got {sorted(given.values())}")
                if given:
                    rows.append(given)
    except (KeyError, ValueError, AttributeError, csv.Error) as error:
        raise StudyError(f"{path} is not a filled-in copy of scores.csv: {error}") from error
    return rows


def tally(folder, paths, method="student"):
    """Summarise viewers' scores as a Markdown table.

    Args:
        folder: of `make_sheets`.
        paths: filled-in copies of its ``scores.csv``, one a viewer.
        method: the one that the others are compared with.

    Returns:
        A row for each method: mean score, in how many of the sheets it was worst, and how often `method` was before it,
        ties counting half.

    Raises:
        StudyError: there is no key, or a file is not a copy of ``scores.csv``.
    """
    key = read_key(folder, "sheets")
    sheets = [scores for path in paths for scores in read_scores(path, key)]
    if not sheets:
        raise StudyError("the files hold no scores: give copies of scores.csv with numbers from 1 to 5")
    scores, worst, before = defaultdict(list), defaultdict(int), defaultdict(list)
    for given in sheets:
        lowest = min(given.values())
        for name, score in given.items():
            scores[name].append(score)
            worst[name] += score == lowest and list(given.values()).count(lowest) == 1
            if method in given and name != method:
                before[name].append((np.sign(given[method] - score) + 1) / 2)
    lines = [f"| method | mean score | worst | {method} before it |", "| --- | --- | --- | --- |"]
    for name in sorted(scores, key=lambda name: -np.mean(scores[name])):
        share = f"{100 * np.mean(before[name]):.0f} %" if before[name] else "–"
        lines.append(f"| {name} | {np.mean(scores[name]):.2f} | {worst[name]} of {len(scores[name])} | {share} |")
    return "\n".join(lines)
