"""How much of a student's change a frame can use: estimated from the frame itself, so that good video stays as it is.

A student sees some fifty pixels around each. Whether a soft patch was enlarged or lies out of focus, and whether grain
is noise or skin, only the whole frame tells: its spectrum breaks off where it was enlarged, and what the student adds
is in phase with the picture where it sharpens and against it where it smooths. A `Gate` is a regression on these
spectra; the student's change is multiplied by its answer, from 0 to `MAX_GAIN`.
"""

import functools

import cv2
import numpy as np

WINDOW = 64  # pixels whose spectrum is taken, along rows and along columns
MAX_WINDOWS = 512  # of either direction, spread over the frame
BANDS = 17  # up to half a cycle a pixel: the two lowest frequencies of a window, and the others in twos
FEATURES = 3 * BANDS
MAX_GAIN = 1.25


class Gate:
    """Says how much of a student's change brings a frame nearest to the truth.

    Args:
        weights: ``(FEATURES + 1,)``, of a logistic regression on `features`, the constant last.

    Raises:
        ValueError: these are no such weights.
    """

    def __init__(self, weights):
        self.weights = np.asarray(weights, np.float64)
        if self.weights.shape != (FEATURES + 1,) or not np.isfinite(self.weights).all():
            raise ValueError(f"a gate has {FEATURES + 1} finite weights")

    def gain(self, before, after, scale=1.0):
        """What to multiply a change by, from 0 to `MAX_GAIN`: see `features`, which takes the same arguments."""
        answer = features(before, after, scale) @ self.weights[:-1] + self.weights[-1]
        return MAX_GAIN / (1 + float(np.exp(-np.clip(answer, -50, 50))))


def features(before, after, scale=1.0):
    """What tells how much of a change a frame can use.

    Args:
        before, after: luma ``(H, W)`` in codes, and the same sharpened at strength 1, of any type.
        scale: full-range codes for one of theirs: 255/219 for limited range.

    Returns:
        ``(FEATURES,)``, for each band: the logarithms of the power of picture and of change, and how far they are in
        phase, from -1 to 1; means of both directions.
    """
    found = []
    for turned in (False, True):
        picture, change = _spectra(before, after, scale, turned)
        of_picture, of_change, common = (
            _bands(np.einsum("wcf,wcf->f", a, b) / len(a))
            for a, b in ((picture, picture), (change, change), (picture, change))
        )
        phase = common / np.sqrt(of_picture * of_change + 1e-3)
        found.append(np.concatenate([np.log(of_picture + 1), np.log(of_change + 0.1), phase]))
    return np.mean(found, axis=0)


def _spectra(before, after, scale, turned):
    """Spectra of picture and change: ``(windows, 2, WINDOW / 2 + 1)``, cosines and sines."""
    picture = _windows(before, turned)
    change = _windows(after, turned) - picture
    picture -= picture.mean(axis=1, keepdims=True)
    return [(scale * windows @ _waves()).reshape(len(windows), 2, -1) for windows in (picture, change)]


def _windows(plane, turned):
    """Up to `MAX_WINDOWS` stretches of `WINDOW` pixels along rows, or along columns where `turned`, as float32."""
    if short := max(0, WINDOW - min(plane.shape)):
        plane = cv2.copyMakeBorder(plane, 0, short, 0, short, cv2.BORDER_REFLECT)
    plane = plane.T if turned else plane
    count = plane.shape[1] // WINDOW
    step = -(-plane.shape[0] * count // MAX_WINDOWS)
    return plane[step // 2 :: step, : count * WINDOW].reshape(-1, WINDOW).astype(np.float32)


@functools.cache
def _waves():
    """The discrete Fourier transform of windows, weighed as by Hann: ``(WINDOW, 2 * (WINDOW / 2 + 1))``."""
    waves = np.hanning(WINDOW)[:, None] * np.fft.rfft(np.eye(WINDOW))
    return np.concatenate([waves.real, waves.imag], axis=1).astype(np.float32)


def _bands(power):
    """Powers at the frequencies of a window, the constant left out, as means of the bands."""
    return np.concatenate([power[1:3], power[3:].reshape(-1, 2).mean(axis=1)])
