"""Training configuration: one dataclass, overridden by YAML files, overridden by ``key=value``.

python train.py configs/release.yaml data_root=/photos epochs=20
"""

import contextlib
import math
import types
from dataclasses import dataclass, field, fields

import yaml

MAX_FILE_BYTES = 1 << 20
LIMITS = {  # least and most, where memory depends on a value or nothing works without; others are below 2**63
    "channels": (1, 256),  # these three as models.py reads them again
    "blocks": (0, 32),
    "wide": (0, 384),
    "branch_width": (0, 4096),
    "data_seed": (0, 2**32),
    "pairs": (1, 10**7),
    "validation_pairs": (1, 10**6),
    "real_pairs": (0, 10**7),
    "epochs": (1, 10**6),
    "steps_per_epoch": (1, 10**7),
    "region": (1, 8192),
    "crop": (1, 8192),
    "batch_size": (1, 65536),
    "prepare_workers": (0, 1024),
    "loader_workers": (0, 1024),
}


MACHINE_KEYS = {"device", "data_root", "cache_dir", "prepare_workers", "loader_workers"}  # they change no result


class ConfigError(ValueError):
    """An unknown key, a value of the wrong type or an unreadable file. The message says which and what is expected."""


@dataclass
class Config:
    """Everything that decides what `train.py` produces. The defaults train a usable student in minutes on two cores."""

    # Run
    name: str = "quick"  # the run writes under checkpoints/<name>/
    seed: int = 0  # of weights, batches and crops
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "fp32"  # of the forward pass: fp32, bf16

    # Data: see dataset.py
    data_root: str = "data"  # folders named in `sources` are looked up here
    sources: dict[str, float] = field(default_factory=lambda: {"skimage": 3.0, "rendered": 1.0})  # source -> weight
    data_seed: int = 0  # of the prepared pairs
    cache_dir: str = "data/cache"
    pairs: int = 320
    validation_pairs: int = 48
    real_pairs: int = 0  # crops of the sources' videos as they are, which only the teacher can teach: dataset.make_real
    region: int = 320  # side of a stored pair in pixels
    crop: int = 128  # side of a training crop in pixels
    crispness: float = 0.3  # how far the target of soft pairs goes from the truth to steeper edges: dataset.crisp
    pattern_share: float = 0.0  # of the crops that show a fine pattern in part, undamaged: see dataset.periodic_pattern
    classic_share: float = 0.0  # of the crops that are halved with noise: degradation.halve_with_noise
    prepare_workers: int = 2
    loader_workers: int = 0

    # Teacher
    teacher: str = "auto"  # of real pairs: auto, bsrgan, realesrgan, none
    teacher_share: float = 0.15  # of the crops in a batch whose goal is the teacher's output
    bsrgan_pairs: str = ""  # folder under data_root with lr/ and sr/: images and the official BSRGAN's outputs

    # What is trained
    channels: int = 32
    blocks: int = 4
    wide: int = 0  # channels within a block; 0: half as many again as outside
    initial: str = ""  # the checkpoint of such a network, to start from
    branch_width: int = 128  # of the branches that help training and are summed up after it; 0: none

    # Optimisation
    epochs: int = 8
    steps_per_epoch: int = 250
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    # Loss weights
    l1: float = 1.0
    ssim: float = 0.08
    edges: float = 1.0
    teacher_l1: float = 1.0
    teacher_kl: float = 0.01
    temperature: float = 2.0


def load_config(argv):
    """Build a `Config` from command-line arguments: YAML files and ``key=value`` pairs, later ones win.

    Raises:
        ConfigError: unknown key, wrong type, unreadable file.
    """
    config = Config()
    for argument in argv:
        if argument.endswith((".yaml", ".yml")) and "=" not in argument:
            for key, value in _read_yaml(argument).items():
                _assign(config, key, value, argument)
        elif "=" in argument:
            key, _, text = argument.partition("=")
            _assign(config, key, _parse(text, f"{_shown(argument)}: the value"), "the command line")
        else:
            raise ConfigError(f"{_shown(argument)} is neither a .yaml file nor key=value")
    return config


def make_config(values, origin):
    """Build a `Config` from a dict of some of its keys; `origin` is where they come from, for messages.

    Raises:
        ConfigError: unknown key, wrong type.
    """
    config = Config()
    for key, value in values.items():
        _assign(config, key, value, origin)
    return config


def _read_yaml(path):
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is no configuration: it has more than {MAX_FILE_BYTES >> 20} MiB")
    content = _parse(content, path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `key: value` lines")
    return content


def _parse(text, origin):
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        # not only YAMLError: PyYAML passes on what dates such as 2026-13-41 and numbers of 5,000 digits raise
        raise ConfigError(f"{origin} is not valid YAML") from error


def _assign(config, key, value, origin):
    expected = {f.name: f.type for f in fields(config)}
    if key not in expected:
        raise ConfigError(f"unknown key {_shown(key)} from {origin}; known keys: {', '.join(expected)}")
    wanted = expected[key]
    if wanted is float and type(value) in (int, str):  # YAML reads 1e-3 as text
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if wanted is str and value is None:
        value = ""
    if isinstance(wanted, types.GenericAlias):
        fits = isinstance(value, dict) and all(
            isinstance(k, str) and type(v) in (int, float) and 0 < v < 1e9 for k, v in value.items()
        )
        description = "a mapping of source names to positive weights"
    else:
        fits = type(value) is wanted
        description = wanted.__name__
        if wanted is float:
            fits, description = fits and math.isfinite(value), "float, and finite"
        if wanted is int:
            low, high = LIMITS.get(key, (-(2**63), 2**63 - 1))
            fits, description = fits and low <= value <= high, f"int from {low} to {high}" if key in LIMITS else "int"
    if not fits:
        raise ConfigError(f"{key} from {origin} must be {description}, got {_shown(value)}")
    setattr(config, key, value)


def _shown(value):
    """A value for a message, cut short: a few lines of YAML can describe lists of any size, and numbers of any."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:80] + "...")
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, (int, float, type(None))):
        return repr(value)
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (dict, list)) else type(value).__name__
