# ruff: noqa: INP001  # scripts, each run in its own environment
"""nnsight: traces of the Hugging Face model, one after the other or as many invokes of one trace."""

from types import MappingProxyType

import numpy as np
import torch
from protocol import Arrays, serve, variant
from torch_inputs import TorchInputs

ROWS = 128
"""Rows in one trace of a batched sweep."""


class SightWorker(TorchInputs):
    """Traces as its documentation writes them."""

    packages = ("nnsight", "transformers", "torch")
    absent = MappingProxyType(
        {
            "w6_edges": "nnsight has no attribution of edges",
            "w6_integrated": "nnsight has no integrated gradients",
        }
    )

    def load(self) -> None:
        """See `Worker.load`."""
        from nnsight import TransformersModel

        super().load()
        # Attention hands out its pattern only in the eager form, which the task of reading all sites needs.
        options = {"attn_implementation": "eager"} if "w2_tokens" in self.inputs else {}
        self.model = TransformersModel(
            str(self.folder), task="text-generation", dtype=torch.float32, dispatch=True, **options
        )
        self.layers = self.model.model.layers
        self.width = self.model.config.hidden_size // self.model.config.num_attention_heads

    def last_logits(self, tokens: torch.Tensor) -> np.ndarray:
        """Last logits of some texts."""
        with self.model.trace(tokens, logits_to_keep=1):
            logits = self.model.lm_head.output[:, -1].save()
        return logits.numpy()

    def residuals(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """The residual stream before every layer."""
        with self.model.trace(tokens, logits_to_keep=1):
            kept = [].save()
            for layer in self.layers:
                kept.append(layer.input)
        return kept

    @variant("w1_first")
    def first_logits(self) -> Arrays:
        """Last logits of one short text."""
        return {"logits": self.last_logits(self.ids("w1_first"))}

    @variant("w1_new_length")
    def new_length(self) -> Arrays:
        """Last logits of a text that is one token longer."""
        return {"logits": self.last_logits(self.ids("w1_longer"))}

    @variant("w2_residuals", "save")
    def read_residuals(self) -> Arrays:
        """The residual stream after every layer, for all texts."""
        with self.model.trace(self.ids("w2_tokens"), logits_to_keep=1):
            kept = [].save()
            for layer in self.layers:
                kept.append(layer.output)
        return {"resid_post": np.stack([value.numpy() for value in kept])}

    @variant("w2_all", "save")
    def read_all(self) -> Arrays:
        """Eleven sites of every layer, a batch of texts at a time; the first batch is handed in."""
        first: Arrays = {}
        for rows in self.ids("w2_tokens").split(self.number("w2_batch")):
            read = self.read_sites(rows)
            first = first or {site: np.stack([value.numpy() for value in values]) for site, values in read.items()}
        return first

    def read_sites(self, tokens: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Eleven sites of every layer; queries and keys are rotated afterwards."""
        with self.model.trace(tokens, logits_to_keep=1):
            angles = self.model.model.rotary_emb.output.save()
            kept = [].save()
            for layer in self.layers:
                attention = layer.self_attn
                before, q, k, v = (
                    layer.input,
                    attention.q_proj.output,
                    attention.k_proj.output,
                    attention.v_proj.output,
                )
                z, (out, pattern) = attention.o_proj.input, attention.output
                middle, units, mlp, after = (
                    layer.post_attention_layernorm.input,
                    layer.mlp.down_proj.input,
                    layer.mlp.output,
                    layer.output,
                )
                kept.append((before, middle, after, out, mlp, q, k, v, z, units, pattern))
        read = dict(zip(SITES, map(list, zip(*kept, strict=True)), strict=True))
        for name in ("q", "k", "v", "z"):
            read[name] = [value.view(*tokens.shape, -1, self.width) for value in read[name]]
        for name in ("q", "k"):
            read[name] = [_rotate(value, *angles) for value in read[name]]
        return read

    @variant("w3_patching", "loop of traces")
    def patch_loop(self) -> Arrays:
        """One trace a cell."""
        clean, tokens = self.residuals(self.ids("w3_clean")), self.ids("w3_corrupted")
        effects = torch.empty(len(clean), tokens.shape[1])
        for number, position in np.ndindex(*effects.shape):
            with self.model.trace(tokens, logits_to_keep=1):
                self.layers[number].input[:, position] = clean[number][:, position]
                logits = self.model.lm_head.output[:, -1].save()
            effects[number, position] = self.difference(logits, "w3")[0]
        return {"logit_diff": effects.numpy()}

    @variant("w3_patching", "invokes batched")
    def patch_batched(self) -> Arrays:
        """One trace a layer, with an invoke a position."""
        clean, tokens = self.residuals(self.ids("w3_clean")), self.ids("w3_corrupted")
        effects = torch.empty(len(clean), tokens.shape[1])
        for number in range(len(clean)):
            with self.model.trace(logits_to_keep=1) as tracer:
                kept = [].save()
                for position in range(tokens.shape[1]):
                    with tracer.invoke(tokens):
                        self.layers[number].input[:, position] = clean[number][:, position]
                        kept.append(self.model.lm_head.output[:, -1])
            effects[number] = self.difference(torch.cat(kept), "w3")
        return {"logit_diff": effects.numpy()}

    @variant("w4_heads", "invokes batched")
    def ablate_heads(self) -> Arrays:
        """Some heads of a layer in one trace, each with an invoke on all texts."""
        tokens, heads = self.ids("w4_tokens"), self.model.config.num_attention_heads
        clean = self.difference(torch.from_numpy(self.last_logits(tokens)), "w4")
        effects = torch.empty(len(self.layers), heads, len(tokens))
        for number in range(len(self.layers)):
            for some in torch.arange(heads).split(max(1, ROWS // len(tokens))):
                with self.model.trace(logits_to_keep=1) as tracer:
                    kept = [].save()
                    for head in some.tolist():
                        with tracer.invoke(tokens):
                            part = slice(head * self.width, (head + 1) * self.width)
                            self.layers[number].self_attn.o_proj.input[:, :, part] = 0
                            kept.append(self.model.lm_head.output[:, -1])
                for head, logits in zip(some.tolist(), kept, strict=True):
                    effects[number, head] = self.difference(logits, "w4") - clean
        return {"effect": effects.numpy()}

    def generate(self, tokens: torch.Tensor, added: dict[int, torch.Tensor]) -> torch.Tensor:
        """Greedy continuation with something added after some layers in every step, [rows, new]."""
        new = self.number("w5_new")
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with self.model.generate(tokens, max_new_tokens=new, **options) as tracer:
            for _ in tracer.iter[:new]:
                for layer, vector in added.items():
                    self.layers[layer].output = self.layers[layer].output + vector
            out = tracer.result.save()
        return out[:, tokens.shape[1] :]

    @variant("w5_generate", "generate")
    def generate_steered(self) -> Arrays:
        """One continuation with a vector added after one layer."""
        return self.steered_text()

    @variant("w5_grid", "rows batched")
    def generate_grid(self) -> Arrays:
        """All layers and scales as rows of one batch."""
        return self.steered_grid()

    @variant("w6_attribution", "backward")
    def attribute(self) -> Arrays:
        """Gradient at the corrupted residual times clean minus corrupted."""
        clean = self.residuals(self.ids("w6_clean"))
        with torch.enable_grad(), self.model.trace(self.ids("w6_corrupted"), logits_to_keep=1):
            kept, slopes = [].save(), [].save()
            for number, layer in enumerate(self.layers):
                if number == 0:
                    layer.input.requires_grad_(True)
                kept.append(layer.input)
            total = self.difference(self.model.lm_head.output[:, -1], "w6").sum()
            with total.backward():
                for value in reversed(kept):
                    slopes.append(value.grad)
        parts = zip(clean, kept, reversed(slopes), strict=True)
        effects = [((ours - theirs) * slope).sum(-1).detach().numpy() for ours, theirs, slope in parts]
        return {"effect": np.stack(effects)}


SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_post", "pattern")


def _rotate(value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of queries or keys [rows, seq, heads, width]."""
    left, right = value.chunk(2, dim=-1)
    return value * cos[:, :, None] + torch.cat([-right, left], dim=-1) * sin[:, :, None]


if __name__ == "__main__":
    serve(SightWorker())
