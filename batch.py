"""Many files at once: what a command line's folders and patterns name, where it goes, and what is done already."""

import dataclasses
import glob
import itertools
import os
import re
from pathlib import Path

from images import VideoError, existing_file
from utils import IMAGE_SUFFIXES, VIDEO_SUFFIXES, logging_redirect_tqdm, tqdm

_WILDCARDS = re.compile(r"[*?[]")
_OUTPUT = re.compile(r"(.+)_sharpened(_partial)?")


@dataclasses.dataclass
class BatchResult:
    """What became of many files.

    Attributes:
        written: number of files written.
        present: number of files whose output was there already and not older.
        failures: a message of one line for each file that failed.
        interrupted: whether Ctrl-C ended it early.
    """

    written: int = 0
    present: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    interrupted: bool = False


def plan_files(sources, output=None):
    """List what is to be sharpened, and where to.

    Args:
        sources: names of files and folders, and patterns with ``*``, ``?``, ``[...]`` or ``**`` (any depth). Of folders
            and patterns only visible images and videos are taken. What an earlier run wrote is left out.
        output: folder to write to, under relative names; None for ``NAME_sharpened`` beside each file or folder.

    Returns:
        list: pairs of paths ``(source, target)``, each target once, sorted by the source's name in the same order on
        every machine.

    Raises:
        VideoError: a folder or pattern holds nothing to sharpen, two files have the same target, or a target is itself
            to be sharpened.
    """
    jobs = {}
    for path, target in itertools.chain.from_iterable(_targets(source, output) for source in sources):
        other, _ = jobs.setdefault(_identity(target), (path, target))
        if _identity(other) != _identity(path):
            raise VideoError(f"{other} and {path} would both be written to {target}: sharpen them one by one")
    for path, _ in jobs.values():
        if _identity(path) in jobs:
            raise VideoError(f"{path} would be replaced: name another folder with -o")
    return sorted(jobs.values(), key=lambda job: job[0].as_posix())  # not by Path, which orders by system


def _targets(source, output):
    """Pairs ``(path, target)`` of the files that one source names."""
    folder, root = Path(source), output and Path(output)
    if folder.is_dir():
        found, whole = folder.rglob("*"), folder.resolve()
        root = root or whole.with_name(f"{whole.name}_sharpened")
    elif is_pattern(source):
        found = map(Path, glob.glob(source, recursive=True))
        folder = Path(*itertools.takewhile(lambda part: not _WILDCARDS.search(part), folder.parts))
    else:
        path, target = folder, beside(folder)
        if _is_output(path, path.parent):
            return []
        return [(path, root / f"{path.stem}{target.suffix}" if root else target)]

    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    files = [path for path in found if path.suffix.lower() in suffixes and path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if root and folder.resolve() in root.resolve().parents:  # the output lies within the source
        files = [path for path in files if not path.resolve().is_relative_to(root.resolve())]
    if not files:
        raise VideoError(f"{source} names no image or video ({', '.join(suffixes)}): check the name")
    files = [path for path in files if not _is_output(path, folder)]
    return [(path, root / path.relative_to(folder) if root else beside(path)) for path in files]


def is_pattern(source):
    """Whether a source is a pattern, and not a file whose name looks like one."""
    return bool(_WILDCARDS.search(source)) and not Path(source).exists()


def beside(path):
    """Where a file goes by default: ``NAME_sharpened`` beside a file; an .mp4 where the type is unknown."""
    kept = path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
    return path.with_name(f"{path.stem}_sharpened{path.suffix if kept else '.mp4'}")


def _is_output(path, folder):
    """Whether `path`, or a folder on the way to it from `folder`, is the ``NAME_sharpened`` of a NAME beside it."""
    steps = itertools.takewhile(lambda step: step != folder, path.parents)
    if any(step.with_name(name[1]).is_dir() for step in steps if (name := _OUTPUT.fullmatch(step.name))):
        return True
    name = _OUTPUT.fullmatch(path.stem)
    if not name:
        return False
    # A look at one file first, as a listing for each of many outputs takes its time.
    return path.with_name(name[1] + path.suffix).exists() or any(path.parent.glob(f"{glob.escape(name[1])}.*"))


def _identity(path):
    return os.path.normcase(os.path.abspath(path))


def sharpen_files(sharpener, jobs, compare=False, overwrite=False, **encoding):
    """Sharpen many images and videos, with a progress bar on a terminal.

    Where a target is there and not older than its source, it is left as it is, unless `overwrite`; one that is older
    counts as a failure. A file that fails, in whatever way, does not stop the others; Ctrl-C does.

    Args:
        sharpener: a `RealTimeSharpener`.
        jobs: pairs of paths ``(source, target)``, as `plan_files` gives them.
        compare: left half as it came, right half sharpened.
        overwrite: replace all targets.
        encoding: ``codec`` and ``quality`` of videos, see `VideoWriter`.

    Returns:
        A `BatchResult`.
    """
    result = BatchResult()
    try:
        with tqdm(jobs, unit=" files", leave=False, disable=None) as bar, logging_redirect_tqdm():
            for path, target in bar:
                bar.set_postfix_str(path.name)
                try:
                    if not overwrite and _is_done(path, target):
                        result.present += 1
                        continue
                    sharpen_file(sharpener, path, target, compare, overwrite, **encoding)
                    result.written += 1
                except VideoError as error:
                    result.failures.append(str(error))
                except Exception as error:  # one file's fault, or a fault of ours, must not cost a night's work
                    result.failures.append(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        result.interrupted = True
    return result


def _is_done(path, target):
    if not (path.is_file() and target.is_file()):
        return False
    if target.stat().st_mtime < path.stat().st_mtime:
        raise VideoError(f"{target} is older than its input; --overwrite replaces it")
    return True


def sharpen_file(sharpener, path, output, compare, overwrite, progress=False, **encoding):
    """Sharpen one image or video file; returns the statistics of a video, None for an image."""
    existing_file(path)
    check_free(output, overwrite)
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return sharpener.sharpen_image(path, output, compare)
    return sharpener.process_video_stream(str(path), output, compare, progress, **encoding)


def check_free(output, overwrite):
    """Raise `VideoError` where `output` is a folder, or exists and may not be replaced."""
    if Path(output).is_dir():
        raise VideoError(f"{output} is a folder: name a file with -o")
    if Path(output).exists() and not overwrite:
        raise VideoError(f"{output} exists already: name another output with -o, or allow it with --overwrite")
