"""Is there on this machine what the set-up cannot install by itself? Run by the Makefile with the system's Python.

One line for each thing that is missing, with the Debian package that brings it; exit code 1 if any is.
Written so that an old Python can still read it and say that it is too old.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig

OLDEST, NEWEST = (3, 11), (3, 13)


def problems():
    """One line for each thing that is missing."""
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        yield "Python 3.11, 3.12 or 3.13 is needed, and this is {}.{}: choose one with `make PYTHON=python3.11`".format(
            *version
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        yield "Python cannot make virtual environments: apt install python3-venv"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        yield "Python's headers are missing, which operators need that vLLM compiles: apt install python3-dev"
    if " " in os.getcwd():
        yield "Ray cannot start its workers from a path with spaces: move this folder out of " + os.getcwd()
    if shutil.which("g++") is None:
        yield "There is no C++ compiler, which vLLM compiles operators with: apt install g++"


if __name__ == "__main__":
    found = list(problems())
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(1 if found else 0)
