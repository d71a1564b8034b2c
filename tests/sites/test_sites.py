"""Taps, selectors and positions on tiny trees."""

import jax.numpy as jnp
import numpy as np
import pytest
from penzai import pz

import jaxinterp as ji
from jaxinterp import axes
from jaxinterp.activations.run import compiled_form
from jaxinterp.models.decoder import side_inputs
from jaxinterp.models.toy import CONFIGS, toy
from jaxinterp.sites.taps import edited_taps, find_taps


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_has_the_whole_vocabulary_of_sites_but_for_what_it_lacks(family):
    model = toy(family)
    present = {site for site, _ in find_taps(model.body)}
    absent = {"gpt2": {"mlp_gate"}, "gpt_neox": {"mlp_gate", "resid_mid"}}.get(family, set())
    assert set(axes.SITES) - present == absent


def test_a_site_that_a_family_lacks_raises_and_lists_those_it_has():
    with pytest.raises(ValueError, match=r"no resid_mid; choose among its sites: embed; resid_pre \(layers 0-2\)"):
        ji.run(toy("gpt_neox"), [[1, 2, 3]], sites=[ji.resid_mid()])


def test_a_layer_that_does_not_exist_raises():
    with pytest.raises(ValueError, match=r"no z \(layer 7\)"):
        ji.ablate(toy(), ji.head(7, 0))


def test_a_head_that_does_not_exist_raises():
    with pytest.raises(ValueError, match=r"head 0\.\.3; there is no 4"):
        ji.ablate(toy(), ji.head(1, 4))


def test_a_misspelt_site_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resid_post'"):
        ji.Site("resid_pots")


def test_negative_layers_count_from_the_end():
    assert ji.resid_post(-1).addresses(toy().body) == (("resid_post", 2),)


def test_ellipsis_and_nothing_mean_all_layers():
    body = toy().body
    assert ji.mlp_out(...).addresses(body) == ji.mlp_out().addresses(body) == tuple(("mlp_out", n) for n in range(3))


def test_aligned_edits_share_one_structure_wherever_the_edit_stands():
    import jax

    model = toy()
    structures = {
        jax.tree_util.tree_structure(compiled_form(ji.ablate(model, ji.head(layer, 1)).body)) for layer in range(3)
    }
    assert len(structures) == 1
    assert list(edited_taps(ji.ablate(model, ji.head(2, 1)).body)) == [("z", 2)]


TOKENS = np.array([[0, 0, 5, 6, 7, 5], [9, 5, 8, 8, 7, 6]])
VALID = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)


def chosen(positions, prompt_length=None):
    lengths = None if prompt_length is None else jnp.asarray(prompt_length)
    seen = side_inputs(jnp.asarray(TOKENS), jnp.asarray(VALID), lengths)
    result = positions.choose(**{name: seen[name] for name in ("tokens", "positions", "prompt_length")})
    full = pz.nx.nmap(lambda value, _: value)(result, seen["tokens"])
    return full.unwrap(axes.BATCH, axes.SEQ).astype(int).tolist()


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (ji.everywhere(), [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
        (ji.last(), [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]),
        (ji.at(0), [[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
        (ji.at(1, -1), [[0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1]]),
        (ji.where_token(5), [[0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0]]),
        (ji.where_token(5) & ~ji.at(0), [[0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]]),
        (ji.at(0) | ji.last(), [[0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]]),
        (ji.rows_at(np.array([1, 2])), [[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]),
        (ji.mask(np.array([[1, 0, 0], [0, 1, 1]])), [[0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]),
    ],
)
def test_positions_on_a_left_padded_batch(positions, expected):
    assert chosen(positions) == expected


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (ji.prompt(), [[0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]),
        (ji.generated(), [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]),
        (ji.steps(0), [[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]),
        (ji.steps(1, 2), [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]),
        (ji.last(), [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]]),
        (ji.at(-1), [[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]),
    ],
)
def test_positions_when_the_prompt_ends_earlier(positions, expected):
    assert chosen(positions, [2, 3]) == expected
