"""Makes a torchvision that was built for another torch importable, so far as models without detection need it.

Where torch is a CPU build and the registry has torchvision for CUDA only, `import torchvision` fails because its compiled operators
did not load, and timm, transformers and diffusers fail with it. Declaring the two operators whose fake kernels torchvision registers
cures that. With a matching pair this does nothing. Call it before the first import of any of those packages.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

_libraries: list[Any] = []  # torch forgets declarations whose Library object is gone


def repair_torchvision() -> None:
    if _libraries or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    try:
        # As torchvision.extension does it; when this works, its operators declare themselves.
        folder = os.path.dirname(importlib.util.find_spec("torchvision").origin or "")  # type: ignore[union-attr]
        extension = os.path.join(folder, "_C.so")
        if os.path.exists(extension):
            torch.ops.load_library(extension)
        if hasattr(torch.ops.torchvision, "nms"):
            return
    except (OSError, RuntimeError, AttributeError):
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
