# ruff: noqa: INP001  # scripts, each run in its own environment
"""What all workers on PyTorch share: tensors of the inputs, results as arrays, and the metric."""

from typing import Any

import numpy as np
import torch
from protocol import Arrays, Worker


class TorchInputs(Worker):
    """Inputs as tensors where the model is, on as many threads as the driver says; gradients only if asked for."""

    device: torch.device
    dtype: torch.dtype

    def load(self) -> None:
        """See `Worker.load`."""
        torch.set_grad_enabled(False)
        torch.set_num_threads(self.number("threads"))
        self.dtype = getattr(torch, self.text("dtype"))
        self.device = torch.device("cuda" if self.text("device") == "gpu" else "cpu")
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("PyTorch finds no GPU here; install a build with CUDA, or set device to cpu")
            torch.cuda.set_per_process_memory_fraction(float(self.inputs["device_share"]))

    def device_name(self) -> str:
        """See `Worker.device_name`."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def wait(self) -> None:
        """See `Worker.wait`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def from_folder(self, transformers: Any, **options: Any) -> Any:
        """The causal language model of the folder, in the dtype and on the device asked for, for evaluation."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype, **options)
        return model.eval().requires_grad_(False).to(self.device)

    def ids(self, name: str) -> torch.Tensor:
        """Token ids among the inputs."""
        return torch.from_numpy(self.inputs[name].astype(np.int64)).to(self.device)

    def numbers(self, name: str) -> torch.Tensor:
        """Float32 numbers among the inputs."""
        return torch.from_numpy(self.inputs[name]).to(self.device)

    def difference(self, logits: torch.Tensor, name: str) -> torch.Tensor:
        """Logit of the right minus logit of the wrong token; rows beyond the texts repeat them."""
        pair = self.ids(f"{name}_pair").repeat(len(logits) // len(self.inputs[f"{name}_pair"]), 1)
        right, wrong = logits.gather(1, pair).float().unbind(1)
        return right - wrong

    def steering_rows(self) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The steering grid as one batch: its tokens, and by layer what is added to each row, [rows, 1, width]."""
        layers, scales = self.inputs["w5_layers"].tolist(), self.numbers("w5_scales")
        vector = self.numbers("w5_vector")
        added = {}
        for number, layer in enumerate(layers):
            scale = torch.zeros(len(layers), len(scales), device=self.device)
            scale[number] = scales
            added[layer] = (scale.view(-1, 1, 1) * vector).to(self.dtype)
        return self.ids("w5_tokens").repeat(len(layers) * len(scales), 1), added

    def generate(self, tokens: torch.Tensor, added: dict[int, torch.Tensor]) -> torch.Tensor:
        """Greedy continuation with something added after some layers, [rows, new]; each peer has its own way."""
        raise NotImplementedError

    def steered_text(self) -> Arrays:
        """One continuation with a vector added after one layer."""
        layer, added = self.steering()
        return {"tokens": as_array(self.generate(self.ids("w5_tokens"), {layer: added}))}

    def steered_grid(self) -> Arrays:
        """All layers and scales as rows of one batch."""
        rows, added = self.steering_rows()
        shape = (len(self.inputs["w5_layers"]), len(self.inputs["w5_scales"]), -1)
        return {"tokens": as_array(self.generate(rows, added)).reshape(shape)}

    def steering(self) -> tuple[int, torch.Tensor]:
        """The layer that is steered, and what is added there."""
        scale = float(self.inputs["w5_scale"])
        return self.number("w5_layer"), (scale * self.numbers("w5_vector")).to(self.dtype)


class Stacked:
    """Tensors that were read, one a layer, in the host's memory; one array only when the result is written."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = [tensor.cpu() for tensor in tensors]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.stack([tensor.float().numpy() for tensor in self._tensors])


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Numbers of a tensor, as float32 or whole numbers, in the host's memory."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
