from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import transformers

from scalepet.backbones import Backbone, load_tokenizer
from scalepet.errors import ConfigError

TEXTS = ["hello world", "the lazy fox, a good film"]


@pytest.fixture
def t5_folder(tmp_path: Path, spiece: bytes) -> Path:
    transformers.T5Config().save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "spiece.model").write_bytes(spiece)
    return tmp_path / "t5"


def test_sentencepiece(t5_folder: Path, spiece: bytes) -> None:
    tokenizer = load_tokenizer(Backbone(str(t5_folder)))
    reference = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    assert tokenizer(TEXTS)["input_ids"] == [[*reference.encode(text), 1] for text in TEXTS]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.padding_side == "right"
    ids = tokenizer(["hello world"])["input_ids"]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == ["hello world"]


def test_a_fast_tokenizer_alone(t5_folder: Path, tmp_path: Path) -> None:
    slow = load_tokenizer(Backbone(str(t5_folder)))
    slow.save_pretrained(tmp_path / "fast")
    assert not (tmp_path / "fast" / "spiece.model").exists()
    assert (tmp_path / "fast" / "tokenizer.json").exists()
    fast = load_tokenizer(Backbone("no/where"), path=str(tmp_path / "fast"))
    assert fast(TEXTS)["input_ids"] == slow(TEXTS)["input_ids"]


def test_a_tokenizer_that_pads_on_the_left_is_told_to_pad_on_the_right(t5_folder: Path) -> None:
    (t5_folder / "tokenizer_config.json").write_text(json.dumps({"padding_side": "left"}))
    tokenizer = load_tokenizer(Backbone(str(t5_folder)))
    padded = tokenizer(TEXTS, padding=True)["attention_mask"]
    assert padded[0][0] == 1
    assert padded[0][-1] == 0


def test_the_vocabulary_of_bert(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = load_tokenizer(Backbone(str(tmp_path)), vocab_size=8)
    assert tokenizer("hello worlds there")["input_ids"] == [2, 5, 6, 7, 1, 3]


def test_beside_a_config_file_lies_its_tokenizer(t5_folder: Path) -> None:
    beside = load_tokenizer(Backbone(str(t5_folder / "config.json"), random_start=True))
    assert (
        beside(TEXTS)["input_ids"] == load_tokenizer(Backbone(str(t5_folder)))(TEXTS)["input_ids"]
    )


@pytest.mark.parametrize("config", [transformers.T5Config, transformers.BertConfig])
def test_no_file_is_no_empty_vocabulary(tmp_path: Path, config: type) -> None:
    """transformers makes a tokenizer out of nothing, to which every word is unknown."""
    config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"backbone.tokenizer.*no vocabulary.*spiece.model"):
        load_tokenizer(Backbone(str(tmp_path)))


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model", "vocab.txt"])
def test_a_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    config = transformers.BertConfig() if name == "vocab.txt" else transformers.T5Config()
    config.save_pretrained(tmp_path)
    (tmp_path / name).write_text("garbage")
    with pytest.raises(ConfigError, match="backbone.tokenizer: none can be loaded"):
        load_tokenizer(Backbone(str(tmp_path)))


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone.tokenizer: .*nowhere.*allowed: a hub name"):
        load_tokenizer(Backbone("no/where"), path=str(tmp_path / "nowhere"))


def test_more_tokens_than_the_model_knows_are_refused(t5_folder: Path) -> None:
    num_tokens = len(load_tokenizer(Backbone(str(t5_folder)), vocab_size=1000))
    with pytest.raises(ConfigError, match=rf"has {num_tokens} tokens, .* knows {num_tokens - 1};"):
        load_tokenizer(Backbone(str(t5_folder)), vocab_size=num_tokens - 1)


def test_no_padding_token_is_refused(t5_folder: Path) -> None:
    tokenizer = load_tokenizer(Backbone(str(t5_folder)))
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    bare.save_pretrained(t5_folder / "bare")
    with pytest.raises(ConfigError, match="has no padding token"):
        load_tokenizer(Backbone("no/where"), path=str(t5_folder / "bare"))
