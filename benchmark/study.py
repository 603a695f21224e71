"""Make a blind study of picture quality as one HTML file, and summarise the votes that come back.

Comparison category rating (CCR, ITU-T P.910): the page shows two versions of a scene as A and B, and a person says how
the quality of B compares with that of A, from -3 (much worse) over 0 (about the same) to +3 (much better)::

    make_study("study", scenes)                               # study.html to hand out, key.json to keep
    print(summarise_study("study", ["votes-ab12.json"]))      # files that participants saved

The page needs no server. It contains its pictures and clips, keeps the votes in the browser and saves them as a file.
It names no method: ``key.json`` says what each trial shows. Everybody sees all trials, in an order and on sides of
their own. The original takes part as one of the methods (hidden reference), and traps, which are trials with a known
answer, find participants who do not look (see `TRAP_RULE`).
"""

import base64
import hashlib
import io
import itertools
import json
from collections import Counter
from pathlib import Path

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np

from benchmark.metrics import bootstrap_interval
from degradation import FRAME_RATE, DataError
from utils import atomic_path

TRAP_RULE = (
    "a trap is failed if two identical pictures are rated further apart than 'slightly', or a heavily degraded "
    "picture is not rated 'worse' or 'much worse' than its original; participants count if they answered at least "
    "two traps and failed no more than one in five"
)
TEMPLATE = Path(__file__).resolve().parent / "templates" / "study.html"
TRIALS_PER_BLOCK = 12  # to which a trap of each kind is added
CLUSTERS_NEEDED = 5  # with fewer participants, resampling them says less than resampling votes


# ----------------------------------------------------------------------------------------------------------------------
# Making a study


def make_study(folder, scenes, seed=0, limit=None):
    """Write the page of a study and its key. The same arguments give the same study.

    Every two methods of a scene make a trial.

    Args:
        folder: gets ``study.html``, whose path is returned, and ``key.json``.
        scenes: iterable of ``(name, {method: picture})``. A picture is BGR uint8 `(H, W, 3)`; a clip is `(N, H, W, 3)`
            with even sides. Every scene has the method ``input``, and ``truth`` if its original is known.
        seed: of the choice of trials.
        limit: at most so many trials (traps not counted), spread evenly over pairs of methods and scenes.

    Raises:
        DataError: there are no scenes, or the folder holds a key already.
    """
    folder = Path(folder)
    if (folder / "key.json").exists():
        raise DataError(f"{folder} holds a study already, to which votes may belong: name another folder")
    rng = np.random.default_rng(seed)
    names, encoded, pairs = [], [], []
    for index, (name, pictures) in enumerate(scenes):
        names.append(name)
        pairs += [(index, pair) for pair in itertools.combinations(pictures, 2)]
        degraded = degrade(pictures.get("truth", pictures["input"]))
        encoded.append({method: data_uri(picture) for method, picture in {**pictures, "degraded": degraded}.items()})
    if not names:
        raise DataError("a study needs at least one scene: name a folder with pictures or videos by --data")

    methods = list(dict.fromkeys(method for index, pair in pairs for method in pair))
    media, trials, blocks, key = [], [], [], {}
    for block in _draw_blocks(pairs, encoded, limit, rng):
        blocks.append(list(range(len(trials), len(trials) + len(block))))
        for index, pair, trap in block:
            key[str(len(trials))] = {"scene": names[index], "methods": pair, "trap": trap}
            shown = [encoded[index][method] for method in pair]
            media += [uri for uri in dict.fromkeys(shown) if uri not in media]
            trials.append([media.index(uri) for uri in shown])
    page = {"trials": trials, "blocks": blocks, "media": media}
    identity = hashlib.sha256(json.dumps([page, key]).encode()).hexdigest()[:16]
    write_key(folder, {"study": identity, "methods": methods, "trials": key})
    with atomic_path(folder / "study.html") as temporary:
        text = TEMPLATE.read_text(encoding="utf-8")
        temporary.write_text(text.replace("{{study}}", json.dumps({"id": identity, **page})), encoding="utf-8")
    return folder / "study.html"


def degrade(picture):
    """Return a picture or clip `(..., H, W, 3)` in blocks of 8x8 pixels of one colour, which nobody can overlook."""
    height, width = picture.shape[-3:-1]
    return picture[..., ::8, ::8, :].repeat(8, -3).repeat(8, -2)[..., :height, :width, :]


def _draw_blocks(pairs, scenes, limit, rng):
    """Draw the trials in blocks, each with a trap of either kind; a trial is [scene index, [method, method], trap].

    The page shuffles the blocks, and each within itself: whoever stops early has met both traps, and its source tells
    nobody which trials are traps.
    """
    chosen = _balanced_choice(pairs, limit, rng)
    parts = np.array_split(rng.permutation(len(chosen)), max(2, round(len(chosen) / TRIALS_PER_BLOCK)))
    for part, index in zip(parts, itertools.cycle(rng.permutation(len(scenes)).tolist())):
        methods = [method for method in scenes[index] if method != "degraded"]
        original, any_method = "truth" if "truth" in methods else "input", str(rng.choice(methods))
        block = [(*chosen[i], None) for i in part]
        block += [(index, (any_method, any_method), "identical"), (index, (original, "degraded"), "degraded")]
        yield [[block[i][0], rng.permutation(block[i][1]).tolist(), block[i][2]] for i in rng.permutation(len(block))]


def _balanced_choice(pairs, limit, rng):
    """At most `limit` of `pairs` = [(scene index, (method, method))]: rarest method pair first, then rarest scene."""
    pool = [pairs[i] for i in rng.permutation(len(pairs))]
    used, chosen = Counter(), []
    while pool and (limit is None or len(chosen) < limit):
        pick = min(pool, key=lambda trial: (used[trial[1]], used[trial[0]]))
        pool.remove(pick)
        used.update(pick)
        chosen.append(pick)
    return chosen


def data_uri(picture):
    """Return a picture as PNG, or a clip as MP4, in a ``data:`` address."""
    kind, content = ("image/png", encode_png(picture)) if picture.ndim == 3 else ("video/mp4", encode_clip(picture))
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encode_png(picture):
    """Return BGR `(H, W, 3)` uint8 as the bytes of a PNG file."""
    return cv2.imencode(".png", picture)[1].tobytes()


def encode_clip(frames):
    """Return BGR `(N, H, W, 3)` uint8 as the bytes of an MP4 file that Chromium, Firefox and Safari play.

    At CRF 4 the codec changes far less than what is compared; Safari does not play the lossless profile of H.264. The
    colours are BT.709 in limited range and tagged so, since browsers guess differently if tags are missing.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "4", "profile": "high"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.max_b_frames = 0  # the first frame is shown at time 0, where both clips of a pair start
        context.colorspace = context.color_primaries = context.color_trc = 1  # ITU-T H.273: BT.709
        context.color_range = av.video.reformatter.ColorRange.MPEG
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="bgr24").reformat(
                format="yuv420p",
                dst_colorspace=av.video.reformatter.Colorspace.ITU709,
                dst_color_range=av.video.reformatter.ColorRange.MPEG,
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


# ----------------------------------------------------------------------------------------------------------------------
# Keys and votes


def write_key(folder, key):
    """Write ``key.json``, which says what the study shows; participants must not see it."""
    with atomic_path(Path(folder) / "key.json") as temporary:
        temporary.write_text(json.dumps(key, indent=1), encoding="utf-8")


def read_key(folder, command):
    """Read ``key.json`` from a folder of `write_key`; a DataError says that `command` of evaluate.py makes it."""
    try:
        return json.loads((Path(folder) / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no key.json: name a folder made by evaluate.py {command}") from error


def read_votes(path, key):
    """Read a file of votes that the page saved, given the study's key; a DataError names a file that is none.

    Returns:
        ``(participant, votes)``; a vote is ``(trap, method shown as A, method shown as B, score of B against A)``.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["study"] != key["study"]:
            raise DataError(f"{path} holds votes of another study")
        votes = []
        for number, vote in content["votes"].items():
            trial, score = key["trials"][number], vote["score"]
            if score not in range(-3, 4):
                raise ValueError(f"a score is a whole number from -3 to 3, got {score!r}")
            votes.append((trial["trap"], *trial["methods"][:: -1 if vote["swapped"] else 1], score))
        return str(content["participant"]), votes
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no file of votes that the page saved; ask for it again: {error}") from error


# ----------------------------------------------------------------------------------------------------------------------
# What the votes say


def summarise_study(folder, paths):
    """Summarise files of votes, one per participant, for the study in `folder`, as text with a Markdown table.

    It says who counts by `TRAP_RULE`, and for every two methods the number of votes, their mean score and the share of
    them that preferred the first one, ties counting half. Intervals are drawn over participants, or over votes if fewer
    than `CLUSTERS_NEEDED` participants count.

    Raises:
        DataError: there is no study, or a file does not hold votes of it or those of a participant met before.
    """
    key, files, counted, lines = read_key(folder, "subjective"), {}, [], []
    for path in paths:
        participant, votes = read_votes(path, key)
        if participant in files:
            raise DataError(f"{files[participant]} and {path} are by the same participant: give only the later one")
        files[participant] = path
        failures = [fails_trap(*vote) for vote in votes if vote[0]]
        if len(failures) >= 2 and 5 * sum(failures) <= len(failures):
            counted.append([vote[1:] for vote in votes if not vote[0]])
        else:
            lines.append(f"- left out: {path}, which fails {sum(failures)} of {len(failures)} traps")
    total = sum(map(len, counted))
    lines = [f"Participants that count: {len(counted)} of {len(files)}, votes: {total}.", *lines]
    lines += [f"Rule: {TRAP_RULE}.", ""]
    if not total:
        return "\n".join([*lines, "There are no votes to evaluate."])
    groups, unit = counted, "participants"
    if len(counted) < CLUSTERS_NEEDED:
        groups, unit = [[vote] for votes in counted for vote in votes], "votes"
        lines += [f"With fewer than {CLUSTERS_NEEDED} participants this says little about other people.", ""]
    lines += ["| method | against | votes | mean score (-3 to 3) | preferred |", "| --- | --- | --- | --- | --- |"]
    for other, method in itertools.combinations(key["methods"], 2):
        sign = {(other, method): 1, (method, other): -1}
        scores = [[sign[a, b] * score for a, b, score in votes if (a, b) in sign] for votes in groups]
        shares = [[50 * (np.sign(score) + 1) for score in group] for group in scores]
        cells = [str(sum(map(len, scores))), _mean(scores, "+.2f"), _mean(shares, ".0f", " %")]
        lines.append(f"| {method} | {other} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"In brackets: 95 % bootstrap interval over {unit}."])


def fails_trap(trap, a, b, score):
    """Return whether the score of B against A is a wrong answer to a trap."""
    if trap == "identical":
        return abs(score) > 1
    return (score if b == "degraded" else -score) > -2


def _mean(groups, form, unit=""):
    """The mean of all values with its interval, as text."""
    values, interval = np.concatenate(groups), bootstrap_interval(groups)
    if not values.size:
        return "-"
    low, high = (f"{limit:{form}}" for limit in interval)
    return f"{values.mean():{form}}{unit}" + (f" ({low} to {high})" if np.isfinite(interval).all() else "")
