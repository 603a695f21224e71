"""A blind comparison by eye: pairs of pictures or clips on a local web page, and what the votes say.

Comparison category rating (CCR, ITU-T P.910): two versions of a scene are shown as A and B, and a person says how the
quality of B compares with that of A, from -3 (much worse) over 0 (about the same) to +3 (much better)::

    make_study("study", stimuli, seed=0)      # draws the pairs and copies their files under names that say nothing
    serve_study("study")                      # http://127.0.0.1:PORT/ until Ctrl-C; votes go to study/votes.jsonl
    print(format_summary(summarise_study("study")))

Keys on the page: 1 to 7 vote, or left and right arrow and Enter; space shows the other one where only one fits the
screen; backspace goes back; p pauses. A vote is on the disk before the page goes on, so one may stop at any time.

Neither the page nor what it loads tells which method made a picture. Every participant sees all trials, in an order and
on sides of their own. The original takes part as one of the methods (hidden reference), and between the trials stand
*traps* with a known answer, which find those who do not look (see `TRAP_RULE`).
"""

import contextlib
import datetime
import hashlib
import http.server
import itertools
import json
import logging
import os
import re
import sys
import threading
import urllib.parse
import webbrowser
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np

from benchmark.metrics import bootstrap_interval
from utils import atomic_path, first_line

MEDIA_TYPES = {  # what every browser of today shows
    "image": {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"},
    "video": {".mp4": "video/mp4", ".webm": "video/webm"},
}
TRAP_RULE = (
    "a trap is failed when two identical pictures are rated further apart than 'slightly', or a heavily degraded "
    "picture is not rated 'worse' or 'much worse' than its original; participants count who have answered at least "
    "two traps and failed no more than one in five"
)
PAGE = Path(__file__).resolve().parent / "templates" / "study.html"  # must not contain the name of a method
CLUSTERS_NEEDED = 5  # below so many participants, resampling them says less than resampling votes
RESAMPLES = 1000
MAX_FILE = 1 << 26  # bytes of study.json and of votes.jsonl
MAX_BODY = 1024  # bytes of a vote; a real one has about 130

log = logging.getLogger(__name__)


class StudyError(RuntimeError):
    """A study cannot be made, read or served. The message says what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Making a study


def write_clip(frames, path, fps):
    """Write a clip that Chromium, Firefox and Safari play: MP4 with H.264, High profile, 4:2:0, no sound.

    Coded at CRF 4, where what the codec changes is far below what is compared; lossless H.264 is a profile that Safari
    does not play. BT.709 in limited range, and tagged so, since browsers guess differently where tags are missing.

    Args:
        frames: sequence of `(H, W, 3)` uint8 BGR frames of one even size.
        path: where, ending in ``.mp4``.
        fps: frames per second.

    Raises:
        ValueError: there are no frames, or their sides are odd or differ.
    """
    frames = list(frames)
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) != 1 or sizes[0][0] % 2 or sizes[0][1] % 2:
        raise ValueError(f"a clip needs frames of one size with even sides, got (height, width) of {sizes}")
    with atomic_path(path) as temporary, av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "4", "profile": "high"}
        )
        stream.height, stream.width = sizes[0]
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


def make_study(folder, stimuli, seed, limit=None):
    """Draw the trials of a study and copy what they show to `folder`; the same seed gives the same study.

    Every two methods of a scene make a trial, and about every seventh is a trap: two identical pictures, or a heavily
    degraded version beside its original.

    Args:
        folder: gets ``study.json`` and ``media/``; it must not hold votes yet.
        stimuli: list of dicts ``{"scene": name, "kind": "image" | "video", "files": {method: path}}``. Every scene has
            the method ``input``, and where there is an original it is called ``truth``. Images: PNG, JPEG, WebP.
            Clips: see `write_clip`. The files of a scene have one size and, of a clip, one number of frames.
        seed: not negative.
        limit: at most so many trials (traps not counted), as evenly as possible from all pairs and scenes.

    Returns:
        The study as written.

    Raises:
        StudyError: a file cannot be used or the folder holds votes.
    """
    folder = Path(folder)
    if (folder / "votes.jsonl").exists():
        raise StudyError(f"{folder} holds votes of a study already: choose another folder")
    if not stimuli:
        raise StudyError("a study needs at least one scene")
    rng = np.random.default_rng(seed)
    clips = [_read_scene(scene) for scene in stimuli]
    (folder / "media").mkdir(parents=True, exist_ok=True)

    stored = [{method: _store(path, folder) for method, path in scene["files"].items()} for scene in stimuli]
    pairs = [(index, pair) for index, scene in enumerate(stimuli) for pair in itertools.combinations(scene["files"], 2)]
    trials = []

    def add_trial(index, methods, files, trap):
        number = f"{seed} {len(trials)} {' '.join(files)}"
        media = {f"{_digest(f'{number} {side}')}{Path(file).suffix}": file for side, file in enumerate(files)}
        scene = {key: stimuli[index][key] for key in ("scene", "kind")}
        trials.append({"id": _digest(number), **scene, "methods": list(methods), "trap": trap, "media": media})

    for index, pair in _balanced_choice(pairs, limit, rng):
        add_trial(index, pair, [stored[index][method] for method in pair], None)

    order = rng.permutation(len(stimuli))
    degraded = {}
    for number in range(max(2, round(len(trials) / 12))):
        index = int(order[number % len(order)])
        method = str(rng.choice(list(stored[index])))
        add_trial(index, (method, method), [stored[index][method]] * 2, "identical")
        original = "truth" if "truth" in stored[index] else "input"
        if index not in degraded:
            degraded[index] = _store_degraded(clips[index][original], stimuli[index]["kind"], folder)
        add_trial(index, (original, "degraded"), [stored[index][original], degraded[index]], "degraded")

    methods = list(dict.fromkeys(["input", *(method for scene in stimuli for method in scene["files"])]))
    study = {"format": 1, "seed": seed, "methods": methods, "trials": trials}
    with atomic_path(folder / "study.json") as temporary:
        temporary.write_text(json.dumps(study, indent=1), encoding="utf-8")
    return study


def degrade(frame):
    """Ruin a frame `(H, W, 3)` so that nobody who looks can miss it: blocks of 8x8 pixels of one colour each."""
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (max(1, width // 8), max(1, height // 8)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


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


def _read_scene(scene):
    """Check one entry of `stimuli`; returns {method: (frames, fps)} of what a degraded version may be made from."""
    name, kind, files = scene["scene"], scene["kind"], scene["files"]
    if kind not in MEDIA_TYPES:
        raise StudyError(f"scene {name!r} is of kind {kind!r}: it must be image or video")
    if "input" not in files or len(files) < 2:
        raise StudyError(f"scene {name!r} has only {', '.join(files)}: the method 'input' and another one are needed")
    clips, shapes = {}, {}
    for method, path in files.items():
        if Path(path).suffix.lower() not in MEDIA_TYPES[kind]:
            known = " or ".join(MEDIA_TYPES[kind])
            raise StudyError(f"a browser cannot show {path} as {kind}: give a file that ends in {known}")
        frames, fps = _read_frames(path, kind)
        shapes[method] = (len(frames), *frames[0].shape[:2], fps)
        if method in ("truth", "input"):
            clips[method] = (frames, fps)
    if len(set(shapes.values())) > 1:
        raise StudyError(f"scene {name!r} differs in (frames, height, width, frame rate) between its methods: {shapes}")
    return clips


def _read_frames(path, kind):
    """All frames of an image or clip as `(H, W, 3)` uint8 BGR, and the frame rate (None for an image)."""
    try:
        if kind == "image":
            # not imread, which on Windows does not open every file name
            frames, fps = [cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)], None
        else:
            with av.open(str(path)) as container:
                fps = container.streams.video[0].average_rate
                frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    except (OSError, IndexError, cv2.error, av.FFmpegError) as error:
        raise StudyError(f"cannot read {path}: {first_line(error)}") from error
    if not frames or frames[0] is None:
        raise StudyError(f"cannot read {path}: it is damaged or no {kind}")
    return frames, fps


def _store(path, folder):
    """Copy a file to ``media/`` under a name made from its content; returns the name."""
    content = Path(path).read_bytes()
    name = hashlib.sha256(content).hexdigest()[:20] + Path(path).suffix.lower()
    with atomic_path(folder / "media" / name) as temporary:
        temporary.write_bytes(content)
    return name


def _store_degraded(clip, kind, folder):
    frames, fps = clip
    temporary = folder / "media" / ("degraded.png" if kind == "image" else "degraded.mp4")
    try:
        if kind == "image":
            temporary.write_bytes(cv2.imencode(".png", degrade(frames[0]))[1].tobytes())
        else:
            write_clip([degrade(frame) for frame in frames], temporary, fps)
        return _store(temporary, folder)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# ----------------------------------------------------------------------------------------------------------------------
# A study on the disk: trials and votes


def load_study(folder):
    """Read ``study.json`` of a folder.

    Raises:
        StudyError: there is none, or it is not one that `make_study` wrote.
    """
    path = Path(folder) / "study.json"
    try:
        if path.stat().st_size > MAX_FILE:
            raise StudyError(f"{path} is no study: it has more than {MAX_FILE >> 20} MiB")
        study = json.loads(path.read_text(encoding="utf-8"))
        version = study["format"]
        names = [name for trial in study["trials"] for pair in trial["media"].items() for name in pair]
    except FileNotFoundError as error:
        raise StudyError(f"no study in {folder}: make one first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StudyError(f"cannot read {path}: make the study anew in another folder") from error
    suffixes = "|".join(suffix[1:] for types in MEDIA_TYPES.values() for suffix in types)
    strange = [name for name in names if not re.fullmatch(rf"[0-9a-f]{{20}}\.({suffixes})", str(name))]
    if version != 1 or strange or not _is_study(study):
        raise StudyError(f"{path} was not made by this version of the program: make the study anew in another folder")
    return study


def _is_study(study):
    """Whether the parts of a study (see `make_study`) are of the right kinds and fit each other."""

    def words(value, least=2):
        return isinstance(value, list) and len(value) >= least and all(isinstance(word, str) for word in value)

    seed, methods, trials = study.get("seed"), study.get("methods"), study["trials"]
    if type(seed) is not int or not 0 <= seed < 2**64 or not words(methods) or not isinstance(trials, list):
        return False
    for trial in trials:
        shown, trap = trial.get("methods"), trial.get("trap")
        if not words(shown) or len(shown) != 2 or not set(shown) <= {*methods, "degraded"} or len(trial["media"]) != 2:
            return False
        if trial.get("kind") not in [*MEDIA_TYPES] or "trap" not in trial:
            return False
        if trap not in (None, "identical", "degraded"):
            return False
        if not all(isinstance(trial.get(key), str) for key in ("id", "scene")):
            return False
    sorts = Counter(trial["trap"] for trial in trials)
    return 0 < sorts["identical"] == sorts["degraded"] and len({trial["id"] for trial in trials}) == len(trials)


def participant_trials(study, participant):
    """What one participant is shown: all trials in an order and on sides of their own, without a word on methods.

    Traps come at even distances, the two sorts in turn, so that also someone who stops early has met both.

    Args:
        study: see `load_study`.
        participant: 32 hexadecimal digits.

    Returns:
        List of dicts with ``id``, ``kind``, and the names of the media shown as ``a`` (left) and ``b`` (right).
    """
    rng = np.random.default_rng((study["seed"], int(participant, 16)))
    shuffled = [study["trials"][i] for i in rng.permutation(len(study["trials"]))]
    sorts = [[trial for trial in shuffled if trial["trap"] == trap] for trap in (None, "identical", "degraded")]
    traps = list(itertools.chain.from_iterable(zip(*sorts[1:], strict=True)))
    order = []
    for trap, block in zip(traps, np.array_split(np.arange(len(sorts[0])), len(traps)), strict=True):
        mixed = [sorts[0][i] for i in block]
        mixed.insert(int(rng.integers(len(mixed) + 1)), trap)
        order += mixed
    shown = []
    for trial in order:
        first, second = rng.permutation(list(trial["media"])).tolist()
        shown.append({"id": trial["id"], "kind": trial["kind"], "a": first, "b": second})
    return shown


def check_vote(study, data):
    """Make sure that something decoded from JSON is a vote.

    Args:
        data: should be a dict with ``participant`` (32 hexadecimal digits), ``trial`` (its id), ``a`` (name of the
            media shown as A) and ``score`` (-3 to 3, B relative to A).

    Returns:
        Those four, and ``shown``: the methods [A, B].

    Raises:
        ValueError: it is none.
    """
    if not isinstance(data, dict):
        raise ValueError("a vote is a JSON object")
    participant, score = data.get("participant"), data.get("score")
    if not isinstance(participant, str) or not re.fullmatch("[0-9a-f]{32}", participant):
        raise ValueError("participant must be 32 hexadecimal digits")
    trial = next((trial for trial in study["trials"] if trial["id"] == data.get("trial")), None)
    if trial is None:
        raise ValueError("no such trial in this study")
    media = list(trial["media"])
    if data.get("a") not in media:
        raise ValueError("a must be one of the two pictures of the trial")
    if type(score) is not int or not -3 <= score <= 3:
        raise ValueError("score must be a whole number from -3 to 3")
    shown = trial["methods"] if data["a"] == media[0] else trial["methods"][::-1]
    return {"participant": participant, "trial": trial["id"], "a": data["a"], "score": score, "shown": shown}


def append_vote(folder, vote):
    """Append a vote (see `check_vote`) to ``votes.jsonl``; it is on the disk when this returns."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with open(Path(folder) / "votes.jsonl", "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"  # the line of a crash: do not write on in it
        else:
            torn = False
        file.write(b"\n" * torn + json.dumps({**vote, "time": now}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_votes(folder, study):
    """The votes so far, one per participant and trial: where somebody voted again, the last vote counts.

    A line that is no vote, such as one that a crash cut off, is left out with a warning.

    Returns:
        List of votes as `check_vote` gives them.
    """
    path = Path(folder) / "votes.jsonl"
    votes = {}
    if path.exists() and path.stat().st_size > MAX_FILE:
        raise StudyError(f"{path} has more than {MAX_FILE >> 20} MiB: these are not the votes of a study")
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            vote = check_vote(study, json.loads(line))
        except (ValueError, RecursionError) as error:
            log.warning("%s, line %d is not a vote and is left out: %s", path, number, first_line(error))
            continue
        votes[vote["participant"], vote["trial"]] = vote
    return list(votes.values())


# ----------------------------------------------------------------------------------------------------------------------
# The web page's server


def serve_study(folder, host="127.0.0.1", port=0, open_browser=True):
    """Serve the page of a study until Ctrl-C.

    Args:
        folder: made by `make_study`.
        host: the default lets only this computer in; "0.0.0.0" lets in phones and whoever else is in the network.
        port: 0 takes one that stays the same for a study if it is free: browsers remember a participant by it.
        open_browser: also show the page.

    Raises:
        StudyError: there is no study, or the port is not free.
    """
    with study_server(folder, host, port) as server:
        url = f"http://{'127.0.0.1' if host in ('', '0.0.0.0') else host}:{server.server_port}/"
        print(f"{url} shows the comparison; Ctrl-C ends it, votes are kept in {Path(folder) / 'votes.jsonl'}")
        sys.stdout.flush()  # who reads through a pipe waits for the address
        if open_browser:  # in a thread: a browser in the terminal returns only when it is closed
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def study_server(folder, host="127.0.0.1", port=0):
    """The server behind `serve_study`, listening but not yet serving; its port is `server_port`.

    ``GET /`` is the page, ``GET /trials?participant=ID`` what to show and what has been voted on, ``GET /media/NAME`` a
    picture or clip named there, ``POST /vote`` takes a vote as JSON (see `check_vote`).
    """
    study = load_study(folder)
    usual = 49152 + int(_digest(json.dumps(study)), 16) % 16384  # the ports for private use (RFC 6335)
    error = None
    for candidate in [port] if port else [usual, 0]:
        try:
            return _StudyServer((host, candidate), Path(folder), study)
        except OSError as caught:
            error = caught
    raise StudyError(f"cannot serve at {host}, port {port}: {first_line(error)}; choose another one") from error


class _StudyServer(http.server.ThreadingHTTPServer):
    allow_reuse_address = os.name == "posix"  # on Windows that would let two servers share a port

    def __init__(self, address, folder, study):
        super().__init__(address, _Handler)
        self.folder, self.study, self.lock = folder, study, threading.Lock()
        self.media = {
            name: folder / "media" / file for trial in study["trials"] for name, file in trial["media"].items()
        }
        # a page of the wide web may point its own name here to read what we serve (DNS rebinding): names are checked,
        # but for a server that is open to the network, whose names nobody knows
        self.hosts = None if address[0] in ("", "0.0.0.0") else {"127.0.0.1", "localhost", address[0].lower()}

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # else the browser just went elsewhere


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a word, then the connection is closed

    def do_GET(self):
        if not self._host_is_ours():
            return
        url = urllib.parse.urlsplit(self.path)
        name = url.path.removeprefix("/media/")
        if url.path == "/":
            self._reply(200, "text/html; charset=utf-8", PAGE.read_bytes())
        elif url.path == "/trials":
            self._send_trials(urllib.parse.parse_qs(url.query).get("participant", [""])[0])
        elif name != url.path and name in self.server.media:  # nothing but the names in study.json
            self._send_media(self.server.media[name])
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self):
        if not self._host_is_ours():
            return
        if self.path != "/vote":
            return self._refuse(404, "there is no such page")
        # pages of other sites cannot send this type without asking, and we do not answer such questions
        if self.headers.get_content_type() != "application/json":
            return self._refuse(400, "a vote is sent as application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY:
            return self._refuse(400, f"a vote has at most {MAX_BODY} bytes")
        try:
            vote = check_vote(self.server.study, json.loads(self.rfile.read(int(length))))
        except (ValueError, RecursionError) as error:
            return self._refuse(400, first_line(error))
        try:
            with self.server.lock:
                append_vote(self.server.folder, vote)
        except OSError as error:
            log.error("cannot write a vote to %s: %s", self.server.folder, first_line(error))
            return self._refuse(500, f"the vote could not be stored: {first_line(error)}")
        self._reply(200, "application/json", b"{}")

    def _host_is_ours(self):
        try:
            host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            host = None
        if self.server.hosts is None or host in self.server.hosts:
            return True
        self._refuse(403, "this server has another name")
        return False

    def _send_trials(self, participant):
        if not re.fullmatch("[0-9a-f]{32}", participant):
            return self._refuse(400, "participant must be 32 hexadecimal digits")
        study = self.server.study
        with self.server.lock:
            votes = read_votes(self.server.folder, study)
        voted = [vote["trial"] for vote in votes if vote["participant"] == participant]
        answer = {"trials": participant_trials(study, participant), "voted": voted}
        self._reply(200, "application/json", json.dumps(answer).encode())

    def _send_media(self, path):
        """Send a file, or the part that is asked for: Safari plays no video from a server that cannot do that."""
        try:
            content = path.read_bytes()
        except OSError as error:
            return self._refuse(404, f"a file of the study is missing: {first_line(error)}")
        content_type = next(types[path.suffix] for types in MEDIA_TYPES.values() if path.suffix in types)
        headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=86400, immutable"}
        wanted = re.fullmatch(r"bytes=([0-9]{0,15})-([0-9]{0,15})", self.headers.get("Range", "").strip())
        if not wanted or wanted[0] == "bytes=-":  # RFC 9110: a range that is not understood is ignored
            return self._reply(200, content_type, content, headers)
        first, last, size = wanted[1], wanted[2], len(content)
        if first:
            begin, end = int(first), min(int(last) + 1 if last else size, size)
        else:  # the last so many bytes
            begin, end = max(0, size - int(last)), size
        if begin >= end:
            return self._reply(416, "text/plain", b"", {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._reply(206, content_type, content[begin:end], headers)

    def _refuse(self, status, message):
        self.close_connection = True  # a body may still be under way
        self._reply(status, "text/plain; charset=utf-8", message.encode())

    def _reply(self, status, content_type, content, headers=None):
        self.send_response(status)
        policy = "default-src 'self'; img-src 'self' data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
        for key, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            **({"Connection": "close"} if self.close_connection else {}),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def version_string(self):
        return "study"

    def log_message(self, format, *arguments):
        log.debug(format, *arguments)


# ----------------------------------------------------------------------------------------------------------------------
# What the votes say


def summarise_study(folder, seed=0):
    """Evaluate the votes of a study.

    Intervals are 95 % percentile bootstrap (Efron and Tibshirani, 1993) over participants, or over votes where fewer
    than `CLUSTERS_NEEDED` participants took part; they then say nothing about other people.

    Args:
        folder: made by `make_study`.
        seed: of the bootstrap.

    Returns:
        Dict, ready for JSON:

        - ``votes``, ``participants``: how many count (votes without those on traps);
        - ``excluded``: [{``participant``, ``votes``, ``reason``}], and ``rule``: `TRAP_RULE`;
        - ``resampled``: "participants" or "votes";
        - ``methods``: in the study's order, dicts of ``method``; ``ccr``, the mean score against the input from -3 to
          3, from ``ccr_votes`` votes; ``bradley_terry``, the log-odds of being preferred to the input (see
          `bradley_terry`), and ``preferred``, the same as probability; ``ccr_interval`` and
          ``bradley_terry_interval`` as [low, high]. None where votes are missing.

    Raises:
        StudyError: there is no study in the folder.
    """
    study = load_study(folder)
    trials = {trial["id"]: trial for trial in study["trials"]}
    by_participant = defaultdict(list)
    for vote in read_votes(folder, study):
        by_participant[vote["participant"]].append(vote)
    excluded, counted = [], {}
    for participant, votes in by_participant.items():
        traps = [_trap_failed(trials[vote["trial"]]["trap"], vote) for vote in votes if trials[vote["trial"]]["trap"]]
        rated = [vote for vote in votes if not trials[vote["trial"]]["trap"]]
        if len(traps) >= 2 and 5 * sum(traps) <= len(traps):
            counted[participant] = rated
        else:
            reason = f"failed {sum(traps)} of {len(traps)} traps" if len(traps) >= 2 else "answered too few traps"
            excluded.append({"participant": participant, "votes": len(rated), "reason": reason})

    methods = study["methods"]
    over_participants = len(counted) >= CLUSTERS_NEEDED
    groups = list(counted.values()) if over_participants else [[vote] for votes in counted.values() for vote in votes]
    strengths, spans = _bradley_terry_with_intervals(groups, methods, seed)
    rows = []
    for method, strength, span in zip(methods, strengths, spans, strict=True):
        clusters = [[score for vote in group for score in _scores_against_input(vote, method)] for group in groups]
        scores = [score for cluster in clusters for score in cluster]
        known = bool(groups) and np.isfinite(strength)
        rows.append(
            {
                "method": method,
                "ccr": float(np.mean(scores)) if scores else None,
                "ccr_interval": _finite(bootstrap_interval(clusters, np.random.default_rng(seed))),
                "ccr_votes": len(scores),
                "bradley_terry": float(strength) if known else None,
                "bradley_terry_interval": span if known and method != "input" else None,
                "preferred": float(1 / (1 + np.exp(-strength))) if known else None,
            }
        )
    return {
        "votes": sum(len(group) for group in groups),
        "participants": len(counted),
        "excluded": excluded,
        "rule": TRAP_RULE,
        "resampled": "participants" if over_participants else "votes",
        "methods": rows,
    }


def format_summary(summary):
    """The result of `summarise_study` as text with a Markdown table."""
    counted = f"{_number(summary['votes'], 'vote')} of {_number(summary['participants'], 'participant')} count"
    excluded = summary["excluded"]
    lines = [f"{counted}; {_number(len(excluded), 'participant')} left out."]
    lines += [
        f"- {entry['participant'][:8]}, {_number(entry['votes'], 'vote')}: {entry['reason']}" for entry in excluded
    ]
    lines += [f"Rule: {summary['rule']}.", ""]
    if not summary["votes"] and excluded:
        return "\n".join([*lines, "No participant counts by this rule so far: there is nothing to evaluate."])
    if not summary["votes"]:
        return "\n".join([*lines, "There are no votes to evaluate yet: serve the study and compare some pairs first."])
    if summary["participants"] < CLUSTERS_NEEDED:
        lines += [
            f"Fewer than {CLUSTERS_NEEDED} participants: a first impression, which says little about other people.",
            "",
        ]
    lines += [
        "| method | CCR against input (-3 to 3) | votes | Bradley-Terry, log-odds against input | preferred to input |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in summary["methods"]:
        preferred = "-" if row["preferred"] is None else f"{100 * row['preferred']:.0f} %"
        cells = [
            row["method"],
            _with_interval(row["ccr"], row["ccr_interval"]),
            str(row["ccr_votes"]),
            _with_interval(row["bradley_terry"], row["bradley_terry_interval"]),
        ]
        is_input = row["method"] == "input"
        lines.append("| " + " | ".join(["input", "-", "-", "0", "-"] if is_input else [*cells, preferred]) + " |")
    return "\n".join([*lines, "", f"In brackets: 95 % bootstrap interval over {summary['resampled']}."])


def bradley_terry(wins):
    """Strength of each method from how often it was preferred to each other one.

    Bradley and Terry, Biometrika 1952: i is preferred to j with probability p_i / (p_i + p_j). Maximum likelihood by
    the MM algorithm of Hunter, "MM algorithms for generalized Bradley-Terry models", Annals of Statistics 2004.

    The likelihood has no maximum where some methods have never lost to any of the others (Ford, American Mathematical
    Monthly 1957). Then one tie is added to each pair that met.

    Args:
        wins: `(..., M, M)`; [i, j] says how often i was preferred to j, where a tie is half a win for both.

    Returns:
        log(p_i / p_0), `(..., M)`: the log-odds of i being preferred to the first method. nan for a method that no
        chain of comparisons links to the first.
    """
    wins = np.asarray(wins, dtype=np.float64)
    met = wins + wins.swapaxes(-1, -2) > 0
    linked = _reachable(met)
    no_maximum = (_reachable(wins > 0) != linked).any((-1, -2), keepdims=True)
    wins = wins + 0.5 * (met & no_maximum)
    games, won = wins + wins.swapaxes(-1, -2), wins.sum(-1)

    log_strength = np.zeros(won.shape)
    for _ in range(10_000):
        strength = np.exp(log_strength)
        expected = (games / (strength[..., :, None] + strength[..., None, :])).sum(-1)
        updated = np.log(won, out=np.zeros_like(won), where=won > 0)
        updated -= np.log(expected, out=np.zeros_like(won), where=won > 0)
        updated -= updated.mean(-1, keepdims=True)
        change = np.abs(updated - log_strength).max()
        log_strength = updated
        if change < 1e-9:
            break
    return np.where(linked[..., 0, :], log_strength - log_strength[..., :1], np.nan)


def _reachable(edges):
    """Which node leads to which over any number of `edges` (..., M, M), itself included."""
    reach = edges | np.eye(edges.shape[-1], dtype=bool)
    for _ in range(edges.shape[-1].bit_length()):  # each round doubles the length of the paths
        reach = reach @ reach
    return reach


def _trap_failed(trap, vote):
    if trap == "identical":
        return abs(vote["score"]) > 1
    return (vote["score"] if vote["shown"][1] == "degraded" else -vote["score"]) > -2


def _scores_against_input(vote, method):
    """[score of `method` against the input], empty where those two were not shown."""
    signs = {("input", method): 1, (method, "input"): -1}
    sign = signs.get(tuple(vote["shown"])) if method != "input" else None
    return [sign * vote["score"]] if sign else []


def _bradley_terry_with_intervals(groups, methods, seed):
    """Strengths `(M,)` of the methods (see `bradley_terry`) and a list of M bootstrap intervals, [low, high] or None.

    Args:
        groups: lists of votes, which are resampled as a whole.
    """
    place = {method: i for i, method in enumerate(methods)}
    wins = np.zeros((len(groups), len(methods), len(methods)))
    for i, group in enumerate(groups):
        for vote in group:
            a, b = (place[method] for method in vote["shown"])
            wins[i, b, a] += (np.sign(vote["score"]) + 1) / 2
            wins[i, a, b] += (1 - np.sign(vote["score"])) / 2
    strengths = bradley_terry(wins.sum(0))
    if len(groups) < 2:
        return strengths, [None] * len(methods)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), RESAMPLES)  # how often each group
    resampled = bradley_terry(np.tensordot(drawn, wins, 1))
    # a method that most resamples do not link with the input has no interval
    linked = np.isfinite(resampled).mean(0) > 0.5
    spans = [
        _finite(np.nanpercentile(column, [2.5, 97.5])) if is_linked else None
        for column, is_linked in zip(resampled.T, linked, strict=True)
    ]
    return strengths, spans


def _finite(interval):
    """[low, high], or None where they are NaN."""
    return [float(v) for v in interval] if np.isfinite(interval).all() else None


def _number(count, noun):
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _with_interval(value, interval):
    if value is None:
        return "-"
    return f"{value:+.2f}" + (f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else "")
