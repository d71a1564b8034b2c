"""Edited models against transformers edited by hooks: every site of every family, batched, padded, cached and eager.

Each case edits one site twice: at all tokens, generated ones too, something is written (a vector added, or heads
zeroed; to keys at some tokens), and then at token 2 and the prompt's last one some heads or units are patched from
another text. One compiled program does for all sites of a family: a tree that carries both edits everywhere, selecting
nothing, in which one place is made to select. The tree that a user would make, edited at that place alone, is run
eagerly and must agree with it: at every site of Gemma 2 (grouped-query attention, windows, both soft caps, post norms),
and at two of every family.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from penzai import pz

import jaxinterp as ji
from jaxinterp import axes
from jaxinterp.models.toy import toy
from jaxinterp.sites.taps import Address, find_taps, replace_edits
from tests.parity import torch_taps

TEXTS = ([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2])
OTHERS = ([8, 8, 2, 6, 6, 7, 9, 9], [1, 6, 3, 4, 5])
SHORT = 1
"""The row that is padded in the batch, and run alone too."""

NEW = 4
TOKENS = (axes.BATCH, axes.SEQ)
LAYERS, EMBEDDING = 2, 16
MISSING = {("gpt2", "mlp_gate"), ("gpt_neox", "mlp_gate"), ("gpt_neox", "resid_mid")}
"""A plain MLP has no gate; parallel blocks have nothing between attention and MLP."""

CASES = [(family, site) for family in torch_taps.NAMES for site in axes.SITES if (family, site) not in MISSING]
CHOSEN = {axes.HEAD: (0, 2), axes.KV_HEAD: (1,), axes.NEURONS: (0, 3, 7, 8, 20)}
"""What is patched on an axis; sites without one of them are patched whole."""

ZEROED = (1, 3)
"""The heads whose scores or pattern are set to zero."""

EAGER = [case for case in CASES if case[0] == "gemma2" or case[1] in ("k", "mlp_post")]
"""Cases that are run eagerly too: an eager pass takes a hundred times longer than a compiled one."""


def write(model: ji.LanguageModel, site: str, layer: int | None) -> ji.LanguageModel:
    """The first edit, by the library."""
    here = ji.Site(site, None if layer is None else (layer,))
    if site in ("attn_scores", "pattern"):
        return ji.ablate(model, dataclasses.replace(here, axis=axes.HEAD, indices=ZEROED))
    names = () if site.startswith("ln_scale") else [name for name in axes.SITES[site][0] if name not in TOKENS]
    named = pz.nx.wrap(jnp.asarray(vector(model.architecture, site)), *names)
    # The same vector added to all keys would change no pattern.
    return ji.steer(model, here, named, at=ji.at(1) | ji.generated() if site == "k" else None)


def patch(model: ji.LanguageModel, site: str, layer: int | None, cache: ji.Cache) -> ji.LanguageModel:
    """The second edit, by the library."""
    axis, chosen = choice(site)
    return ji.patch(model, ji.Site(site, None if layer is None else (layer,), axis, chosen), cache, at=ji.at(2, -1))


def vector(architecture: ji.Architecture, site: str) -> np.ndarray:
    """What is added at a site."""
    if site.startswith("ln_scale"):
        return np.asarray(0.5, np.float32)
    shape = [architecture.axis_sizes()[name] for name in axes.SITES[site][0] if name not in TOKENS]
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def choice(site: str) -> tuple[str | None, tuple[int, ...]]:
    """Axis and indices that are patched."""
    return next(((axis, CHOSEN[axis]) for axis in axes.SITES[site][0] if axis in CHOSEN), (None, ()))


def change(
    architecture: ji.Architecture,
    site: str,
    prompt: int,
    source: torch.Tensor,
    written: bool = True,
    patched: bool = True,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Both edits once more, as a function of the torch array [1, ...] at the site.

    Args:
        architecture: Of the model.
        site: Which site it is.
        prompt: Tokens of the prompt.
        source: The array of the other text, without batch axis.
        written: Whether the first edit acts.
        patched: Whether the second does.
    """
    names = axes.SITES[site][0][1:]
    seq = names.index(axes.SEQ)

    def function(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        rows = value[0].movedim(seq, 0)  # a view with the tokens in front
        other = source.movedim(seq, 0)
        if written:
            if site in ("attn_scores", "pattern"):
                rows[:, ZEROED] = 0.0
            else:
                tokens = [1, *range(prompt, len(rows))] if site == "k" else slice(None)
                rows[tokens] += torch.as_tensor(vector(architecture, site))
        if patched:
            for token in (2, prompt - 1):
                new = other[token]
                if axes.KV_SEQ in names:  # keys beyond the other text are 0
                    new = torch.nn.functional.pad(new, (0, rows.shape[-1] - new.shape[-1]))
                axis, chosen = choice(site)
                if axis is None:
                    rows[token] = new
                else:
                    place = [name for name in names if name != axes.SEQ].index(axis)
                    index = (slice(None),) * place + (list(chosen),)
                    rows[token][index] = new[index]
        return value

    return function


@dataclasses.dataclass(frozen=True)
class Family:
    """One family's model, ours and theirs, with the compiled trees' structure."""

    name: str
    ours: ji.LanguageModel
    theirs: transformers.PreTrainedModel

    @functools.cached_property
    def addresses(self) -> list[Address]:
        return list(find_taps(self.ours.body))

    @functools.cached_property
    def sites(self) -> list[ji.Site]:
        return [ji.Site(name) for name in dict.fromkeys(name for name, _ in self.addresses)]

    @functools.cached_property
    def caches(self) -> dict[tuple[int, ...], ji.Cache]:
        """Reads of the other texts, for the rows of a batch."""
        tokens = {rows: [OTHERS[row] for row in rows] for rows in ((0, 1), (SHORT,))}
        return {rows: ji.run(self.ours, texts, sites=self.sites)[1] for rows, texts in tokens.items()}

    @functools.cached_property
    def clean(self) -> list[torch.Tensor]:
        return [torch_taps.run(self.theirs, text) for text in TEXTS]

    def layer(self, site: str) -> int | None:
        """The layer that is edited: the first for every other site, and for the others the last."""
        if site in axes.UNLAYERED:
            return None
        return list(axes.SITES).index(site) % LAYERS

    def edit(self, site: str, layer: int | None, rows: tuple[int, ...]) -> ji.LanguageModel:
        """The model as a user edits it."""
        return patch(write(self.ours, site, layer), site, layer, self.caches[rows])

    @functools.cached_property
    def neutral(self) -> dict[tuple[tuple[int, ...], bool], ji.LanguageModel]:
        """Trees with both edits at every site, selecting nothing, by the rows of the batch.

        The outputs of heads make a tree of their own (True): an edit of them has attention sum over heads, and the
        other sites are tested where it does not.
        """
        trees = {}
        for rows in self.caches:
            edits: dict[bool, dict[Address, tuple[Any, ...]]] = {True: {}, False: {}}
            for site, layer in self.addresses:
                edited = find_taps(self.edit(site, layer, rows).body)[site, layer].edits
                kept = edited if layer == self.layer(site) else edited[:1]  # the second edit is dear to compile
                edits[site == "head_out"][site, layer] = tuple(edit.neutral() for edit in kept)
            for heads, chosen in edits.items():
                trees[rows, heads] = self.ours.with_body(replace_edits(self.ours.body, chosen))
        return trees

    def edit_in_place(self, site: str, layer: int | None, rows: tuple[int, ...]) -> ji.LanguageModel:
        """The same model as `edit`, in the structure that is compiled once."""
        edits = find_taps(self.edit(site, layer, rows).body)[site, layer].edits
        everywhere = self.neutral[rows, site == "head_out"]
        return everywhere.with_body(replace_edits(everywhere.body, {(site, layer): edits}))

    def expect(self, site: str, layer: int | None, row: int, text: Sequence[int], **which: bool) -> np.ndarray:
        """Logits [seq, vocabulary] of a text by torch, in one pass, the row's prompt at its start."""
        source = torch_taps.read(self.theirs, site, layer, list(OTHERS[row]))[0]
        function = change(self.ours.architecture, site, len(TEXTS[row]), source, **which)
        with torch_taps.tapped(self.theirs, site, layer, function):
            return torch_taps.run(self.theirs, list(text)).numpy()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Families by name; the one in use is kept."""

    @functools.lru_cache(maxsize=1)
    def make(name: str) -> Family:
        sizes = {"hidden_size": EMBEDDING, "intermediate_size": 24, "num_hidden_layers": LAYERS}
        if name == "gpt2":
            sizes = {"n_embd": EMBEDDING, "n_layer": LAYERS, "bos_token_id": 0, "eos_token_id": 0}
        ours = toy(name, **sizes)
        folder: Path = tmp_path_factory.mktemp(name) / "model"
        ji.save(ours, folder)
        load = transformers.AutoModelForCausalLM.from_pretrained
        return Family(name, ours, load(folder, attn_implementation="eager", dtype=torch.float32).eval())

    return make


@pytest.mark.parametrize("name", torch_taps.NAMES)
def test_every_site_of_the_unedited_model_is_what_torch_computes_there(name: str, families) -> None:
    family = families(name)
    logits, cache = ji.run(family.ours, TEXTS, sites=family.sites)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(logits[row, -len(text) :], family.clean[row], atol=1e-4, rtol=0)
        for site, layer in family.addresses:
            names = axes.SITES[site][0][1:]
            here = tuple(slice(-len(text), None) if axis in (axes.SEQ, axes.KV_SEQ) else slice(None) for axis in names)
            theirs = torch_taps.read(family.theirs, site, layer, text)[0]
            where = f"{site} of layer {layer}, text {row} of {name}"
            np.testing.assert_allclose(cache[site, layer][row][here], theirs, atol=1e-4, rtol=0, err_msg=where)


@pytest.mark.parametrize("name", torch_taps.NAMES)
def test_the_reference_changes_nothing_when_its_function_does_nothing(name: str, families) -> None:
    family = families(name)
    for site, layer in family.addresses:
        with torch_taps.tapped(family.theirs, site, layer, lambda value: value):
            again = torch_taps.run(family.theirs, TEXTS[0])
        np.testing.assert_allclose(again, family.clean[0], atol=1e-5, rtol=0, err_msg=f"{site} of layer {layer}")


@pytest.mark.parametrize(("name", "site"), CASES, ids=[f"{name}-{site}" for name, site in CASES])
def test_an_edited_model_is_the_edited_torch_model(name: str, site: str, families) -> None:
    family, rows = families(name), (0, 1)
    layer = family.layer(site)
    batch = family.edit_in_place(site, layer, rows)
    logits, _ = ji.run(batch, TEXTS)
    generation = ji.generate_tokens(batch, TEXTS, NEW, keep_logits=True)

    for row, text in enumerate(TEXTS):
        where = f"{site} of layer {layer} of {name}, text {row}"
        whole = [*text, *generation.tokens[row, :-1].tolist()]
        expected = family.expect(site, layer, row, whole)
        prompt = len(text)
        for which in ({"patched": False}, {"written": False}):
            moved = np.abs(family.expect(site, layer, row, text, **which)[1:] - family.clean[row].numpy()[1:]).max()
            assert moved > 1e-2, f"{where}: an edit moves the logits by {moved:.1e} only and tests nothing"
        compare(logits[row, -prompt:], expected[:prompt], 1e-4, f"{where}: a left-padded batch against torch")
        compare(generation.logits[row], expected[prompt - 1 :], 1e-4, f"{where}: cached generation against torch")
        compare(generation.logits[row, 0], logits[row, -1], 1e-5, f"{where}: the pass over the prompt against `run`")

    alone = ji.logits(family.edit_in_place(site, layer, (SHORT,)), [TEXTS[SHORT]])[0]
    where = f"{site} of layer {layer} of {name}"
    compare(logits[SHORT, -len(alone) :], alone, 1e-5, f"{where}: padded in a batch against alone without padding")
    if (name, site) in EAGER:
        with jax.disable_jit():
            eager = ji.logits(family.edit(site, layer, (SHORT,)), [TEXTS[SHORT]])[0]
        compare(alone, eager, 1e-5, f"{where}: compiled against eager")


def compare(ours: np.ndarray, expected: np.ndarray, most: float, what: str) -> None:
    assert ours.shape == expected.shape, f"{what}: shapes {ours.shape} and {expected.shape}"
    gap = np.abs(ours - expected).max()
    assert gap <= most, f"{what}: logits differ by up to {gap:.1e}, more than {most:.0e}"
