"""Distil a student.

    python train.py                                        # a usable student in minutes; no data needed
    python train.py configs/pretrain.yaml data_root=FOLDER # the released student, the first of its five stages
    python train.py epochs=4 name=try                      # any key of config.Config
    python train.py epochs=4 name=try --resume             # go on where a run was stopped
    torchrun --nproc_per_node 2 train.py ...               # several devices

A run writes under checkpoints/<name>/: student.pth (the best by validation, at the end with its gate; what inference.py
loads), last.pth (for --resume), log.csv and TensorBoard events. It never touches the released checkpoint.
"""

import csv
import dataclasses
import logging
import math
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid
from tqdm import tqdm

import dataset
import gate
from benchmark import Sample, as_it_came, evaluate
from config import Config, ConfigError, load_config
from dataset import DataError
from models import (
    CHECKPOINT_DIR,
    AdaptedTeacher,
    CheckpointError,
    Student,
    adapt,
    collapse,
    load_student,
    load_teacher,
    read_weights,
    save_student,
    widen,
    write_weights,
)
from report import summarise
from runtime import DeviceError, TorchEngine, pick_device, weights_digest
from utils import atomic_path, bgr_to_planes, gaussian_blur, luma_metrics, planes_to_bgr, seed_everything, ssim

VERSION = "0.2.0.dev0"  # of this program, for `meta`
TYPICAL_DAMAGE, MINIMAL_DAMAGE = 0.02, 0.01  # mean absolute error of an input's luma, in [0, 1]
MINIMAL_DETAIL = 0.02  # standard deviation of high-pass luma, in [0, 1]
INVISIBLE = 45.0  # dB; beyond it nobody sees a difference
GATE_PAIRS = 9000  # of the training's own that a gate is fitted to, at most
GATE_NETWORKS, GATE_HIDDEN = 4, 16  # of the judge that knows soft sources, whose answers are averaged
GATE_BATCH, GATE_SEED = 1024, 0
GATE_SHARES = (0, 0.25, 0.5, 0.75, 1)  # of a change, at which it is measured
GATE_INVISIBLE = 53  # dB; errors far below it count little for a gate
GATE_SSIM = 20  # dB that an SSIM of 1 counts as
HARM, HARM_SOFT = 5, 8  # times that a loss counts for a gate's judges
REDUCED = 1.8  # scale from which on a call's pixels are clearly fewer than the frame's
MACHINE_KEYS = {"device", "data_root", "cache_dir", "prepare_workers", "loader_workers"}  # change no result


class TrainingError(RuntimeError):
    """The training cannot go on. The message says why and what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Loss


def high_pass(y, sigma=2.0, radius=6):
    """Luma `(..., H, W)` less its Gaussian blur, `radius` smaller on each side: what a GAN teacher knows best."""
    return y[..., radius:-radius, radius:-radius] - gaussian_blur(y, sigma, radius)


def charbonnier(x, y, epsilon):
    """L1 distance of each pair in a batch, rounded off below `epsilon` (Lai et al., LapSRN, CVPR 2017).

    Args:
        x, y: planes `(N, C, H, W)` in [0, 1].

    Returns:
        Tensor `(N,)`.
    """
    return (((x - y).square() + epsilon**2).sqrt() - epsilon).mean(dim=(1, 2, 3))


def charbonnier_epsilon(config, step):
    """Where L1 is rounded off at `step`: from 0.01, over the first third of the training, to 0.001.

    Plain L1 has a kink where the output equals a clean input, and the untrained student, the identity, never gets out
    of it: its ReLUs die first. But left rounded, L1 hardly minds the small errors that a student adds to good video.
    """
    progress = min(1.0, 3 * step / (config.epochs * config.steps_per_epoch))
    return 0.01 ** (1 - progress) * 0.001**progress


def channel_distillation(student, teacher, temperature):
    """Channel-wise knowledge distillation (Shu et al., ICCV 2021, arXiv 2011.13256).

    Each channel becomes a distribution over its H*W positions, by a softmax at `temperature`; the loss is
    temperature^2 times the Kullback-Leibler divergence from the student's to the teacher's, averaged over channels.
    Both maps are divided by the teacher's standard deviation, since the softmax of values near zero is flat;
    by at least `MINIMAL_DETAIL`, so that crops without detail do not shout.

    Args:
        student, teacher: maps `(N, C, H, W)`, high-pass filtered.

    Returns:
        Tensor `(N,)`, zero where the maps agree up to a constant.
    """
    scale = teacher.flatten(2).std(dim=2, keepdim=True).clamp_min(MINIMAL_DETAIL) * temperature
    log_student = F.log_softmax(student.flatten(2) / scale, dim=2)
    log_teacher = F.log_softmax(teacher.flatten(2) / scale, dim=2)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=2)
    return temperature**2 * divergence.mean(dim=1)


def attention_transfer(student, teacher):
    """How differently two networks attend to a picture (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928).

    Args:
        student, teacher: features `(N, C, H, W)`, each of any number of channels.

    Returns:
        Tensor `(N,)`, from 0 to 2: the squared distance of their energy at each position, as vectors of length 1.
    """
    maps = [F.normalize(features.float().square().mean(dim=1).flatten(1), dim=1) for features in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(dim=1)


def trust(batch):
    """How much a teacher's output counts, `(N,)`: less than 1 where it is farther from the truth than the input is.

    So generative teachers count little on text and on good video, where they do harm.
    """
    y_truth, _ = batch["truth"]
    before, after = ((batch[name][0] - y_truth).abs().mean(dim=(1, 2, 3)) for name in ("input", "teacher"))
    truth_known = batch["known"][:, 0]
    return torch.where(truth_known > 0, ((before + 1e-6) / (after + 1e-6)).clamp(max=1), 1.0)


def distillation_loss(output, batch, config, step, features=None):
    """The student's loss: fidelity to the truth, high frequencies of the teacher, and its features.

    L1 (as `charbonnier`) and 1 - SSIM to the ground truth, of luma and, for L1, of chroma at half weight; L1 and
    channel-wise KL between the high-pass luma of student and teacher, as far as that deserves `trust`; and
    `attention_transfer`. Terms are averaged over the batch; a pair whose truth or teacher output is unknown counts as
    zero in all but the last.

    An error counts in proportion to what was wrong with the input: else the many small errors that a student adds to
    good video drown in the large ones that it takes from bad video.

    Args:
        output: the student's planes `(y (N, 1, S, S), uv (N, 2, S/2, S/2))`.
        batch: collated items of `PairDataset`.
        step: of the training, for `charbonnier_epsilon`.
        features: of student and teacher, `(N, C, H, W)` each; None where the teacher's are not known.

    Returns:
        Dict of scalar tensors: the weighted ``loss`` and its unweighted terms.
    """
    y, uv = output
    truth_known, teacher_known = batch["known"].unbind(dim=1)
    y_truth, uv_truth = batch["truth"]
    y_teacher, _ = batch["teacher"]
    damage = (batch["input"][0] - y_truth).abs().mean(dim=(1, 2, 3))
    weight = truth_known * TYPICAL_DAMAGE / (damage + MINIMAL_DAMAGE)
    epsilon = charbonnier_epsilon(config, step)
    l1_per_pair = charbonnier(y, y_truth, epsilon) + 0.5 * charbonnier(uv, uv_truth, epsilon)
    terms = {"l1": (weight * l1_per_pair).mean(), "ssim": (weight * (1 - ssim(y, y_truth))).mean()}
    taught = teacher_known > 0
    if taught.any():
        details, weight = (high_pass(y[taught]), high_pass(y_teacher[taught])), trust(batch)[taught] / len(y)
        terms["teacher_l1"] = (weight * (details[0] - details[1]).abs().mean(dim=(1, 2, 3))).sum()
        terms["teacher_kl"] = (weight * channel_distillation(*details, config.temperature)).sum()
    else:
        terms["teacher_l1"] = terms["teacher_kl"] = y.new_zeros(())
    terms["teacher_features"] = attention_transfer(*features).mean() if features else y.new_zeros(())
    terms["loss"] = sum(getattr(config, name) * term for name, term in terms.items())
    return terms


# ----------------------------------------------------------------------------------------------------------------------
# Data


def prepare_teacher(config, folder, device, progress=True):
    """Compute the teacher's outputs for the first `config.teacher_pairs` pairs of `folder`, once.

    Who trains a teacher needs none. A checkpoint's network sees what the student sees, and has no gate here. A x4
    teacher sees the input of enlarged pairs at its own low resolution, as decoded; its output is brought to the pair's
    size with an area kernel. Outputs that exist are kept.

    Returns:
        ``(dict of a pair's index -> file with the output, name of the teacher that is used)``.
    """
    used = config.teacher_pairs or config.teacher_features
    if config.teacher == "none" or config.network == "teacher" or not used:
        return {}, "none"
    pairs = list(enumerate(dataset.open_pairs(folder)))
    if config.teacher.endswith(".pth"):
        network, meta = load_student(config.teacher)
        engine, digest = TorchEngine(network, device), weights_digest(network)[:16]
        kind = f"adapted {meta.get('teacher')}" if isinstance(network, AdaptedTeacher) else "student"
        name, teacher_folder = f"{kind} {digest}", folder / f"teacher-{digest}"

        def answer(pair):
            planes = (np.ascontiguousarray(plane) for plane in dataset.unpack_planes(pair.input))
            return dataset.pack_planes(*engine(*planes, full_range=True))
    else:
        pairs = [(index, pair) for index, pair in pairs if is_enlarged(pair)]
        teacher, name = load_teacher(config.teacher)
        teacher = teacher.to(device, memory_format=torch.channels_last)
        teacher_folder = folder / f"teacher-{name}"

        def answer(pair):
            with autocast(config, device):
                return teach(teacher, pair, device)

    chosen = pairs[: config.teacher_pairs]
    files = {index: teacher_folder / f"{index:06d}.npy" for index, _ in chosen}
    todo = [(files[index], pair) for index, pair in chosen if not files[index].exists()]
    for path, pair in tqdm(todo, desc=f"teacher ({name})", disable=not progress):
        dataset.save_array(path, answer(pair))
    return files, name


def is_enlarged(pair):
    """Whether a pair's input was enlarged so much that a x4 teacher can say something of it."""
    return pair.description["kind"] in ("image", "codec") and pair.description["scale"] >= 1.5


@torch.inference_mode()
def teach(teacher, pair, device):
    """Run a x4 teacher on one pair's input; returns an I420 picture of the pair's size."""
    frame = planes_to_bgr(*(np.ascontiguousarray(plane) for plane in dataset.unpack_planes(pair.input)))
    size = frame.shape[1::-1]
    small = dataset.resize(frame, dataset.low_resolution(size, pair.description["scale"]), "area")
    rgb = torch.from_numpy(np.ascontiguousarray(small[:, :, ::-1])).to(device).permute(2, 0, 1)[None] / 255
    large = teacher(rgb.contiguous(memory_format=torch.channels_last))[0].float().clamp(0, 1)
    large = (large * 255).round().byte().permute(1, 2, 0).cpu().numpy()[:, :, ::-1]
    return dataset.pack_planes(*bgr_to_planes(dataset.resize(np.ascontiguousarray(large), size, "area")))


def epoch_keys(config, epoch, pairs, rank, world_size):
    """This process's share of an epoch: keys of `PairDataset`, decided by the seed and the epoch alone.

    With probability `config.teacher_share` a key is drawn from the pairs whose teacher's output is known, else from
    all: with `config.image_share` from damaged images and else from the others, where there are both.
    """
    rng = np.random.default_rng((config.seed, epoch))
    count = config.steps_per_epoch * config.batch_size * world_size

    def draw(wanted):
        return rng.choice(np.flatnonzero(wanted), count)

    images = np.array([pair.description["kind"] == "image" for pair in pairs])
    taught = np.array([pair.teacher is not None for pair in pairs])
    drawn = rng.integers(0, len(pairs), count)
    if config.image_share and 0 < images.sum() < len(pairs):
        others = draw(~images)
        drawn = np.where(rng.random(count) < config.image_share, draw(images), others)
    if taught.any():
        drawn = np.where(rng.random(count) < config.teacher_share, draw(taught), drawn)
    # The position makes two crops of one pair in one epoch differ.
    return [(config.seed, epoch, position, int(index)) for position, index in enumerate(drawn)][rank::world_size]


def validation_samples(pairs):
    """Prepared validation pairs as samples of the benchmark; the condition is the degradation."""
    for number, pair in enumerate(pairs):
        planes = [
            tuple(np.ascontiguousarray(plane) for plane in dataset.unpack_planes(packed))
            for packed in (pair.input, pair.truth)
        ]
        identity = {"protocol": "validation", "category": "validation", "name": str(number)}
        yield Sample({**identity, "condition": pair.description["kind"]}, *([picture] for picture in planes))


# ----------------------------------------------------------------------------------------------------------------------
# The loop


def autocast(config, device):
    """The forward pass's precision: bfloat16 where `config.precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def learning_rate(config, step):
    """Linear warm-up, then a cosine to zero."""
    total = config.epochs * config.steps_per_epoch
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def validate(engine, pairs, fitted=None):
    """Validate what runs a student with the benchmark's own `evaluate`, with a `gate.Gate` if one is given.

    Returns:
        ``(score, rows)``: mean PSNR of the student in dB, what is above `INVISIBLE` counted as that, and the rows of
        `report.summarise` per degradation.
    """

    def sharpen(y, uv, full_range):
        sharp = engine(y, uv, full_range)
        return gate.mix((y, uv), sharp, fitted.gain(y, sharp[0], zero=y)) if fitted else sharp

    methods = {"input": as_it_came, "student": sharpen}
    records = evaluate(validation_samples(pairs), methods)
    values = [record["metrics"]["psnr_y"][0] for record in records if record["method"] == "student"]
    return float(np.mean(np.minimum(values, INVISIBLE))), summarise(records, ["condition"], ["psnr_y", "ssim_y"])


def calibrate(student, pairs, device):
    """Scale a student's residual, in its tail, so that strength 1 is what is most faithful on validation pairs.

    Losses that reward contrast (SSIM, the teacher) leave it larger than that. Epochs are compared after it.

    Returns:
        The factor, between 0.3 and 1.5: the one of the highest mean PSNR, counted as in `validate`.
    """
    engine, factors = TorchEngine(student, device), np.arange(0.3, 1.525, 0.05)
    scores = np.zeros(len(factors))
    for sample in validation_samples(pairs):
        y, truth = (clip[0][0].astype(np.float32) for clip in (sample.input, sample.truth))
        dy, _ = engine.residual(*sample.input[0])
        for i, factor in enumerate(factors):
            error = np.square(np.clip(y + factor * 255 * dy, 0, 255) - truth).mean()
            scores[i] += min(10 * np.log10(255**2 / max(error, 1e-9)), INVISIBLE)
    factor = float(factors[scores.argmax()])
    with torch.no_grad():
        student.tail.weight.mul_(factor)
        student.tail.bias.mul_(factor)
    return factor


def fit_gate(engine, pairs, soft_pairs, steps=3000):
    """Fit a `gate.Gate` to a student: the share of its change that gains most PSNR and SSIM, of luma, over pairs.

    Its first judge, a logistic regression, knows `pairs`. The second, networks, knows `soft_pairs` too, whose sources
    may be soft by themselves, where they were scaled down by `REDUCED` or more: a source that was enlarged and then not
    scaled down again looks like a call that was, and there the first decides. The networks' figures are made free of
    contrast, with which the two kinds would otherwise be told apart.

    Args:
        engine: runs the finished student, see runtime.py.
        pairs, soft_pairs: lists of `dataset.Pair`; those without truth are left out.

    Returns:
        The gate's judges, nested lists of numbers.
    """
    found, gains = measure_gains(engine, pairs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(GATE_SEED)
        judges = [fit_judge(nn.Sequential(nn.Linear(gate.FEATURES, 1)), found, gains, HARM, steps)]
        if reduced := [pair for pair in soft_pairs if pair.description["scale"] >= REDUCED]:
            soft_found, soft_gains = measure_gains(engine, reduced)
            found, gains = torch.cat([found, soft_found]), torch.cat([gains, soft_gains], dim=1)
            hidden, last = nn.Linear(gate.FEATURES, GATE_NETWORKS * GATE_HIDDEN), Grouped(GATE_NETWORKS, GATE_HIDDEN)
            judges.append(fit_judge(nn.Sequential(hidden, last), found, gains, HARM_SOFT, steps, contrast_free()))
    return judges


class Grouped(nn.Module):
    """ReLUs, and for each of several networks the weighted sum of its own hidden units, `(N, networks)`.

    One network alone would depend on the luck of its beginning where features are rare.
    """

    def __init__(self, networks, hidden):
        super().__init__()
        drawn = nn.Linear(hidden, networks)
        self.weight, self.bias = drawn.weight, drawn.bias

    def forward(self, x):
        return (F.relu(x).unflatten(1, self.weight.shape) * self.weight).sum(dim=2) + self.bias


def contrast_free():
    """The matrix `(FEATURES, FEATURES)` that takes the power of the lowest bands from a picture's features."""
    matrix, bands = torch.eye(gate.FEATURES, dtype=torch.float64), torch.arange(gate.BANDS)
    matrix[: gate.BANDS, :6] -= 1 / 6  # the picture's power against that of its lowest bands,
    matrix[gate.BANDS + bands, bands] = -1  # and the change's against the picture's
    return matrix


def measure_gains(engine, pairs):
    """What shares of a student's change bring to pairs, and `gate.features`.

    Returns:
        ``(features (pairs, FEATURES) float64, gains (2, pairs, shares))``, of PSNR in dB and of SSIM times `GATE_SSIM`.
    """
    rows, curves = [], []
    for pair in tqdm([pair for pair in pairs if pair.truth is not None], desc="gate", leave=False):
        y, uv = (np.ascontiguousarray(plane) for plane in dataset.unpack_planes(pair.input))
        truth, sharp = dataset.unpack_planes(pair.truth)[0], engine(y, uv, full_range=True)[0]
        rows.append(gate.features(y, sharp, zero=y))
        curves.append([luma_metrics(cv2.addWeighted(y, 1 - k, sharp, k, 0), truth) for k in GATE_SHARES])
    psnr, ssims = torch.tensor(np.array(curves)).unbind(dim=2)  # (pairs, shares)
    psnr = -10 * torch.log10(10 ** (-psnr / 10) + 10 ** (-GATE_INVISIBLE / 10))
    gains = torch.stack([psnr - psnr[:, :1], GATE_SSIM * (ssims - ssims[:, :1])]).float()
    return torch.tensor(np.array(rows), dtype=torch.float64), gains


def fit_judge(network, features, gains, harm, steps, transform=None):
    """Fit a judge of a gate to `measure_gains`.

    Args:
        network: a linear layer, alone or with a `Grouped` behind it.
        harm: times that a loss counts.
        transform: matrix that features are multiplied by first.

    Returns:
        The judge's layers, nested lists of numbers, for features as they are.
    """
    transform = torch.eye(gate.FEATURES, dtype=torch.float64) if transform is None else transform
    changed = features @ transform.T
    middle, spread = changed.mean(dim=0), changed.std(dim=0).clamp_min(1e-6)
    normal = ((changed - middle) / spread).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(steps):
        chosen = torch.randint(len(normal), (GATE_BATCH,))
        place = torch.sigmoid(network(normal[chosen])) * (len(GATE_SHARES) - 1)  # (batch, networks)
        below = place.detach().long().clamp(max=len(GATE_SHARES) - 2)
        start, end = (gains[:, chosen].gather(2, (below + side).expand(2, -1, -1)) for side in (0, 1))
        gained = start + (place - below) * (end - start)  # between the shares, linear
        loss = (harm * F.relu(-gained) - F.relu(gained)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    slopes = network[0].weight.detach().double() / spread
    layers = [torch.cat([slopes @ transform, network[0].bias.detach().double()[:, None] - slopes @ middle[:, None]], 1)]
    if len(network) == 2:
        last = network[1]
        layers.append(
            torch.cat([last.weight.detach().flatten() / len(last.bias), last.bias.detach().mean()[None]])[None]
        )
    return [layer.tolist() for layer in layers]


def add_gate(path, engine, pairs, soft_pairs, validation_pairs):
    """Fit a gate to the student in a checkpoint as `engine` runs it, and write it into its `meta`, validated."""
    student, meta = load_student(path)
    judges = fit_gate(engine, pairs[:: -(-len(pairs) // GATE_PAIRS)], soft_pairs)
    score, rows = validate(engine, validation_pairs, gate.Gate(judges))
    tqdm.write(f"with its gate: validation {score:.3f} dB")
    metrics = meta.get("metrics", {}) | {"gated_score": score, "gated_validation": rows}
    save_student(path, student, meta | {"gate": judges, "metrics": metrics})


def train(config, resume=False):
    """Distil a student as `config` says.

    Returns:
        Path of the best student's checkpoint.

    Raises:
        TrainingError, DataError, CheckpointError, DeviceError: see their messages.
        OSError: a file cannot be written; what was written before is whole.
    """
    check_choices(config)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(config.device)
    if world_size > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        # The first process may prepare pairs for an hour, while the others wait.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    seed_everything(config.seed)
    main_process = rank == 0
    folder = CHECKPOINT_DIR / config.name
    state = load_state(folder / "last.pth", config) if resume else None
    if not resume and (folder / "last.pth").exists():
        raise TrainingError(f"{folder} holds a run already: go on with --resume, or choose another name=...")

    # The first process prepares and fetches, the others wait and then find everything in the caches
    if main_process:
        prepared = prepare_data(config, device), make_network(config, state)
    if world_size > 1:
        dist.barrier()
    if not main_process:
        prepared = prepare_data(config, device, progress=False), make_network(config, state)
    (pairs, validation_pairs, soft_pairs, teacher_name), (student, trunk, origin) = prepared
    teacher_name = " + ".join(name for name in (trunk, teacher_name) if name != "none") or "none"
    if state and state.get("teacher", teacher_name) != teacher_name:
        raise TrainingError(f"cannot resume with another teacher: {state['teacher']} before, now {teacher_name}")
    crops = dataset.PairDataset(pairs, config.crop, config.pattern_share, config.classic_share)

    if config.branch_width:
        widen(student, config.branch_width)
    student = student.to(device, memory_format=torch.channels_last)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate)
    first_epoch, best_score, seconds = 0, -math.inf, 0.0
    if state:
        student.load_state_dict(state["student"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, best_score, seconds = state["epoch"], state["best_score"], state["seconds"]
    parallel = DistributedDataParallel(student) if world_size > 1 else student
    guide = make_guide(config, device)
    features = [last_features(network) for network in (student, guide)] if guide else None

    log = RunLog(folder, first_epoch) if main_process else None
    for epoch in range(first_epoch, config.epochs):
        started = time.perf_counter()
        keys = epoch_keys(config, epoch, pairs, rank, world_size)
        loader = DataLoader(crops, config.batch_size, sampler=keys, num_workers=config.loader_workers)
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{config.epochs}", leave=False, disable=not main_process)
        totals = {}
        for step, batch in enumerate(bar, epoch * config.steps_per_epoch):
            batch = to_device(batch, device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            with autocast(config, device):
                output = parallel(*batch["input"])
                if guide:
                    with torch.no_grad():
                        guide(*batch["input"])
            output, seen = tuple(plane.float() for plane in output), features and [found[0] for found in features]
            terms = distillation_loss(output, batch, config, step, seen)
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"the loss is not finite at step {step}: lower learning_rate (now {config.learning_rate}) or use "
                    f"precision=fp32; {folder / 'last.pth'} holds the state after epoch {epoch}"
                )
            optimizer.step()
            average.update_parameters(student)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.detach() / config.steps_per_epoch
            bar.set_postfix(loss=f"{terms['loss'].item():.4f}", refresh=False)

        if main_process:
            candidate = collapse(average.module)
            calibration = calibrate(candidate, validation_pairs, device)
            score, rows = validate(TorchEngine(candidate, device), validation_pairs)
            seconds += time.perf_counter() - started
            log.epoch(epoch + 1, {name: total.item() for name, total in totals.items()}, score, rows, seconds)
            log.pictures(epoch + 1, candidate, validation_pairs, device)
            if score > best_score:
                best_score = score
                meta = checkpoint_meta(config, teacher_name, len(pairs), epoch + 1, seconds, calibration, score, rows)
                save_student(folder / "student.pth", candidate, meta | {"initial": origin})
            progress = {"epoch": epoch + 1, "best_score": best_score, "seconds": seconds}
            progress |= {"trunk": trunk, "teacher": teacher_name}
            save_state(folder / "last.pth", config, student, average, optimizer, progress)
    if main_process:
        log.close()
        engine = TorchEngine(load_student(folder / "student.pth")[0], device)
        add_gate(folder / "student.pth", engine, pairs, soft_pairs, validation_pairs)
    if world_size > 1:
        dist.destroy_process_group()
    return folder / "student.pth"


def prepare_data(config, device, progress=True):
    """Prepare or find pairs and teacher outputs.

    Returns:
        ``(pairs to train on, to validate with, to fit the gate to besides, teacher's name)``.
    """
    folder = dataset.prepare_pairs(config, progress=progress)
    validation_folder = dataset.prepare_pairs(config, "validation", progress)
    late_folder = dataset.prepare_pairs(config, "late", progress)
    gate_folder = dataset.prepare_pairs(config, "gate", progress)
    outputs, teacher_name = prepare_teacher(config, folder, device, progress)
    pairs = dataset.open_pairs(folder, outputs) + dataset.open_pairs(late_folder)
    if config.bsrgan_pairs:
        pairs += dataset.read_teacher_pairs(Path(config.data_root) / config.bsrgan_pairs, config.region)
        teacher_name = f"bsrgan (stored outputs) + {teacher_name}"
    return pairs, dataset.open_pairs(validation_folder), dataset.open_pairs(gate_folder), teacher_name


def to_device(batch, device):
    """Move a collated item of `PairDataset` to `device`."""
    moved = {
        name: tuple(plane.to(device, non_blocking=True) for plane in batch[name])
        for name in ("input", "truth", "teacher")
    }
    return {**moved, "known": batch["known"].to(device)}


def check_choices(config):
    """Refuse, before anything is prepared, choices that there are not and checkpoints that are none; see `train`."""
    if config.initial:
        load_student(config.initial)
    teachers = ("auto", "bsrgan", "realesrgan", "none")
    for key, choices in {"precision": ("fp32", "bf16"), "network": ("student", "teacher"), "teacher": teachers}.items():
        value = getattr(config, key)
        if key == "teacher" and config.network == "student":
            if value.endswith(".pth"):
                load_student(value)
                continue
            choices = (*choices, "a checkpoint (.pth) of an adapted teacher or a student")
        if value not in choices:
            raise TrainingError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
    if config.network == "student" and config.teacher_features and not config.teacher.endswith(".pth"):
        raise TrainingError("teacher_features needs a teacher that sees what the student sees: teacher=CHECKPOINT.pth")


def make_network(config, state):
    """What is trained: new, as in `config.initial`, or, where there is the `state` of a run, to be filled from that.

    Returns:
        ``(network, name of the pretrained teacher that an adapted one began from or "none", meta of the initial one)``.
    """
    is_teacher = config.network == "teacher"
    if is_teacher:
        network = AdaptedTeacher(config.trunk_blocks)
    else:
        network = Student(config.channels, config.blocks, config.wide)
    trunk, meta = state.get("trunk", "none") if state else "none", None
    if config.initial:
        initial, meta = load_student(config.initial)
        if initial.args != network.args:
            raise TrainingError(
                f"{config.initial} holds a network of {initial.args}, not {network.args}: change either"
            )
        return initial.train(), meta.get("teacher", "none") if is_teacher else "none", meta
    if is_teacher and config.teacher != "none" and not state:
        pretrained, trunk = load_teacher(config.teacher)
        network = adapt(pretrained, config.trunk_blocks)
    return network, trunk, meta


def make_guide(config, device):
    """The teacher whose features are learned from while training, frozen; None where they are not."""
    if not config.teacher_features or config.network == "teacher":
        return None
    guide, _ = load_student(config.teacher)
    return guide.requires_grad_(False).to(device, memory_format=torch.channels_last)


def last_features(network):
    """A list that holds, after each call of a `models.PlaneNetwork`, the features that its tail saw."""
    seen = [None]
    network.tail.register_forward_pre_hook(lambda _, arguments: seen.__setitem__(0, arguments[0]))
    return seen


# ----------------------------------------------------------------------------------------------------------------------
# State and log


def result_config(config):
    """The part of a configuration that decides the result, as plain data."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in MACHINE_KEYS}


def save_state(path, config, student, average, optimizer, progress):
    """Write all that `--resume` needs; nothing else has a state, since batches follow from seed and epoch.

    Args:
        progress: dict of ``epoch``, how many are done, ``best_score``, ``seconds``, ``trunk`` of `make_network`,
            and the name of the ``teacher``.
    """
    state = {
        "config": result_config(config),
        "student": student.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        **progress,
    }
    write_weights(path, state)


def load_state(path, config):
    """Read `save_state`'s file and check that it belongs to `config`."""
    if not path.is_file():
        raise TrainingError(f"nothing to resume: no {path}")
    state = read_weights(path)
    saved, wanted = dataclasses.asdict(Config()) | state["config"], result_config(config)  # it may lack newer keys
    different = [f"{key}: {saved[key]!r} -> {wanted[key]!r}" for key in wanted if saved[key] != wanted[key]]
    if different:
        raise TrainingError(f"cannot resume {path} with another configuration ({'; '.join(different)})")
    return state


def checkpoint_meta(config, teacher, pairs, epoch, seconds, calibration, score, rows):
    """What a released checkpoint says of itself, as plain data."""
    return {
        "version": VERSION,
        "teacher": teacher,
        "pairs": pairs,
        "epoch": epoch,
        "training_seconds": round(seconds),
        "torch": str(torch.__version__),
        "calibration": calibration,
        "config": result_config(config),
        "metrics": {"score": score, "validation": rows},
    }


class RunLog:
    """The run's log: console lines, log.csv and TensorBoard events. A resumed run continues the same files."""

    def __init__(self, folder, first_epoch):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.csv"
        self.writer = SummaryWriter(str(folder), purge_step=first_epoch + 1)
        self.rows = []
        if first_epoch and self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= first_epoch]

    def epoch(self, epoch, losses, score, rows, seconds):
        """Record one epoch: mean losses, validation score in dB and rows, seconds since the run began."""
        line = {"epoch": epoch, "seconds": round(seconds, 1), **losses, "score": score}
        for row in rows:
            for metric, value in row["level"].items():
                line[f"{row['condition']} {row['method']} {metric}"] = value
        for name, value in line.items():
            self.writer.add_scalar(name.replace(" ", "/"), value, epoch)
        self.rows.append(line)
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(line))
            table.writeheader()
            table.writerows(self.rows)
        gains = []
        for before, row in zip(rows[::2], rows[1::2], strict=True):
            change = row["level"]["ssim_y"] - before["level"]["ssim_y"]
            gains.append(f"{row['condition']} {row['level']['psnr_y']:.2f} dB, SSIM {change:+.4f}")
        tqdm.write(f"epoch {epoch}: loss {losses['loss']:.4f}, validation {score:.3f} dB: " + "; ".join(gains))

    def pictures(self, epoch, student, pairs, device, count=4):
        """Show input, student and truth of the first validation pairs in TensorBoard."""
        engine, pictures = TorchEngine(student, device), []
        for sample in list(validation_samples(pairs[:count])):
            for planes in (sample.input[0], engine(*sample.input[0], full_range=True), sample.truth[0]):
                rgb = cv2.cvtColor(planes_to_bgr(*planes), cv2.COLOR_BGR2RGB)
                pictures.append(torch.from_numpy(rgb).permute(2, 0, 1))
        self.writer.add_image("input, student, truth", make_grid(pictures, nrow=3), epoch)

    def close(self):
        self.writer.close()


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    logging.basicConfig(format="%(message)s")
    threading.excepthook = _quiet_about_files
    try:
        config = load_config([argument for argument in argv if argument != "--resume"])
        path = train(config, resume="--resume" in argv)
    except (ConfigError, TrainingError, DataError, CheckpointError, DeviceError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"student: {path}\ntry it: python inference.py VIDEO --checkpoint {path}")
    return 0


def _quiet_about_files(details):
    """A thread's exception hook: what keeps TensorBoard's thread from writing is raised in `train`, too."""
    if not issubclass(details.exc_type, OSError):
        threading.__excepthook__(details)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("train.py: stopped; what was finished is kept: go on with --resume", file=sys.stderr)
        sys.exit(130)
