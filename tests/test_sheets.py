"""Blind sheets: what viewers see, the page that takes their scores, and what these come to."""

import json
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from benchmark import sheets
from degradation import DataError

COLOURS = {"input": 40, "student": 90, "RCAS": 160, "unsharp mask": 220}


def scenes(count=8, methods=tuple(COLOURS)):
    """Scenes whose crops, 30x20, show each method as a grey of its own."""
    return [
        (f"scene {i}", {name: np.full((20, 30, 3), COLOURS[name] + i, np.uint8) for name in methods})
        for i in range(count)
    ]


def read_key(folder):
    return json.loads((folder / "key.json").read_text("utf-8"))


def write_scores(path, folder, given):
    """Fill in a copy of scores.csv, as a spreadsheet saves it: `given` maps a sheet to a dict of method -> score."""
    table = pd.read_csv(folder / "scores.csv", index_col="sheet", dtype=object)
    for sheet, scores in given.items():
        methods = read_key(folder)[sheet]["methods"]
        table.loc[sheet] = [scores[methods[letter]] for letter in table]
    table.to_csv(path, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("methods", [("input", "student"), tuple(COLOURS)])
def test_each_letter_stands_over_its_methods_crop(tmp_path, methods):
    """Crops are twice as large, three a row; what is left of a row is empty."""
    sheets.make_sheets(tmp_path, scenes(4, methods))
    key = read_key(tmp_path)
    assert {sheet["scene"] for sheet in key.values()} == {f"scene {i}" for i in range(4)}
    width, height = 2 * 30 + 2 * sheets.MARGIN, 2 * 20 + sheets.TITLE + sheets.MARGIN
    columns = min(3, len(methods))
    paths = sorted((tmp_path / "pictures").iterdir())
    assert [path.stem for path in paths] == list(key)
    for path in paths:
        sheet, picture = key[path.stem], cv2.imread(str(path))
        assert picture.shape == (height * -(-len(methods) // columns), width * columns, 3)
        assert list(sheet["methods"]) == list("ABCD"[: len(methods)])
        for index, method in enumerate(sheet["methods"].values()):
            row, column = divmod(index, columns)
            cell = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
            crop = cell[sheets.TITLE : sheets.TITLE + 40, sheets.MARGIN : sheets.MARGIN + 60]
            assert (crop == COLOURS[method] + int(sheet["scene"].split()[1])).all()
            assert cell[: sheets.TITLE].max() > 240  # the letter
        if len(methods) == 4:
            assert (picture[height:, width:] == 128).all()


def test_letters_follow_the_seed_and_tell_nothing(tmp_path):
    for folder, seed in (("one", 0), ("again", 0), ("other", 1)):
        sheets.make_sheets(tmp_path / folder, scenes(), seed)
    one, again, other = (read_key(tmp_path / folder) for folder in ("one", "again", "other"))
    assert one == again != other
    assert len({tuple(sheet["methods"].values()) for sheet in one.values()}) > 3
    for path in (tmp_path / "other").rglob("*.*"):
        if path.name != "key.json":
            assert not any(name.encode() in path.read_bytes() for name in ("student", "RCAS", "unsharp", "scene"))


def test_a_viewers_scores_survive_a_reload_and_are_saved_for_the_tally(browser, tmp_path):
    sheets.make_sheets(tmp_path / "sheets", scenes(2, ("input", "student", "RCAS")))
    key = read_key(tmp_path / "sheets")
    opinion = {"input": 3, "student": 5, "RCAS": 2}

    def visit(script):
        browser("Page.navigate", url=(tmp_path / "sheets" / "index.html").as_uri())
        loaded = "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        script = f"{loaded}.then(() => {{ {script}; return document.querySelector('output').value; }})"
        return browser("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"]["value"]

    clicks = {
        sheet: ";".join(
            f'document.querySelector(\'[name="{sheet},{letter}"][value="{opinion[method]}"]\').click()'
            for letter, method in key[sheet]["methods"].items()
        )
        for sheet in key
    }
    for seconds in (0, 1, 4, 10):  # a browser stores in its own time, and may forget what a page says while it is left
        assert visit(clicks["sheet-01"]) == "3 of 6 scores given"
        time.sleep(seconds)
        if (again := visit("")) == "3 of 6 scores given":
            break
    assert again == "3 of 6 scores given"
    widths = "[...document.images].forEach(image => { if (image.naturalWidth !== 228) throw image.naturalWidth })"
    rest = f"{clicks['sheet-01']}; {clicks['sheet-02']}"
    assert visit(f"{rest}; {widths}; document.getElementById('save').click()") == "6 of 6 scores given"
    deadline = time.monotonic() + 30
    while not (tmp_path / "scores.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "| student | 5.00 | 0 of 2 | – |" in sheets.tally(tmp_path / "sheets", [tmp_path / "scores.csv"])
    empty, saved = (
        path.read_bytes().splitlines() for path in (tmp_path / "sheets/scores.csv", tmp_path / "scores.csv")
    )
    assert saved[0] == empty[0] and [line.split(b",")[0] for line in saved] == [line.split(b",")[0] for line in empty]


def test_scores_are_summed_up(tmp_path):
    """Of two viewers one left a sheet out; if two methods share the lowest score, none counts as worst."""
    sheets.make_sheets(tmp_path, scenes(2, ("input", "student", "RCAS")))
    anna = {"student": 5, "input": 3, "RCAS": 3}, {"student": 4, "input": 4, "RCAS": 1}
    anna = write_scores(tmp_path / "anna.csv", tmp_path, {"sheet-01": anna[0], "sheet-02": anna[1]})
    bert = write_scores(tmp_path / "bert.csv", tmp_path, {"sheet-01": {"student": 2, "input": 3, "RCAS": 3.5}})
    assert sheets.tally(tmp_path, [anna, bert]).splitlines() == [
        "| method | mean score | worst | student before it |",
        "| --- | --- | --- | --- |",
        "| student | 3.67 | 1 of 3 | – |",
        "| input | 3.33 | 0 of 3 | 50 % |",
        "| RCAS | 2.50 | 1 of 3 | 67 % |",
    ]


@pytest.mark.parametrize("row", ["sheet-01,6,4", "sheet-01,good,4", "sheet-07,5,4", "sheet-01,5,4,3", "sheet-01;5;4"])
def test_what_cannot_be_summed_up_is_refused(tmp_path, row):
    sheets.make_sheets(tmp_path, scenes(1, ("input", "student")))
    (tmp_path / "anna.csv").write_text(f"sheet,A,B\n{row}\n")
    with pytest.raises(DataError, match=r"anna\.csv is not a filled-in copy of scores\.csv"):
        sheets.tally(tmp_path, [tmp_path / "anna.csv"])


def test_a_damaged_key_is_named(tmp_path):
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(DataError, match=r"key\.json is damaged"):
        sheets.tally(tmp_path, [tmp_path / "anna.csv"])
