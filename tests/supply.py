"""The licences of everything that is installed beside this interpreter: `python tests/supply.py`.

Prints for each distribution its mark, name, version and the licence that its metadata declare. Marks: ``copyleft``
(GPL, LGPL or AGPL is declared), ``bundled`` (its files hold others' binaries, see `BUNDLED`), ``proprietary`` and
``unknown``. Metadata is what authors declare: a hint, no legal opinion. Ends with 1 if something is marked that
`ACCEPTED` does not explain.
"""

import importlib.metadata
import re
import sys

BUNDLED = {  # pattern of a file's name: what it is
    r"^(lib)?x26[45]\b": "x264 or x265 (GPL)",
    r"^ffmpeg-": "an ffmpeg program (GPL)",
    r"^lib(av(codec|format|filter|util|device)|swscale|swresample)\b": "FFmpeg (LGPL; GPL with x264 or x265)",
    r"^opencv_videoio_ffmpeg": "FFmpeg (LGPL)",
    r"^libQt": "Qt (LGPL)",
    r"^lib(gnutls|nettle|hogweed|gmp|unistring|asound|mp3lame)\b": "libraries under the LGPL",
    r"^lib(gfortran|gomp|quadmath)\b": "GCC's libraries (GPL with the runtime exception, LGPL)",
}
ACCEPTED = {  # pattern of a distribution's name: why it may be used; nothing of it is copied into this repository
    r"av": "the user installs it; an application that ships it has to obey the GPL, see README.md",
    r"imageio-ffmpeg": "for tests and benchmarks, as a program of its own",
    r"opencv-python": "shared libraries, which the LGPL allows to use",
    r"numpy|scipy|scikit-learn|ncnn|torch": "the exception, or a shared library under the LGPL, allows to use it",
    r"(nvidia|cuda)-.*": "NVIDIA's end-user licence; torch for Linux brings it, a CPU does not need it",
}
COPYLEFT = re.compile(r"\b[AL]?GPL|GNU (Lesser |Library or Lesser |Affero )?General Public", re.IGNORECASE)
PROPRIETARY = re.compile(r"proprietary|NVIDIA", re.IGNORECASE)


def licence(distribution):
    """The licence that a distribution declares, in one line; empty if it declares none."""
    lines = distribution.metadata.get_all("Classifier") or ()
    classifiers = [line.rpartition("::")[2].strip() for line in lines if line.startswith("License ::")]
    declared = distribution.metadata.get("License-Expression") or "; ".join(classifiers)
    return next(iter((declared or distribution.metadata.get("License") or "").strip().splitlines()), "")


def contents(names):
    """What `BUNDLED` says about files of these names, sorted."""
    return sorted({text for name in names for pattern, text in BUNDLED.items() if re.match(pattern, name)})


def mark(declared, bundled):
    """What has to be explained in a distribution of this licence and these contents; empty if nothing."""
    if COPYLEFT.search(declared):
        return "copyleft"
    if bundled:
        return "bundled"
    if PROPRIETARY.search(declared):
        return "proprietary"
    return "" if declared else "unknown"


def main():
    unexplained = []
    installed = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d for d in importlib.metadata.distributions()}
    for name, distribution in sorted(installed.items()):
        declared, bundled = licence(distribution), contents(file.name for file in distribution.files or ())
        marked = mark(declared, bundled)
        print(f"{marked:<12}{name} {distribution.version}: {declared or 'no licence declared'}")
        if marked:
            reason = next((why for pattern, why in ACCEPTED.items() if re.fullmatch(pattern, name)), None)
            unexplained += [] if reason else [name]
            print(" " * 14 + "; ".join(["contains " + text for text in bundled] + [reason or "NOT EXPLAINED"]))
    print(f"{len(installed)} distributions; not explained: {', '.join(unexplained) or 'none'}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
