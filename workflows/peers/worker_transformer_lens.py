# ruff: noqa: INP001  # scripts, each run in its own environment
"""TransformerLens 4: its bridge, its patching and its attribution."""

from functools import partial

import numpy as np
import torch
from protocol import Arrays, serve, variant
from torch_inputs import TorchInputs

HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_rot_q",
    "k": "attn.hook_rot_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "mlp_post": "mlp.hook_post",
    "pattern": "attn.hook_pattern",
}


class LensWorker(TorchInputs):
    """What its documentation shows for each task."""

    packages = ("transformer-lens", "transformers", "torch")

    def load(self) -> None:
        """See `Worker.load`."""
        from transformer_lens.model_bridge import TransformerBridge

        super().load()
        self.model = TransformerBridge.boot_transformers(str(self.folder), device="cpu", dtype=torch.float32)
        self.model.eval()
        self.layers = range(self.model.cfg.n_layers)

    def metric(self, name: str, logits: torch.Tensor) -> torch.Tensor:
        """Logit difference at the last token, one number."""
        return self.difference(logits[:, -1], name).sum()

    @variant("w1_first")
    def first_logits(self) -> Arrays:
        """Last logits of one short text."""
        return {"logits": self.model(self.ids("w1_first"))[:, -1].numpy()}

    @variant("w1_new_length")
    def new_length(self) -> Arrays:
        """Last logits of a text that is one token longer."""
        return {"logits": self.model(self.ids("w1_longer"))[:, -1].numpy()}

    @variant("w2_residuals", "run_with_cache")
    def read_residuals(self) -> Arrays:
        """The residual stream after every layer, for all texts, without logits."""
        names = [f"blocks.{layer}.hook_resid_post" for layer in self.layers]
        stop = self.model.cfg.n_layers
        _, cache = self.model.run_with_cache(self.ids("w2_tokens"), names_filter=names, stop_at_layer=stop)
        return {"resid_post": np.stack([cache[name].numpy() for name in names])}

    @variant("w2_all", "run_with_cache")
    def read_all(self) -> Arrays:
        """Eleven sites of every layer, a batch of texts at a time; the first batch is handed in."""
        names = {site: [f"blocks.{layer}.{hook}" for layer in self.layers] for site, hook in HOOKS.items()}
        wanted = {name for every in names.values() for name in every}
        first: Arrays = {}
        for rows in self.ids("w2_tokens").split(self.number("w2_batch")):
            _, cache = self.model.run_with_cache(rows, names_filter=lambda name: name in wanted)
            first = first or {site: np.stack([cache[name].numpy() for name in every]) for site, every in names.items()}
        return first

    @variant("w3_patching", "get_act_patch_resid_pre")
    def patch(self) -> Arrays:
        """Its own sweep."""
        from transformer_lens import patching

        names = [f"blocks.{layer}.hook_resid_pre" for layer in self.layers]
        _, cache = self.model.run_with_cache(self.ids("w3_clean"), names_filter=names)
        corrupted, metric = self.ids("w3_corrupted"), partial(self.metric, "w3")
        return {"logit_diff": patching.get_act_patch_resid_pre(self.model, corrupted, cache, metric).numpy()}

    @variant("w4_heads", "loop of run_with_hooks")
    def ablate_heads(self) -> Arrays:
        """One hooked pass a head."""
        tokens = self.ids("w4_tokens")
        clean = self.difference(self.model(tokens)[:, -1], "w4")
        effects = torch.empty(len(self.layers), self.model.cfg.n_heads, len(tokens))

        def ablate(z: torch.Tensor, hook: object, head: int) -> torch.Tensor:  # noqa: ARG001  # its signature
            z[:, :, head] = 0
            return z

        for layer, head in np.ndindex(*effects.shape[:2]):
            hooks = [(f"blocks.{layer}.attn.hook_z", partial(ablate, head=head))]
            logits = self.model.run_with_hooks(tokens, fwd_hooks=hooks)
            effects[layer, head] = self.difference(logits[:, -1], "w4") - clean
        return {"effect": effects.numpy()}

    def generate(self, tokens: torch.Tensor, added: dict[int, torch.Tensor]) -> torch.Tensor:
        """Greedy continuation with something added after some layers, [rows, new]."""

        def steer(hidden: torch.Tensor, hook: object, vector: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
            return hidden + vector

        hooks = [(f"blocks.{layer}.hook_resid_post", partial(steer, vector=vector)) for layer, vector in added.items()]
        with self.model.hooks(fwd_hooks=hooks):
            out = self.model.generate(
                tokens,
                max_new_tokens=self.number("w5_new"),
                do_sample=False,
                stop_at_eos=False,
                prepend_bos=False,
                return_type="tokens",
                verbose=False,
            )
        return out[:, tokens.shape[1] :]

    @variant("w5_generate", "hooks and generate")
    def generate_steered(self) -> Arrays:
        """One continuation with a vector added after one layer."""
        return self.steered_text()

    @variant("w5_grid", "rows batched")
    def generate_grid(self) -> Arrays:
        """All layers and scales as rows of one batch."""
        return self.steered_grid()

    @variant("w6_attribution", "cache_activation_and_gradient")
    def attribute(self) -> Arrays:
        """Gradient at the corrupted residual times clean minus corrupted."""
        from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient as read

        names = [f"blocks.{layer}.hook_resid_pre" for layer in self.layers]
        metric = partial(self.metric, "w6")
        clean = read(self.model, self.ids("w6_clean"), metric, names_filter=names, compute_gradient=False)
        with torch.enable_grad():
            corrupted = read(self.model, self.ids("w6_corrupted"), metric, names_filter=names)
        effects = [
            ((clean.activations[name] - corrupted.activations[name]) * corrupted.gradients[name]).sum(-1)
            for name in names
        ]
        return {"effect": torch.stack(effects).detach().numpy()}

    @variant("w6_edges", "attribution_patch")
    def attribute_edges(self) -> Arrays:
        """Its edge attribution."""
        return self.attributed(granularity="edge")

    @variant("w6_integrated", "attribution_patch")
    def integrate(self) -> Arrays:
        """Its integrated gradients."""
        return self.attributed(ig_steps=self.number("w6_steps"))

    def attributed(self, **options: object) -> Arrays:
        """Its attribution, averaged over the pairs."""
        from transformer_lens.tools.analysis import attribution_patching as tool

        config = tool.EdgeAttributionConfig(**options)
        metric = partial(self.metric, "w6")
        with torch.enable_grad():
            found = tool.attribution_patch(self.model, self.ids("w6_clean"), self.ids("w6_corrupted"), metric, config)
        return {"effect": np.asarray(list(found.edge_scores.values()))}


if __name__ == "__main__":
    serve(LensWorker())
