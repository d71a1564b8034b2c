import dataclasses

import numpy as np
import polars as pl
import pytest

from jaxinterp.analysis import concept_vectors
from jaxinterp.experiments import alignment, steering
from jaxinterp.experiments.emb2emb import texts
from jaxinterp.experiments.emb2emb.vectors import REMOVED
from jaxinterp.tasks import concepts
from tests.experiments import words

MAPS = alignment.Config(
    held_out=10,
    pairs=(),
    permutations=2,
    null_tokens=50,
    rank_bins=2,
    rank_permutations=2,
    resamples=2,
    shuffled_maps=4,
)
CONFIG = steering.Config(
    concepts=("sentiment", "ocean", "cheerful answer"),
    depths=(0.2, 0.6),
    scales=(1.0, 3.0),
    prompts=4,
    random_vectors=20,
    shuffled_maps=4,
    plain_texts=2,
    random_texts=2,
    samples=2,
    sample_tokens=3,
)


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    return words.related_pair(tmp_path_factory.mktemp("related"))


@pytest.fixture(scope="module")
def inputs(related):
    return {"alignment": alignment.run(MAPS, related)[1].values}


@pytest.fixture(scope="module")
def steered(related, inputs):
    maps = inputs["alignment"]
    hidden = {f"{way}/{depth}": maps[f"{way}/least_squares"] for way in steering.DIRECTIONS for depth in CONFIG.depths}
    return steering.run(CONFIG, related, inputs | {"hidden_states": hidden})


def pick(table, **where):
    return table.filter(*(pl.col(name) == value for name, value in where.items()))


def test_planted_concepts_steer_their_own_model_and_the_other(steered):
    claims = steering.check(steered)
    assert len(claims) == 2 * 2 * 2 + 1
    assert all(claim.met for claim in claims), [claim for claim in claims if not claim.met]
    assert "ocean" in claims[-1].control.split(";")[0]
    ratios = pick(steered, measure="carried / native", vector="least squares", concept="sentiment")
    assert ratios["value"].min() > 0.7 and (ratios["low"] <= ratios["value"]).all()


def test_unrelated_models_do_not_steer_each_other(tmp_path):
    models = words.random_pair(tmp_path)
    few = dataclasses.replace(CONFIG, concepts=("sentiment", "ocean"), samples=0)
    table = steering.run(few, models, {"alignment": alignment.run(MAPS, models)[1].values})
    claims = steering.check(table)
    assert len(claims) == 9 and not claims[-1].met
    assert sum(claim.met for claim in claims if "shuffled maps" in claim.criterion) <= 1


def test_vectors_that_act_on_the_logits_alone_have_a_direct_share_of_one(steered):
    shares = pick(steered, measure="direct path / full", concept="sentiment")["value"]
    assert len(shares) == 2 * 2 * 5
    np.testing.assert_allclose(shares, 1, atol=1e-3)
    left = pick(steered, measure="without scored words / full", concept="sentiment", vector=f"native{REMOVED}")
    assert left["value"].abs().max() < 0.3


def test_a_map_of_hidden_states_stands_beside_those_of_the_alignment(steered):
    values = {
        name: pick(steered, stage="effect", vector=name).sort("direction", "concept", "depth")["value"].to_numpy()
        for name in ("least squares", "hidden states")
    }
    np.testing.assert_allclose(values["least squares"], values["hidden states"], atol=1e-5)


def test_every_effect_has_its_nulls_and_doses_agree_with_it(steered):
    effects = pick(steered, stage="effect")
    counts = effects.group_by("direction", "concept", "depth", "vector").len()
    assert set(counts.filter(pl.col("vector") == "random")["len"]) == {CONFIG.random_vectors}
    assert set(counts.filter(pl.col("vector") == "shuffled")["len"]) == {CONFIG.shuffled_maps}
    assert effects.filter(pl.col("control"))["vector"].unique().sort().to_list() == ["random", "shuffled"]
    keys = ["direction", "concept", "depth", "vector"]
    doses = pick(steered, stage="dose").filter(pl.col("scale").abs() == 1).sort("scale")
    halves = doses.group_by(keys, maintain_order=True).agg((pl.col("value").last() - pl.col("value").first()) / 2)
    both = halves.join(effects, on=keys, suffix="_effect")
    assert len(both) == 2 * 3 * 2 * 3
    np.testing.assert_allclose(both["value"], both["value_effect"], atol=1e-5)


def test_vectors_say_the_same_in_both_vocabularies_and_random_ones_do_not(steered):
    overlaps = pick(steered, stage="readout", measure="rank correlation", concept="sentiment")
    carried = overlaps.filter(pl.col("vector") == "least squares")["value"].to_numpy()
    assert carried.min() > 0.6
    null = overlaps.filter(pl.col("vector") == "random")
    assert (null["high"].to_numpy() < carried.min()).all() and (null["n"] == CONFIG.random_vectors).all()
    assert pick(steered, stage="readout", vector="least squares")["text"].drop_nulls().str.contains("|").all()


def test_every_condition_writes_its_texts_and_has_its_cost(steered):
    samples = pick(steered, stage="sample")
    assert set(samples["vector"]) == {"none", "native", "least squares", "hidden states", "random"}
    assert samples["text"].str.contains("|", literal=True).all()
    assert set(samples["concept"]) == {"sentiment", "ocean"}
    means = pick(steered, stage="generation", vector="random")
    assert (means["n"] == CONFIG.samples * CONFIG.random_texts).all() and means["control"].all()
    costs = pick(steered, stage="cost", measure="perplexity ratio")
    assert len(costs) == 2 * (3 * 3 + CONFIG.random_texts) and (costs["value"] > 0).all()
    letters = pick(steered, stage="cost", measure="P(A) + P(B)", concept="cheerful answer")
    assert letters["value"].is_between(0, 1).all() and len(letters) == 2 * 4


def test_words_that_judge_texts_are_counted_whole_and_against_their_opposites():
    assert texts.judge_words("The Ocean and the coast; oceanic? A bride.", concepts.CONCEPTS["ocean"]) == 100 * 2 / 8
    assert texts.judge_words("a great and terrible, terrible film", concepts.CONCEPTS["sentiment"]) == -100 / 6
    assert texts.judge_words("", concepts.CONCEPTS["ocean"]) == 0


def test_the_figure_has_effects_doses_and_words_for_each_direction(steered):
    drawn = steering.figure(steered)
    doses = 3 * len(CONFIG.concepts) + 1
    assert len(drawn.axes) == 2 * (len(CONFIG.depths) + doses + 1)


def test_activation_differences_are_means_over_tokens_but_the_first(related):
    model = related["source"]
    tokenizer, table = model.require_tokenizer(), np.asarray(model.weights()["W_E"])
    pairs = [("a wedding ceremony", "an odd train"), ("sea", "tree house")]
    found = concept_vectors.activation_differences(model, pairs, [0, 1])

    def mean(text):
        return table[tokenizer.encode(text)[1:]].mean(axis=0)

    expected = np.stack([mean(about) - mean(other) for about, other in pairs])
    np.testing.assert_allclose(found, np.stack([expected, expected]), atol=1e-4)


def test_split_halves_agree_on_a_planted_direction_and_not_on_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 20, 64))
    direction = np.zeros((2, 1, 64))
    direction[0, 0, 0] = 10
    cosines = concept_vectors.split_half_cosine(noise + direction, splits=10, seed=0)
    assert cosines[0] > 0.8 and abs(cosines[1]) < 0.3


def test_wrong_inputs_are_refused_in_a_sentence(related, inputs):
    with pytest.raises(ValueError, match="beside nulls"):
        steering.run(dataclasses.replace(CONFIG, random_vectors=0), related, inputs)
    with pytest.raises(ValueError, match="there is no concept 'bees'"):
        steering.run(dataclasses.replace(CONFIG, concepts=("bees",)), related, {})
    with pytest.raises(ValueError, match="can be named once"):
        steering.run(dataclasses.replace(CONFIG, concepts=("ocean", "ocean")), related, {})
    with pytest.raises(ValueError, match="needs the arrays of the alignment"):
        steering.run(CONFIG, related, {})
    with pytest.raises(ValueError, match="have no 'source to target/ridge'"):
        steering.run(CONFIG, related, {"alignment": {"source to target/least_squares": np.zeros((24, 32))}})
    maps = dict.fromkeys(inputs["alignment"], np.zeros((3, 4)))
    with pytest.raises(ValueError, match="from 3 to 4 dimensions"):
        steering.run(CONFIG, related, {"alignment": maps})
    with pytest.raises(ValueError, match=r"hidden_states have no 'source to target/0.2'"):
        steering.run(CONFIG, related, inputs | {"hidden_states": {}})
