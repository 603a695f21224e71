"""Blind sheets: what viewers see, and what their scores come to."""

import csv
import json

import cv2
import numpy as np
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
    """Fill in a copy of scores.csv: `given` maps a sheet's number to a dict of method -> score."""
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    for number, row in enumerate(rows, 1):
        methods = read_key(folder)[row[0]]["methods"]
        row[1:] = [given.get(number, {}).get(methods[letter], "") for letter in header[1:]]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_pictures_a_key_and_a_table_are_written(tmp_path):
    paths = sheets.make_sheets(tmp_path, scenes(3))
    names = [f"sheet-{number:02d}" for number in (1, 2, 3)]
    assert paths == [tmp_path / "pictures" / f"{name}.png" for name in names] and all(
        map(cv2.haveImageReader, map(str, paths))
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.json", "pictures", "scores.csv"]
    key = read_key(tmp_path)
    assert list(key) == names and {sheet["scene"] for sheet in key.values()} == {"scene 0", "scene 1", "scene 2"}
    for sheet in key.values():
        assert list(sheet["methods"]) == list("ABCD") and set(sheet["methods"].values()) == set(COLOURS)
    with open(tmp_path / "scores.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["sheet", *"ABCD"], *([name, "", "", "", ""] for name in names)]


@pytest.mark.parametrize("methods", [("input", "student"), tuple(COLOURS)])
def test_each_letter_stands_over_its_methods_crop(tmp_path, methods):
    """Crops are twice as large, three a row; what is left of a row is empty."""
    sheets.make_sheets(tmp_path, scenes(4, methods))
    width, height = 2 * 30 + 2 * sheets.MARGIN, 2 * 20 + sheets.TITLE + sheets.MARGIN
    for name, sheet in read_key(tmp_path).items():
        picture, number = cv2.imread(str(tmp_path / "pictures" / f"{name}.png")), int(sheet["scene"].split()[1])
        columns = min(3, len(methods))
        assert picture.shape == (height * -(-len(methods) // columns), width * columns, 3)
        for index, method in enumerate(sheet["methods"].values()):
            row, column = divmod(index, columns)
            cell = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
            crop = cell[sheets.TITLE : sheets.TITLE + 40, sheets.MARGIN : sheets.MARGIN + 60]
            assert (crop == COLOURS[method] + number).all()
            assert cell[: sheets.TITLE].max() > 240  # the letter
        if len(methods) == 4:
            assert (picture[height:, width:] == 128).all()


def test_letters_differ_between_sheets_and_tell_nothing(tmp_path):
    paths = sheets.make_sheets(tmp_path, scenes())
    orders = {tuple(sheet["methods"].values()) for sheet in read_key(tmp_path).values()}
    assert len(orders) > 3
    for path in (*paths, tmp_path / "scores.csv"):
        assert not any(name.encode() in path.read_bytes() for name in (*COLOURS, "scene"))


def test_the_seed_decides_the_order(tmp_path):
    for folder, seed in (("one", 0), ("again", 0), ("other", 1)):
        sheets.make_sheets(tmp_path / folder, scenes(), seed)
    one, again, other = (read_key(tmp_path / folder) for folder in ("one", "again", "other"))
    assert one == again != other
    assert (tmp_path / "one/pictures/sheet-03.png").read_bytes() == (
        tmp_path / "again/pictures/sheet-03.png"
    ).read_bytes()


def test_scores_are_summed_up(tmp_path):
    """Two viewers, one of whom left a sheet out; where two are worst, none is."""
    sheets.make_sheets(tmp_path, scenes(2, ("input", "student", "RCAS")))
    anna = {1: {"student": 5, "input": 3, "RCAS": 3}, 2: {"student": 4, "input": 4, "RCAS": 1}}
    bert = {1: {"student": 2, "input": 3, "RCAS": 3.5}}
    paths = [
        write_scores(tmp_path / f"{name}.csv", tmp_path, given) for name, given in (("anna", anna), ("bert", bert))
    ]
    assert sheets.tally(tmp_path, paths).splitlines() == [
        "| method | mean score | worst | student before it |",
        "| --- | --- | --- | --- |",
        "| student | 3.67 | 1 of 3 | – |",
        "| input | 3.33 | 0 of 3 | 50 % |",
        "| RCAS | 2.50 | 1 of 3 | 67 % |",
    ]
    assert "| method | mean score | worst | RCAS before it |" in sheets.tally(tmp_path, paths, "RCAS")


def test_a_table_that_a_spreadsheet_has_saved_is_read(tmp_path):
    """With a byte order mark and Windows' ends of lines."""
    sheets.make_sheets(tmp_path, scenes(1, ("input", "student")))
    (tmp_path / "anna.csv").write_bytes(b"\xef\xbb\xbfsheet,A,B\r\nsheet-01,5,4\r\n")
    (scores,) = sheets.read_scores(tmp_path / "anna.csv", read_key(tmp_path))
    assert sorted(scores.values()) == [4, 5] and set(scores) == {"input", "student"}


@pytest.mark.parametrize(
    "text",
    [
        "sheet,A,B\nsheet-01,6,4\n",
        "sheet,A,B\nsheet-01,0,4\n",
        "sheet,A,B\nsheet-01,nan,4\n",
        "sheet,A,B\nsheet-01,good,4\n",
        "sheet,A,B\nsheet-07,5,4\n",
        "sheet,A,C\nsheet-01,5,4\n",
        "sheet,A,B\nsheet-01,5,4,3\n",
        "sheet;A;B\nsheet-01;5;4\n",
        "picture,A,B\nsheet-01,5,4\n",
        "\xff\xfe",
    ],
)
def test_bad_scores_are_refused_by_name(tmp_path, text):
    sheets.make_sheets(tmp_path, scenes(1, ("input", "student")))
    (tmp_path / "anna.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"anna\.csv is not a filled-in copy of scores\.csv"):
        sheets.tally(tmp_path, [tmp_path / "anna.csv"])


def test_nothing_to_sum_up_is_said(tmp_path):
    with pytest.raises(DataError, match=r"holds no sheets with a key: make them"):
        sheets.tally(tmp_path, [])
    sheets.make_sheets(tmp_path, scenes(1, ("input", "student")))
    with pytest.raises(DataError, match="hold no scores"):
        sheets.tally(tmp_path, [tmp_path / "scores.csv"])
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(DataError, match="holds no sheets with a key"):
        sheets.tally(tmp_path, [tmp_path / "scores.csv"])
