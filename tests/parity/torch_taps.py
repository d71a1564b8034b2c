"""Edits of a Hugging Face model by plain forward hooks, at every site of `jaxinterp.axes.SITES`.

Nothing of the library is used here, so that the two ways to edit a model can be compared. A tap is a function from the
array at a site to the array that shall take its place, with the site's axes in their order. Most sites are the input or
the output of a module. Those that no module shows are reached so:

* queries, keys, values, scores, pattern and z: transformers calls `eager_attention_forward` of the family's module; it
  is exchanged for the same few lines with taps between them;
* a norm's denominator: its output is multiplied by old over new denominator, around the bias;
* what each head writes: computed from the input of the output projection, whose output changes by the difference;
* the residual stream between attention and MLP: what attention adds is chosen such that the sum is the edited one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers

Function = Callable[[torch.Tensor], torch.Tensor]

ATTENTION_SITES = ("q", "k", "v", "attn_scores", "pattern", "z")


@dataclasses.dataclass(frozen=True)
class Names:
    """Where a family keeps its modules; those of a block are given from the block on.

    Attributes:
        embedding: Token embedding.
        blocks: List of blocks.
        final: Final norm.
        attention: Attention.
        output: Output projection, from attention on.
        norms: The norms before attention and before the MLP.
        post_norms: The norms after attention and after the MLP, if they are part of what is added.
        mlp: MLP.
        gate: Gate projection, from the MLP on.
        inner: Projection into the units.
        outer: Projection out of the units.
    """

    embedding: str = "model.embed_tokens"
    blocks: str = "model.layers"
    final: str = "model.norm"
    attention: str = "self_attn"
    output: str = "o_proj"
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    post_norms: tuple[str, str] | None = None
    mlp: str = "mlp"
    gate: str | None = "gate_proj"
    inner: str = "up_proj"
    outer: str = "down_proj"


_LLAMA = Names()
_GEMMA = Names(
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
)
_GPT2 = Names(
    embedding="transformer.wte",
    blocks="transformer.h",
    final="transformer.ln_f",
    attention="attn",
    output="c_proj",
    norms=("ln_1", "ln_2"),
    gate=None,
    inner="c_fc",
    outer="c_proj",
)
_GPT_NEOX = Names(
    embedding="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    final="gpt_neox.final_layer_norm",
    attention="attention",
    output="dense",
    gate=None,
    inner="dense_h_to_4h",
    outer="dense_4h_to_h",
)
NAMES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
}


@contextlib.contextmanager
def tapped(model: transformers.PreTrainedModel, site: str, layer: int | None, function: Function) -> Iterator[None]:
    """Puts a function at one site for as long as the block lasts.

    Args:
        model: In float32, with eager attention.
        site: A key of `jaxinterp.axes.SITES`.
        layer: Block index, `None` for the sites that stand once.
        function: Array at the site -> the array that takes its place.
    """
    names = NAMES[model.config.model_type]
    if site in ATTENTION_SITES:
        with _tapped_attention(model, names, site, layer, function):
            yield
        return
    handles = _hooks(model, names, site, layer, function)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model: transformers.PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits [seq, vocabulary] of one unpadded text in one pass without a cache."""
    with torch.no_grad():
        return model(torch.as_tensor([tokens]), use_cache=False).logits[0]


def read(model: transformers.PreTrainedModel, site: str, layer: int | None, tokens: list[int]) -> torch.Tensor:
    """The array at a site for one unpadded text, with the site's axes."""
    seen = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        seen.append(value.clone())
        return value

    with tapped(model, site, layer, keep):
        run(model, tokens)
    (value,) = seen
    return value


def _hooks(model: Any, names: Names, site: str, layer: int | None, function: Function) -> list[Any]:
    if site == "embed":
        return [_after(model.get_submodule(names.embedding), function)]
    if site == "ln_final":
        return [_after(model.get_submodule(names.final), function)]
    if site == "logits":
        return [model.register_forward_hook(lambda _m, _i, out: _with_logits(out, function))]
    block = model.get_submodule(names.blocks)[layer]
    attention, mlp = block.get_submodule(names.attention), block.get_submodule(names.mlp)
    attended, mixed = attention, mlp
    if names.post_norms is not None:
        attended, mixed = (block.get_submodule(name) for name in names.post_norms)
    if site in ("ln_scale", "ln_scale_mlp"):
        return [_at_denominator(block.get_submodule(names.norms[site == "ln_scale_mlp"]), function)]
    if site == "head_out":
        return [_at_heads(attention.get_submodule(names.output), attention, model.config, function)]
    if site == "resid_mid":
        return _between(block, attended, function)
    return [
        {
            "resid_pre": lambda: _before(block, function),
            "resid_post": lambda: _after(block, function),
            "attn_out": lambda: _after(attended, function),
            "mlp_out": lambda: _after(mixed, function),
            "mlp_gate": lambda: _after(mlp.get_submodule(names.gate), function),
            "mlp_pre": lambda: _after(mlp.get_submodule(names.inner), function),
            "mlp_post": lambda: _before(mlp.get_submodule(names.outer), function),
        }[site]()
    ]


def _before(module: torch.nn.Module, function: Function) -> Any:
    """The first input of a module."""
    return module.register_forward_pre_hook(
        lambda _, args, keywords: ((function(args[0]), *args[1:]), keywords), with_kwargs=True
    )


def _after(module: torch.nn.Module, function: Function) -> Any:
    """The output of a module, or the first of several."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    return module.register_forward_hook(hook)


def _with_logits(output: Any, function: Function) -> Any:
    output.logits = function(output.logits)
    return output


def _at_denominator(norm: torch.nn.Module, function: Function) -> Any:
    layered = isinstance(norm, torch.nn.LayerNorm)
    eps = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))

    def hook(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        centred = args[0] - args[0].mean(-1, keepdim=True) if layered else args[0]
        old = (centred.square().mean(-1) + eps).sqrt()
        bias = norm.bias if layered else 0.0
        return (output - bias) * (old / function(old))[..., None] + bias

    return norm.register_forward_hook(hook)


def _at_heads(projection: torch.nn.Module, attention: torch.nn.Module, config: Any, function: Function) -> Any:
    heads = config.num_attention_heads
    linear = isinstance(projection, torch.nn.Linear)
    matrix = projection.weight.T if linear else projection.weight  # [head * projection, embedding]
    split = matrix.detach().unflatten(0, (heads, -1))

    def hook(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        parts = torch.einsum("bshp,hpe->bshe", args[0].unflatten(-1, (heads, -1)), split)
        return output + (function(parts) - parts).sum(2)

    return projection.register_forward_hook(hook)


def _between(block: torch.nn.Module, attended: torch.nn.Module, function: Function) -> list[Any]:
    entering: list[torch.Tensor] = []

    def remember(value: torch.Tensor) -> torch.Tensor:
        entering[:] = [value]
        return value

    return [
        _before(block, remember),
        _after(attended, lambda added: function(entering[0] + added) - entering[0]),
    ]


@contextlib.contextmanager
def _tapped_attention(model: Any, names: Names, site: str, layer: int | None, function: Function) -> Iterator[None]:
    tapped_one = model.get_submodule(names.blocks)[layer].get_submodule(names.attention)
    file = sys.modules[type(tapped_one).__module__]
    original = file.eager_attention_forward

    def forward(module: Any, *args: Any, **keywords: Any) -> Any:
        if module is not tapped_one:
            return original(module, *args, **keywords)
        return _attend(functools.partial(_choose, site, function), *args, **keywords)

    file.eager_attention_forward = forward
    try:
        yield
    finally:
        file.eager_attention_forward = original


def _choose(site: str, function: Function, here: str, value: torch.Tensor) -> torch.Tensor:
    """The function at its own site, nothing elsewhere."""
    return function(value) if here == site else value


def _attend(
    tap: Callable[[str, torch.Tensor], torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention, with taps; arrays come as [batch, head, seq, projection]."""
    query, key, value = (
        tap(name, array.transpose(1, 2)).transpose(1, 2) for name, array in (("q", query), ("k", key), ("v", value))
    )
    groups = query.shape[1] // key.shape[1]
    key, value = (array.repeat_interleave(groups, dim=1) for array in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    pattern = tap("pattern", torch.softmax(tap("attn_scores", scores) + mask, dim=-1))
    return tap("z", (pattern @ value).transpose(1, 2)), pattern
