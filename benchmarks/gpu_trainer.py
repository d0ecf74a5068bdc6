"""A network of the zoo as plain PyTorch layers, and its training step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu import CUDA, DEVICE, seconds, synchronize
from gpu_images import BATCH_SIZE, Images, Plan, normal
from torch_resnext import PackedConv2d, TorchResNeXt

from ce_keras.geometry import Design, ResNeXt
from ce_keras.zoo.resnext import build_resnext

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


def zoo_weights(shape: ResNeXt, design: Design, seed: int) -> dict[str, list[np.ndarray]]:
    """The zoo's initial weights, by layer."""
    model = build_resnext(shape, design, classifier_activation=None, seed=seed + 1)
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


class Trainer:
    """One design: its network, and a training step that can be run again for other seeds."""

    def __init__(self, shape: ResNeXt, design: str, images: Images, most_steps: int) -> None:
        self.shape, self.design, self.images = shape, Design.parse(design), images
        self.network = TorchResNeXt(shape, self.design).to(
            DEVICE, memory_format=torch.channels_last
        )
        self.layers = self.network.pairs(shape)
        self.weights = list(self.network.parameters())
        self.params = sum(weight.numel() for weight in self.weights)
        self.momentum = [torch.zeros_like(weight) for weight in self.weights]
        many = (most_steps, BATCH_SIZE)
        whole = [torch.zeros(many, dtype=torch.int64, device=DEVICE) for _ in range(4)]
        self.plan = Plan(*whole, torch.zeros(most_steps, device=DEVICE))
        self.step = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.loss = torch.zeros((), device=DEVICE)
        self.wrong = torch.zeros((), device=DEVICE)
        self.stream = torch.cuda.Stream() if CUDA else None
        self.replay: Callable[[], None] = self._step

    def start(self, seed: int, plan: Plan) -> None:
        """Set the network to the initial weights of a seed, and take the plan."""
        with torch.no_grad():
            for name, values in zoo_weights(self.shape, self.design, seed).items():
                _copy(self.layers[name], values)
            for buffer in self.momentum:
                buffer.zero_()
            for own, new in zip(self.plan, plan, strict=True):
                own[: len(new)].copy_(new)
            self.step.zero_()
            self.loss.zero_()
            self.wrong.zero_()

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        index, down, across, mirrored, rate = (
            part.index_select(0, self.step)[0] for part in self.plan
        )
        side = torch.arange(32, device=DEVICE)
        rows = down[:, None] + side
        columns = across[:, None] + torch.where(mirrored[:, None] > 0, 31 - side, side)
        pixels = self.images.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return normal(pixels, self.images), self.images.labels[index], rate

    def _step(self) -> None:
        """A step of gradient descent with momentum, on the batch that `self.step` points to."""
        pixels, labels, rate = self._batch()
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
            logits = self.network(pixels)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        slopes = list(torch.autograd.grad(loss, self.weights))
        with torch.no_grad():
            torch._foreach_mul_(self.momentum, MOMENTUM)
            torch._foreach_add_(self.momentum, slopes)
            torch._foreach_add_(self.momentum, self.weights, alpha=WEIGHT_DECAY)
            torch._foreach_sub_(self.weights, torch._foreach_mul(self.momentum, rate))
            self.loss += loss
            self.wrong += (logits.argmax(1) != labels).sum()
            self.step += 1

    def prepare(self) -> int:
        """Capture the step with the grouped convolution in its fastest form; return its packs.

        What the trial steps change, `start` sets anew.
        """
        if not CUDA:
            return 0
        graphs, times = {}, {}
        for channels in (0, 128, 256) if self.design.cardinality > 1 else (0,):
            for module in self.network.modules():
                if isinstance(module, PackedConv2d):
                    module.pack_channels = channels
            graphs[channels] = graph = self._capture()
            times[channels] = min(seconds(graph.replay) for _ in range(5))
        best = min(times, key=lambda channels: times[channels])
        self.replay = graphs[best].replay
        return best

    def _capture(self) -> Any:
        """The training step as a CUDA graph."""
        self.step.zero_()
        synchronize()
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self._step()
        synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._step()
        return graph

    @torch.no_grad()
    def test(self) -> tuple[float, float]:
        """Error in percent and mean loss on the test images."""
        self.network.eval()
        wrong = loss = 0.0
        count = len(self.images.test_labels)
        for low in range(0, count, 1000):
            part = slice(low, low + 1000)
            labels = self.images.test_labels[part]
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = self.network(normal(self.images.test[part], self.images)).float()
            wrong += float((logits.argmax(1) != labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        self.network.train()
        return 100 * wrong / count, loss / count

    def state(self) -> dict[str, np.ndarray]:
        """The weights now, by PyTorch's names."""
        return {
            name: value.detach().contiguous().cpu().numpy()
            for name, value in self.network.state_dict().items()
            if value.ndim
        }


def _copy(layer: torch.nn.Module, values: list[np.ndarray]) -> None:
    """Give a PyTorch layer a Keras layer's weights."""
    tensors = [torch.from_numpy(np.array(value)).to(DEVICE) for value in values]
    if isinstance(layer, torch.nn.Conv2d):
        layer.weight.copy_(tensors[0].permute(3, 2, 0, 1))
    elif isinstance(layer, torch.nn.Linear):
        layer.weight.copy_(tensors[0].T)
        layer.bias.copy_(tensors[1])
    else:
        assert isinstance(layer, torch.nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        own = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        for old, new in zip(own, tensors, strict=True):
            old.copy_(new)
