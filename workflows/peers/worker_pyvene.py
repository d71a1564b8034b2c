# ruff: noqa: INP001  # scripts, each run in its own environment
"""pyvene: declared interventions on the Hugging Face model."""

from types import MappingProxyType

import torch
from protocol import Arrays, serve, variant
from torch_inputs import TorchInputs


class VeneWorker(TorchInputs):
    """Interventions as its documentation declares them."""

    packages = ("pyvene", "transformers", "torch")
    absent = MappingProxyType(
        {
            "w6_attribution": "pyvene has no attribution patching",
            "w6_edges": "pyvene has no attribution of edges",
            "w6_integrated": "pyvene has no integrated gradients",
        }
    )

    def load(self) -> None:
        """See `Worker.load`."""
        import pyvene
        import transformers

        super().load()
        self.pyvene = pyvene
        self.model = self.from_folder(transformers)
        self.layers = range(self.model.config.num_hidden_layers)

    def intervening(self, *parts: dict[str, object]) -> object:
        """The model with some interventions."""
        return self.pyvene.IntervenableModel(list(parts), model=self.model)

    def part(self, layer: int, component: str, kind: type, **options: object) -> dict[str, object]:
        """An intervention on the residual stream at every place by itself rather than on all places as one vector."""
        made = kind(embed_dim=self.model.config.hidden_size, keep_last_dim=True, **options)
        return {"layer": layer, "component": component, "intervention": made}

    def collect(self, component: str, tokens: torch.Tensor) -> torch.Tensor:
        """A component of every layer, [layer, rows, seq, width]."""
        kind = self.pyvene.CollectIntervention
        model = self.intervening(*(self.part(layer, component, kind) for layer in self.layers))
        (_, kept), _ = model({"input_ids": tokens}, unit_locations={"base": list(range(tokens.shape[1]))})
        return torch.stack(kept)

    @variant("w1_first")
    def first_logits(self) -> Arrays:
        """Last logits of one short text, through a model without interventions."""
        return {"logits": self.plain_logits(self.ids("w1_first")).numpy()}

    @variant("w1_new_length")
    def new_length(self) -> Arrays:
        """Last logits of a text that is one token longer."""
        return {"logits": self.plain_logits(self.ids("w1_longer")).numpy()}

    def plain_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Last logits without an intervention."""
        plain, _ = self.intervening()({"input_ids": tokens}, output_original_output=True)
        return plain.logits[:, -1]

    @variant("w2_residuals", "CollectIntervention")
    def read_residuals(self) -> Arrays:
        """The residual stream after every layer, for all texts."""
        return {"resid_post": self.collect("block_output", self.ids("w2_tokens")).numpy()}

    @variant("w2_all", "CollectIntervention")
    def read_all(self) -> Arrays:
        """It has no name for the residual stream within a layer or for attention patterns."""
        return {"resid_mid": self.collect("block_middle", self.ids("w2_tokens")).numpy()}

    @variant("w3_patching", "loop with source representations")
    def patch(self) -> Arrays:
        """One pass a cell; the clean residuals are collected once."""
        clean = self.collect("block_input", self.ids("w3_clean"))
        tokens = self.ids("w3_corrupted")
        effects = torch.empty(clean.shape[0], tokens.shape[1])
        for layer in self.layers:
            model = self.intervening(self.part(layer, "block_input", self.pyvene.VanillaIntervention))
            for position in range(tokens.shape[1]):
                _, out = model(
                    {"input_ids": tokens},
                    unit_locations={"base": position},
                    source_representations=clean[layer][:, position : position + 1],
                )
                effects[layer, position] = self.difference(out.logits[:, -1], "w3")[0]
        return {"logit_diff": effects.numpy()}

    @variant("w4_heads", "loop of ZeroIntervention")
    def ablate_heads(self) -> Arrays:
        """One pass a head."""
        tokens, heads = self.ids("w4_tokens"), self.model.config.num_attention_heads
        clean = self.difference(self.plain_logits(tokens), "w4")
        effects = torch.empty(len(self.layers), heads, len(tokens))
        places = [list(range(tokens.shape[1]))] * len(tokens)
        for layer in self.layers:
            model = self.intervening(
                {
                    "layer": layer,
                    "component": "head_attention_value_output",
                    "unit": "h.pos",
                    "intervention_type": self.pyvene.ZeroIntervention,
                }
            )
            for head in range(heads):
                where = {"base": [[[[head]] * len(tokens), places]]}
                _, out = model({"input_ids": tokens}, unit_locations=where)
                effects[layer, head] = self.difference(out.logits[:, -1], "w4") - clean
        return {"effect": effects.numpy()}

    def generate(self, tokens: torch.Tensor, added: dict[int, torch.Tensor]) -> torch.Tensor:
        """Greedy continuation with something added after some layers, in the prompt and in every step."""
        kind = self.pyvene.AdditionIntervention
        parts = [
            self.part(layer, "block_output", kind, source_representation=vector) for layer, vector in added.items()
        ]
        self.model.generation_config.eos_token_id = None
        _, out = self.intervening(*parts).generate(
            {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
            unit_locations=None,
            intervene_on_prompt=True,
            max_new_tokens=self.number("w5_new"),
            do_sample=False,
            pad_token_id=0,
        )
        return out[:, tokens.shape[1] :]

    @variant("w5_generate", "AdditionIntervention")
    def generate_steered(self) -> Arrays:
        """One continuation with a vector added after one layer."""
        return self.steered_text()

    @variant("w5_grid", "rows batched")
    def generate_grid(self) -> Arrays:
        """All layers and scales as rows of one batch."""
        return self.steered_grid()


if __name__ == "__main__":
    serve(VeneWorker())
