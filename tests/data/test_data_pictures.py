"""Rows of pictures: from every kind of source, decoded late, the same at any world size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value, load_from_disk
from picture_folder import write_pictures

from scalepet.data import (
    FILLER,
    IGNORED,
    Batch,
    Epoch,
    EvalLoader,
    Picture,
    Pictures,
    Source,
    Task,
    TrainLoader,
    encode,
    load_split,
)
from scalepet.data import pictures as module
from scalepet.data.views import draw, view
from scalepet.errors import ConfigError, DataError, ScalepetError

COUNTS = {"train": 13, "validation": 5}
PICTURE = Picture(size=12, resize=14)
LAYOUTS = [(1, 16), (1, 3), (2, 4), (3, 1), (5, 2)]
"""World size and micro-batch size."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, COUNTS)
    return folder


def task_of(source: Source, **fields: Any) -> Task:
    task = Task(
        kind="image_classification",
        source=source,
        template="{image}",
        target="label",
        labels=("dark", "light"),
        picture=PICTURE,
    )
    return replace(task, **fields)


def read(task: Task, split: str = "train", *, labelled: bool = True) -> Pictures:
    rows = load_split(task.source, split, pictures=task.picture_column)
    encoded = encode(task, rows, tokenizer=None, form="head", labelled=labelled)
    assert isinstance(encoded, Pictures)
    return encoded


@pytest.fixture
def train(folder: Path) -> Pictures:
    return read(task_of(Source(str(folder))))


def refused(task: Task, *, by: type[ScalepetError] = DataError) -> str:
    with pytest.raises(by) as caught:
        read(task)
    return str(caught.value)


def of_folder(folder: Path, into: Path) -> Source:
    return Source(str(folder))


def saved(folder: Path, into: Path) -> Source:
    from datasets import load_dataset

    tables = load_dataset(str(folder))
    tables.save_to_disk(str(into / "saved"))
    return Source(str(into / "saved"))


def parquet(folder: Path, into: Path) -> Source:
    """As the hub has them: the bytes in the table, and what they are in its metadata."""
    for split in COUNTS:
        files = [{"bytes": p.read_bytes(), "path": p.name} for p in paths(folder, split)]
        Dataset.from_dict(
            {"image": files, "label": [path.parent.name for path in paths(folder, split)]},
            features=Features({"image": Image(), "label": Value("string")}),
        ).to_parquet(into / f"{split}.parquet")
    return Source("parquet", files={split: str(into / f"{split}.parquet") for split in COUNTS})


def bare_bytes(folder: Path, into: Path) -> Source:
    rows = {
        split: Dataset.from_dict(
            {
                "image": [path.read_bytes() for path in paths(folder, split)],
                "label": [path.parent.name for path in paths(folder, split)],
            }
        )
        for split in COUNTS
    }
    DatasetDict(rows).save_to_disk(str(into / "saved"))
    return Source(str(into / "saved"))


def csv(folder: Path, into: Path) -> Source:
    """Relative to the file, which need not lie where the run starts."""
    for split in COUNTS:
        lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in paths(folder, split)]
        (folder / f"{split}.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    return Source("csv", files={split: str(folder / f"{split}.csv") for split in COUNTS})


def jsonl(folder: Path, into: Path) -> Source:
    """From the root."""
    for split in COUNTS:
        lines = [
            json.dumps({"image": str(path), "label": path.parent.name})
            for path in paths(folder, split)
        ]
        (into / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return Source("json", files={split: str(into / f"{split}.jsonl") for split in COUNTS})


def paths(folder: Path, split: str) -> list[Path]:
    """In the order of a folder's rows."""
    return sorted((folder / split).glob("*/*.png"))


@pytest.mark.parametrize("write", [of_folder, saved, parquet, bare_bytes, csv, jsonl])
def test_every_source_gives_the_same_pictures(
    write: Callable[[Path, Path], Source], tmp_path: Path
) -> None:
    folder, into = tmp_path / "pictures", tmp_path / "into"
    into.mkdir()
    write_pictures(folder, COUNTS)
    task = task_of(write(folder, into))
    for split, num_rows in COUNTS.items():
        found = read(task, "eval" if split == "validation" else split)
        assert found.num_rows == num_rows
        names = [path.parent.name for path in paths(folder, split)]
        assert found.references == names
        assert found.classes is not None
        assert found.classes.tolist() == [("dark", "light").index(name) for name in names]
        batch = found.batch(np.arange(num_rows))
        for numbers, path in zip(batch.tensors["pixel_values"], paths(folder, split), strict=True):
            assert np.array_equal(numbers, view(PIL.Image.open(path), PICTURE, None))


def test_a_batch(train: Pictures) -> None:
    rows = np.array([4, 0, 11])
    batch = train.batch(rows, epoch=Epoch(7, 2))
    pixels, labels = batch.tensors["pixel_values"], batch.tensors["labels"]
    assert batch.tensors.keys() == {"pixel_values", "labels"}
    assert (pixels.shape, pixels.dtype) == ((3, 3, 12, 12), torch.float32)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 0, 1])
    assert (batch.num_targets, batch.num_tokens, batch.num_pictures) == (3, 0, 3)
    assert batch.rows.tolist() == [4, 0, 11]
    for numbers, file, row in zip(pixels, train.files[rows.tolist()]["image"], rows, strict=True):
        image = PIL.Image.open(file["path"])
        assert np.array_equal(numbers, view(image, PICTURE, draw(Epoch(7, 2), int(row))))


def test_without_labels(folder: Path) -> None:
    found = read(task_of(Source(str(folder))), labelled=False)
    assert found.classes is None
    assert found.references == []
    assert found.num_targets.tolist() == [0] * 13
    batch = found.batch(np.array([0, 1]))
    assert batch.tensors["labels"].tolist() == [IGNORED] * 2
    assert (batch.num_targets, batch.num_pictures) == (0, 2)


def test_a_file_with_nothing_but_paths(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 2})
    (tmp_path / "asked.csv").write_text("image\ntrain/light/001.png\ntrain/dark/000.png\n")
    source = Source("csv", files={"train": str(tmp_path / "asked.csv")})
    found = read(task_of(source), labelled=False)
    assert found.num_rows == 2
    assert [Path(file["path"]).name for file in found.files["image"]] == ["001.png", "000.png"]


def loaders(train: Pictures, *, world: int, micro: int, seed: int = 7) -> list[TrainLoader]:
    return [
        TrainLoader(
            train,
            batch_size=6,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
            seed=seed,
            pad_id=None,
        )
        for rank in range(world)
    ]


def by_row(batches: list[Batch]) -> dict[int, tuple[list[float], int]]:
    """Row -> its numbers and its label; fillers are looked at and left out."""
    found = {}
    for batch in batches:
        for row, pixels, label in zip(batch.rows, *batch.tensors.values(), strict=True):
            if row == FILLER:
                assert (pixels.unique().tolist(), int(label)) == ([0.0], IGNORED)
                assert (batch.num_targets, batch.num_pictures, len(batch.rows)) == (0, 0, 1)
                continue
            assert int(row) not in found
            found[int(row)] = (pixels.flatten().tolist(), int(label))
    return found


def step_of(loaders: list[TrainLoader], index: int) -> dict[int, tuple[list[float], int]]:
    steps = [loader.step(index) for loader in loaders]
    found = by_row([batch for step in steps for batch in step.micro_batches])
    assert {step.num_targets for step in steps} == {len(found)}
    return found


@pytest.mark.parametrize(("world", "micro"), LAYOUTS)
def test_pictures_are_the_same_at_any_world_size(train: Pictures, world: int, micro: int) -> None:
    alone, ranks = loaders(train, world=1, micro=6), loaders(train, world=world, micro=micro)
    for index in (0, 2, 4):
        expected = step_of(alone, index)
        assert len(expected) == (1 if index == 2 else 6)
        assert step_of(ranks, index) == expected


def epoch_of(loader: TrainLoader, epoch: int) -> dict[int, tuple[list[float], int]]:
    steps = [step_of([loader], 3 * epoch + index) for index in range(3)]
    return {row: seen for step in steps for row, seen in step.items()}


def test_a_picture_looks_different_in_every_epoch_and_with_every_seed(train: Pictures) -> None:
    (loader,), (other,) = (loaders(train, world=1, micro=6, seed=seed) for seed in (7, 8))
    views = [epoch_of(loader, 0), epoch_of(loader, 1), epoch_of(other, 0)]
    for row in range(13):
        assert len({tuple(seen[row][0]) for seen in views}) == 3
        assert len({seen[row][1] for seen in views}) == 1


def test_without_augmentation_training_sees_what_evaluation_sees(folder: Path) -> None:
    task = task_of(Source(str(folder)), picture=replace(PICTURE, augment=False))
    (loader,) = loaders(read(task), world=1, micro=6)
    expected = by_row([read(task).batch(np.arange(13))])
    assert epoch_of(loader, 0) == epoch_of(loader, 1) == expected


@pytest.mark.parametrize(("world", "micro"), LAYOUTS)
def test_evaluation_sees_every_picture_once(train: Pictures, world: int, micro: int) -> None:
    ranks = [
        EvalLoader(train, micro_batch_size=micro, rank=rank, world_size=world, pad_id=None)
        for rank in range(world)
    ]
    batches = [list(loader) for loader in ranks]
    assert {len(part) for part in batches} == {len(ranks[0])}
    assert by_row([b for part in batches for b in part]) == by_row([train.batch(np.arange(13))])


def test_ranks_make_batches_together(train: Pictures) -> None:
    calls = []

    def together(make: Callable[[], Any]) -> Any:
        calls.append(make)
        return make()

    options: dict[str, Any] = {"rank": 0, "world_size": 1, "pad_id": None, "together": together}
    TrainLoader(train, batch_size=6, micro_batch_size=2, seed=0, **options).step(0)
    assert len(calls) == 1
    list(EvalLoader(train, micro_batch_size=5, **options))
    assert len(calls) == 4


def test_pictures_are_decoded_when_a_batch_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Any] = []
    original = module._decode
    monkeypatch.setattr(module, "_decode", lambda file: decoded.append(file) or original(file))
    train = read(task_of(Source(str(folder))))
    assert train.fingerprint
    (loader,) = loaders(train, world=1, micro=6)
    assert len(decoded) == 0
    loader.step(0)
    assert len(decoded) == 6


def test_a_choice_of_rows(folder: Path, tmp_path: Path) -> None:
    task = task_of(parquet(folder, tmp_path))
    rows: Any = load_split(task.source, "train", pictures="image")
    chosen = encode(task, rows.select([9, 2]), tokenizer=None, form="head")
    whole = read(task)
    for place, row in enumerate((9, 2)):
        one, other = chosen.batch(np.array([place]), pad_id=None), whole.batch(np.array([row]))
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    levels = np.zeros((8, 16, 3), np.uint8)
    levels[:, 8:] = 255  # the right half, which is to be the lower one
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(levels).save(tmp_path / "a.png", exif=exif)
    rows = Dataset.from_dict({"image": [str(tmp_path / "a.png")]})
    task = task_of(Source("x"), picture=Picture(size=8, resize=8))
    batch = encode(task, rows, tokenizer=None, form="head", labelled=False).batch(  # type: ignore[arg-type]
        np.array([0]), pad_id=None
    )
    seen = batch.tensors["pixel_values"][0, 0]
    assert seen[0].max() < 0.1
    assert seen[-1].min() > 0.9


def test_fingerprints_tell_rows_apart_and_not_where_they_lie(
    folder: Path, train: Pictures, tmp_path: Path
) -> None:
    same = train.fingerprint
    assert len(same) == 32
    write_pictures(tmp_path / "moved", COUNTS)
    assert read(task_of(Source(str(tmp_path / "moved")))).fingerprint == same
    others = [
        task_of(Source(str(folder), splits={"train": "train[:12]"})),
        task_of(Source(str(folder), splits={"train": "train[1:]+train[:1]"})),
        task_of(Source(str(folder)), labels=("light", "dark")),
        task_of(Source(str(folder)), picture=replace(PICTURE, augment=False)),
        task_of(Source(str(folder)), picture=replace(PICTURE, mean=(0.5, 0.5, 0.5))),
    ]
    found = [read(task).fingerprint for task in others]
    (tmp_path / "moved" / "train" / "dark" / "000.png").rename(
        tmp_path / "moved" / "train" / "dark" / "other.png"
    )
    found.append(read(task_of(Source(str(tmp_path / "moved")))).fingerprint)
    assert len({same, *found}) == 7
    of_bytes = read(task_of(parquet(folder, tmp_path)))
    assert of_bytes.fingerprint != same, "sizes are known of bytes alone"


def test_fingerprints_tell_what_pictures_show(folder: Path, tmp_path: Path) -> None:
    """Whatever their sizes and times say; in files and in the table itself."""
    write_pictures(tmp_path / "own", COUNTS)
    first = tmp_path / "own" / "train" / "dark" / "000.png"
    of_files = read(task_of(Source(str(tmp_path / "own")))).fingerprint
    of_bytes = read(task_of(parquet(tmp_path / "own", tmp_path))).fingerprint
    assert read(task_of(parquet(tmp_path / "own", tmp_path))).fingerprint == of_bytes
    content, times = first.read_bytes(), first.stat()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read(task_of(Source(str(tmp_path / "own")))).fingerprint != of_files
    assert read(task_of(parquet(tmp_path / "own", tmp_path))).fingerprint != of_bytes


@pytest.mark.parametrize("name", ["https://x.org/a.png", "zip://a.png::b.zip", "file:///etc/a.png"])
def test_an_address_is_no_picture(name: str, tmp_path: Path) -> None:
    assert "allowed: files that exist" in refused(write_csv(tmp_path, [name]))


def test_a_fifo_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="it is a fifo"):
        read(write_csv(tmp_path, ["a.png"])).batch(np.array([0]))


def write_csv(folder: Path, names: list[str]) -> Task:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,label", *(f"{name},dark" for name in names)]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return task_of(Source("csv", files={"train": str(folder / "train.csv")}))


def test_missing_files_are_refused_together(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 2})
    names = ["train/dark/000.png", "gone.png", "no/folder.png", "train/dark", "train/light/001.png"]
    message = refused(write_csv(tmp_path, [*names[:3], "", *names[3:]]))
    assert "column 'image': 2 of 6 rows cannot be used (row 1: '" in message
    assert "/gone.png', row 2: '" in message
    assert "/no/folder.png'); allowed: files that exist" in message
    assert "1 of 6 rows cannot be used (row 3: None); allowed: pictures" in message


def test_a_file_that_is_gone_since_the_folder_was_read(tmp_path: Path) -> None:
    first, *_ = write_pictures(tmp_path, {"train": 6})
    task = task_of(Source(str(tmp_path)))
    rows: Any = load_split(task.source, "train")
    first.unlink()
    with pytest.raises(DataError, match="row 0: .*; allowed: files that exist"):
        encode(task, rows, tokenizer=None, form="head")


def test_paths_that_start_from_several_folders(tmp_path: Path) -> None:
    _, second = write_pictures(tmp_path, {"train": 2})
    tasks = [write_csv(tmp_path / name, ["../train/dark/000.png", str(second)]) for name in "ab"]
    files: Any = {"train": [str(tmp_path / name / "train.csv") for name in "ab"]}
    message = refused(replace(tasks[0], source=Source("csv", files=files)))
    assert "2 of 4 rows cannot be used (row 0: '../train/dark/000.png', row 2: " in message
    assert "allowed: paths from the root, since the files of this split lie in several" in message
    assert read(tasks[0]).num_rows == 2


def test_broken_pictures_are_refused_with_their_rows(tmp_path: Path) -> None:
    train = write_pictures(tmp_path, {"train": 6})
    dark = [path for path in train if path.parent.name == "dark"]
    dark[1].write_bytes(b"no picture")
    dark[2].write_bytes(dark[2].read_bytes()[:90])
    pictures = read(task_of(Source(str(tmp_path))))
    assert pictures.batch(np.array([0, 3, 4])).num_pictures == 3
    with pytest.raises(DataError) as caught:
        pictures.batch(np.arange(6))
    one, two = caught.value.faults
    assert one.startswith(f"column 'image': row 1 ('{dark[1]}') cannot be decoded: cannot identify")
    assert two.startswith(f"column 'image': row 2 ('{dark[2]}') cannot be decoded: ")
    assert two.endswith("; allowed: a whole picture of 8 bits a channel")


def test_broken_bytes(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"image": [b"no picture"], "label": ["dark"]})
    pictures = encode(task_of(Source("x")), rows, tokenizer=None, form="head")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="column 'image': row 0 cannot be decoded: cannot identify"):
        pictures.batch(np.array([0]), pad_id=None)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "int64"), ([[1, 2], [3]], "List"), ([None, None], "null"), ([{"a": 1}] * 2, "'a'")],
)
def test_columns_that_hold_no_pictures(values: list[Any], kind: str) -> None:
    rows = Dataset.from_dict({"image": values, "label": ["dark", "light"]})
    with pytest.raises(DataError) as caught:
        encode(task_of(Source("x")), rows, tokenizer=None, form="head")  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("column 'image' holds ")
    assert kind in message
    assert message.endswith("allowed: pictures, their bytes, or paths of picture files")


def test_rows_without_a_picture_and_labels_that_are_not_allowed(tmp_path: Path) -> None:
    first, *_ = write_pictures(tmp_path, {"train": 2})
    files = [None, {"path": str(first), "bytes": None}, {"path": None, "bytes": None}]
    kinds = {"path": Value("string"), "bytes": Value("binary")}
    rows = Dataset.from_dict(
        {"image": files, "label": ["dark", "bright", "light"]},
        features=Features({"image": kinds, "label": Value("string")}),
    )
    with pytest.raises(DataError) as caught:
        encode(task_of(Source("x")), rows, tokenizer=None, form="head")  # type: ignore[arg-type]
    pictures, labels = caught.value.faults
    assert "2 of 3 rows cannot be used (row 0: None, row 2: None); allowed: pictures" in pictures
    assert "column 'label': 1 of 3 rows cannot be used (row 1: 'bright'); allowed" in labels


def test_missing_columns(folder: Path) -> None:
    assert "column 'img' is missing; columns: image, label" in refused(
        task_of(Source(str(folder)), template="{img}")
    )


def test_forms_that_pictures_cannot_take(folder: Path) -> None:
    task = task_of(Source(str(folder)))
    with pytest.raises(ConfigError, match="cannot take form 'choice'; allowed: head$"):
        encode(task, load_split(task.source, "train"), tokenizer=None, form="choice")


def test_a_saved_table_keeps_its_own_pictures(folder: Path, tmp_path: Path) -> None:
    source = saved(folder, tmp_path)
    column = load_from_disk(source.path)["train"].features["image"]
    assert isinstance(column, Image), "what the other tests take for granted"
