# ruff: noqa: INP001  # scripts, each run in its own environment
"""transformers on PyTorch with plain forward hooks: the reference of the gate."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from protocol import DEVICES, DTYPES, Arrays, removing, serve, variant
from torch_inputs import Stacked, TorchInputs, as_array

ROWS = 128
"""Rows in one forward pass of a batched sweep."""


class TorchWorker(TorchInputs):
    """Hugging Face's Llama with hooks written by hand, the way one does it without a library."""

    packages = ("transformers", "torch")
    dtypes, devices = DTYPES, DEVICES

    def load(self) -> None:
        """See `Worker.load`."""
        import transformers

        super().load()
        self.model = self.from_folder(transformers)
        self.decoder = self.model.model
        self.layers = self.decoder.layers
        self.heads = self.model.config.num_attention_heads
        self.width = self.layers[0].self_attn.head_dim

    def last_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after the last token, [rows, vocabulary]."""
        return self.model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]

    def residuals(self, tokens: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The residual stream before every layer, and the last logits."""
        kept: list[torch.Tensor] = []
        hooks = [layer.register_forward_pre_hook(lambda _, given: kept.append(given[0])) for layer in self.layers]
        with removing(hooks):
            logits = self.last_logits(tokens)
        return kept, logits

    def from_layer(self, first: int, hidden: torch.Tensor) -> torch.Tensor:
        """Runs the layers from one on; last logits."""
        places = torch.arange(hidden.shape[1], device=self.device)[None]
        angles = self.decoder.rotary_emb(hidden, position_ids=places)
        for layer in self.layers[first:]:
            hidden = layer(hidden, attention_mask=None, position_ids=places, position_embeddings=angles)
        return self.model.lm_head(self.decoder.norm(hidden[:, -1]))

    @variant("w1_first")
    def first_logits(self) -> Arrays:
        """Last logits of one short text."""
        return {"logits": as_array(self.last_logits(self.ids("w1_first")))}

    @variant("w1_new_length")
    def new_length(self) -> Arrays:
        """Last logits of a text that is one token longer."""
        return {"logits": as_array(self.last_logits(self.ids("w1_longer")))}

    @variant("w2_residuals", "hooks")
    def read_residuals(self) -> Arrays:
        """The residual stream after every layer, for all texts."""
        kept: list[torch.Tensor] = []
        hooks = [layer.register_forward_hook(lambda _, __, out: kept.append(out)) for layer in self.layers]
        with removing(hooks):
            self.last_logits(self.ids("w2_tokens"))
        return {"resid_post": Stacked(kept)}

    @variant("w2_all", "hooks")
    def read_all(self) -> Arrays:
        """Eleven sites of every layer, a batch of texts at a time; the first batch is handed in."""
        first: Arrays = {}
        for rows in self.ids("w2_tokens").split(self.number("w2_batch")):
            read = {site: Stacked(values) for site, values in self.read_sites(rows).items()}
            first = first or read
        return first

    def read_sites(self, tokens: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Eleven sites of every layer by hooks; patterns from the queries and keys, as attention makes them."""
        read: dict[str, list[torch.Tensor]] = {name: [] for name in SITES}
        angles: list[Any] = []

        def keep(name: str) -> Callable[..., None]:
            return lambda _, __, out: read[name].append(out[0] if isinstance(out, tuple) else out)

        hooks = [self.decoder.rotary_emb.register_forward_hook(lambda _, __, out: angles.append(out))]
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            hooks += [
                layer.register_forward_pre_hook(lambda _, given: read["resid_pre"].append(given[0])),
                layer.post_attention_layernorm.register_forward_pre_hook(
                    lambda _, given: read["resid_mid"].append(given[0])
                ),
                layer.register_forward_hook(keep("resid_post")),
                attention.register_forward_hook(keep("attn_out")),
                mlp.register_forward_hook(keep("mlp_out")),
                attention.q_proj.register_forward_hook(keep("q")),
                attention.k_proj.register_forward_hook(keep("k")),
                attention.v_proj.register_forward_hook(keep("v")),
                attention.o_proj.register_forward_pre_hook(lambda _, given: read["z"].append(given[0])),
                mlp.down_proj.register_forward_pre_hook(lambda _, given: read["mlp_post"].append(given[0])),
            ]
        with removing(hooks):
            self.last_logits(tokens)
        rows, seq = tokens.shape
        for name in ("q", "k", "v", "z"):
            read[name] = [value.view(rows, seq, -1, self.width) for value in read[name]]
        read["q"] = [self.rotate(value, *angles[0]) for value in read["q"]]
        read["k"] = [self.rotate(value, *angles[0]) for value in read["k"]]
        read["pattern"] = [self.pattern(q, k) for q, k in zip(read["q"], read["k"], strict=True)]
        return read

    def rotate(self, value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary positions of queries or keys [rows, seq, heads, width]."""
        left, right = value.chunk(2, dim=-1)
        return value * cos[:, :, None] + torch.cat([-right, left], dim=-1) * sin[:, :, None]

    def pattern(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Attention from rotated queries and keys [rows, seq, heads, width]: [rows, heads, seq, seq]."""
        q, k = q.transpose(1, 2).float(), k.transpose(1, 2).float()
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        future = torch.full((q.shape[2], q.shape[2]), -math.inf, device=self.device).triu(1)
        return torch.softmax(q @ k.transpose(2, 3) / math.sqrt(self.width) + future, dim=-1).to(self.dtype)

    @variant("w3_patching", "restarting loop")
    def patch_restarting(self) -> Arrays:
        """One cell after the other, from the cached residual on."""
        clean, _ = self.residuals(self.ids("w3_clean"))
        corrupted, _ = self.residuals(self.ids("w3_corrupted"))
        effects = torch.empty(len(self.layers), clean[0].shape[1], device=self.device)
        for layer, position in np.ndindex(*effects.shape):
            hidden = corrupted[layer].clone()
            hidden[:, position] = clean[layer][:, position]
            effects[layer, position] = self.difference(self.from_layer(layer, hidden), "w3")[0]
        return {"logit_diff": as_array(effects)}

    @variant("w3_patching", "batched")
    def patch_batched(self) -> Arrays:
        """One hooked forward pass a layer, its rows the positions."""
        clean, _ = self.residuals(self.ids("w3_clean"))
        seq = clean[0].shape[1]
        tokens = self.ids("w3_corrupted").expand(seq, -1)
        effects = []
        for layer, source in zip(self.layers, clean, strict=True):
            hook = layer.register_forward_pre_hook(lambda _, given, source=source: (_patch_diagonal(given[0], source),))
            with removing([hook]):
                effects.append(self.difference(self.last_logits(tokens), "w3"))
        return {"logit_diff": as_array(torch.stack(effects))}

    @variant("w3_patching", "restarting, batched")
    def patch_both(self) -> Arrays:
        """Rows are the positions, and a layer's pass starts from its cached residual."""
        clean, _ = self.residuals(self.ids("w3_clean"))
        corrupted, _ = self.residuals(self.ids("w3_corrupted"))
        seq = clean[0].shape[1]
        effects = [
            self.difference(self.from_layer(layer, _patch_diagonal(theirs.expand(seq, -1, -1), ours)), "w3")
            for layer, (ours, theirs) in enumerate(zip(clean, corrupted, strict=True))
        ]
        return {"logit_diff": as_array(torch.stack(effects))}

    @variant("w4_heads", "restarting, batched")
    def ablate_heads(self) -> Arrays:
        """Rows are heads x prompts; a layer's pass starts from its cached residual."""
        before, logits = self.residuals(self.ids("w4_tokens"))
        clean = self.difference(logits, "w4")
        prompts = len(clean)
        effects = torch.empty(len(self.layers), self.heads, prompts, device=self.device)
        per_pass = max(1, ROWS // prompts)
        for number, layer in enumerate(self.layers):
            for heads in torch.arange(self.heads).split(per_pass):
                hook = layer.self_attn.o_proj.register_forward_pre_hook(
                    lambda _, given, heads=heads: (self.without_heads(given[0], heads, prompts),)
                )
                with removing([hook]):
                    logits = self.from_layer(number, before[number].repeat(len(heads), 1, 1))
                effects[number, heads] = self.difference(logits, "w4").view(len(heads), prompts) - clean
        return {"effect": as_array(effects)}

    def without_heads(self, z: torch.Tensor, heads: torch.Tensor, prompts: int) -> torch.Tensor:
        """Head outputs [heads x prompts, seq, all heads x width] with one head of each row at zero."""
        z = z.view(len(heads), prompts, z.shape[1], self.heads, self.width).clone()
        for row, head in enumerate(heads):
            z[row, :, :, head] = 0
        return z.view(len(heads) * prompts, z.shape[2], -1)

    def generate(self, tokens: torch.Tensor, added: dict[int, torch.Tensor]) -> torch.Tensor:
        """Greedy continuation with something added after some layers, [rows, new]."""
        new = self.number("w5_new")
        self.model.generation_config.eos_token_id = None
        mask = torch.ones_like(tokens)
        hooks = [
            self.layers[layer].register_forward_hook(lambda _, __, out, vector=vector: out + vector)
            for layer, vector in added.items()
        ]
        with removing(hooks):
            out = self.model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        return out[:, tokens.shape[1] :]

    @variant("w5_generate", "hook")
    def generate_steered(self) -> Arrays:
        """One continuation with a vector added after one layer."""
        return self.steered_text()

    @variant("w5_grid", "rows batched")
    def generate_grid(self) -> Arrays:
        """All layers and scales as rows of one batch."""
        return self.steered_grid()

    @variant("w6_forward")
    def forward_pairs(self) -> Arrays:
        """One forward pass of the corrupted texts, for comparison with what attribution costs."""
        return {"logit_diff": as_array(self.difference(self.last_logits(self.ids("w6_corrupted")), "w6"))}

    @variant("w6_attribution", "hooks")
    def attribute(self) -> Arrays:
        """Gradient at the corrupted residual times clean minus corrupted, [layer, pair, position]."""
        clean, _ = self.residuals(self.ids("w6_clean"))
        corrupted, gradients = self.gradients(self.ids("w6_corrupted"))
        return {"effect": as_array(_along(gradients, clean, corrupted))}

    def gradients(
        self, tokens: torch.Tensor, start: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The residual stream before every layer, and the metric's gradient there; from other embeddings if given."""
        kept: list[torch.Tensor] = []

        def keep(_: Any, given: Any) -> Any:
            hidden = given[0] if kept else (given[0] if start is None else start).detach().requires_grad_()
            kept.append(hidden)
            return (hidden,)

        with torch.enable_grad(), removing([layer.register_forward_pre_hook(keep) for layer in self.layers]):
            total = self.difference(self.last_logits(tokens), "w6").sum()
            slopes = torch.autograd.grad(total, kept)
        return [hidden.detach() for hidden in kept], list(slopes)

    @variant("w6_integrated", "hooks")
    def integrate(self) -> Arrays:
        """The same with the mean gradient along the line between the embeddings, at the middles of the steps."""
        clean, _ = self.residuals(self.ids("w6_clean"))
        corrupted, _ = self.residuals(self.ids("w6_corrupted"))
        steps = self.number("w6_steps")
        total = [torch.zeros_like(hidden) for hidden in clean]
        for step in range(steps):
            start = corrupted[0] + (step + 0.5) / steps * (clean[0] - corrupted[0])
            _, slopes = self.gradients(self.ids("w6_corrupted"), start)
            total = [so_far + slope / steps for so_far, slope in zip(total, slopes, strict=True)]
        return {"effect": as_array(_along(total, clean, corrupted))}

    @variant("w6_edges", "gate only")
    def attribute_senders(self) -> Arrays:
        """What the edges of each sender must add up to: its output's change times the gradient after it."""
        clean, _ = self.senders(self.ids("w6_clean"), slopes=False)
        corrupted, slopes = self.senders(self.ids("w6_corrupted"), slopes=True)
        totals = []
        for ours, theirs, slope in zip(clean, corrupted, slopes, strict=True):
            products = (ours - theirs).float() * slope
            # Heads stand before the last axis, [pair, seq, head, width]; the embedding and MLPs have none.
            totals.append(products.sum((1, 3)).T if products.ndim == 4 else products.sum((1, 2))[None])
        return {"total": as_array(torch.cat(totals))}

    def senders(self, tokens: torch.Tensor, *, slopes: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Embeddings, then each layer's heads and MLP; and the metric's gradient at the stream after them.

        A head is given by its values before the output projection, and its gradient is taken through that.
        """
        outputs: list[torch.Tensor] = []
        after: list[torch.Tensor] = []

        def start(_: Any, given: Any) -> Any:
            hidden = given[0].detach().requires_grad_(slopes)
            outputs.append(hidden)
            after.append(hidden)
            return (hidden,)

        hooks = [self.layers[0].register_forward_pre_hook(start)]
        for layer in self.layers:
            hooks += [
                layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: outputs.append(given[0])),
                layer.post_attention_layernorm.register_forward_pre_hook(lambda _, given: after.append(given[0])),
                layer.mlp.register_forward_hook(lambda _, __, out: outputs.append(out)),
                layer.register_forward_hook(lambda _, __, out: after.append(out)),
            ]
        with torch.set_grad_enabled(slopes), removing(hooks):
            total = self.difference(self.last_logits(tokens), "w6").sum()
            gradients = list(torch.autograd.grad(total, after)) if slopes else []
        for place, layer in enumerate(self.layers):
            outputs[1 + 2 * place] = self.by_head(outputs[1 + 2 * place])
            if slopes:
                gradients[1 + 2 * place] = self.by_head(gradients[1 + 2 * place] @ layer.self_attn.o_proj.weight)
        return [output.detach() for output in outputs], gradients

    def by_head(self, z: torch.Tensor) -> torch.Tensor:
        """[rows, seq, heads x width] -> [rows, seq, heads, width]."""
        return z.view(*z.shape[:2], self.heads, self.width)

    @variant("w8_neighbours", "matmul and topk")
    def neighbours(self) -> Arrays:
        """Exact neighbours by blocks of a matrix product."""
        points, count = self.numbers("w8_points"), self.number("w8_neighbours")
        squares = (points * points).sum(1)
        found = []
        for first in range(0, len(points), 2048):
            block = points[first : first + 2048]
            distances = squares - 2 * block @ points.T
            distances[:, first : first + len(block)].fill_diagonal_(math.inf)
            found.append(distances.topk(count, largest=False).indices)
        return {"indices": as_array(torch.cat(found))}

    @variant("w8_weights", "batched solve")
    def weights(self) -> Arrays:
        """Locally linear weights of given neighbours."""
        points, indices = self.numbers("w8_points"), self.ids("w8_indices")
        found = []
        for rows, nearest in zip(points.split(4096), indices.split(4096), strict=True):
            local = points[nearest] - rows[:, None]
            gram = local @ local.transpose(1, 2)
            trace = gram.diagonal(dim1=1, dim2=2).sum(1)
            gram += (1e-3 * trace)[:, None, None] * torch.eye(indices.shape[1], device=self.device)
            solved = torch.linalg.solve(gram, torch.ones(len(rows), indices.shape[1], device=self.device))
            found.append(solved / solved.sum(1, keepdim=True))
        return {"weights": as_array(torch.cat(found))}


SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_post", "pattern")


def _patch_diagonal(hidden: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Residuals [position, seq, width] where row p has the source's value at token p."""
    hidden, places = hidden.clone(), torch.arange(hidden.shape[1], device=hidden.device)
    hidden[places, places] = source[0]
    return hidden


def _along(slopes: list[torch.Tensor], clean: list[torch.Tensor], corrupted: list[torch.Tensor]) -> torch.Tensor:
    """What each gradient says of clean minus corrupted, [layer, row, seq]."""
    parts = zip(slopes, clean, corrupted, strict=True)
    return torch.stack([(slope.float() * (ours - theirs)).sum(-1) for slope, ours, theirs in parts])


if __name__ == "__main__":
    serve(TorchWorker())
