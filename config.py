"""Training configuration: the defaults of `Config`, overridden by YAML files, overridden by ``key=value``.

python train.py configs/wide.yaml data_root=/photos epochs=20
"""

import contextlib
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from reprlib import repr as shortened  # a few lines of YAML can describe enormous lists
from typing import Literal, NewType, get_args

import yaml

MACHINE_KEYS = {"device", "data_root", "cache_dir", "loader_workers"}  # they do not affect the result


class ConfigError(ValueError):
    """An unknown key, a value of the wrong type or range, or an unreadable file. The message says what is expected."""


Count = NewType("Count", int)  # a whole number from 1; other whole numbers start at 0
Share = NewType("Share", float)  # from 0 to 1


@dataclass
class Config:
    """All that decides what `train.py` produces; the reference for `configs/*.yaml`. Shares are probabilities."""

    # Run
    name: str = "quick"  # the run writes to checkpoints/<name>/
    seed: int = 0  # of the initial weights, batches and crops
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: Literal["fp32", "bf16"] = "fp32"  # of the forward pass

    # Data: see dataset.py
    data_root: str = "data"  # folder that holds the folders named in `sources`
    sources: dict[str, float] = field(default_factory=lambda: {"skimage": 3.0, "rendered": 1.0})  # source: weight
    data_seed: int = 0  # of the prepared pairs
    cache_dir: str = "data/cache"  # folder for the prepared pairs
    pairs: Count = 320  # number of training pairs
    validation_pairs: Count = 48  # number of validation pairs
    real_pairs: int = 0  # crops of real video, taught by the teacher alone: dataset.make_real
    region: Count = 320  # side of a stored pair in pixels; a multiple of 8
    crop: Count = 128  # side of a training crop in pixels; a multiple of 8
    crispness: Share = 0.3  # of soft pairs' targets: from 0, the truth, to 1, the steepest edges: dataset.crisp
    pattern_share: Share = 0.0  # of crops with an undamaged dataset.periodic_pattern or soft_lines painted in
    classic_share: Share = 0.0  # of crops degraded by halving and noise instead: degradation.halve_with_noise
    loader_workers: int = 0  # processes that load batches; 0 loads them in the training process

    # Teacher
    teacher: Literal["auto", "bsrgan", "realesrgan", "none"] = "auto"  # of real pairs; auto: BSRGAN, else Real-ESRGAN
    teacher_share: Share = 0.15  # of crops that are real video; the others have a known truth
    bsrgan_pairs: str = ""  # folder in data_root with images in lr/ and the official BSRGAN's outputs in sr/; "": none

    # Network: see models.Student
    channels: Count = 32  # width of the residual blocks
    blocks: int = 4  # number of residual blocks
    wide: int = 0  # channels within a block; 0: 1.5 times `channels`
    initial: str = ""  # checkpoint of the same architecture to start from; "": random weights
    larger: str = ""  # checkpoint of a wider student to learn from, see `train.answers`; "": none

    # Optimisation
    epochs: Count = 8
    steps_per_epoch: Count = 250
    batch_size: Count = 16
    learning_rate: float = 1e-3  # Adam's, after the warm-up; falls to 0 along a cosine
    warmup_steps: int = 200  # steps of linear warm-up

    # Loss: weights of the terms of train.distillation_loss
    l1: float = 1.0  # Charbonnier distance to the target
    ssim: float = 0.08  # 1 - SSIM to the target
    edges: float = 1.0  # difference in edge strength
    teacher_l1: float = 1.0  # L1 distance to the teacher's high frequencies
    teacher_kl: float = 0.01  # channel-wise distillation of the teacher's high frequencies
    temperature: float = 2.0  # of that distillation's softmax


def load_config(argv):
    """Build a `Config` from command-line arguments, YAML files and ``key=value`` pairs; later ones win.

    Raises:
        ConfigError: unknown key, wrong type or range, unreadable file.
    """
    config = Config()
    for argument in argv:
        key, equals, text = argument.partition("=")
        if equals:
            update(config, {key: _parse(text, f"the value of {key}")}, "the command line")
        elif argument.endswith((".yaml", ".yml")):
            try:
                content = Path(argument).read_bytes()
            except OSError as error:
                raise ConfigError(f"cannot read {argument}: {error.strerror}") from error
            update(config, _parse(content, argument), argument)
        else:
            raise ConfigError(f"{argument!r} is neither a .yaml file nor key=value")
    return config


def _parse(text, origin):
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: PyYAML on dates such as 2026-13-41
        raise ConfigError(f"{origin} is not valid YAML") from error


def update(config, values, origin):
    """Set keys of `config` from the dict `values`, in place; raise `ConfigError`, which names `origin`, on mistakes."""
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold `key: value` lines")
    types = {key.name: key.type for key in fields(config)}
    for key, value in values.items():
        if key not in types:
            raise ConfigError(f"unknown key {key!r} from {origin}; known keys: {', '.join(types)}")
        if types[key] in (float, Share) and type(value) in (int, str):  # PyYAML reads 1e-3 as text
            with contextlib.suppress(ValueError, OverflowError):
                value = float(value)
        value = "" if types[key] is str and value is None else value
        choices = get_args(types[key])
        expected, fits = CHECKS.get(types[key]) or (f"one of {', '.join(choices)}", choices.__contains__)
        if not fits(value):
            raise ConfigError(f"{key} from {origin} must be {expected}, got {shortened(value)}")
        setattr(config, key, value)


def _is_weights(value):
    if not isinstance(value, dict) or not value:
        return False
    return all(type(name) is str and type(w) in (int, float) and 0 < w < math.inf for name, w in value.items())


CHECKS = {  # by type: what a value must be, and whether it is
    Count: ("a whole number from 1", lambda value: type(value) is int and value >= 1),
    int: ("a whole number from 0", lambda value: type(value) is int and value >= 0),
    float: ("a finite number", lambda value: type(value) is float and math.isfinite(value)),
    str: ("text", lambda value: type(value) is str),
    Share: ("a number from 0 to 1", lambda value: type(value) is float and 0 <= value <= 1),
    dict[str, float]: ("a mapping of source names to positive weights", _is_weights),
}
