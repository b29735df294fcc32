"""``python -m scalepet.bench PART --size SIZE --output FILE``: a part of launchers/gpu.sh, whose
records are appended to the file as lines of JSON, each when it is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from scalepet.bench.parts import PARTS, TOKENS, Size
from scalepet.engine import end_process


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scalepet.bench")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--size", choices=TOKENS, default="full")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    started = time.perf_counter()
    for record in PARTS[given.part](Size(given.size)):
        about = {"part": given.part, "size": given.size}
        took = {"took_seconds": round(time.perf_counter() - started, 1)}
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**about, **record, **took}) + "\n")
    end_process(0)


if __name__ == "__main__":
    main()
