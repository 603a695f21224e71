"""Blind sheets: what viewers see, and what their scores come to."""

import csv

import cv2
import numpy as np
import pytest

from benchmark import sheets
from benchmark.study import StudyError, read_key

COLOURS = {"input": 40, "student": 90, "RCAS": 160, "unsharp mask": 220}


def scenes(count=8, methods=tuple(COLOURS)):
    """Scenes whose crops, 30x20, show each method as a grey of its own."""
    return [
        (f"scene {i}", {name: np.full((20, 30, 3), COLOURS[name] + i, np.uint8) for name in methods})
        for i in range(count)
    ]


def write_scores(path, folder, given):
    """Fill in a copy of scores.csv: `given` maps a sheet's number to a dict of method -> score."""
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    for number, row in enumerate(rows, 1):
        methods = read_key(folder, "sheets")[row[0]]["methods"]
        row[1:] = [given.get(number, {}).get(methods[letter], "") for letter in header[1:]]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize("methods", [("input", "student"), tuple(COLOURS)])
def test_each_letter_stands_over_its_methods_crop(tmp_path, methods):
    """Crops are twice as large, three a row; what is left of a row is empty."""
    paths = sheets.make_sheets(tmp_path, scenes(4, methods))
    assert paths == [tmp_path / "pictures" / f"sheet-{number:02d}.png" for number in (1, 2, 3, 4)]
    key = read_key(tmp_path, "sheets")
    assert {sheet["scene"] for sheet in key.values()} == {f"scene {i}" for i in range(4)}
    width, height = 2 * 30 + 2 * sheets.MARGIN, 2 * 20 + sheets.TITLE + sheets.MARGIN
    columns = min(3, len(methods))
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
        paths = sheets.make_sheets(tmp_path / folder, scenes(), seed)
    one, again, other = (read_key(tmp_path / folder, "sheets") for folder in ("one", "again", "other"))
    assert one == again != other
    assert len({tuple(sheet["methods"].values()) for sheet in one.values()}) > 3
    for path in (*paths, tmp_path / "other" / "scores.csv"):
        assert not any(name.encode() in path.read_bytes() for name in (*COLOURS, "scene"))


def test_scores_are_summed_up(tmp_path):
    """Of two viewers one left a sheet out; if two methods share the lowest score, none counts as worst."""
    sheets.make_sheets(tmp_path, scenes(2, ("input", "student", "RCAS")))
    anna = {1: {"student": 5, "input": 3, "RCAS": 3}, 2: {"student": 4, "input": 4, "RCAS": 1}}
    bert = {1: {"student": 2, "input": 3, "RCAS": 3.5}}
    paths = [
        write_scores(tmp_path / f"{name}.csv", tmp_path, given) for name, given in (("anna", anna), ("bert", bert))
    ]
    paths[0].write_bytes(b"\xef\xbb\xbf" + paths[0].read_bytes())  # as spreadsheets save a table
    assert sheets.tally(tmp_path, paths).splitlines() == [
        "| method | mean score | worst | student before it |",
        "| --- | --- | --- | --- |",
        "| student | 3.67 | 1 of 3 | – |",
        "| input | 3.33 | 0 of 3 | 50 % |",
        "| RCAS | 2.50 | 1 of 3 | 67 % |",
    ]


@pytest.mark.parametrize(
    "row", ["sheet-01,6,4", "sheet-01,nan,4", "sheet-01,good,4", "sheet-07,5,4", "sheet-01,5,4,3", "sheet-01;5;4"]
)
def test_what_cannot_be_summed_up_is_refused(tmp_path, row):
    with pytest.raises(StudyError, match=r"no key\.json: name a folder made by evaluate\.py sheets"):
        sheets.tally(tmp_path, [])
    sheets.make_sheets(tmp_path, scenes(1, ("input", "student")))
    with pytest.raises(StudyError, match="hold no scores"):
        sheets.tally(tmp_path, [tmp_path / "scores.csv"])
    (tmp_path / "anna.csv").write_text(f"sheet,A,B\n{row}\n")
    with pytest.raises(StudyError, match=r"anna\.csv is not a filled-in copy of scores\.csv"):
        sheets.tally(tmp_path, [tmp_path / "anna.csv"])
