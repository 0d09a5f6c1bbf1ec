"""Resizing of camera images as `tf.image.resize(method="lanczos3", antialias=True)`, which Octo's data and SimplerEnv are resized by.

Equal to TensorFlow's but for rounding at exact halves. Pillow's LANCZOS has the same kernel, but rounds and clips to 8 bits between
its two passes too: on noise it is off by up to twenty levels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

_RADIUS = 3


def lanczos3(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [...,h,w,C] -> uint8 [...,*size,C], rounded to the nearest level."""
    height, width = images.shape[-3:-1]
    if (height, width) == tuple(size):
        return images
    rows, columns = (_weights(old, new).to(images.device) for old, new in zip((height, width), size, strict=True))
    lines = torch.einsum("oh,...hwc->...owc", rows, images.float())
    return torch.einsum("pw,...owc->...opc", columns, lines).round_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _weights(old: int, new: int) -> torch.Tensor:
    """[new,old]: what each old pixel adds to each new one, which sum to 1. The kernel widens when an image shrinks."""
    ratio = old / new
    stretch = max(ratio, 1.0)
    centre = (np.arange(new) + 0.5) * ratio - 0.5
    x = (np.arange(old)[None] - centre[:, None]) / stretch
    kernel = np.where(np.abs(x) <= _RADIUS, np.sinc(x) * np.sinc(x / _RADIUS), 0.0)
    return torch.from_numpy((kernel / kernel.sum(1, keepdims=True)).astype(np.float32))
