import dataclasses
import types

import numpy as np
import pytest

from jaxinterp.analysis import token_agreement
from jaxinterp.experiments import intrinsic_dimension
from jaxinterp.tasks import wordnet

CONFIG = intrinsic_dimension.Config(
    neighbours=(8, 24),
    queries=260,
    coherence_size=24,
    coherence_neighbours=10,
    gaussian_queries=60,
    variant_queries=20,
    global_tokens=400,
    examples=3,
    rank_bins=5,
    permutations=200,
    resamples=100,
)
TOPICS, SIZE, LOOSE = 10, 26, 340


class Words:
    """A tokenizer of words with a space before them; in another model they have other ids."""

    def __init__(self, words):
        self.words = words
        self.vocabulary = len(words)

    def token_bytes(self, token_id):
        return f" {self.words[token_id]}".encode()


def model(name, words, table):
    """All that the experiment reads of a model."""
    return types.SimpleNamespace(source=name, require_tokenizer=lambda: Words(words), token_table=lambda _: table)


@pytest.fixture(scope="module")
def topics():
    """Words that one synset joins, topic after topic, and then as many that nothing joins."""
    net = wordnet.load()
    rng = np.random.default_rng(0)
    names = {}
    for lemma, (first, *_) in sorted(net.senses["n"].items(), key=lambda item: len(item[0])):
        if lemma.isascii() and len(lemma) >= 4 and not lemma.endswith("s") and len(net.synsets(lemma)) == 1:
            names.setdefault(first, lemma)
    found, used = [], set()
    for place in rng.permutation(len(net.pointers)).tolist():
        members = [names[other] for other in net.pointers[place] if other in names and names[other] not in used]
        if len(members) >= SIZE and len(net.pointers[place]) < 60:
            found.append(members[:SIZE])
            used.update(members[:SIZE])
        if len(found) == TOPICS:
            break
    loose = [word for word in rng.permutation(sorted(names.values())).tolist() if word not in used][:LOOSE]
    return [word for topic in found for word in topic] + loose


def planted(words, *, seed=0):
    """Topics are tight and flat, other words lie in all directions; the second table is the first, turned."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(len(words), 40))
    for topic in range(TOPICS):
        plane = np.linalg.qr(rng.normal(size=(40, 3)))[0].T
        rows = slice(topic * SIZE, (topic + 1) * SIZE)
        table[rows] = 3 * rng.normal(size=40) + 1.5 * rng.normal(size=(SIZE, 3)) @ plane + 0.1 * table[rows]
    turn = np.linalg.qr(rng.normal(size=(48, 48)))[0][:40]
    second = table @ turn + 0.05 * rng.normal(size=(len(words), 48))
    return shuffled(words, table.astype(np.float32), second.astype(np.float32), rng)


def shuffled(words, first, second, rng):
    """Two models with these rows for the words, the ids of each drawn at random."""
    orders = [rng.permutation(len(words)) for _ in range(2)]
    return {
        name: model(name, [words[place] for place in order], table[order])
        for name, order, table in zip(("one", "two"), orders, (first, second), strict=True)
    }


@pytest.fixture(scope="module")
def related(topics):
    return intrinsic_dimension.run(CONFIG, planted(topics))


@pytest.fixture(scope="module")
def unrelated(topics):
    rng = np.random.default_rng(1)
    tables = (rng.normal(size=(len(topics), width)).astype(np.float32) for width in (40, 48))
    return intrinsic_dimension.run(CONFIG, shuffled(topics, *tables, rng))


def one(table, measure, **where):
    return table.filter(measure=measure, **where).row(0, named=True)


def test_planted_structure_is_found(related):
    claims = intrinsic_dimension.check(related)
    assert len(claims) == 10 and all(claim.met for claim in claims), [claim for claim in claims if not claim.met]
    assert all(claim.control and claim.n and np.isfinite([claim.ours, claim.low, claim.high]).all() for claim in claims)
    r = one(related, "Pearson", k=24)
    assert r["value"] > 0.9 and r["low"] < r["value"] < r["high"]
    assert one(related, "Pearson given rank and norm", k=24)["value"] > 0.5
    assert one(related, "p, relabelled within rank bins", k=24)["value"] == pytest.approx(1 / 201)
    near, random = (one(related, f"of {which}", model="one")["value"] for which in ("neighbours", "random words"))
    assert random < 0.1 < near


def test_tables_without_structure_show_none(unrelated):
    claims = intrinsic_dimension.check(unrelated)
    assert not any(claim.met for claim in claims)
    assert abs(one(unrelated, "Pearson", k=24)["value"]) < 0.2
    assert abs(one(unrelated, "share below", k=24, variant="Gaussian")["value"]) < 0.03
    assert abs(one(unrelated, "Spearman", k=24, model="two")["value"]) < 0.25


def test_every_number_is_there_with_its_count(related):
    assert related.filter(part="tokens")["value"].to_list() == [600, 600]
    for name in ("one", "two"):
        for variant in intrinsic_dimension.VARIANTS:
            assert one(related, "components", part="variant", model=name, variant=variant)["n"] == 20
        assert one(related, "by decile", model=name, k=24, place=9)["n"] == 26
        examples = related.filter(part="example", model=name)
        assert examples["measure"].to_list() == ["lowest"] * 3 + ["highest"] * 3
        assert examples["text"].str.count_matches(", ").to_list() == [7] * 6
        assert examples["value"].to_list()[0] < examples["value"].to_list()[3]
        assert related.filter(part="word", model=name, control=False)["token"].n_unique() == 260
    ninety, ninety_nine = (
        one(related, "components", variant=f"{share} % of the variance", model="one")["value"] for share in (90, 99)
    )
    assert ninety < one(related, "components", variant="as above", model="one")["value"] < ninety_nine
    whole = related.filter(part="whole", model="one")
    assert whole["value"][0] < whole["value"][1:].min() and whole["n"].to_list() == [400] * 3


def test_frequency_alone_is_not_agreement():
    rng = np.random.default_rng(0)
    rank = rng.normal(size=500)
    first, second = rank + rng.normal(size=500), rank + rng.normal(size=500)
    assert token_agreement.pearson(first, second) > 0.35
    assert abs(token_agreement.partial_correlation(first, second, rank[:, None])) < 0.1


def test_one_model_is_enough_and_results_do_not_depend_on_when_they_are_made(topics):
    small = dataclasses.replace(CONFIG, neighbours=(8,), coherence_size=8, permutations=5, resamples=10)
    models = {"only": planted(topics)["one"]}
    first, again = (intrinsic_dimension.run(small, models) for _ in range(2))
    assert first.equals(again)
    assert len(intrinsic_dimension.check(first)) == 4
    assert len(intrinsic_dimension.figure(first).axes) == 3


def test_the_figure_is_drawn_from_the_table(related):
    drawn = intrinsic_dimension.figure(related)
    assert len(drawn.axes) == 4 and all(axes.get_title(loc="left") for axes in drawn.axes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"queries": 10_000}, "600 of them words, but 10000 words are to be looked at"),
        ({"neighbours": (24, 8)}, "sizes in rising order"),
        ({"coherence_size": 7}, "one of the neighbours"),
        ({"neighbours": (24, 700)}, "k is 700, but there are 599 vectors to choose from"),
    ],
)
def test_settings_that_do_not_fit_are_refused(topics, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        intrinsic_dimension.run(dataclasses.replace(CONFIG, **changes), planted(topics))


def test_models_that_share_nothing_are_refused(topics):
    models = {"one": planted(topics)["one"], "two": model("two", ["qqq", "zzz"], np.eye(2, dtype=np.float32))}
    with pytest.raises(ValueError, match="share no token by bytes"):
        intrinsic_dimension.run(CONFIG, models)
    with pytest.raises(ValueError, match="pass --model ROLE=MODEL"):
        intrinsic_dimension.run(CONFIG, {})
