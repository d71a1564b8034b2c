import dataclasses

import numpy as np
import polars as pl
import pytest

from jaxinterp.analysis import concept_vectors
from jaxinterp.analysis.concept_vectors import Push
from jaxinterp.experiments import alignment, steering
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
    shuffled_maps=3,
)
CONFIG = steering.Config(
    concepts=("wedding", "ocean"),
    depths=(0.2, 0.6),
    scales=(1.0, 3.0),
    most_kl=8.0,
    selection_prompts=2,
    evaluation_prompts=6,
    random_vectors=8,
    shuffled_maps=3,
    rows=16,
    samples=2,
    sample_tokens=4,
)


@pytest.fixture(scope="module")
def related(tmp_path_factory):
    return words.related_pair(tmp_path_factory.mktemp("related"))


@pytest.fixture(scope="module")
def steered(related):
    return steering.run(CONFIG, related, {"alignment": alignment.run(MAPS, related)[1].values})


def evaluated(table):
    return table.filter(pl.col("stage") == "evaluation", pl.col("measure") == "contrast")


def test_planted_concepts_steer_their_own_model_and_the_other(steered):
    claims = steering.check(steered)
    assert len(claims) == 2 * 2 * 2 * 2
    assert all(claim.met for claim in claims), [claim for claim in claims if not claim.met]
    ratios = steered.filter(pl.col("measure") == "transferred / native")
    assert ratios["value"].min() > 0.7 and (ratios["low"] <= ratios["value"]).all()


def test_vectors_that_act_on_the_logits_alone_have_a_direct_share_of_one(steered):
    shares = steered.filter(pl.col("measure") == "direct path / full")["value"]
    assert len(shares) == 16
    np.testing.assert_allclose(shares, 1, atol=1e-3)


def test_unrelated_models_do_not_steer_each_other(tmp_path):
    models = words.random_pair(tmp_path)
    table = steering.run(CONFIG, models, {"alignment": alignment.run(MAPS, models)[1].values})
    carried = [claim for claim in steering.check(table) if "carried" in claim.criterion]
    assert sum(claim.met for claim in carried) <= 2


def test_layers_and_scales_are_those_that_were_best_within_the_allowed_shift(steered):
    keys = ["direction", "concept", "kind", "vector", "draw"]
    grid = steered.filter(pl.col("stage") == "selection")
    moved = grid.filter(pl.col("measure") == "KL")
    assert ((moved["value"] <= CONFIG.most_kl) == moved["allowed"]).all()
    tried = grid.filter(pl.col("measure") == "contrast", pl.col("allowed"))
    best = tried.group_by(keys).agg(best=pl.col("value").max())
    chosen = evaluated(steered).join(tried, on=[*keys, "layer", "scale"], suffix="_tried").join(best, on=keys)
    assert len(chosen) == len(evaluated(steered)) > 50
    np.testing.assert_allclose(chosen["value_tried"], chosen["best"], atol=1e-6)


def test_every_condition_writes_its_texts(steered):
    samples = steered.filter(pl.col("stage") == "sample")
    counts = samples.group_by("direction", "concept", "vector").len()
    assert set(counts["vector"]) == {"none", "native", "transferred", "random"}
    assert samples["text"].str.contains("|", literal=True).all() and samples["value"].is_between(0, 1).all()


def test_the_share_of_concept_words_counts_whole_words():
    text = "The Ocean and the waves; oceanic? A bride."
    assert steering.concept_share(text, concepts.OCEAN) == 2 / 8
    assert steering.concept_share("", concepts.OCEAN) == 0


def test_the_figure_has_two_panels_for_each_direction_and_concept(steered):
    assert len(steering.figure(steered).axes) == 2 * 2 * 2


def test_activation_differences_are_means_over_tokens_but_the_first(related):
    model = related["source"]
    tokenizer, table = model.require_tokenizer(), np.asarray(model.weights()["W_E"])
    pairs = [("a wedding ceremony", "an odd train"), ("sea", "tree house")]
    found = concept_vectors.activation_differences(model, pairs, [0, 1])

    def mean(text):
        return table[tokenizer.encode(text)[1:]].mean(axis=0)

    expected = np.stack([mean(about) - mean(other) for about, other in pairs])
    np.testing.assert_allclose(found, np.stack([expected, expected]), atol=1e-4)


def test_effects_do_not_depend_on_the_batch_and_a_zero_push_has_none(related):
    model = related["source"]
    ids = concepts.word_ids(concepts.OCEAN, model.require_tokenizer())
    rng = np.random.default_rng(0)
    pushes = [Push(layer, rng.normal(size=24)) for layer in (0, 1, 0)] + [Push(1, np.zeros(24))]
    prompts = concepts.SELECTION_PROMPTS[:3]
    first, second = (concept_vectors.next_word_effects(model, prompts, pushes, ids, rows=rows) for rows in (16, 7))
    np.testing.assert_allclose(first.contrast, second.contrast, atol=1e-4)
    np.testing.assert_allclose(first.kl, second.kl, atol=1e-4)
    np.testing.assert_allclose(first.contrast[-1], 0, atol=1e-5)
    np.testing.assert_allclose(first.log_mass[-1], 0, atol=1e-5)
    assert first.contrast.shape == (4, 3, 1) and first.kl[:3].min() > 0


def test_split_halves_agree_on_a_planted_direction_and_not_on_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 20, 64))
    direction = np.zeros((2, 1, 64))
    direction[0, 0, 0] = 10
    cosines = concept_vectors.split_half_cosine(noise + direction, splits=10, seed=0)
    assert cosines[0] > 0.8 and abs(cosines[1]) < 0.3


def test_wrong_inputs_are_refused_in_a_sentence(related):
    with pytest.raises(ValueError, match="there is no concept 'bees'"):
        steering.run(dataclasses.replace(CONFIG, concepts=("bees",)), related, {})
    with pytest.raises(ValueError, match="needs the arrays of the alignment"):
        steering.run(CONFIG, related, {})
    maps = {"source to target/least_squares": np.zeros((3, 4))}
    with pytest.raises(ValueError, match="maps 3 to 4 dimensions"):
        steering.run(CONFIG, related, {"alignment": maps})
