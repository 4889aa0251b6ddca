"""Standard output and standard error that outlive their reader: a closed terminal, or `| head`, is no reason to stop."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

CLOSED = (errno.EPIPE, errno.EIO)
"""What a write says once the reading end of a pipe, or the terminal, is gone."""


class _Stream(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in CLOSED:
                raise
            # For all who write there: libraries, and processes that are started from here on.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def outlive_readers() -> None:
    """Once nobody reads standard output, or standard error, what is written there is dropped. A character that the locale cannot
    write gets its code. No effect where a stream is not the process's own, as in a test."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO) or stream.fileno() != number:
            stream.reconfigure(errors="backslashreplace")
            continue
        stream.flush()
        raw = _Stream(number, "w", closefd=False)
        buffer: Any = io.BufferedWriter(raw) if hasattr(stream.buffer, "raw") else raw  # as with PYTHONUNBUFFERED
        own = io.TextIOWrapper(
            buffer, stream.encoding, "backslashreplace",
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip
        setattr(sys, name, own)
