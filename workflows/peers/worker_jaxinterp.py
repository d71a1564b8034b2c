# ruff: noqa: INP001  # scripts, each run in its own environment
"""This package, through what it exports."""

import numpy as np
import polars as pl
from protocol import DEVICES, DTYPES, Arrays, Worker, serve, variant

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_post", "pattern")


class OwnWorker(Worker):
    """The calls that the documentation shows, on plain token ids."""

    packages = ("jaxinterp", "jax")
    dtypes, devices = DTYPES, DEVICES

    def load(self) -> None:
        """See `Worker.load`."""
        import jax

        import jaxinterp as ji

        self.ji = ji
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        if self.text("device") == "cpu":
            jax.config.update("jax_platforms", "cpu")
        elif jax.default_backend() == "cpu":
            raise RuntimeError("JAX finds no GPU here; install jax[cuda13], or set the benchmark's device to cpu")
        elif self.text("dtype") == "float32":
            # On a GPU a float32 product is otherwise one of shorter numbers, which PyTorch's is not.
            jax.config.update("jax_default_matmul_precision", "highest")
        self.device = jax.local_devices()[0]
        self.model = ji.load(self.folder, self.text("dtype"))
        self.architecture = self.model.architecture
        self.layers = range(self.architecture.layers)

    def device_name(self) -> str:
        """See `Worker.device_name`."""
        return self.device.device_kind

    def metric(self, name: str) -> object:
        """Logit of the right minus logit of the wrong token of each text."""
        right, wrong = self.inputs[f"{name}_pair"].T
        return self.ji.logit_diff(right, wrong)

    @variant("w1_first")
    def first_logits(self) -> Arrays:
        """Last logits of one short text."""
        return {"logits": self.ji.run(self.model, self.inputs["w1_first"], logits="last")[0]}

    @variant("w1_new_length")
    def new_length(self) -> Arrays:
        """Last logits of a text that is one token longer."""
        return {"logits": self.ji.run(self.model, self.inputs["w1_longer"], logits="last")[0]}

    @variant("w2_residuals")
    def read_residuals(self) -> Arrays:
        """The residual stream after every layer, for all texts."""
        _, cache = self.ji.run(self.model, self.inputs["w2_tokens"], sites=[self.ji.resid_post()], logits="last")
        return {"resid_post": _Stacked(cache, "resid_post")}

    @variant("w2_all")
    def read_all(self) -> Arrays:
        """Eleven sites of every layer, a batch of texts at a time; the first batch is handed in."""
        tokens, batch = self.inputs["w2_tokens"], self.number("w2_batch")
        sites = [getattr(self.ji, name)() for name in SITES]
        first: Arrays = {}
        for start in range(0, len(tokens), batch):
            _, cache = self.ji.run(self.model, tokens[start : start + batch], sites=sites, logits="last")
            first = first or {name: _Stacked(cache, name) for name in SITES}
        return first

    @variant("w3_patching", "sweep")
    def patch(self) -> Arrays:
        """A grid of patches as one sweep."""
        ji, clean = self.ji, self.inputs["w3_clean"]
        _, cache = ji.run(self.model, clean, sites=[ji.resid_pre()], logits=None)
        cells = ji.grid(
            lambda lm, layer, position: ji.patch(lm, ji.resid_pre(layer), cache, at=ji.at(position)),
            layer=self.layers,
            position=range(clean.shape[1]),
        )
        table = ji.sweep(self.model, self.inputs["w3_corrupted"], cells, self.metric("w3"), progress=False)
        return {"logit_diff": table["value"].to_numpy().reshape(len(self.layers), -1)}

    @variant("w4_heads", "sweep")
    def ablate_heads(self) -> Arrays:
        """A grid of ablations as one sweep."""
        ji, heads = self.ji, self.architecture.heads
        cells = ji.grid(
            lambda lm, layer, head: ji.ablate(lm, ji.head(layer, head)), layer=self.layers, head=range(heads)
        )
        table = ji.sweep(self.model, self.inputs["w4_tokens"], cells, self.metric("w4"), progress=False)
        return {"effect": table["effect"].to_numpy().reshape(len(self.layers), heads, -1)}

    def steered(self, layer: int, scale: float) -> object:
        """The model with the vector added after one layer; it never ends a text."""
        import dataclasses

        endless = dataclasses.replace(self.model, architecture=dataclasses.replace(self.architecture, eos=()))
        return self.ji.steer(endless, self.ji.resid_post(layer), self.inputs["w5_vector"], scale)

    @variant("w5_generate")
    def generate_steered(self) -> Arrays:
        """One continuation with a vector added after one layer."""
        edited = self.steered(self.number("w5_layer"), float(self.inputs["w5_scale"]))
        made = self.ji.generate_tokens(edited, self.inputs["w5_tokens"], self.number("w5_new"))
        return {"tokens": made.tokens}

    @variant("w5_grid", "grid")
    def generate_grid(self) -> Arrays:
        """All layers and scales as one batch."""
        import dataclasses

        ji, layers, scales = self.ji, self.inputs["w5_layers"], self.inputs["w5_scales"]
        endless = dataclasses.replace(self.model, architecture=dataclasses.replace(self.architecture, eos=()))
        cells = ji.grid(
            lambda lm, layer, scale: ji.steer(lm, ji.resid_post(layer), self.inputs["w5_vector"], scale),
            layer=layers.tolist(),
            scale=scales.tolist(),
        )
        made = ji.generate_grid(endless, self.inputs["w5_tokens"], cells, self.number("w5_new"))
        return {"tokens": np.stack([one.tokens[0] for one in made]).reshape(len(layers), len(scales), -1)}

    @variant("w6_forward")
    def forward_pairs(self) -> Arrays:
        """One forward pass of the corrupted texts."""
        logits, _ = self.ji.run(self.model, self.inputs["w6_corrupted"], logits="last")
        right, wrong = self.inputs["w6_pair"].T
        rows = np.arange(len(logits))
        return {"logit_diff": logits[rows, right] - logits[rows, wrong]}

    @variant("w6_attribution", "attribute")
    def attribute(self) -> Arrays:
        """Attribution of the residual before every layer, [layer, pair, position]."""
        return {"effect": self.attributed(method="gradient")}

    @variant("w6_integrated", "attribute")
    def integrate(self) -> Arrays:
        """The same along the line between the embeddings."""
        return {"effect": self.attributed(method="integrated", steps=self.number("w6_steps"), path="inputs")}

    def attributed(self, **options: object) -> np.ndarray:
        """What the clean residual would do in the corrupted run, before every layer."""
        ji, clean, corrupted = self.ji, self.inputs["w6_clean"], self.inputs["w6_corrupted"]
        table = ji.attribute(self.model, corrupted, clean, self.metric("w6"), sites=[ji.resid_pre()], **options)
        ordered = table.sort("layer", "prompt", "position")["effect"].to_numpy()
        return ordered.reshape(len(self.layers), *clean.shape)

    @variant("w6_edges", "attribute_edges")
    def attribute_edges(self) -> Arrays:
        """All edges; the gate compares what each sender's edges add up to, [sender, pair]."""
        clean, corrupted = self.inputs["w6_clean"], self.inputs["w6_corrupted"]
        table = self.ji.attribute_edges(self.model, corrupted, clean, self.metric("w6"))
        return {"total": _Totals(table, self.layers, self.architecture.heads)}

    @variant("w7_probes", "fit_logistic")
    def probes(self) -> Arrays:
        """Logistic probes of all layers."""
        from jaxinterp.analysis import probes

        fitted = probes.fit_logistic(self.inputs["w7_train"], self.inputs["w7_train_labels"], standardise=False)
        return {"accuracy": fitted.accuracy(self.inputs["w7_test"], self.inputs["w7_test_labels"])}

    @variant("w8_neighbours", "nearest_neighbours")
    def neighbours(self) -> Arrays:
        """Exact neighbours of every token."""
        from jaxinterp.analysis import neighbours

        points, count = self.inputs["w8_points"], self.number("w8_neighbours")
        return {"indices": neighbours.nearest_neighbours(points, count, "euclidean")[0]}

    @variant("w8_weights", "locally_linear_weights")
    def weights(self) -> Arrays:
        """Locally linear weights of given neighbours."""
        from jaxinterp.analysis import neighbours

        return {"weights": neighbours.locally_linear_weights(self.inputs["w8_points"], self.inputs["w8_indices"])}


class _Stacked:
    """All layers of a site, put together only when the result is written."""

    def __init__(self, cache: object, site: str) -> None:
        self._cache, self._site = cache, site

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self._cache.stack(self._site)


class _Totals:
    """What each sender's edges add up to, only when the result is written."""

    def __init__(self, table: object, layers: range, heads: int) -> None:
        self._table = table
        self._senders = ["embed"]
        for layer in layers:
            self._senders += [*(f"L{layer}.H{head}" for head in range(heads)), f"L{layer}.mlp"]

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        sums = self._table.group_by("sender", "prompt").agg(pl.col("effect").sum())
        totals = {(sender, prompt): effect for sender, prompt, effect in sums.rows()}
        prompts = sorted({prompt for _, prompt in totals})
        return np.asarray([[totals[sender, prompt] for prompt in prompts] for sender in self._senders])


if __name__ == "__main__":
    serve(OwnWorker())
