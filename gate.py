"""How much of a student's change a frame can use: estimated from the frame itself, so that good video stays as it is.

A student sees less than thirty pixels around each. Whether a soft patch there was enlarged or lies out of focus, and
whether grain is noise or skin, only the whole frame tells: its spectrum breaks off where it was enlarged, and what the
student adds is in phase with the picture where it sharpens and against it where it smooths. A `Gate` has judges of
these spectra, which train.py and export.py fit to pairs; the student's change is multiplied by what the most careful of
them says.
"""

import itertools

import cv2
import numpy as np

WINDOW = 64  # pixels whose spectrum is taken, along rows and along columns
MAX_WINDOWS = 512  # of either direction, about, spread over the frame
BANDS = 17  # up to half a cycle a pixel: the two lowest frequencies of a window, and the others in twos
FEATURES = 3 * BANDS
HISTORY, RESTS = 10, 7  # frames
NEGLIGIBLE = 0.01  # gain; changes of up to 50 codes then vanish in rounding
_HANN = np.hanning(WINDOW).astype(np.float32)


class Gate:
    """Says how much of a student's change brings a frame nearest to the truth.

    Args:
        judges: networks on `features`, of which the most careful decides. Each is a list of layers, weights ``(outputs,
            inputs + 1)`` with constants last. Between them are ReLUs, and behind the last, which has one output, a
            sigmoid; one layer alone is a logistic regression.

    Raises:
        ValueError: these are no such judges.
    """

    def __init__(self, judges):
        try:
            self.judges = [[np.asarray(weights, np.float64) for weights in layers] for layers in judges]
            known = bool(self.judges) and all(map(_fit_together, self.judges))
        except (TypeError, ValueError):
            known = False
        if not known:
            raise ValueError(f"a gate has judges, layers of finite weights from {FEATURES} inputs to one output")

    def gain(self, luma, change, history=None, **arguments):
        """What to multiply a change by, from 0 to 1.

        Args:
            luma, change, arguments: see `features`.
            history: the `History` of the video that the frame comes next in; None for a picture.
        """
        found = features(luma, change, **arguments)
        return history.follow(found, self._answer) if history else self._answer(found)

    def _answer(self, found):
        return min(_judge(layers, found) for layers in self.judges)


def _fit_together(layers):
    sizes = [FEATURES, *(len(weights) for weights in layers)]
    shapes = [(outputs, inputs + 1) for inputs, outputs in itertools.pairwise(sizes)]
    fitting = bool(layers) and sizes[-1] == 1 and shapes == [weights.shape for weights in layers]
    return fitting and all(np.isfinite(weights).all() for weights in layers)


def _judge(layers, found):
    *hidden, last = layers
    for weights in hidden:
        found = np.maximum(weights[:, :-1] @ found + weights[:, -1], 0)
    (answer,) = last[:, :-1] @ found + last[:, -1]
    return 1 / (1 + float(np.exp(-np.clip(answer, -50, 50))))


def share_of(gain, strength):
    """The share to keep of the student's change, itself scaled by 1 or more, where `strength` is wanted.

    More than 1 asks for a crisper picture than the most faithful one: then the gate gives way, from 2 on wholly.
    """
    if strength <= 1:
        return gain * strength
    return gain + (1 - gain) * min(strength - 1, 1)


def mix(before, after, share):
    """Planes ``(y, uv)`` between two: the first and `share` of the difference to the second; new ones."""
    mixed = []
    for old, new in zip(before, after, strict=True):
        flat = [plane.reshape(-1, plane.shape[-1]) for plane in (old, new)]
        mixed.append(cv2.addWeighted(flat[0], 1 - share, flat[1], share, 0).reshape(new.shape))
    return tuple(mixed)


class History:
    """What is known of a video from its last frames, so that its gain is steady and a good video costs little.

    Codecs code some frames better than others, and a gain from each alone would flicker with them: it is computed from
    the mean of `features` over some `HISTORY` frames. Where as many had nothing to gain, `RESTS` frames may pass as
    they are until the next is looked at. The first that has something to gain begins a new history.

    Attributes:
        gain: of the last frame that was looked at; None before the first.
        untouched: how many frames passed as they were so far.
    """

    def __init__(self):
        self._mean, self._count = np.zeros(FEATURES), 0
        self._quiet, self._rested = 0, 0
        self.gain, self.untouched = None, 0

    def follow(self, found, answer):
        """The gain of the next frame, from its `features` and the function that makes a gain of them."""
        alone = answer(found)
        if self._quiet >= HISTORY and alone >= NEGLIGIBLE:
            self._count = 0
        self._count = min(self._count + 1, HISTORY)
        self._mean += (found - self._mean) / self._count
        self.gain = answer(self._mean)
        self._quiet = self._quiet + 1 if max(alone, self.gain) < NEGLIGIBLE else 0
        self._rested = 0
        return self.gain

    def rests(self, strength):
        """Whether the next frame may pass as it is, where it is to be sharpened so much; it then counts as passed."""
        if strength > 1 or self._quiet < HISTORY or self._rested == RESTS:
            return False
        self._rested += 1
        self.untouched += 1
        return True


def features(luma, change, zero=0, scale=1.0, strength=1.0):
    """What tells how much of a change a frame can use.

    Args:
        luma: ``(H, W)`` of any type.
        change: likewise; what the student adds to `luma`, and `zero`.
        zero: a plane or a number.
        scale: full-range codes, 0 to 255, for a step of 1 in `luma` and `change`.
        strength: with which the change was made.

    Returns:
        ``(FEATURES,)``, for each band: the logarithms of the power of picture and of change, and how far they are in
        phase, from -1 to 1; means of both directions.
    """
    found = []
    for windows in (_rows, _columns):
        picture = windows(luma)
        added = windows(change) - (windows(zero) if isinstance(zero, np.ndarray) else np.float32(zero))
        picture = _spectra((picture - picture.mean(axis=1, keepdims=True)) * np.float32(scale))
        added = _spectra(added * np.float32(scale / strength))
        of_picture, of_change, common = (
            _bands(np.einsum("ij,ij->j", a, b) / len(a))
            for a, b in ((picture, picture), (added, added), (picture, added))
        )
        phase = common / np.sqrt(of_picture * of_change + 1e-3)
        found.append(np.concatenate([np.log(of_picture + 1), np.log(of_change + 0.1), phase]))
    return np.mean(found, axis=0)


def _rows(plane):
    """Some `MAX_WINDOWS` stretches of `WINDOW` pixels along rows, as float32 `(windows, WINDOW)`."""
    plane = _at_least(plane, WINDOW)
    count = plane.shape[1] // WINDOW
    step = -(-plane.shape[0] * count // MAX_WINDOWS)
    return plane[step // 2 :: step, : count * WINDOW].reshape(-1, WINDOW).astype(np.float32)


def _columns(plane):
    """Some `MAX_WINDOWS` stretches of `WINDOW` pixels along columns, eight beside each other, likewise."""
    plane = _at_least(plane, WINDOW)
    count, groups = plane.shape[0] // WINDOW, plane.shape[1] // 8
    step = -(-groups * 8 * count // MAX_WINDOWS)
    chosen = plane[: count * WINDOW, : 8 * groups].reshape(count, WINDOW, groups, 8)[:, :, step // 2 :: step]
    return chosen.astype(np.float32).transpose(0, 2, 3, 1).reshape(-1, WINDOW)


def _at_least(plane, side):
    """A plane mirrored until both its sides have so many pixels."""
    if min(plane.shape) >= side:
        return plane
    bottom, right = (max(0, side - length) for length in plane.shape)
    return cv2.copyMakeBorder(plane, 0, bottom, 0, right, cv2.BORDER_REFLECT)


def _spectra(windows):
    """Spectra of windows weighed as by Hann, `(windows, WINDOW)` as `cv2.dft` packs them: constant, (real, imaginary)
    of each frequency, and the highest, which is real.

    As a product of matrices it would be as fast, but that keeps a thread busy beside OpenVINO's.
    """
    return cv2.dft(windows * _HANN, flags=cv2.DFT_ROWS)


def _bands(products):
    """Means over the bands of products of spectra, the constant left out; of packed ones, see `_spectra`."""
    power = np.append(products[1:-1].reshape(-1, 2).sum(axis=1), products[-1])
    return np.concatenate([power[:2], power[2:].reshape(-1, 2).mean(axis=1)])
