import concurrent.futures
import contextlib
import http.client
import itertools
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections import Counter

import cv2  # before av: see video.py

# isort: split
import av
import numpy as np
import pytest
import scipy.optimize
import skimage.data

import benchmark.study as sub
from benchmark.study import StudyError

METHODS = ("input", "student", "unsharp mask", "truth")
ANN, BOB = "a" * 32, "b" * 32


def write_png(path, frame):
    path.write_bytes(cv2.imencode(".png", frame)[1].tobytes())


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stimuli")
    photo = np.ascontiguousarray(skimage.data.astronaut()[:64, 180:276, ::-1])
    scenes = []
    for scene in ("a face, x264 qp 32", 'Ünï "cø/de" #?&% 顔', "third"):
        files = {}
        for i, method in enumerate(METHODS):
            files[method] = folder / f"{len(scenes)} {method} #é 100%.png"
            write_png(files[method], cv2.GaussianBlur(photo, (0, 0), 0.3 + 0.4 * (3 - i)) + len(scenes))
        scenes.append({"scene": scene, "kind": "image", "files": files})
    return scenes


@pytest.fixture
def folder(stimuli, tmp_path):
    sub.make_study(tmp_path / "study", stimuli, seed=3)
    return tmp_path / "study"


@contextlib.contextmanager
def serving(folder):
    """The address of a real server in a thread."""
    with sub.study_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def fetch(url, data=None, headers=None):
    """(status, headers, body) of a request; dicts are sent as JSON."""
    headers = {**({"Content-Type": "application/json"} if data is not None else {}), **(headers or {})}
    body = json.dumps(data).encode() if isinstance(data, dict) else data
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def get_trials(url, participant=ANN):
    status, _, body = fetch(f"{url}/trials?participant={participant}")
    assert status == 200
    return json.loads(body)


def a_vote(trial, score, participant=ANN):
    return {"participant": participant, "trial": trial["id"], "a": trial["a"], "score": score}


def answer_all(folder, participant, opinion):
    """Vote on all trials; `opinion` takes the trial of study.json and the methods [A, B], and gives the score."""
    study = sub.load_study(folder)
    trials = {trial["id"]: trial for trial in study["trials"]}
    for shown in sub.participant_trials(study, participant):
        trial = trials[shown["id"]]
        media = list(trial["media"])
        methods = trial["methods"] if shown["a"] == media[0] else trial["methods"][::-1]
        vote = a_vote(shown, opinion(trial, methods), participant)
        sub.append_vote(folder, sub.check_vote(study, vote))


def careful(trial, methods):
    """Somebody who sees the quality: in the order of METHODS, and a degraded picture is far below."""
    quality = {"degraded": -3, **{method: i for i, method in enumerate(METHODS)}}
    return int(np.clip(quality[methods[1]] - quality[methods[0]], -3, 3))


# ----------------------------------------------------------------------------------------------------------------------
# Making a study


def test_a_study_has_all_pairs_traps_and_repeats(stimuli, folder, tmp_path):
    study = sub.load_study(folder)
    pairs = [(trial["scene"], frozenset(trial["methods"])) for trial in study["trials"] if not trial["trap"]]
    every = [
        (scene["scene"], frozenset(pair)) for scene in stimuli for pair in itertools.combinations(METHODS, 2)
    ]  # the truth among them: the hidden reference
    assert sorted(pairs, key=str) == sorted(every, key=str) and study["methods"] == list(METHODS)

    content = {path.name: path.read_bytes() for path in (folder / "media").iterdir()}
    traps = {trap: [t for t in study["trials"] if t["trap"] == trap] for trap in ("identical", "degraded")}
    assert len(traps["identical"]) == len(traps["degraded"]) == 2
    for trial in traps["identical"]:
        assert len(trial["media"]) == 2 and len({content[file] for file in trial["media"].values()}) == 1
    for trial in traps["degraded"]:
        good, bad = (cv2.imread(str(folder / "media" / file)) for file in trial["media"].values())
        assert trial["methods"] == ["truth", "degraded"] and good.shape == bad.shape and cv2.PSNR(good, bad) < 25
    originals = {path.read_bytes() for scene in stimuli for path in scene["files"].values()}
    assert originals <= set(content.values())

    assert sub.make_study(tmp_path / "again", stimuli, seed=3) == study
    other = sub.make_study(tmp_path / "other", stimuli, seed=4)
    assert {t["id"] for t in other["trials"]}.isdisjoint(t["id"] for t in study["trials"])


def test_a_limit_is_balanced(stimuli, tmp_path):
    trials = [t for t in sub.make_study(tmp_path, stimuli, 0, limit=9)["trials"] if not t["trap"]]
    assert len(trials) == 9
    by_pair = Counter(frozenset(trial["methods"]) for trial in trials)
    by_scene = Counter(trial["scene"] for trial in trials)
    assert set(by_pair.values()) == {1, 2} and len(by_pair) == 6
    assert max(by_scene.values()) - min(by_scene.values()) <= 1 and len(by_scene) == 3


def test_everybody_has_an_order_and_sides_of_their_own(folder):
    study = sub.load_study(folder)
    ann, bob = (sub.participant_trials(study, who) for who in (ANN, BOB))
    assert ann == sub.participant_trials(study, ANN)
    assert [t["id"] for t in ann] != [t["id"] for t in bob]
    assert sorted(t["id"] for t in ann) == sorted(t["id"] for t in bob) == sorted(t["id"] for t in study["trials"])
    left = {t["id"]: t["a"] for t in ann}
    assert 0 < sum(left[t["id"]] != t["a"] for t in bob) < len(bob)
    kinds = {t["id"]: t["trap"] for t in study["trials"]}
    places = [(i, kinds[t["id"]]) for i, t in enumerate(ann) if kinds[t["id"]]]
    assert [kind for _, kind in places] == ["identical", "degraded"] * 2
    assert all(5 * n <= place < 5 * (n + 1) + 1 for n, (place, _) in enumerate(places))


def test_what_cannot_be_compared_is_refused(stimuli, folder, tmp_path):
    def scene(**files):
        return [{"scene": "s", "kind": "image", "files": files}]

    good = stimuli[0]["files"]["input"]
    small, broken, text = tmp_path / "small.png", tmp_path / "broken.png", tmp_path / "a.txt"
    write_png(small, np.zeros((16, 16, 3), np.uint8))
    broken.write_bytes(b"nothing")
    text.write_text("nothing")
    for bad, message in (
        ([], "at least one scene"),
        (scene(student=good, truth=good), "'input' and another one"),
        (scene(input=good), "'input' and another one"),
        (scene(input=good, student=small), "differs in"),
        (scene(input=good, student=broken), "cannot read .*broken"),
        (scene(input=good, student=tmp_path / "no.png"), "cannot read .*no.png"),
        (scene(input=good, student=text), "ends in .png"),
        ([{**stimuli[0], "kind": "sound"}], "image or video"),
    ):
        with pytest.raises(StudyError, match=message):
            sub.make_study(tmp_path / "bad", bad, 0)
    assert not (tmp_path / "bad").exists()
    answer_all(folder, ANN, careful)
    with pytest.raises(StudyError, match="holds votes"):
        sub.make_study(folder, stimuli, 3)


def test_clips_are_nearly_lossless_and_make_a_study(tmp_path):
    base = np.ascontiguousarray(skimage.data.astronaut()[:80, 160:320, ::-1])
    frames = [np.roll(base, 3 * i, axis=1) for i in range(6)]
    files = {method: tmp_path / f"{method}.mp4" for method in ("input", "truth")}
    sub.write_clip([cv2.GaussianBlur(frame, (0, 0), 2) for frame in frames], files["input"], 30000 / 1001)
    sub.write_clip(frames, files["truth"], 30000 / 1001)
    with av.open(str(files["truth"])) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.profile, context.pix_fmt) == ("h264", "High", "yuv420p")
        assert (context.colorspace, context.color_range, context.color_trc) == (1, 1, 1)
        assert stream.average_rate == pytest.approx(30000 / 1001) and stream.start_time == 0
        decoded = [(frame.pts, frame.to_ndarray()[:80]) for frame in container.decode(video=0)]
    assert len(decoded) == len(frames) and [pts for pts, _ in decoded] == sorted(pts for pts, _ in decoded)
    for (_, luma), frame in zip(decoded, frames, strict=True):
        expected = 16 + 219 / 255 * (frame @ [0.0722, 0.7152, 0.2126])  # BT.709 in limited range
        assert np.square(luma - expected).mean() < 2  # 45 dB, 1/3 of it from rounding
    head = files["truth"].read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays before it is loaded

    study = sub.make_study(tmp_path / "study", [{"scene": "pan", "kind": "video", "files": files}], 0)
    (bad,) = {list(t["media"].values())[1] for t in study["trials"] if t["trap"] == "degraded"}
    degraded, fps = sub._read_frames(tmp_path / "study" / "media" / bad, "video")
    assert len(degraded) == len(frames) and fps == pytest.approx(30000 / 1001)
    assert cv2.PSNR(degraded[0], frames[0]) < 30
    for odd in ([], [frames[0][:79]], [frames[0], frames[0][:60]]):
        with pytest.raises(ValueError, match="even sides"):
            sub.write_clip(odd, tmp_path / "odd.mp4", 25)
    assert not list(tmp_path.glob("*odd*"))


# ----------------------------------------------------------------------------------------------------------------------
# The server


def test_votes_are_stored_at_once_and_a_reload_goes_on(folder):
    with serving(folder) as url:
        first = get_trials(url)
        assert first["voted"] == [] and not (folder / "votes.jsonl").exists()
        for i, score in ((0, -3), (1, 3), (0, 2)):  # the first one twice: the last vote counts
            assert fetch(f"{url}/vote", a_vote(first["trials"][i], score))[0] == 200
            assert json.loads((folder / "votes.jsonl").read_text("utf-8").splitlines()[-1])["score"] == score
        assert fetch(f"{url}/vote", a_vote(first["trials"][5], 0, BOB))[0] == 200
        again = get_trials(url)
        assert again["trials"] == first["trials"]
        assert sorted(again["voted"]) == sorted(t["id"] for t in first["trials"][:2])
        assert get_trials(url, BOB)["voted"] == [first["trials"][5]["id"]]
    with serving(folder) as restarted:
        assert get_trials(restarted) == again
    votes = sub.read_votes(folder, sub.load_study(folder))
    assert [(v["participant"], v["trial"], v["score"]) for v in votes] == [
        (ANN, first["trials"][0]["id"], 2),
        (ANN, first["trials"][1]["id"], 3),
        (BOB, first["trials"][5]["id"], 0),
    ]


def test_a_vote_keeps_which_method_was_on_which_side(folder):
    study = sub.load_study(folder)
    trial = study["trials"][0]
    for a, methods in zip(trial["media"], (trial["methods"], trial["methods"][::-1]), strict=True):
        assert sub.check_vote(study, a_vote({"id": trial["id"], "a": a}, 1))["shown"] == methods


def test_votes_at_the_same_time_are_all_kept(folder):
    with serving(folder) as url:
        trials = get_trials(url)["trials"]
        votes = [a_vote(trial, 1, who) for trial in trials for who in (ANN, BOB)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert {answer[0] for answer in pool.map(lambda vote: fetch(f"{url}/vote", vote), votes)} == {200}
    assert len(sub.read_votes(folder, sub.load_study(folder))) == len(votes)


def test_a_torn_line_is_left_out_with_a_warning(folder, caplog):
    study = sub.load_study(folder)
    trials = sub.participant_trials(study, ANN)
    sub.append_vote(folder, sub.check_vote(study, a_vote(trials[0], 1)))
    with open(folder / "votes.jsonl", "ab") as file:
        file.write(b'{"participant": "aaaa\xc3')  # the power went here
    assert len(sub.read_votes(folder, study)) == 1
    assert "line 2 is not a vote" in caplog.text
    with serving(folder) as url:
        assert get_trials(url)["voted"] == [trials[0]["id"]]
        assert fetch(f"{url}/vote", a_vote(trials[1], -2))[0] == 200
        assert get_trials(url)["voted"] == [trials[0]["id"], trials[1]["id"]]
    assert len((folder / "votes.jsonl").read_bytes().splitlines()) == 3


def test_malformed_votes_are_refused(folder):
    with serving(folder) as url:
        trials = get_trials(url)["trials"]
        good = a_vote(trials[0], 1)
        bad = [
            b"",
            b"{",
            b"[1]",
            b"null",
            b"\xff",
            b"[" * 1000,
            *({key: value for key, value in good.items() if key != missing} for missing in good),
            *({**good, "score": score} for score in (4, -4, 0.5, "1", None, True, [1], 10**400)),
            *({**good, "participant": who} for who in ("", "A" * 32, "a" * 31, "a" * 32 + "\n", "../" * 10, 7)),
            *({**good, "trial": trial} for trial in ("", "nonsense", ["x"], {"x": 1}, None)),
            *({**good, "a": a} for a in ("", trials[1]["a"], [trials[0]["a"]], None, "student")),
        ]
        for data in bad:
            status, _, body = fetch(f"{url}/vote", data)
            assert status == 400 and body, data
        huge = json.dumps({**good, "more": "x" * 5000}).encode()
        assert fetch(f"{url}/vote", huge)[0] == 400
        assert fetch(f"{url}/vote", good, {"Content-Type": "text/plain"})[0] == 400  # what any web page may send
        assert fetch(f"{url}/votes", good)[0] == 404
        for length in ("-1", "x", "99999999999999", ""):
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
            connection.putrequest("POST", "/vote")
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", length)
            connection.endheaders()
            assert connection.getresponse().status == 400
            connection.close()
        assert not (folder / "votes.jsonl").exists()
        assert fetch(f"{url}/vote", good)[0] == 200  # still alive


def test_only_names_in_the_study_are_served(folder):
    (folder / "secret.txt").write_text("secret")
    with serving(folder) as url:
        name = get_trials(url)["trials"][0]["a"]
        stored = sub.load_study(folder)["trials"][0]["media"]
        for path in (
            *("secret.txt", "media", "media/", "study.json", "votes.jsonl", "favicon.ico"),
            *("media/../study.json", "media/..%2fstudy.json", "media//etc/passwd", "media/%2e%2e/secret.txt"),
            *(f"media/{file}" for file in stored.values()),  # the stored name would tell what is the same
            *(f"media/./{name}", f"media/{name}%00", f"media/{name}/"),
        ):
            status, _, body = fetch(f"{url}/{path}")
            assert status == 404 and b"secret" not in body, path
        assert fetch(f"{url}/media/{name}")[0] == 200
        for participant in ("", "x" * 32, "../../etc"):
            assert fetch(f"{url}/trials?participant={participant}")[0] == 400
        assert fetch(f"{url}/", headers={"Host": "evil.example"})[0] == 403
        assert fetch(f"{url}/vote", {}, {"Host": "evil.example:80"})[0] == 403
        assert fetch(f"{url}/", headers={"Host": f"localhost:{url.rsplit(':')[-1]}"})[0] == 200


def test_media_and_their_parts(folder):
    study = sub.load_study(folder)
    name, file = next(iter(study["trials"][0]["media"].items()))
    content = (folder / "media" / file).read_bytes()
    with serving(folder) as url:
        status, headers, body = fetch(f"{url}/media/{name}")
        assert status == 200 and body == content and headers["Content-Type"] == "image/png"
        for wanted, part in (
            ("bytes=0-1", content[:2]),  # what Safari asks first
            ("bytes=10-", content[10:]),
            ("bytes=-7", content[-7:]),
            ("bytes=5-999999", content[5:]),
        ):
            status, headers, body = fetch(f"{url}/media/{name}", headers={"Range": wanted})
            begin = content.index(part)
            assert status == 206 and body == part
            assert headers["Content-Range"] == f"bytes {begin}-{begin + len(part) - 1}/{len(content)}"
        for wanted in ("bytes=999999-", "bytes=9-3", "bytes=-0"):
            assert fetch(f"{url}/media/{name}", headers={"Range": wanted})[0] == 416
        for wanted in ("lines=1-2", "bytes=-", "bytes=1-2,5-6", "bytes=x"):
            assert fetch(f"{url}/media/{name}", headers={"Range": wanted})[2] == content
        (folder / "media" / file).unlink()
        assert fetch(f"{url}/media/{name}")[0] == 404


def test_nothing_that_is_sent_tells_the_method(stimuli, folder):
    with serving(folder) as url:
        page = fetch(f"{url}/")
        sent = [page, fetch(f"{url}/trials?participant={ANN}")]
        trials = json.loads(sent[1][2])["trials"]
        names = [trial[side] for trial in trials for side in "ab"]
        sent += [(status, headers, b"") for status, headers, _ in (fetch(f"{url}/media/{name}") for name in names)]
    text = "\n".join(f"{headers}{body.decode()}" for _, headers, body in sent).lower()
    words = {*METHODS, *(scene["scene"] for scene in stimuli), "degraded", "identical", "trap", "seed"}
    assert not [word for word in words if word.lower() in text.replace("keep-alive", "")]
    assert "last-modified" not in text  # files of one method may be of one time
    assert set(map(frozenset, trials)) == {frozenset({"id", "kind", "a", "b"})}
    assert len(set(names)) == len(names)  # else the pair of identical pictures would show by its names
    assert page[0] == 200 and "default-src 'self'" in page[1]["Content-Security-Policy"]


def test_a_damaged_or_missing_study_is_refused(folder, tmp_path):
    with pytest.raises(StudyError, match="no study in"):
        sub.study_server(tmp_path / "nowhere")
    good = (folder / "study.json").read_text("utf-8")
    outside = re.sub(r'"[0-9a-f]{20}\.png": "[0-9a-f]{20}\.png"', '"0.png": "../../../etc/passwd"', good, count=1)
    for text in ("", "{", "[]", '{"format": 1}', good.replace('"format": 1', '"format": 2'), outside):
        (folder / "study.json").write_text(text)
        with pytest.raises(StudyError, match="anew"):
            sub.load_study(folder)


def test_the_port_stays_the_same_where_it_can(folder):
    with sub.study_server(folder) as first:
        with sub.study_server(folder) as second:
            assert second.server_port != first.server_port
        with pytest.raises(StudyError, match=f"port {first.server_port}"):
            sub.study_server(folder, port=first.server_port)
    with sub.study_server(folder) as again:
        assert again.server_port == first.server_port


def test_chromium_shows_the_next_trial(folder, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here")
    with serving(folder) as url:
        trials = get_trials(url)["trials"]
        assert fetch(f"{url}/vote", a_vote(trials[0], 1))[0] == 200  # who has begun is spared the instructions
        command = [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,800"),
            *("--dump-dom", "--virtual-time-budget=5000", f"{url}/#{ANN}"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    dom = result.stdout
    assert f">2 of {len(trials)}<" in dom, result.stderr
    pictures = re.findall(r"<img[^>]*>", dom)
    assert len(pictures) == 2 and "loading" not in "".join(pictures)
    for picture, side in zip(pictures, "ab", strict=True):
        assert f'src="media/{trials[1][side]}"' in picture and f'alt="picture {side.upper()}"' in picture
        assert float(re.search(r"width: ([0-9.]+)px", picture)[1]) == pytest.approx(96, abs=0.1)
    assert len(re.findall("<button><small", dom)) == 7  # with no "disabled" among them: it takes votes


# ----------------------------------------------------------------------------------------------------------------------
# What the votes say


def test_bradley_terry_of_two_methods_is_the_log_odds():
    assert sub.bradley_terry([[0, 3], [7, 0]]) == pytest.approx([0, np.log(7 / 3)])
    assert sub.bradley_terry([[0, 3 + 1], [7 + 1, 0]]) == pytest.approx([0, np.log(8 / 4)])  # two ties
    stack = sub.bradley_terry([[[0, 3], [7, 0]], [[0, 5], [5, 0]]])
    assert stack == pytest.approx(np.array([[0, np.log(7 / 3)], [0, 0]]), abs=1e-6)


def test_bradley_terry_is_the_maximum_of_the_likelihood():
    wins = np.random.default_rng(1).integers(1, 20, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    wins[0, 3] = wins[3, 0] = 0  # never met

    def loss(strength):
        difference = np.subtract.outer(np.r_[0, strength], np.r_[0, strength])
        return (wins * np.log1p(np.exp(-difference))).sum()

    expected = scipy.optimize.minimize(loss, np.zeros(4), options={"gtol": 1e-8}).x
    assert sub.bradley_terry(wins)[1:] == pytest.approx(expected, abs=1e-5)


def test_bradley_terry_without_a_maximum_stays_finite():
    # 1 always beat 0: with the added tie 10.5 to 0.5; 2 and 3 met each other, but nobody linked with 0
    wins = np.zeros((4, 4))
    wins[1, 0], wins[2, 3] = 10, 1
    assert sub.bradley_terry(wins)[:2] == pytest.approx([0, np.log(10.5 / 0.5)])
    assert np.isnan(sub.bradley_terry(wins)[2:]).all()


def test_careful_people_and_known_figures(folder):
    for i in range(6):
        answer_all(folder, f"{i:032x}", careful)
    summary = sub.summarise_study(folder)
    assert (summary["votes"], summary["participants"], summary["excluded"]) == (6 * 18, 6, [])
    assert summary["resampled"] == "participants"
    rows = {row["method"]: row for row in summary["methods"]}
    assert list(rows) == list(METHODS)
    assert [rows[method]["ccr"] for method in METHODS] == [None, 1, 2, 3]
    assert [rows[method]["ccr_votes"] for method in METHODS] == [0, 18, 18, 18]
    assert rows["truth"]["ccr_interval"] == [3, 3]
    strengths = [rows[method]["bradley_terry"] for method in METHODS]
    assert strengths[0] == 0 and strengths == sorted(strengths) and strengths[1] > 1
    assert rows["student"]["preferred"] == pytest.approx(1 / (1 + np.exp(-strengths[1])))
    assert summary == json.loads(json.dumps(summary, allow_nan=False)) == sub.summarise_study(folder)
    text = sub.format_summary(summary)
    assert "108 votes of 6 participants count" in text and sub.TRAP_RULE in text
    assert "| truth | +3.00 (+3.00 to +3.00) | 18 |" in text and "over participants" in text


def test_intervals_hold_the_estimate_and_shrink(folder):
    def noisy(trial, methods):
        return (
            careful(trial, methods)
            if trial["trap"]
            else int(np.clip(careful(trial, methods) + rng.normal(0, 2), -3, 3))
        )

    rng, widths = np.random.default_rng(0), []
    for group in (range(5), range(5, 40)):
        for i in group:
            answer_all(folder, f"{i:032x}", noisy)
        row = {row["method"]: row for row in sub.summarise_study(folder)["methods"]}["student"]
        for key in ("ccr", "bradley_terry"):
            low, high = row[f"{key}_interval"]
            assert low < row[key] < high
            widths.append(high - low)
    assert widths[2] < widths[0] / 1.5 and widths[3] < widths[1] / 1.5


def test_traps_find_the_random_clicker(folder):
    rng = np.random.default_rng(0)
    answer_all(folder, ANN, careful)
    alone = sub.summarise_study(folder)["methods"]
    answer_all(folder, BOB, lambda trial, methods: int(rng.integers(-3, 4)))
    answer_all(folder, "c" * 32, lambda trial, methods: 0)
    study = sub.load_study(folder)
    sub.append_vote(folder, sub.check_vote(study, a_vote(sub.participant_trials(study, "d" * 32)[0], 3, "d" * 32)))
    summary = sub.summarise_study(folder)
    assert summary["participants"] == 1 and summary["methods"] == alone
    reasons = {entry["participant"]: entry["reason"] for entry in summary["excluded"]}
    assert re.fullmatch("failed [1-4] of 4 traps", reasons[BOB]) and reasons["c" * 32] == "failed 2 of 4 traps"
    assert reasons["d" * 32] == "answered too few traps"
    text = sub.format_summary(summary)
    assert "3 participants left out" in text and reasons[BOB] in text and "Fewer than 5 participants" in text

    traps = [trial for trial in study["trials"] if trial["trap"]]
    failures = [
        sum(sub._trap_failed(t["trap"], {"score": rng.integers(-3, 4), "shown": t["methods"]}) for t in traps)
        for _ in range(200)
    ]
    assert sum(5 * failed > len(traps) for failed in failures) >= 190  # 197 expected


def test_few_votes_have_a_clear_sentence(folder):
    summary = sub.summarise_study(folder)
    assert summary["votes"] == 0 and all(row["ccr"] is None for row in summary["methods"])
    assert all(row["bradley_terry"] is None for row in summary["methods"])
    assert "no votes to evaluate yet" in sub.format_summary(summary)
    answer_all(folder, BOB, lambda trial, methods: 3)
    assert "No participant counts" in sub.format_summary(sub.summarise_study(folder))
    study = sub.load_study(folder)
    traps = {trial["id"] for trial in study["trials"] if trial["trap"]}
    answer_all(folder, ANN, lambda trial, methods: careful(trial, methods) if trial["trap"] else 0)
    votes = [vote for vote in sub.read_votes(folder, study) if vote["participant"] == ANN]
    tie = next(vote for vote in votes if set(vote["shown"]) == {"input", "student"})
    lines = [json.dumps(vote) for vote in votes if vote["trial"] in traps or vote == tie]
    (folder / "votes.jsonl").write_text("\n".join(lines))  # without a line's end: also counts
    summary = sub.summarise_study(folder)
    rows = {row["method"]: row for row in summary["methods"]}
    assert summary["votes"] == 1 and summary["resampled"] == "votes"
    assert rows["student"]["ccr"] == 0 and rows["student"]["ccr_interval"] is None
    assert rows["student"]["bradley_terry"] == 0 and rows["truth"]["bradley_terry"] is None
    assert "1 vote of 1 participant count" in sub.format_summary(summary)
    json.dumps(summary, allow_nan=False)
