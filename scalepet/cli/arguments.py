"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FIELD=VALUE",
        help="Fields of the config to replace, as in train.learning_rate=3e-3.",
        show_default=False,
    ),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        metavar="NAME",
        help="With --resume: go on though this has changed since the run began, as in train-rows or"
        " optimizer; may be given often. A refusal names what can be accepted.",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path, typer.Argument(metavar="ADAPTER", help="An adapter, or the run folder that holds it.")
]
Also = Annotated[
    list[Path] | None,
    typer.Option(
        "--also",
        metavar="ADAPTER",
        help="A further adapter of the same backbone, which is loaded once; may be given often.",
        show_default=False,
    ),
]
Together = Annotated[
    Literal["max", "mean"] | None,
    typer.Option(
        "--vote",
        help="Let the adapters decide together, by the largest or the mean of their probabilities;"
        " in one walk over the backbone.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
OtherWeights = Annotated[
    bool,
    typer.Option(
        "--other-weights",
        help="Accept a backbone whose weight files are not those that it was trained on.",
    ),
]
