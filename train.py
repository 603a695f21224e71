"""Distil a student.

    python train.py                                        # a usable student in minutes; no data needed
    python train.py configs/wide.yaml data_root=FOLDER     # the wide student, which the released one learns from
    python train.py configs/release.yaml data_root=FOLDER  # the released student
    python train.py epochs=4 name=try                      # any key of config.Config
    python train.py epochs=4 name=try --resume             # go on where a run was stopped

A run writes to checkpoints/<name>/: student.pth (averaged weights, which inference.py loads), last.pth (for --resume),
log.csv and validation.png (input, student and truth). It never touches the released checkpoint.
"""

import csv
import dataclasses
import logging
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

import dataset
import models
from config import MACHINE_KEYS, ConfigError, load_config
from degradation import DataError, pack_planes, resize, unpack_planes
from models import CHECKPOINT_DIR, INPUT_GAIN, CheckpointError, Student, gaussian_blur, load_student, load_teacher
from runtime import DeviceError
from torch_engine import TorchEngine, pick_device
from utils import atomic_path, bgr_to_planes, luma_metrics, planes_to_bgr, write_bytes

VERSION = "0.2.0.dev0"  # of this program, for `meta`
BRANCH_WIDTH = 128  # of `models.add_branches`
CLIP_NORM = 1.0  # largest norm of the gradient
EMA_DECAY = 0.999  # of the moving average of the weights, which becomes the student
TYPICAL_DAMAGE, MINIMAL_DAMAGE = 0.02, 0.01  # mean absolute error of an input's luma, in [0, 1]
MINIMAL_DETAIL = 0.02  # standard deviation of high-pass luma, in [0, 1]
ANSWER_SCALES = INPUT_GAIN, INPUT_GAIN, 0.2  # make the errors of luma, chroma and gain comparable
ANSWER_BETA = 0.1  # scaled error from which the loss is linear
# Deviation of detail at which texture begins and counts fully: in the restored picture, where gain is added, and in the
# input, whose finest detail is kept. Beyond OUTLINE, gain is reduced.
TEXTURE, FINE_TEXTURE, OUTLINE = (1 / 255, 3 / 255), (0.8 / 255, 2 / 255), 7 / 255
TEXTURE_SIGMA, FINE_SIGMA = 1.5, 0.8  # of the Gaussian blurs that remove detail and the finest detail
INVISIBLE = 45.0  # dB of PSNR, beyond which no difference is visible
QUALITY = ("psnr_input", "ssim_input", "psnr", "ssim")  # what `validate` measures


class TrainingError(RuntimeError):
    """The training cannot go on. The message says why and what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# The loop


def train(config, resume=False):
    """Distil a student as `config` says, and return the path of its checkpoint.

    Raises:
        TrainingError, DataError, CheckpointError, DeviceError: see their messages.
        OSError: a file cannot be written; files written before are complete.
    """
    for path in filter(None, (config.initial, config.larger)):
        load_student(path)  # so that a bad one is refused before an hour of preparation
    models.check_size({name: getattr(config, name) for name in models.STUDENT_SIZES})
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    folder = CHECKPOINT_DIR / config.name
    state = load_state(folder / "last.pth", config) if resume else None
    if not resume and (folder / "last.pth").exists():
        raise TrainingError(f"{folder} holds a run already: go on with --resume, or choose another name=...")

    pairs, validation_pairs, teacher_name = prepare_data(config, device)
    if state and state["teacher"] != teacher_name:
        raise TrainingError(f"cannot resume with another teacher: {state['teacher']} before, now {teacher_name}")
    crops = dataset.PairDataset(pairs, config)

    student, larger, origin = make_networks(config, crops)
    student = student.to(device, memory_format=torch.channels_last)
    larger = larger and larger.to(device)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate)
    log = []  # a row for each epoch
    if state:
        student.load_state_dict(state["student"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        log = state["log"]
    seconds = log[-1]["seconds"] if log else 0.0

    for epoch in range(len(log), config.epochs):
        started = time.perf_counter()
        keys = epoch_keys(config, epoch, pairs)
        loader = DataLoader(crops, config.batch_size, sampler=keys, num_workers=config.loader_workers)
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{config.epochs}", leave=False)
        totals = defaultdict(float)
        for step, batch in enumerate(bar, epoch * config.steps_per_epoch):
            batch = to_device(batch, device)
            with autocast(config, device):
                output = student.predict(*batch["input"]) if larger else student(*batch["input"])
            if larger:
                terms = answer_loss(output, answers(larger, batch))
            else:
                terms = distillation_loss(output, batch, config, step)
            optimizer.zero_grad()
            terms["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"the loss is not finite at step {step}: start again under another name with a lower learning_rate "
                    f"(now {config.learning_rate}) or precision=fp32"
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            optimizer.step()
            average.update_parameters(student)
            for name, term in terms.items():
                totals[name] += term.detach() / config.steps_per_epoch
            bar.set_postfix(loss=f"{terms['loss'].item():.4f}", refresh=False)

        candidate = models.collapse(average.module)
        engine = TorchEngine(candidate, device)
        score, rows = validate(engine, validation_pairs)
        seconds += time.perf_counter() - started
        losses = {name: total.item() for name, total in totals.items()}
        figures = {f"{row['condition']} {name}": row[name] for row in rows for name in QUALITY}
        log.append({"epoch": epoch + 1, "seconds": round(seconds, 1), **losses, "score": score, **figures})
        write_log(folder / "log.csv", log, rows)
        write_pictures(folder / "validation.png", engine, validation_pairs[:4])
        meta = {
            "version": VERSION,
            "teacher": teacher_name,
            "pairs": len(pairs),
            "epoch": epoch + 1,
            "training_seconds": round(seconds),
            "torch": str(torch.__version__),
            "config": result_config(config),
            "metrics": {"score": score, "validation": rows},
            "initial": origin,
        }
        models.save_student(folder / "student.pth", candidate, meta)
        state = {  # all that --resume needs: batches follow from seed and epoch
            "config": result_config(config),
            "teacher": teacher_name,
            "student": student.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "log": log,
        }
        models.write_weights(folder / "last.pth", state)
    return folder / "student.pth"


def autocast(config, device):
    """Context of the forward pass: in bfloat16 if `config.precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def learning_rate(config, step):
    """Return the learning rate at `step`: linear warm-up, then a cosine to zero."""
    total = config.epochs * config.steps_per_epoch
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def to_device(batch, device):
    """Move a collated item of `PairDataset` to `device`."""
    moved = {name: batch[name].to(device) for name in ("target", "taught", "answer")}
    return moved | {name: [plane.to(device) for plane in batch[name]] for name in ("input", "goal")}


def validate(engine, pairs):
    """Measure an engine on prepared pairs, against their truths.

    Args:
        engine: function ``(y, uv, full_range) -> (y, uv)`` on uint8 planes.
        pairs: list of `dataset.Pair`.

    Returns:
        ``(score, rows)``: mean PSNR of the output in dB; and for each kind of damage a dict of ``condition``, ``pairs``
        (their number) and the means of `QUALITY` on luma. PSNR is limited to `INVISIBLE`, to be finite.
    """
    found = defaultdict(list)
    for pair in pairs:
        y, uv = unpack_planes(pair.input)
        truth = unpack_planes(pair.goal)[0]
        kind = pair.description["kind"] + (", soft" if pair.description["soft"] else "")
        found[kind].append(luma_metrics(y, truth) + luma_metrics(engine(y, uv, True)[0], truth))
    rows = []
    for kind, values in found.items():
        means = np.minimum(values, [INVISIBLE, 1, INVISIBLE, 1]).mean(axis=0).tolist()
        rows.append({"condition": kind, "pairs": len(values)})
        rows[-1] |= zip(QUALITY, means, strict=True)
    return sum(row["pairs"] * row["psnr"] for row in rows) / len(pairs), rows


# ----------------------------------------------------------------------------------------------------------------------
# Data


def prepare_data(config, device, progress=True):
    """Prepare or find all data: returns ``(training pairs, validation pairs, name of the teacher)``."""
    pairs = dataset.open_pairs(dataset.prepare_pairs(config, "training", progress))
    validation_pairs = dataset.open_pairs(dataset.prepare_pairs(config, "validation", progress))
    names = []
    if config.real_pairs and (config.larger or config.teacher != "none"):
        folder = dataset.prepare_pairs(config, "real", progress)
        real = dataset.open_pairs(folder)
        if not config.larger:  # whose answers replace the teacher's
            real, name = teach_pairs(config, real, folder, device, progress)
            names.append(name)
        pairs += real
    if config.bsrgan_pairs:
        pairs += dataset.read_teacher_pairs(Path(config.data_root) / config.bsrgan_pairs, dataset.REAL_REGION)
        names.append("bsrgan (stored outputs)")
    return pairs, validation_pairs, " + ".join(names) or "none"


def teach_pairs(config, pairs, folder, device, progress=True):
    """Make the teacher's outputs, cached in `folder`, the goals of pairs: returns ``(new pairs, its name)``."""
    teacher, name = load_teacher(config.teacher)
    teacher = teacher.to(device, memory_format=torch.channels_last)
    taught = []
    for index, pair in enumerate(tqdm(pairs, desc=f"teacher ({name})", disable=not progress)):
        path = folder / f"teacher-{name}" / f"{index:06d}.npy"
        if not path.exists():
            with autocast(config, device):
                dataset.save_array(path, teach(teacher, pair.input, device))
        taught.append(dataclasses.replace(pair, goal=np.load(path, mmap_mode="r")))
    return taught, name


@torch.inference_mode()
def teach(teacher, packed, device):
    """Sharpen a full-range I420 picture `(3*H/2, W)`: enlarge it with a x4 teacher, shrink it with an area kernel."""
    frame = planes_to_bgr(*unpack_planes(packed))
    rgb = torch.from_numpy(np.ascontiguousarray(frame[:, :, ::-1])).to(device).permute(2, 0, 1)[None] / 255
    large = teacher(rgb.contiguous(memory_format=torch.channels_last))[0].float().clamp(0, 1)  # (3, 4H, 4W)
    large = (large * 255).round().byte().permute(1, 2, 0).cpu().numpy()[:, :, ::-1]
    return pack_planes(*bgr_to_planes(resize(np.ascontiguousarray(large), frame.shape[1::-1], "area")))


def epoch_keys(config, epoch, pairs):
    """Draw an epoch's keys of `PairDataset`, decided by seed and epoch; `teacher_share` of them are taught pairs."""
    rng = np.random.default_rng((config.seed, epoch))
    count = config.steps_per_epoch * config.batch_size
    taught = np.array([pair.taught for pair in pairs])
    drawn = rng.choice(np.flatnonzero(~taught), count)
    if taught.any():
        drawn = np.where(rng.random(count) < config.teacher_share, rng.choice(np.flatnonzero(taught), count), drawn)
    # With the position, two crops of one pair in one epoch differ.
    return [(config.seed, epoch, position, int(index)) for position, index in enumerate(drawn)]


# ----------------------------------------------------------------------------------------------------------------------
# Network


def make_networks(config, crops):
    """Make the student to train, with branches: new, from `config.initial`, or from `config.larger` by `narrow`.

    Returns:
        ``(student, larger student or None, meta of the initial one or None)``.
    """
    student, larger, origin = Student(config.channels, config.blocks, config.wide), None, None
    if config.initial:
        initial, origin = load_student(config.initial)
        if initial.args != student.args:
            raise TrainingError(f"{config.initial} holds a network of {initial.args}, not {student.args}: change one")
        student = initial.train()
    if config.larger:
        larger, _ = load_student(config.larger)
        if not config.initial:
            narrow(larger, student, crops)
    return models.add_branches(student, BRANCH_WIDTH), larger, origin


@torch.no_grad()
def narrow(larger, student, crops):
    """Initialise a student in place from one that is only wider within its blocks, by its activations on some crops.

    Raises:
        TrainingError: the other one is not wider, or differs in more than that.
    """
    if larger.args != student.args | {"wide": max(larger.args["wide"], student.args["wide"])}:
        raise TrainingError(f"larger: a network of {larger.args} is no wider one than {student.args}: change either")
    chosen = np.random.default_rng(0).choice(len(crops.pairs), 64)
    inputs = [crops[0, position, index]["input"] for position, index in enumerate(chosen.tolist())]
    hidden = []
    hooks = [block.conv2.register_forward_pre_hook(lambda _, x: hidden.append(x[0])) for block in larger.body]
    larger.predict(*(torch.stack(planes) for planes in zip(*inputs, strict=True)))
    for hook in hooks:
        hook.remove()
    student.head.load_state_dict(larger.head.state_dict())
    student.tail.load_state_dict(larger.tail.state_dict())
    for wide, block, seen in zip(larger.body, student.body, hidden, strict=True):
        seen, weight = seen.transpose(0, 1).flatten(1).double(), wide.conv2.weight[..., 0, 0].double()
        kept, fitted = choose_channels(torch.cov(seen), weight, block.conv1.out_channels)
        block.conv1.weight.copy_(wide.conv1.weight[kept])
        block.conv1.bias.copy_(wide.conv1.bias[kept])
        block.conv2.weight.copy_(fitted[..., None, None])
        block.conv2.bias.copy_(wide.conv2.bias + weight @ seen.mean(dim=1) - fitted @ seen[kept].mean(dim=1))


def choose_channels(covariance, weight, count):
    """Choose channels greedily, so that weighted sums of all channels are best reconstructed from them.

    Args:
        covariance: of the channels, `(C, C)`.
        weight: of the sums, `(O, C)`.
        count: number of channels to choose.

    Returns:
        ``(kept, fitted)``: their indices, and their weights `(O, count)`, by least squares.
    """

    def fit(kept):
        fitted = torch.linalg.lstsq(covariance[kept][:, kept], covariance[kept] @ weight.T).solution.T
        missed = weight.index_add(1, torch.tensor(kept), fitted, alpha=-1)
        return fitted, torch.einsum("oi,ij,oj->", missed, covariance, missed).item()

    kept = []
    for _ in range(count):
        rest = set(range(len(covariance))) - set(kept)
        kept.append(min(rest, key=lambda channel: fit([*kept, channel])[1]))
    return kept, fit(kept)[0]


# ----------------------------------------------------------------------------------------------------------------------
# Loss where a truth or a teacher is known


def distillation_loss(output, batch, config, step):
    """Compute the loss of a student that learns truths and the high frequencies of a teacher, means over the batch.

    For a known truth, made `dataset.crisp`: L1 (as `charbonnier`; chroma counts half), 1 - SSIM and `edge_deficit`. For
    real video: L1 and channel-wise KL divergence of high-pass luma to the teacher's, made crisp too, and
    `edge_deficit`. Errors to a truth are divided by the input's own error (plus `MINIMAL_DAMAGE`): otherwise the small
    errors added to good video vanish among the large ones removed from bad video.

    Args:
        output: the student's planes `(y (N, 1, S, S), uv (N, 2, S/2, S/2))`.
        batch: collated items of `PairDataset`.
        step: of the training, for `charbonnier_epsilon`.

    Returns:
        Dict of scalar tensors: the weighted ``loss`` and its unweighted terms.
    """
    (y, uv), (y_goal, uv_goal) = (plane.float() for plane in output), batch["goal"]
    target, taught = batch["target"], batch["taught"]
    damage = (batch["input"][0] - y_goal).abs().mean(dim=(1, 2, 3))
    weight = (1 - taught) * TYPICAL_DAMAGE / (damage + MINIMAL_DAMAGE)
    epsilon = charbonnier_epsilon(config, step)
    l1_per_pair = charbonnier(y, target, epsilon) + 0.5 * charbonnier(uv, uv_goal, epsilon)
    terms = {"l1": (weight * l1_per_pair).mean(), "ssim": (weight * (1 - ssim(y, target))).mean()}
    terms["edges"] = ((weight + taught) * edge_deficit(y, target)).mean()
    details = high_pass(y), high_pass(target)
    terms["teacher_l1"] = (taught * (details[0] - details[1]).abs().mean(dim=(1, 2, 3))).mean()
    terms["teacher_kl"] = (taught * channel_distillation(*details, config.temperature)).mean()
    terms["loss"] = sum(getattr(config, name) * term for name, term in terms.items())
    return terms


def charbonnier(x, y, epsilon):
    """Return L1 distance `(N,)` of planes `(N, C, H, W)`, smooth below `epsilon` (LapSRN, Lai et al., CVPR 2017)."""
    return (((x - y).square() + epsilon**2).sqrt() - epsilon).mean(dim=(1, 2, 3))


def charbonnier_epsilon(config, step):
    """Return the epsilon of `charbonnier` at `step`: from 0.01 to 0.001 over the first third of the training.

    An untrained student, the identity, sits in the kink of plain L1 for clean inputs, and its ReLUs die there. But a
    large epsilon hardly punishes small errors added to good video, so trained students begin with 0.001.
    """
    progress = 1.0 if config.initial else min(1.0, 3 * step / (config.epochs * config.steps_per_epoch))
    return 0.01 ** (1 - progress) * 0.001**progress


def ssim(x, y):
    """Compute the structural similarity `(N,)` of tensors `(N, C, H, W)` in [0, 1], H and W at least 11.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004:
    11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, averaged over the positions where the window fits.
    Equals ``skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False)`` in float64.
    """
    maps = torch.stack([x, y, x * x + y * y, x * y])
    mean_x, mean_y, squares, xy = gaussian_blur(maps, sigma=1.5, radius=5)

    c1, c2 = 0.01**2, 0.03**2
    covariance = xy - mean_x * mean_y
    variances = squares - mean_x**2 - mean_y**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def edge_deficit(y, target):
    """Return how much flatter or steeper the edges of luma `(N, 1, H, W)` are than the target's, `(N,)`.

    Only the gradient along the target's counts. Its length would reward any pattern along an edge: thin soft lines
    became rows of dots.
    """
    slope = gradient(target)
    length = (slope.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()
    missing = length - (gradient(y) * slope).sum(dim=1, keepdim=True) / length
    return gaussian_blur(missing, 1.5, 4).abs().mean(dim=(1, 2, 3))


def gradient(y):
    """Return the gradient of slightly blurred luma `(N, 1, H, W)`, across and down: `(N, 2, H - 5, W - 5)`."""
    y = gaussian_blur(y, 0.7, 2)
    return torch.cat([y[..., :-1, 1:] - y[..., :-1, :-1], y[..., 1:, :-1] - y[..., :-1, :-1]], dim=1)


def high_pass(y, sigma=2.0, radius=6):
    """Return luma `(..., H, W)` less its Gaussian blur, `radius` smaller on each side."""
    return y[..., radius:-radius, radius:-radius] - gaussian_blur(y, sigma, radius)


def detail(y, sigma):
    """Return luma `(N, 1, H, W)` less its Gaussian blur within 3 pixels, at the same size."""
    return high_pass(F.pad(y, [3] * 4, mode="reflect"), sigma, 3)


def channel_distillation(student, teacher, temperature):
    """Distil maps `(N, C, H, W)` channel by channel (Shu et al., ICCV 2021, arXiv 2011.13256): a loss `(N,)`.

    A softmax at `temperature` makes each channel a distribution over its positions; the loss is temperature^2 times the
    KL divergence from the student's to the teacher's, averaged over channels, zero if maps differ by a constant. Both
    are divided by the teacher's standard deviation (at least `MINIMAL_DETAIL`), as the softmax of small values is flat.
    """
    scale = teacher.flatten(2).std(dim=2, keepdim=True).clamp_min(MINIMAL_DETAIL) * temperature
    log_student = F.log_softmax(student.flatten(2) / scale, dim=2)
    log_teacher = F.log_softmax(teacher.flatten(2) / scale, dim=2)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=2)
    return temperature**2 * divergence.mean(dim=1)


# ----------------------------------------------------------------------------------------------------------------------
# Loss of a student that learns a larger one's answers


def answer_loss(predicted, expected):
    """Compute the loss of a student that learns the output of a larger one.

    A narrow student that learns from truths alone hedges and falls back to the identity, as detail that cannot be known
    is safest left out. The larger student's answers follow from the input.

    Args:
        predicted: `models.Student.predict` of the batch's input.
        expected: the batch's `answers`.

    Returns:
        Dict of scalar tensors: ``loss`` and its terms ``luma``, ``chroma`` and ``gain``.
    """
    errors = [
        F.smooth_l1_loss(scale * found.float(), scale * goal, beta=ANSWER_BETA)
        for scale, found, goal in zip(ANSWER_SCALES, predicted, expected, strict=True)
    ]
    terms = dict(zip(("luma", "chroma", "gain"), errors, strict=True))
    terms["loss"] = terms["luma"] + 0.5 * terms["chroma"] + terms["gain"]
    return terms


@torch.no_grad()
def answers(larger, batch):
    """Return what a student is to predict for a batch of `PairDataset`: residuals of luma and chroma, and the gain.

    These are the `larger` student's, scaled by `dataset.ANSWERS`, but for two changes. Its residual removes the finest
    detail of skin, hair and cloth, which then look painted: that detail is kept, and texture gets more gain. Strong
    outlines, which look cut out, get less gain.
    """
    residual, gain_share, more, natural, truth = batch["answer"][..., None, None, None].unbind(dim=1)  # (N, 1, 1, 1)
    dy, duv, gain = larger.predict(*batch["input"])
    y, _ = batch["input"]
    fine = F.interpolate(natural * texture(deviation(y), *FINE_TEXTURE), scale_factor=2, mode="bilinear")
    dy, duv = residual * (dy - fine * detail(dy, FINE_SIGMA)), residual * duv
    restored = deviation(y + dy)
    gain = torch.where(gain > 0, gain_share, residual) * gain + more * texture(restored, *TEXTURE)
    gain = torch.lerp(gain, gain * (OUTLINE / restored).clamp(max=1), natural)
    missing = (goal - came for goal, came in zip(batch["goal"], batch["input"], strict=True))
    residuals = (torch.lerp(change, gone, truth) for change, gone in zip((dy, duv), missing, strict=True))
    return *residuals, (1 - truth) * gain


def deviation(y):
    """Return the deviation of detail in luma `(N, 1, H, W)` within a Gaussian of sigma 2.5, `(N, 1, H/2, W/2)`."""
    squares = F.pad(detail(y, TEXTURE_SIGMA).square(), [6] * 4, mode="reflect")
    return F.avg_pool2d(gaussian_blur(squares, sigma=2.5, radius=6), 2).sqrt() + 1e-6


def texture(found, least, full):
    """Return the share of texture, from 0 at a `deviation` of `least` to 1 at `full`."""
    return ((found - least) / (full - least)).clamp(0, 1)


# ----------------------------------------------------------------------------------------------------------------------
# State and log


def result_config(config):
    """Return the part of a configuration that decides the result, as plain data."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in MACHINE_KEYS}


def load_state(path, config):
    """Read the state of a run; raise `TrainingError` if there is none, or if it has another `config`."""
    if not path.is_file():
        raise TrainingError(f"nothing to resume: no {path}")
    state, wanted = models.read_weights(path), result_config(config)
    saved = state["config"]
    different = [key for key in saved | wanted if saved.get(key) != wanted.get(key)]
    if different:
        changes = "; ".join(f"{key}: {saved.get(key)!r} -> {wanted.get(key)!r}" for key in different)
        raise TrainingError(f"cannot resume {path} with another configuration ({changes})")
    return state


def write_log(path, log, rows):
    """Write `log`, a dict for each epoch, as a table, and print the last epoch with the `rows` of `validate`."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(log[-1]))
        table.writeheader()
        table.writerows(log)
    gains = [f"{row['condition']} {row['psnr']:.2f} dB, SSIM {row['ssim'] - row['ssim_input']:+.4f}" for row in rows]
    tqdm.write("epoch {epoch}: loss {loss:.4f}, validation {score:.3f} dB: ".format(**log[-1]) + "; ".join(gains))


def write_pictures(path, engine, pairs):
    """Write a picture with a row for each pair: input, student, truth."""
    rows = []
    for pair in pairs:
        before = unpack_planes(pair.input)
        shown = before, engine(*before, full_range=True), unpack_planes(pair.goal)
        rows.append(np.hstack([planes_to_bgr(*planes) for planes in shown]))
    write_bytes(path, cv2.imencode(".png", np.vstack(rows))[1].tobytes())


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    logging.basicConfig(format="%(message)s")
    try:
        config = load_config([argument for argument in argv if argument != "--resume"])
        path = train(config, resume="--resume" in argv)
    except (ConfigError, TrainingError, DataError, CheckpointError, DeviceError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: stopped; the same command goes on, with --resume after the first epoch", file=sys.stderr)
        return 130
    print(f"student: {path}\ntry it: python inference.py VIDEO --checkpoint {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
