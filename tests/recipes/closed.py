"""Every engine and model of whole stories, watched by weak references.

As a script: ``closed.py '{"runs": {NAME: [kind, config]}, "adapter": ..., "out": FILE}'``, on every
rank; rank 0 writes what was still there.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from pathlib import Path
from typing import Any


class Watch:
    """Attributes:
    num_started: engines so far.
    most_at_a_start: of those before it that were there when one started.
    """

    def __init__(self) -> None:
        self._engines: list[weakref.ref[Any]] = []
        self._models: list[weakref.ref[Any]] = []
        self.most_at_a_start = 0

    def start(self) -> None:
        import deepspeed

        from scalepet import backbones

        initialize, load_model = deepspeed.initialize, backbones.load_model

        def noted_start(*arguments: Any, **options: Any) -> Any:
            self.most_at_a_start = max(self.most_at_a_start, alive(self._engines))
            found = initialize(*arguments, **options)
            self._engines.append(weakref.ref(found[0]))
            return found

        def noted_load(*arguments: Any, **options: Any) -> Any:
            loaded = load_model(*arguments, **options)
            self._models.append(weakref.ref(loaded.model))
            return loaded

        deepspeed.initialize, backbones.load_model = noted_start, noted_load

    def take(self) -> dict[str, int]:
        """What was seen since the last look."""
        gc.collect()
        found = {
            "started": len(self._engines),
            "at a start": self.most_at_a_start,
            "engines": alive(self._engines),
            "models": alive(self._models),
        }
        self._engines, self._models, self.most_at_a_start = [], [], 0
        return found


def alive(refs: list[weakref.ref[Any]]) -> int:
    return sum(ref() is not None for ref in refs)


def main() -> None:
    from rich.console import Console

    from scalepet import dist, engine, recipes
    from scalepet.config import read_config, read_stream_config

    argument, console, found = json.loads(sys.argv[1]), Console(quiet=True), {}
    engine.join_processes(timeout_seconds=60)
    rank, watch = dist.rank(), Watch()
    watch.start()
    for name, (kind, config) in argument["runs"].items():
        if kind == "train":
            recipes.finetune(read_config(Path(config), ()), resume=False, console=console)
        else:
            stream = read_stream_config(Path(config), ())
            for _ in recipes.learn_stream(stream, resume=False, console=console):
                pass
        found[name] = watch.take()
    # The last one, since it takes the group down.
    recipes.evaluate_adapters([Path(argument["adapter"])] * 2, overrides={})
    found["evaluate"] = watch.take()
    if rank == 0:
        Path(argument["out"]).write_text(json.dumps(found))
    engine.end_process(0)


if __name__ == "__main__":
    main()
