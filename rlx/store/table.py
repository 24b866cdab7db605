"""metrics.jsonl as a table of comma-separated values."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path
from typing import TextIO

from rlx.errors import StorageError
from rlx.store.record import iterate_metrics


def write_csv(path: Path, file: TextIO) -> int:
    """Write a metrics.jsonl as CSV, a line at a time; returns the number of rows.

    The columns are env_steps, iteration, and every other key in the order in which it first occurs. A cell is empty where a line lacks
    the key: evaluations and log lines of one step are rows of their own, as in the record.

    Args:
        path: of the metrics.jsonl; it is read twice.
        file: opened with newline="".
    """
    keys = dict.fromkeys(["env_steps", "iteration"])
    for line in iterate_metrics(path):
        keys.update(dict.fromkeys(line))
    writer = csv.DictWriter(file, list(keys), extrasaction="ignore", lineterminator="\n")  # lines that a run wrote meanwhile may have more
    writer.writeheader()
    count = 0
    for line in iterate_metrics(path):
        writer.writerow(line)
        count += 1
    return count


def save_csv(path: Path, out: Path) -> int:
    """`write_csv` into a file, which is replaced in one step when everything is on the disk.

    Raises:
        StorageError: if the file cannot be written.
    """
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("x", newline="", encoding="utf-8") as file:
            count = write_csv(path, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{out} cannot be written ({error.strerror}); choose another -o, or free some space") from error
    return count
