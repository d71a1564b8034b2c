"""Pages: a model as HTML that a browser opens without a network, its arrays drawn, its edits marked."""

from __future__ import annotations

import html
import math
from typing import Any

import treescope
from penzai import pz

from jaxinterp.models.language_model import EmbeddingTable, LanguageModel
from jaxinterp.models.low_rank import LowRank, find_low_rank
from jaxinterp.sites import taps

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1c; background: #fff; }}
 h1 {{ font-size: 1.35rem; margin: 0 0 .3rem; }} p {{ margin: .3rem 0; max-width: 60rem; }}
 code {{ background: #f2f2f2; padding: .05rem .3rem; border-radius: 3px; }}
 .tree {{ margin-top: 1rem; overflow-x: auto; }}
</style></head><body>
<h1>{title}</h1>
<p>{facts}</p>
<p>{edits}</p>
<p>Click a triangle or a layer to unfold it; arrays are drawn where they stand, with their axes.</p>
<div class="tree">
"""


def model_page(model: LanguageModel) -> str:
    """The tree of a model; where taps or weights hold edits, boxes mark them and the tree is unfolded down to them.

    Args:
        model: The model.

    Returns:
        A self-contained HTML document.
    """
    edited = [taps.describe([address]) for address in taps.edited_taps(model.body)] + list(find_low_rank(model.body))
    places = ", ".join(f"<code>{place}</code>" for place in edited)
    text = f"Edited at {places}; the boxes below mark where." if edited else "No edits."
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        if edited:
            marked = pz.select(model.body).at_subtrees_where(_is_edited)
            tree = treescope.lowering.render_to_html_as_root(marked.__treescope_root_repr__(), compressed=True)
        else:
            tree = treescope.render_to_html(model.body, ignore_exceptions=True)
    head = _HEAD.format(title=html.escape(model.source), facts=html.escape(_facts(model)), edits=text)
    return f"{head}{tree}\n</div></body></html>\n"


def _is_edited(node: Any) -> bool:
    return isinstance(node, LowRank) or (isinstance(node, taps.Tap) and bool(node.edits))


def _facts(model: LanguageModel) -> str:
    sizes = model.architecture
    if isinstance(model, EmbeddingTable):
        return f"A token table of {sizes.vocabulary:,} x {sizes.embedding}; nothing else of this model is read."
    count = sum(math.prod(axes.values()) for axes in sizes.weights().values())
    return (
        f"{count:,} parameters: {sizes.layers} layers, embedding {sizes.embedding}, {sizes.heads} heads of "
        f"{sizes.projection} ({sizes.kv_heads} for keys and values), {sizes.neurons} neurons a layer, "
        f"vocabulary {sizes.vocabulary:,}."
    )
