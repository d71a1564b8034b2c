import numpy as np
import polars as pl
import pytest

from jaxinterp.experiments import within_family
from jaxinterp.models import language_model
from jaxinterp.models.toy import toy
from jaxinterp.tasks import small_language
from jaxinterp.tasks.vocabularies import token_ids_by_bytes
from jaxinterp.training import corpora

CONFIG = within_family.Config(
    directions=("narrow to wide", "wide to narrow", "left to right", "right to left"),
    depths=(0.5, 1.0),
    scales=(0.5, 1.0),
    contrasts=8,
    prompts=8,
    random_vectors=40,
    shuffled_maps=6,
    permutations=1000,
    resamples=200,
    sample_prompts=1,
    sample_tokens=4,
)
WIDTHS = {"narrow": 24, "wide": 32, "left": 24, "right": 24}


def family(shared):
    """Two tied and two untied models whose blocks pass the stream on; their unembeddings are one table, turned.

    With `shared` false every model has a table of its own, and none has a direction for the register.
    """
    tokenizer = corpora.small_language_tokenizer()
    known = token_ids_by_bytes(tokenizer)
    rng = np.random.default_rng(0)
    common = rng.normal(size=(tokenizer.vocabulary, 24))
    models = {}
    for seed, (name, width) in enumerate(WIDTHS.items()):
        table = common.copy() if shared else rng.normal(size=common.shape)
        if shared:
            for kind in small_language.KINDS_OF_TWINS:
                for pair in small_language.twins(kind):
                    table[known[f" {pair.formal}".encode()], 0] += 3
                    table[known[f" {pair.casual}".encode()], 0] -= 3
        table = table @ np.linalg.qr(rng.normal(size=(width, width)))[0][:24]
        table += 0.05 * rng.normal(size=table.shape)
        tied = name in ("narrow", "wide")
        model = toy(
            "llama",
            seed=seed,
            tokenizer=tokenizer,
            hidden_size=width,
            vocab_size=tokenizer.vocabulary,
            num_hidden_layers=2,
            tie_word_embeddings=tied,
        )
        weights = {key: np.asarray(array) for key, array in model.weights().items()}
        for key, array in weights.items():
            if key.rsplit(".", maxsplit=1)[-1] in ("W_O", "W_out"):
                weights[key] = np.zeros_like(array)
        weights["ln_final.w"] = np.ones_like(weights["ln_final.w"])
        weights["W_E" if tied else "W_U"] = table.astype(np.float32)
        if not tied:
            given = rng.normal(size=table.shape)
            weights["W_E"] = (given + 0.3 * table).astype(np.float32)
        models[name] = language_model.with_weights(model, weights)
    return models


@pytest.fixture(scope="module")
def related():
    return within_family.run(CONFIG, family(shared=True))


@pytest.fixture(scope="module")
def unrelated():
    return within_family.run(CONFIG, family(shared=False))


def test_a_shared_table_is_found_and_carries_vectors(related):
    claims = within_family.check(related)
    assert len(claims) == 7 and all(claim.met for claim in claims), [c for c in claims if not c.met]
    found = related.filter(pl.col("part") == "geometry", pl.col("measure") == "r", pl.col("method") == "centred")
    untied = found.filter(pl.col("tied") == "neither")
    given, out = (untied.filter(pl.col("table") == name)["value"].item() for name in ("W_E", "W_U"))
    assert given < 0.2 and out > 0.9
    ratios = related.filter(pl.col("measure") == "to native", pl.col("method") == "least squares")
    assert ratios.height == 4 and ((ratios["value"] > 0.8) & (ratios["value"] < 1.2)).all()


def test_separate_tables_show_nothing(unrelated):
    about_tables, about_vectors = np.split(within_family.check(unrelated), [2])
    assert not any(claim.met for claim in about_tables)
    assert sum(claim.met for claim in about_vectors) <= 1 and not about_vectors[-1].met
    found = unrelated.filter(pl.col("part") == "geometry", pl.col("measure") == "r", pl.col("tied") == "both")
    assert (found["value"].abs() < 0.15).all()


def test_every_number_has_its_n_and_effects_their_nulls(related):
    assert related["n"].null_count() == 0
    effects = related.filter(pl.col("part") == "effect", pl.col("chosen"))
    for _, part in effects.group_by("first", "second"):
        counted = dict(part["method"].value_counts().iter_rows())
        assert counted["random"] == 40 and counted["shuffled map"] == 6 and counted["native"] == 1
        assert (part["n"] == 8).all() and part["low"].null_count() == 0
    assert related.filter(pl.col("method").is_in(["random", "shuffled map"]), pl.col("part") == "effect")[
        "control"
    ].all()
    direct = related.filter(pl.col("part") == "ratio", pl.col("measure") == "direct path / full")
    assert (direct["value"] - 1).abs().max() < 1e-4  # blocks that pass the stream on have no other path
    assert related.filter(pl.col("text").is_not_null()).height == 4 * 4 * 2


def test_the_figure_is_drawn_from_the_table(related):
    drawn = within_family.figure(related)
    assert len(drawn.axes) == 4 and all(axes.get_title(loc="left") for axes in drawn.axes)


def test_bad_input_is_a_sentence():
    models = family(shared=True)
    with pytest.raises(ValueError, match="names 'far'"):
        within_family.run(within_family.Config(directions=("narrow to far",)), models)
    with pytest.raises(ValueError, match="two or more"):
        within_family.run(CONFIG, {"narrow": models["narrow"]})
    with pytest.raises(ValueError, match="jaxinterp train"):
        within_family.run(CONFIG, {name: language_model.load("builtin:countdown-6m-sft") for name in models})
