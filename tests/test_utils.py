import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import train
import utils


def noisy_pair(rng, shape=(61, 83), sigma=12):
    truth = skimage.data.camera()[: shape[0], 200 : 200 + shape[1]]
    return truth, np.clip(truth + rng.normal(0, sigma, shape), 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_ssim_agrees_with_scikit_image(rng, dtype):
    truth, image = noisy_pair(rng)
    expected = structural_similarity(
        truth, image, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    x, y = (torch.from_numpy(i.astype(np.float64)).to(dtype)[None, None] / 255 for i in (image, truth))
    assert train.ssim(x, y).item() == pytest.approx(expected, abs=1e-4)
    assert train.ssim(x.repeat(3, 1, 1, 1), y.repeat(3, 1, 1, 1)).shape == (3,)


def test_luma_metrics(rng):
    truth, image = noisy_pair(rng)
    psnr, ssim = utils.luma_metrics(image, truth)
    assert psnr == pytest.approx(peak_signal_noise_ratio(truth, image), abs=1e-9)
    expected = structural_similarity(
        truth, image, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim == pytest.approx(expected, abs=1e-9) and 0.3 < ssim < 0.9
    with pytest.raises(ValueError, match="one size, at least 11x11"):
        utils.luma_metrics(image[:10], truth[:10])
    assert utils.luma_metrics(truth, truth) == (np.inf, 1.0)


@given(height=st.integers(2, 40), width=st.integers(2, 40), colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_flat_colours_survive_the_colour_round_trip(height, width, colour):
    frame = np.full((height, width, 3), colour, np.uint8)
    y, uv = utils.bgr_to_planes(frame)
    assert y.shape == (height, width) and uv.shape == (2, (height + 1) // 2, (width + 1) // 2)
    assert np.abs(utils.planes_to_bgr(y, uv).astype(int) - frame).max() <= 2
    grey = np.full((height, width, 3), colour[0], np.uint8)
    assert (utils.planes_to_bgr(*utils.bgr_to_planes(grey)) == grey).all()


def test_range_conversion(rng):
    limited_y = np.arange(16, 236, dtype=np.uint8)[None]
    limited_uv = np.arange(16, 241, dtype=np.uint8)[None]
    full_y, full_uv = utils.to_full_range(limited_y, limited_uv)
    assert (full_y.min(), full_y.max()) == (0, 255) and full_uv[0, 112] == 128
    back_y, back_uv = utils.to_limited_range(full_y, full_uv)
    assert (back_y == limited_y).all() and (back_uv == limited_uv).all()


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), utils.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with utils.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
