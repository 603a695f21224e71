"""Real faults for the tests: full disks and processes that are killed while they write."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KILLED = """
import importlib, os, signal, sys

def replace(source, target, count=[], rename=os.replace):
    if target.name == sys.argv[2]:
        count.append(target)
        if len(count) == int(sys.argv[3]):
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.replace = replace
importlib.import_module(sys.argv[1]).main(sys.argv[4:])
"""


@contextlib.contextmanager
def full_disk(limit):
    """Let no file grow beyond `limit` bytes: writing fails as on a full disk, with another error number."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores the signal SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_and_kill(module, arguments, name, count):
    """Run a script in a process that is killed when it has written half of the file `name` for the `count`-th time."""
    command = [sys.executable, "-c", KILLED, module, name, str(count), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]


def leftovers(folder):
    """List the temporary files of `utils.atomic_path` in a folder and its subfolders."""
    return list(Path(folder).rglob(".*.part*"))
