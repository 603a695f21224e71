"""Sharpen many files: expand folders and patterns, name the outputs, and skip what is done."""

import glob
import itertools
import logging
import os
import re
import sys
from pathlib import Path

from tqdm import tqdm

from images import VideoError, existing_file, is_image
from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, plural

_SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES
_READ_SUFFIXES = (*_SUFFIXES, ".heic", ".heif", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".flv", ".wmv", ".3gp")
_READ_SUFFIXES += (".ogv", ".dv", ".mxf")
_WILDCARDS = re.compile(r"[*?[]")
_OUTPUT = re.compile(r"_sharpened(_partial\d*)?(\.\w+)?$")  # the end of names of outputs

log = logging.getLogger(__name__)


def plan_files(sources, output=None):
    """List the files to sharpen, and their outputs.

    Args:
        sources: names of files and folders, and patterns with ``*``, ``?``, ``[...]`` or ``**`` (any depth). Folders
            and patterns give visible images and videos only. Outputs of earlier runs are left out.
        output: folder to write to, under relative names; None for ``NAME_sharpened`` beside each file or folder.

    Returns:
        list: pairs of paths ``(source, target)``, each target once, sorted by source.

    Raises:
        VideoError: nothing is left to sharpen, or a folder or pattern holds nothing; two files have the same target; or
            a target is also a source.
    """
    jobs = {}
    for path, target in itertools.chain.from_iterable(_targets(source, output) for source in sources):
        other, _ = jobs.setdefault(_identity(target), (path, target))
        if _identity(other) != _identity(path):
            raise VideoError(f"{other} and {path} would both be written to {target}: sharpen them one by one")
    if not jobs:
        raise VideoError("all of these were written by this program: name what is to be sharpened")
    for path, _ in jobs.values():
        if _identity(path) in jobs:
            raise VideoError(f"{path} would be replaced: name another folder with -o")
    return sorted(jobs.values(), key=lambda job: job[0].as_posix())  # not by Path, whose order depends on the system


def _targets(source, output):
    """List pairs ``(path, target)`` of one source."""
    folder, root = Path(source), output and Path(output)
    if folder.is_dir():
        found, whole = folder.rglob("*"), folder.resolve()
        root = root or whole.parent / f"{whole.name}_sharpened"
    elif is_pattern(source):
        found = map(Path, glob.glob(source, recursive=True))
        folder = Path(*itertools.takewhile(lambda part: not _WILDCARDS.search(part), folder.parts))
    else:
        path, target = folder, default_output(folder)
        target = root / f"{path.stem}{target.suffix}" if root else target
        return [] if _OUTPUT.search(path.name) and path.exists() else [(path, target)]

    inside = root and folder.resolve() in root.resolve().parents  # the output lies within the source
    visible = [
        path
        for path in found
        if not any(part.startswith(".") or _OUTPUT.search(part) for part in path.relative_to(folder).parts)
        and not (inside and path.resolve().is_relative_to(root.resolve()))
        and path.is_file()
    ]
    files = [path for path in visible if path.suffix.lower() in _READ_SUFFIXES]
    if not files:
        raise VideoError(f"{source} names no image or video ({', '.join(_READ_SUFFIXES)}): check the name")
    others = [path.suffix.lower() or "without a type" for path in visible if path.suffix.lower() not in _READ_SUFFIXES]
    if others and folder.is_dir():
        kinds = ", ".join(sorted(set(others)))
        log.warning("%s: %s of other types left out (%s)", source, plural(len(others), "file"), kinds)
    targets = [(path, default_output(path)) for path in files]
    if not root:
        return targets
    return [(path, (root / path.relative_to(folder)).with_suffix(target.suffix)) for path, target in targets]


def is_pattern(source):
    """Return whether a source is a pattern, not a file whose name looks like one."""
    return bool(_WILDCARDS.search(source)) and not Path(source).exists()


def default_output(path):
    """Return ``NAME_sharpened`` beside a file, as .jpg or .mp4 if its type cannot be written."""
    suffix = path.suffix
    if suffix.lower() not in _SUFFIXES:
        suffix = ".jpg" if is_image(path) else ".mp4"
    return path.with_name(f"{path.stem}_sharpened{suffix}")


def _identity(path):
    return os.path.normcase(os.path.abspath(path))


def sharpen_files(sharpener, jobs, compare=False, overwrite=False, size=None, **encoding):
    """Sharpen many images and videos, with a progress bar on a terminal; print the counts and failures.

    Unless `overwrite`, a target that is not older than its source is skipped, and an older one is a failure. A file
    that fails does not stop the others; Ctrl-C does.

    Args:
        sharpener: an `inference.RealTimeSharpener`.
        jobs: pairs of paths ``(source, target)``, see `plan_files`.
        compare: sharpen only the right half.
        overwrite: replace all targets.
        size: see `inference.RealTimeSharpener.process_video_stream`.
        encoding: ``codec`` and ``quality`` of videos, see `video.VideoWriter`.

    Returns:
        The exit code: 0, or 2 if a file failed.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm  # in a notebook its import warns of missing widgets

    written, present, failures = 0, 0, []
    try:
        with tqdm(jobs, unit=" files", leave=False, disable=None) as bar, logging_redirect_tqdm():
            for path, target in bar:
                bar.set_postfix_str(path.name)
                try:
                    if not overwrite and _is_done(path, target):
                        present += 1
                        continue
                    check_free(target, overwrite)
                    sharpen_file(sharpener, path, target, compare, not bar.disable, size, **encoding)
                    written += 1
                except VideoError as error:
                    failures.append(str(error))
                except Exception as error:  # not even a bug may cost a night's work
                    failures.append(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}")
    finally:  # after Ctrl-C, too
        print(f"{written} written, {present} already there, {len(failures)} failed")
        for failure in failures:
            print(f"inference.py: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _is_done(path, target):
    return existing_file(path) and target.is_file() and target.stat().st_mtime >= path.stat().st_mtime


def sharpen_file(sharpener, path, output, compare, progress=False, size=None, **encoding):
    """Sharpen one image or video file; return the statistics of a video, None for an image."""
    if is_image(existing_file(path)):
        return sharpener.sharpen_image(path, output, compare, size=size)
    return sharpener.process_video_stream(str(path), output, compare, progress, size=size, **encoding)


def check_free(output, overwrite):
    """Raise `VideoError` if `output` is a folder, or exists and may not be replaced."""
    if Path(output).is_dir():
        raise VideoError(f"{output} is a folder: name a file with -o")
    if Path(output).exists() and not overwrite:
        raise VideoError(f"{output} exists already: name another output with -o, or allow it with --overwrite")
