# ruff: noqa: INP001  # scripts, each run in its own environment
"""What all workers on PyTorch share: tensors of the inputs, and the metric."""

from typing import Any

import numpy as np
import torch
from protocol import Worker


class TorchInputs(Worker):
    """Inputs as tensors, on as many threads as the driver says, without gradients unless asked for."""

    def load(self) -> None:
        """See `Worker.load`."""
        torch.set_grad_enabled(False)
        torch.set_num_threads(self.number("threads"))

    def from_folder(self, transformers: Any, **options: Any) -> Any:
        """The causal language model of the folder, float32, for evaluation."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, **options)
        return model.eval().requires_grad_(False)

    def ids(self, name: str) -> torch.Tensor:
        """Token ids among the inputs."""
        return torch.from_numpy(self.inputs[name].astype(np.int64))

    def difference(self, logits: torch.Tensor, name: str) -> torch.Tensor:
        """Logit of the right minus logit of the wrong token; rows beyond the texts repeat them."""
        pair = self.ids(f"{name}_pair").repeat(len(logits) // len(self.inputs[f"{name}_pair"]), 1)
        return logits.gather(1, pair[:, :1])[:, 0] - logits.gather(1, pair[:, 1:])[:, 0]

    def steering_rows(self) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The steering grid as one batch: its tokens, and by layer what is added to each row, [rows, 1, width]."""
        layers, scales = self.inputs["w5_layers"].tolist(), torch.from_numpy(self.inputs["w5_scales"])
        vector = torch.from_numpy(self.inputs["w5_vector"])
        added = {}
        for number, layer in enumerate(layers):
            scale = torch.zeros(len(layers), len(scales))
            scale[number] = scales
            added[layer] = scale.view(-1, 1, 1) * vector
        return self.ids("w5_tokens").repeat(len(layers) * len(scales), 1), added

    def as_grid(self, tokens: torch.Tensor) -> np.ndarray:
        """New tokens of all rows, [layers, scales, new]."""
        return tokens.numpy().reshape(len(self.inputs["w5_layers"]), len(self.inputs["w5_scales"]), -1)

    def steering(self) -> tuple[int, torch.Tensor]:
        """The layer that is steered, and what is added there."""
        scale = float(self.inputs["w5_scale"])
        return self.number("w5_layer"), scale * torch.from_numpy(self.inputs["w5_vector"])
