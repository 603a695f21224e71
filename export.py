"""Write a student as an int8 network, which OpenVINO runs several times as fast on a CPU as PyTorch.

    python export.py checkpoints/mine/student.pth                 writes student.int8.onnx beside it
    python export.py checkpoints/mine/student.pth --data FOLDER   the same, distilled on the student's training pairs
    python export.py checkpoints/mine/student.pth --web           writes web/student.bin, for browsers

It needs requirements-dev.txt and some minutes, but no data: it uses photos of scikit-image and rendered text. With the
student's own training data it loses less. On one machine, the same student gives the same file.

The float student is distilled into a network that rounds like the int8 one (straight-through estimator of Bengio et
al., arXiv 1308.3432; learned steps as in Esser et al., LSQ, arXiv 1902.08153). That is written node by node as ONNX,
with pairs of QuantizeLinear and DequantizeLinear. docs/design.md explains the design.
"""

import argparse
import copy
import json
import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

import runtime
from config import Config, ConfigError, update
from dataset import list_sources, make_pair, open_pairs, periodic_pattern, prepare_pairs, random_corner
from degradation import DataError, crop_planes, pack_planes, unpack_planes
from models import INPUT_GAIN, load_student
from runtime import FOLDED, GAIN_STEPS, GAINS, MEANS, RESIDUAL_STEPS, UNUSED, CheckpointError, DeviceError
from torch_engine import TorchEngine
from utils import write_bytes

OPSET, IR_VERSION = 21, 10
WEIGHT_LIMIT = 63  # of 7-bit weights: 255 * 2 * 63 < 2**15, as CPUs without VNNI add two products in 16 bits
FLAT_VARIANCE, FLAT_WEIGHT = 10, 6  # squared codes of detail in a flat area; extra weight of errors there
CALIBRATION_SEED = 20261122
PAIR_KEYS = {"sources", "data_seed", "pairs", "real_pairs", "region"}  # keys of `Config` that decide its pairs
STEPS = 6000
PATTERN_SHARE = 32  # training pictures for each of `fine_patterns`
CLOSENESS, NEAR = 0.004, 3  # weight of errors beyond so many codes, as at the edges of letters
WEB_MAGIC, WEB_VERSION = b"RTSS", 4  # of `web_file`; web/network.js reads it
WEB_FILE = Path(__file__).resolve().parent / "web" / "student.bin"

# ----------------------------------------------------------------------------------------------------------------------
# The student in codes: planes in 0..255 go in, a residual in the same unit comes out


def student_input(y, uv):
    """Return what the student sees of uint8 planes: folded, less their local means, `(1, 24, H/4, W/4)` in codes."""
    cells = torch.from_numpy(runtime.fold_planes(*runtime.pad_planes(y, uv))).permute(2, 0, 1)[None].float()
    folded, *means = cells.split([sum(FOLDED), *MEANS], dim=1)
    means = [mean.mean(dim=1, keepdim=True).expand(-1, n, -1, -1) for mean, n in zip(means, FOLDED, strict=True)]
    return folded - torch.cat(means, dim=1)


def in_codes(student):
    """Copy a student with its scales merged into head and tail, so that it works in codes.

    Its `convolve` takes `student_input` and returns `(N, 28, h, w)`: the residual, and the gain in
    `runtime.GAIN_STEPS`.
    """
    student = copy.deepcopy(student).requires_grad_(False)
    student.head.weight.mul_(INPUT_GAIN / 255)
    scales = torch.tensor([255 / INPUT_GAIN, GAIN_STEPS]).repeat_interleave(torch.tensor([sum(FOLDED), GAINS]))
    student.tail.weight.mul_(scales[:, None, None, None])
    student.tail.bias.mul_(scales)
    return student


# ----------------------------------------------------------------------------------------------------------------------
# Quantisation


def round_through(x):
    """Round to the nearest integer with the gradient of the identity."""
    return x + (x.round() - x).detach()


class QuantisedConv(nn.Module):
    """A convolution that rounds its input and its weights as the int8 network does.

    Args:
        conv: the convolution to start from, 3x3 or 1x1.
        low, high: `(I,)`, the range of each input channel; if any is negative, integers are -128 to 127, else 0 to 255.
    """

    def __init__(self, conv, low, high):
        super().__init__()
        self.signed = bool((low < 0).any())
        steps = (torch.maximum(high / 127, -low / 128) if self.signed else high / 255).clamp(min=1e-8)
        self.weight, self.bias = nn.Parameter(conv.weight.clone()), nn.Parameter(conv.bias.clone())
        self.dilation = conv.dilation[0]
        self.log_step = nn.Parameter(steps.log())  # (I,) of the input
        self.log_scale = nn.Parameter(_weight_scales(conv.weight * steps[:, None, None]).log())  # (O,) of the weights

    def input_integers(self, x):
        """Return the input as the integers that are multiplied."""
        low, high = (-128, 127) if self.signed else (0, 255)
        return round_through(x / self.steps()[:, None, None]).clamp(low, high)

    def rounded(self, x):
        """Return the input rounded to multiples of its steps."""
        return self.input_integers(x) * self.steps()[:, None, None]

    def weight_integers(self):
        """Return the weights as integers `(O, I, k, k)`, which multiply `input_integers`."""
        steps, scales = self.steps()[:, None, None], self.scales()[:, None, None, None]
        return round_through(self.weight * steps / scales).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)

    def steps(self):
        """Return the step of each input channel's integers, `(I,)`."""
        return self.log_step.exp()

    def scales(self):
        """Return the step of each output channel's weights, `(O,)`."""
        return self.log_scale.exp()

    def forward(self, x):
        weight = self.weight_integers() * self.scales()[:, None, None, None]
        return F.conv2d(self.input_integers(x), weight, self.bias, padding="same", dilation=self.dilation)


class QuantisedHead(QuantisedConv):
    """The first convolution, whose input is in whole codes: planes less their local means.

    The int8 network reads both and multiplies the means by minus the sum of their planes' weights, so that their
    difference is never clipped. Several channels of means share that product (`mean_weights`), each with 7 bits.
    """

    def __init__(self, conv, low, high):
        super().__init__(conv, low, high)
        del self.log_step, self.log_scale  # neither is learned

    def input_integers(self, x):
        return x

    def steps(self):
        return torch.ones(self.weight.shape[1])

    def scales(self):
        # No weight is clipped, so rounding changes a sum of weights by at most half a step of each.
        needed = [self.weight.abs().flatten(1).amax(dim=1) / WEIGHT_LIMIT]
        for weights, shares in zip(self.weight.split(FOLDED, dim=1), MEANS, strict=True):
            sums = weights.sum(dim=1).abs().flatten(1).amax(dim=1)
            needed.append(sums / (shares * WEIGHT_LIMIT - weights.shape[1] / 2))
        return torch.stack(needed).amax(dim=0).clamp(min=1e-9)

    def mean_weights(self):
        """Return the integer weights `(O, sum(MEANS), k, k)` of the channels of means in `runtime.fold_planes`."""
        shared = []
        for weights, shares in zip(self.weight_integers().split(FOLDED, dim=1), MEANS, strict=True):
            rest = -weights.sum(dim=1)
            for left in range(shares, 0, -1):
                shared.append((rest / left).round())
                rest = rest - shared[-1]
        return torch.stack(shared, dim=1)


def _weight_scales(weight):
    """Return the scale `(O,)` of each output channel that rounds `weight` with the least squared error."""
    flat = weight.flatten(1)
    candidates = flat.abs().amax(dim=1).clamp(min=1e-9) / WEIGHT_LIMIT * torch.linspace(0.7, 1, 31)[:, None]  # (31, O)
    rounded = (flat / candidates[..., None]).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT) * candidates[..., None]
    best = (rounded - flat).square().sum(dim=2).argmin(dim=0)
    return candidates.gather(0, best[None])[0]


def calibration_pictures(count):
    """Make `count` I420 pictures of 256x256 pixels: degraded photos and pages of text."""
    sources = list_sources(Config(sources={"skimage": 3.0, "rendered": 1.5}), validation=False)
    return [make_pair(sources, CALIBRATION_SEED, index, 256)[0] for index in range(count)]


def fine_patterns(count):
    """Make `count` grey I420 pictures of 256x256 pixels, each a `dataset.periodic_pattern` of full contrast.

    Nothing drives the layers further: if their ranges clip such peaks, black turns white.
    """
    rng, neutral = np.random.default_rng(CALIBRATION_SEED), np.full((2, 128, 128), 128, np.uint8)
    patterns = (cv2.normalize(periodic_pattern(256, rng), None, 0, 255, cv2.NORM_MINMAX) for _ in range(count))
    return [pack_planes(pattern, neutral) for pattern in patterns]


def quantise(student, samples):
    """Copy a student `in_codes` with `QuantisedConv` for convolutions, their ranges measured on `samples`.

    Blocks and tail share the steps of their input, to which the blocks add: see `predict_quantised`.
    """
    ranges = {}

    def measure(module, arguments):
        (x,) = arguments
        low, high = x.amin(dim=(0, 2, 3)), x.amax(dim=(0, 2, 3))
        before = ranges.get(module, (low, high))
        ranges[module] = (torch.minimum(before[0], low), torch.maximum(before[1], high))

    convolutions = {name: module for name, module in student.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [module.register_forward_pre_hook(measure) for module in convolutions.values()]
    for sample in samples:
        student.convolve(sample)
    for hook in hooks:
        hook.remove()
    stream = [*(block.conv1 for block in student.body), student.tail]
    lows, highs = (torch.stack(ends) for ends in zip(*(ranges[module] for module in stream), strict=True))
    ranges |= dict.fromkeys(stream, (lows.amin(dim=0), highs.amax(dim=0)))
    quantised = copy.deepcopy(student)
    for name, module in convolutions.items():
        parent, _, attribute = name.rpartition(".")
        kind = QuantisedHead if module is student.head else QuantisedConv
        setattr(quantised.get_submodule(parent), attribute, kind(module, *ranges[module]))
    for block in quantised.body:
        block.conv1.log_step = quantised.tail.log_step
    return quantised


def predict_quantised(quantised, x):
    """Return what the int8 network makes of `student_input`, before `runtime.FAINT` is applied."""
    rounded = quantised.tail.rounded
    x = rounded(F.relu(quantised.head(x)))
    for block in quantised.body:
        x = rounded(x + rounded(block.conv2(F.relu(block.conv1(x)))))
    residual, gain = quantised.tail(x).split([sum(FOLDED), GAINS], dim=1)
    scaled = RESIDUAL_STEPS * residual, gain
    residual, gain = (round_through(codes).clamp(-128, 127) for codes in scaled)
    return torch.cat([residual / RESIDUAL_STEPS, gain], dim=1)


def rounding_loss(answer, expected, x):
    """Compute the loss of a quantised student's answer to `student_input` `x` against the float student's.

    Its terms are the root mean square of each crop's errors; with `FLAT_WEIGHT` that of errors weighted by flatness, as
    the smallest error on a wall flickers visibly; and squared errors beyond `NEAR` codes. Errors of the gain are
    multiplied by the detail that they act on.
    """
    variance = F.avg_pool2d(x[:, :16].square().mean(dim=1, keepdim=True), 3, stride=1, padding=1)
    flatness = FLAT_VARIANCE / (variance + FLAT_VARIANCE)
    error, gain_error = (answer - expected).split([sum(FOLDED), GAINS], dim=1)
    error = torch.cat([error, gain_error * variance.sqrt() / GAIN_STEPS], dim=1)
    error, flatness = error[..., 2:-2, 2:-2], flatness[..., 2:-2, 2:-2]  # the crop's edge is not the frame's
    squares = error.square()
    everywhere, flat = ((e.mean(dim=(1, 2, 3)) + 1e-4).sqrt().mean() for e in (squares, squares * flatness))
    return everywhere + FLAT_WEIGHT * flat + CLOSENESS * F.relu(error.abs() - NEAR).square().mean()


def distil(quantised, student, batches, steps, progress=True):
    """Train a quantised student in place to answer like the float one: its weights, scales and steps.

    Args:
        batches: iterable of `steps` batches of `student_input`, `(N, 24, h, w)`.
    """
    groups, steps_of_inputs = [], set()
    for module in quantised.modules():
        if isinstance(module, QuantisedConv):
            size = module.weight.detach().square().mean().sqrt().item()
            groups.append({"params": [module.weight, module.bias], "lr": 2e-3 * size})
            if not isinstance(module, QuantisedHead):
                groups.append({"params": [module.log_scale], "lr": 1e-3})
                steps_of_inputs.add(module.log_step)
    groups.append({"params": list(steps_of_inputs), "lr": 1e-2})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    # Warm-up, then half a cosine.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1, (k + 1) / 20) * 0.5 * (1 + np.cos(np.pi * k / steps))
    )
    for x in tqdm(batches, desc="int8", total=steps, leave=False, disable=None if progress else True):
        optimizer.zero_grad()
        rounding_loss(predict_quantised(quantised, x), student.convolve(x), x).backward()
        optimizer.step()
        schedule.step()


def draw_inputs(pictures, steps, batch=12, crop=128):
    """Draw batches of `student_input` of random crops of I420 pictures `(3*side/2, side)`, full range."""
    rng = np.random.default_rng(CALIBRATION_SEED)
    for _ in range(steps):
        crops = []
        for index in rng.integers(len(pictures), size=batch):
            y, uv = unpack_planes(pictures[index])
            crops.append(student_input(*crop_planes(y, uv, *random_corner(y, crop, rng), crop)))
        yield torch.cat(crops)


# ----------------------------------------------------------------------------------------------------------------------
# The ONNX file


class _Graph:
    """Collects nodes and constants of an ONNX graph; values are known by name."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, operator, *inputs, output=None, **attributes):
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def round(self, x, zero):
        """Round to integers of the type of `zero`."""
        arguments = self.constant(np.float32(1)), self.constant(zero)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *arguments), *arguments)

    def convolve(self, x, integers, scales, *bias, dilation=1):
        """Convolve with int8 weights (O, I, k, k) and a scale for each output channel."""
        weights = [self.constant(a) for a in (integers.astype(np.int8), scales, np.zeros(len(scales), np.int8))]
        weights = self.add("DequantizeLinear", *weights, axis=0)
        pads, dilations = [integers.shape[2] // 2 * dilation] * 4, [dilation] * 2
        return self.add("Conv", x, weights, *map(self.constant, bias), pads=pads, dilations=dilations)


def build_model(quantised, metadata):
    """Write a quantised student as an ONNX model.

    Its input ``cells`` `(1, h, w, 32)` uint8 comes from `runtime.fold_planes`, and its output ``change`` of the same
    shape, int8, goes to `runtime.apply_change`. The input ``stretch`` `(1, 1, 1, 1)` float brings limited range to full
    range. It is applied after the first convolution, which therefore reads whole codes; for chroma it is 2 % too large.

    Channels are last outside the convolutions. All layers write 8 bits, because moving floats is slow. So each block's
    output is rounded before it is added, and OpenVINO fuses convolution, rounding and sum.
    """
    graph = _Graph()
    steps = quantised.tail.steps().detach().numpy()  # of the blocks' inputs and outputs

    def arrays(module, outputs=1):
        weights, scales, bias = (t.detach().numpy() for t in (module.weight_integers(), module.scales(), module.bias))
        return weights, np.float32(scales / outputs), np.float32(bias / outputs)

    def stream(x):
        return graph.round(x, np.int8(0))

    cells = graph.round(graph.add("Cast", "cells", to=TensorProto.FLOAT), np.uint8(0))  # so OpenVINO knows of 8 bits
    cells = graph.add("Transpose", cells, perm=[0, 3, 1, 2])  # if it came first, OpenVINO would convolve floats
    weights, scales, bias = arrays(quantised.head, steps)
    weights = np.concatenate([weights, quantised.head.mean_weights().detach().numpy()], axis=1)
    x = graph.add("Mul", graph.convolve(cells, weights, scales), "stretch")
    x = stream(graph.add("Relu", graph.add("Add", x, graph.constant(bias.reshape(1, -1, 1, 1)))))
    for block in quantised.body:
        hidden = block.conv2.steps().detach().numpy()
        inner = graph.convolve(x, *arrays(block.conv1, hidden), dilation=block.conv1.dilation)
        inner = graph.round(graph.add("Relu", inner), np.uint8(0))
        x = stream(graph.add("Add", x, stream(graph.convolve(inner, *arrays(block.conv2, steps)))))
    unit = np.repeat(np.float32([1 / RESIDUAL_STEPS, 1]), [sum(FOLDED), GAINS])
    tail = (np.concatenate([array, array[:UNUSED]]) for array in arrays(quantised.tail, unit))
    change = graph.add("Transpose", graph.convolve(x, *tail), perm=[0, 2, 3, 1])
    one, zero = graph.constant(np.float32(1)), graph.constant(np.int8(0))
    graph.add("QuantizeLinear", change, one, zero, output="change")  # rounds and saturates

    tensor = helper.make_tensor_value_info
    inputs = [tensor("cells", TensorProto.UINT8, [1, "height", "width", sum(FOLDED) + sum(MEANS)])]
    inputs.append(tensor("stretch", TensorProto.FLOAT, [1, 1, 1, 1]))
    outputs = [tensor("change", TensorProto.INT8, [1, "height", "width", sum(FOLDED) + GAINS + UNUSED])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "student", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="export.py",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def export(checkpoint, output=None, data=None, frames=256, steps=STEPS, progress=True):
    """Write the int8 network of a checkpoint, completely or not at all, and return its path.

    Args:
        checkpoint: file written by `models.save_student`.
        output: file to write; by default the one beside the checkpoint, where `engines.make_engine` looks for it.
        data: `data_root` of the student's configuration, to train on its own pairs; None: on `calibration_pictures`.
        frames: number of `calibration_pictures`, and of `fine_patterns`, to measure ranges on.
        steps: of training.

    Raises:
        CheckpointError, ConfigError, DataError, DeviceError: see their messages.
    """
    original, meta = load_student(checkpoint)
    if data is not None:
        if not isinstance(meta.get("config"), dict):
            raise CheckpointError(f"{checkpoint} does not say how it was trained: leave out --data")
        config = Config(data_root=str(data))
        update(config, {key: value for key, value in meta["config"].items() if key in PAIR_KEYS}, checkpoint)
        pairs = open_pairs(prepare_pairs(config, progress=progress))
        if config.real_pairs:
            pairs += 4 * open_pairs(prepare_pairs(config, "real", progress))  # few, and what the network is for
    student, calibration = in_codes(original), calibration_pictures(frames)
    samples = [student_input(*unpack_planes(picture)) for picture in calibration + fine_patterns(frames)]
    quantised = quantise(student, samples)
    pictures = calibration if data is None else [pair.input for pair in pairs]
    pictures += fine_patterns(len(pictures) // PATTERN_SHARE)
    distil(quantised, student, draw_inputs(pictures, steps), steps, progress)
    answer = TorchEngine(original, "cpu", torch.float32).difference(*runtime.probe_planes())
    metadata = runtime.network_notes(checkpoint, answer) | {
        "calibration": f"{frames} pictures of 256x256, seed {CALIBRATION_SEED}; distilled in {steps} steps"
        + (" on the student's training pairs" if data is not None else ""),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
    }
    path = Path(output) if output else runtime.artefact_path(checkpoint)
    write_bytes(path, build_model(quantised, metadata).SerializeToString(deterministic=True))
    return path


# ----------------------------------------------------------------------------------------------------------------------
# The file for browsers


def web_file(checkpoint):
    """Return the student of a checkpoint as bytes for web/network.js.

    They are `WEB_MAGIC`, two little-endian uint32 (`WEB_VERSION` and the length of a JSON header), the header, and
    float16 numbers. For each convolution, these are 4x4 matrices (four inputs, four outputs) of its kernel
    ``(k*k, ceil(I/4), ceil(O/4))``, input after input, and its biases, padded with zeros.
    """
    student, _ = load_student(checkpoint)
    header = {
        **student.args,
        "dilations": [block.conv1.dilation[0] for block in student.body],
        "digest": runtime.checkpoint_digest(checkpoint),
        "inputGain": INPUT_GAIN,
        "detailGain": runtime.DETAIL_GAIN,
        "coarseShare": runtime.COARSE_SHARE,
        "fineShare": runtime.FINE_SHARE,
        "fineThreshold": runtime.FINE_THRESHOLD,
        "fineLimit": runtime.FINE_LIMIT,
        "detailSigma": runtime.DETAIL_SIGMA,
        "detailRadius": runtime.DETAIL_RADIUS,
        "neighbours": runtime.NEIGHBOURS,
        "haloShare": runtime.HALO_SHARE,
        "averaged": runtime.AVERAGED,
        "noiseRange": runtime.NOISE_RANGE,
        "noiseQuantile": runtime.NOISE_QUANTILE,
        "small": runtime.SMALL,
        "moved": runtime.MOVED,
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    values = [_matrices(module) for module in student.modules() if isinstance(module, nn.Conv2d)]
    sizes = np.array([WEB_VERSION, len(text)], "<u4").tobytes()
    return WEB_MAGIC + sizes + text + np.concatenate(values).astype("<f2").tobytes()


def _matrices(conv):
    outputs, inputs, *kernel = conv.weight.shape
    weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, -inputs % 4, 0, -outputs % 4))
    weight = weight.reshape(-(-outputs // 4), 4, -(-inputs // 4), 4, *kernel).permute(4, 5, 2, 0, 3, 1)
    bias = F.pad(conv.bias.detach(), (0, -outputs % 16))
    return np.concatenate([weight.flatten().numpy(), bias.numpy()])


def main(argv=None):
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 if stopped."""
    parser = argparse.ArgumentParser(description="Write a student as an int8 network for OpenVINO.")
    released = str(runtime.RELEASED_STUDENT)
    parser.add_argument("checkpoint", nargs="?", default=released, help="the student (default: the released one)")
    parser.add_argument("-o", "--output", help="file to write (default: beside the checkpoint)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--data", help="folder with what it was trained on, data_root: loses less")
    kind.add_argument("--web", action="store_true", help="write web/student.bin, for browsers, instead")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        if arguments.web:
            path = Path(arguments.output or WEB_FILE)
            write_bytes(path, web_file(arguments.checkpoint))
        else:
            path = export(arguments.checkpoint, arguments.output, arguments.data)
    except (CheckpointError, ConfigError, DataError, DeviceError, OSError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("export.py: stopped, nothing is written", file=sys.stderr)
        return 130
    print(f"written: {path} ({path.stat().st_size / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
