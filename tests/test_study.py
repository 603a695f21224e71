"""The blind study: its page in a real browser, its key, and what votes come to."""

import base64
import itertools
import json
import re
import shutil
import time
from collections import Counter

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import pytest
import skimage.data

from benchmark import study
from benchmark.metrics import bootstrap_interval
from degradation import FRAME_RATE, DataError

QUALITY = {"degraded": -3, "input": 0, "student": 1, "unsharp mask": 2, "truth": 3}
METHODS = ("input", "student", "unsharp mask", "truth")
DEGREE = 16  # of grey between one method and the next


def scenes():
    """Two pictures and a clip, which show each method as a grey of its own; degraded, they are black."""
    pictures = {method: np.full((32, 48, 3), 100 + DEGREE * QUALITY[method], np.uint8) for method in METHODS}
    for picture in pictures.values():
        picture[::8, ::8] = 0  # what `degrade` spreads over its blocks
    clip = {method: np.stack([picture] * 5) for method, picture in pictures.items()}
    return [
        ("a face, x264", pictures),
        ('Ünï "cø/de" </script>', {m: p[:-8] for m, p in pictures.items()}),
        ("a moving face", clip),
    ]


@pytest.fixture
def folder(tmp_path):
    study.make_study(tmp_path / "study", scenes(), seed=3)
    return tmp_path / "study"


def read_page(folder):
    """The data in a page, with its media as bytes."""
    text = (folder / "study.html").read_text("utf-8")
    data = json.loads(re.search(r'<script id="study" type="application/json">(.+?)</script>', text)[1])
    data["media"] = [base64.b64decode(uri.partition(",")[2]) for uri in data["media"]]
    return data


# ----------------------------------------------------------------------------------------------------------------------
# Making a study


def test_every_two_methods_meet_and_each_block_has_both_traps(folder, tmp_path):
    key, page = study.read_key(folder, "subjective"), read_page(folder)
    assert key["study"] == page["id"] and key["methods"] == list(METHODS)
    trials = key["trials"].values()
    pairs = Counter((trial["scene"], frozenset(trial["methods"])) for trial in trials if not trial["trap"])
    assert pairs == Counter(
        (name, frozenset(pair)) for name, _ in scenes() for pair in itertools.combinations(METHODS, 2)
    )
    assert sorted(itertools.chain(*page["blocks"])) == list(range(len(page["trials"]))) == list(map(int, key["trials"]))
    for block in page["blocks"]:
        assert {"identical", "degraded"} <= {key["trials"][str(trial)]["trap"] for trial in block}
    for trial, (a, b) in zip(trials, page["trials"], strict=True):
        assert (trial["trap"] == "identical") == (a == b)
        assert trial["trap"] != "degraded" or set(trial["methods"]) == {"truth", "degraded"}

    study.make_study(tmp_path / "again", scenes(), seed=3)
    study.make_study(tmp_path / "other", scenes(), seed=4)
    assert (tmp_path / "again" / "study.html").read_bytes() == (folder / "study.html").read_bytes()
    assert read_page(tmp_path / "other")["id"] != page["id"]


def test_a_limit_is_spread_over_pairs_and_scenes(tmp_path):
    study.make_study(tmp_path, scenes(), limit=9)
    trials = [trial for trial in study.read_key(tmp_path, "subjective")["trials"].values() if not trial["trap"]]
    assert len(trials) == 9
    assert sorted(Counter(frozenset(trial["methods"]) for trial in trials).values()) == [1, 1, 1, 2, 2, 2]
    assert sorted(Counter(trial["scene"] for trial in trials).values()) == [3, 3, 3]


def test_the_page_tells_no_method_and_asks_nothing_of_a_network(folder):
    text = re.sub('"data:[^"]+"', "", (folder / "study.html").read_text("utf-8"))
    hidden = {*METHODS, *(name for name, _ in scenes()), "degraded", "identical", "trap"}
    assert not [word for word in hidden if word in text]
    assert not [word for word in METHODS for media in read_page(folder)["media"] if word.encode() in media]
    assert "src=" not in text and "http" not in text


def test_clips_are_nearly_lossless(tmp_path):
    photo = np.ascontiguousarray(skimage.data.astronaut()[:80, 160:320, ::-1])
    frames = np.stack([np.roll(photo, 3 * i, axis=1) for i in range(6)])
    (tmp_path / "clip.mp4").write_bytes(study.encode_clip(frames))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.profile, context.pix_fmt) == ("h264", "High", "yuv420p")
        assert (context.colorspace, context.color_range, context.color_trc) == (1, 1, 1)
        assert stream.average_rate == FRAME_RATE and stream.start_time == 0
        decoded = [frame.to_ndarray()[:80] for frame in container.decode(video=0)]
    for luma, frame in zip(decoded, frames, strict=True):
        expected = 16 + 219 / 255 * (frame @ [0.0722, 0.7152, 0.2126])  # BT.709 in limited range
        assert np.square(luma - expected).mean() < 2  # 45 dB, 1/3 of it from rounding
    assert cv2.PSNR(study.degrade(frames)[0], frames[0]) < 25


# ----------------------------------------------------------------------------------------------------------------------
# The page in a browser


# Somebody who prefers what is brighter votes on so many pairs, or all there are, by keys and by clicks.
VISIT = """(async () => {
  const until = async condition => { while (!condition()) await new Promise(resolve => setTimeout(resolve, 20)); };
  const press = key => dispatchEvent(new KeyboardEvent("keydown", {key}));
  const level = side => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.drawImage($(side).firstChild, 1, 1, 1, 1, 0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data[0];
  };
  await until(() => document.readyState === "complete");
  if (!$("welcome").hidden) $("start").click();
  for (let count = 0; count < COUNT && $("thanks").hidden; count++) {
    await until(() => ready);
    const here = $("count").textContent;
    const score = Math.max(-3, Math.min(3, Math.round((level("b") - level("a")) / DEGREE)));
    if (count === 1) {  // a mistake, put right
      press("1");
      await until(() => ready && $("count").textContent !== here);
      press("Backspace");
      await until(() => ready && $("count").textContent === here);
    }
    if (count % 2) press(String(score + 4)); else $("scale").children[score + 3].click();
  }
  await until(() => ready || !$("thanks").hidden);
  return {count: $("count").textContent, thanks: !$("thanks").hidden, width: media[0].getBoundingClientRect().width};
})()"""


def test_votes_survive_a_reload_and_are_saved_for_the_summary(browser, tmp_path):
    page = study.make_study(tmp_path / "study", scenes(), limit=9)

    def visit(count):
        script = VISIT.replace("COUNT", str(count)).replace("DEGREE", str(DEGREE))
        browser("Page.navigate", url=page.as_uri())
        return browser("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"]["value"]

    seen = visit(5)
    assert seen["count"] == "6 of 13" and seen["width"] == pytest.approx(48, abs=0.1)  # pixel for pixel
    assert visit(99)["thanks"]
    browser("Runtime.evaluate", expression="$('save').click()")
    deadline = time.monotonic() + 30
    while not (saved := list(tmp_path.glob("votes-*.json"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    text = study.summarise_study(tmp_path / "study", saved)
    assert "Participants that count: 1 of 1, votes: 9." in text
    scores = {tuple(row.split(" | ")[:2]): row.split(" | ")[3][:5] for row in text.splitlines() if "100 %" in row}
    assert scores == {
        (f"| {better}", worse): f"{QUALITY[better] - QUALITY[worse]:+.2f}"
        for worse, better in itertools.combinations(METHODS, 2)
    }

    browser("Runtime.evaluate", expression="$('another').click()")
    assert visit(1)["count"] == "2 of 13"


# ----------------------------------------------------------------------------------------------------------------------
# What the votes say


def write_votes(folder, participant, opinion):
    """Write a file of votes; `opinion` takes a trial of the key and its methods [A, B], and gives the score."""
    key, votes = study.read_key(folder, "subjective"), {}
    for number, trial in key["trials"].items():
        swapped = int(number) % 2 == 1
        shown = trial["methods"][::-1] if swapped else trial["methods"]
        votes[number] = {"swapped": swapped, "score": opinion(trial, shown)}
    path = folder / f"votes-{participant}.json"
    path.write_text(json.dumps({"study": key["study"], "participant": participant, "votes": votes}))
    return path


def careful(trial, shown):
    a, b = (QUALITY[method] for method in shown)
    return int(np.clip(b - a, -3, 3))


def enthusiastic(trial, shown):
    return int(np.clip(2 * careful(trial, shown), -3, 3))


def test_every_two_methods_are_summarised_over_participants(folder):
    opinions = [careful] * 3 + [enthusiastic] * 3
    text = study.summarise_study(folder, [write_votes(folder, str(i), opinions[i]) for i in range(6)])
    assert "Participants that count: 6 of 6, votes: 108." in text and "over participants" in text
    rows = text.split("\n\n")[1].splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [
        [f"| {better}", worse, "18"] for worse, better in itertools.combinations(METHODS, 2)
    ]
    low, high = bootstrap_interval([[1] * 3] * 3 + [[2] * 3] * 3)
    assert rows[0] == f"| student | input | 18 | +1.50 ({low:+.2f} to {high:+.2f}) | 100 % (100 to 100) |"


def test_traps_find_who_does_not_look(folder):
    rng = np.random.default_rng(0)
    ann = write_votes(folder, "ann", careful)
    bob = write_votes(folder, "bob", lambda *_: 0)
    eve = write_votes(folder, "eve", lambda *_: int(rng.integers(-3, 4)))
    text = study.summarise_study(folder, [ann, bob, eve])
    assert text.startswith("Participants that count: 1 of 3, votes: 18.")
    assert f"{bob}, which fails 2 of 4 traps" in text and re.search(rf"{eve}, which fails [1-4] of 4 traps", text)
    assert "fewer than 5 participants" in text and "over votes" in text
    assert study.summarise_study(folder, [ann]).split("\n\n")[1:] == text.split("\n\n")[1:]
    assert "no votes to evaluate" in study.summarise_study(folder, [bob])


def test_what_does_not_belong_together_is_refused(folder, tmp_path):
    path, other = write_votes(folder, "ann", careful), tmp_path / "other"
    study.make_study(other, scenes(), seed=4)
    with pytest.raises(DataError, match="holds a study already"):
        study.make_study(folder, scenes())
    with pytest.raises(DataError, match=r"votes-ann\.json holds votes of another study"):
        study.summarise_study(other, [path])
    copy = shutil.copy(path, other)
    with pytest.raises(DataError, match="by the same participant"):
        study.summarise_study(folder, [path, copy])
    for damaged in ("[]", path.read_text()[:-5], re.sub('"score": -?[0-9]', '"score": 4', path.read_text())):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"votes-ann\.json is no file of votes that the page saved"):
            study.summarise_study(folder, [path])
