"""Whether a change leaves every algorithm's `metrics.jsonl` as it was, but for keys that were renamed.

    python tests/same_metrics.py write DIRECTORY [NAME ...]     train every short run of tests/resumable.py, keep its metrics
    python tests/same_metrics.py compare BEFORE AFTER           name the first line and key that differ in each

Run `write` in both trees on one machine with nothing else changed: numbers are compared bit for bit, seconds are left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

RENAMED: dict[str, str] = {}
"""Keys of metrics, from their name before to their name after."""


def write(directory: Path, names: list[str]) -> None:
    from resumable import FIT, compose, new_run

    from rlx.run import train

    directory.mkdir(parents=True, exist_ok=True)
    for algo, kinds in FIT.items():
        for kind in kinds:
            name = f"{algo}-{kind}"
            if names and not any(name.startswith(n) for n in names):
                continue
            torch.set_num_threads(1)
            with tempfile.TemporaryDirectory() as root:
                config = compose(algo, kind)
                run = new_run(Path(root), "run", config)
                train(run, config, overrides=[])
                lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
            kept = [{k: v for k, v in line.items() if not k.startswith("time")} for line in lines]
            (directory / f"{name}.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
            print(name, len(kept), "lines", flush=True)


def first_difference(before: Path, after: Path) -> str | None:
    """What differs first in two files of lines; None if nothing does."""
    old, new = ([json.loads(line) for line in path.read_text().splitlines()] for path in (before, after))
    for number, (a, b) in enumerate(zip(old, new, strict=False), start=1):
        a = {RENAMED.get(k, k): v for k, v in a.items()}
        if only := a.keys() ^ b.keys():
            return f"line {number}: only one has {', '.join(sorted(only))}"
        for key in sorted(a):
            if json.dumps(a[key]) != json.dumps(b[key]):
                return f"line {number}, {key}: {a[key]!r} before, {b[key]!r} after"
    return None if len(old) == len(new) else f"{len(old)} lines before, {len(new)} after"


def compare(before: Path, after: Path) -> int:
    found = 0
    for path in sorted(after.glob("*.jsonl")):
        if not (before / path.name).exists():
            print(f"{path.stem}: only in {after}")
            continue
        difference = first_difference(before / path.name, path)
        found += difference is not None
        print(f"{path.stem}: {difference or 'the same'}")
    return found


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "write":
        write(Path(rest[0]), rest[1:])
    else:
        sys.exit(compare(Path(rest[0]), Path(rest[1])))
