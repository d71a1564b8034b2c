import importlib.resources
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinterp.tasks import countdown_corpus, countdown_tokenizer
from jaxinterp.tasks.countdown_corpus import CorpusSettings
from jaxinterp.tasks.countdown_grammar import STYLES
from jaxinterp.tasks.countdown_problems import ProblemSettings
from jaxinterp.tasks.tokenizer import Tokenizer

TOKENIZER = countdown_tokenizer.tokenizer()
SHIPPED = importlib.resources.files("jaxinterp") / "data" / "checkpoints" / "countdown-6m-sft"


@pytest.fixture(scope="module")
def shipped():
    with importlib.resources.as_file(SHIPPED) as folder:
        return Tokenizer.from_folder(folder)


def test_it_is_the_tokenizer_that_ships(shipped):
    made = json.loads(countdown_tokenizer.tokenizer_json())
    assert made == json.loads((SHIPPED / "tokenizer.json").read_text())
    assert made["model"]["vocab"] == {token: number for number, token in enumerate(countdown_tokenizer.vocabulary())}
    assert (TOKENIZER.vocabulary, TOKENIZER.pad, TOKENIZER.eos, TOKENIZER.unk, TOKENIZER.bos) == (76, 0, 1, 2, None)
    assert (shipped.vocabulary, shipped.pad, shipped.eos) == (76, 0, 1)


@given(
    st.integers(0, 2**40),
    st.sampled_from([*STYLES, "question"]),
    st.sampled_from([(2,), (3,), (4,), (5,)]),
    st.sampled_from(["confounded", "equal"]),
)
def test_documents_of_every_style_round_trip(index, style, operands, search):
    settings = CorpusSettings(
        problems=ProblemSettings(operands=operands, leading=0.5),
        styles=tuple(float(name == style) for name in STYLES) if style != "question" else (1.0,) * 7,
        verification=float(style == "question"),
        search=search,
    )
    prompt, response = countdown_corpus.document(index, 3, settings)
    ids = TOKENIZER.encode(prompt + response)
    assert TOKENIZER.encode(prompt) + TOKENIZER.encode(response) == ids
    assert TOKENIZER.decode(ids) == prompt + response
    assert TOKENIZER.unk not in ids


@given(st.integers(0, 2**40), st.data())
def test_it_cuts_as_the_shipped_one_wherever_a_text_is_broken_off(shipped, index, data):
    text = "".join(countdown_corpus.document(index, 5))
    start = data.draw(st.integers(0, len(text)))
    for part in (text[start:], text[:start], data.draw(st.text())):
        assert TOKENIZER.encode(part) == shipped.encode(part)
