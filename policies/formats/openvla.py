"""What lies beside OpenVLA's weights: config.json, the picture preparation, the prompt with its tokenizer, and the statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import InputError
from policies.checkpoint import read_config

PROMPTS = {
    "default": "In: What action should the robot take to {instruction}?\nOut:",
    "v01": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
        "answers to the user's questions. USER: What action should the robot take to {instruction}? ASSISTANT:"
    ),
}
# The lone space after `Out:`, which precedes the action tokens in training and which the tokenizer leaves out at the end of a text.
_SPACE = 29871


def read_openvla_config(folder: Path) -> dict[str, Any]:
    """config.json with the defaults that its authors' class would fill in; InputError when it is of another model."""
    config = read_config(folder)
    if config.get("model_type") != "openvla":
        raise InputError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not 'openvla'; give an OpenVLA folder"
        )
    defaults = {"use_fused_vision_backbone": True, "image_sizes": [224, 224], "n_action_bins": 256, "pad_to_multiple_of": 64}
    config = {**defaults, **config}
    for key in ("timm_model_ids", "text_config"):
        if key not in config:
            raise InputError(f"{folder / 'config.json'}: has no {key!r}; the checkpoint is not complete, download it again")
    return config


@dataclass(frozen=True)
class Range:
    """Which numbers -1 and 1 stand for, each [D] float64; dimensions where `mask` is False are not rescaled at all."""

    low: np.ndarray
    high: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, statistics: Mapping[str, Any], low: str = "q01", high: str = "q99") -> Range:
        """KeyError where the statistics lack one of the two."""
        lows, highs = np.asarray(statistics[low], np.float64), np.asarray(statistics[high], np.float64)
        mask = np.asarray(statistics.get("mask", [True] * len(lows)), bool)
        if not lows.ndim == highs.ndim == 1 or not len(lows) == len(highs) == len(mask):
            raise ValueError(f"{low}, {high} and mask differ in length")
        return cls(lows, highs, mask)

    def unnormalize(self, values: Any, slack: float = 0.0) -> Any:
        """[...,D] in [-1,1] to physical units, as the originals compute it; slack: what they add to the range. numpy or torch."""
        low, high, mask = self.like(values)
        return _where(mask, 0.5 * (values + 1) * (high - low + slack) + low, values)

    def normalize(self, values: torch.Tensor) -> torch.Tensor:
        """[...,D] in physical units to [-1,1], clipped where rescaled; a dimension that never moved is 0 (OpenVLA's RLDS pipeline)."""
        low, high, mask = self.like(values)
        scaled = (2 * (values - low) / torch.where(high > low, high - low, 1.0) - 1).clamp(-1, 1)
        return torch.where(mask, torch.where(high > low, scaled, 0.0), values)

    def like(self, values: Any) -> tuple[Any, Any, Any]:
        """low, high and mask, where and as `values` are."""
        if isinstance(values, np.ndarray):
            return self.low, self.high, self.mask
        mask = torch.from_numpy(self.mask).to(values.device)
        return torch.from_numpy(self.low).to(values), torch.from_numpy(self.high).to(values), mask


def _where(mask: Any, first: Any, second: Any) -> Any:
    return np.where(mask, first, second) if isinstance(mask, np.ndarray) else torch.where(mask, first, second)


def read_statistics(folder: Path, config: Mapping[str, Any], unnorm_key: str | None) -> tuple[str, dict[str, Any]]:
    """The dataset whose units the policy speaks, and its statistics, from dataset_statistics.json where there is one (a fine-tuned
    checkpoint's), else from config.json. InputError that names the datasets when the choice is not clear."""
    path, known = folder / "dataset_statistics.json", config.get("norm_stats")
    if path.is_file():
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); download it again") from error
    else:
        path = folder / "config.json"
    if not isinstance(known, dict) or not known:
        raise InputError(
            f"{path}: has no statistics of actions, so nothing tells their units; copy the dataset_statistics.json here"
        )
    names = ", ".join(sorted(known))
    if unnorm_key is None:
        if len(known) > 1:
            raise InputError(f"{path}: actions can be of several datasets; say which by unnorm_key=NAME, one of {names}")
        unnorm_key = next(iter(known))
    if unnorm_key not in known:
        raise InputError(f"unnorm_key={unnorm_key}: {path} has no such dataset; it has {names}")
    return unnorm_key, known[unnorm_key]


def read_range(statistics: Mapping[str, Any], part: str, folder: Path, low: str = "q01", high: str = "q99") -> Range:
    """The range of `action` or `proprio`; InputError where the statistics have none that can be used."""
    try:
        result = Range.of(statistics[part], low, high)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: the dataset's statistics of {part!r} cannot be used ({error}); they need {low} and {high}"
        ) from error
    if not (np.isfinite(result.low) & np.isfinite(result.high)).all():
        raise InputError(f"{folder}: the dataset's statistics of {part!r} are not finite; make them again")
    return result


class Prompter:
    """Instructions to token ids, by the tokenizer.json of a folder. kind: a key of PROMPTS; None decides by the folder's name."""

    def __init__(self, folder: Path, kind: str | None) -> None:
        from tokenizers import Tokenizer

        # The original tells its first release, which has another prompt, by its name alone.
        kind = kind or ("v01" if "v01" in folder.resolve().name else "default")
        if kind not in PROMPTS:
            raise InputError(f"prompt={kind}: must be one of {', '.join(PROMPTS)}")
        self.template = PROMPTS[kind]
        path = folder / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package has no exception type of its own
            raise InputError(
                f"{path}: cannot be read ({str(error)[:100]}); download the checkpoint's tokenizer.json"
            ) from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def __call__(self, instruction: str) -> list[int]:
        """Ids with the leading BOS; the lone space is last."""
        ids = list(self.tokenizer.encode(self.template.format(instruction=instruction.lower())).ids)
        return ids if ids[-1] == _SPACE else [*ids, _SPACE]


@dataclass(frozen=True)
class _View:
    """What one backbone is given: resized to (h,w) or by the shorter side, cropped in the middle, normalised."""

    size: int | tuple[int, int]
    resample: int
    crop: tuple[int, int]
    mean: np.ndarray
    std: np.ndarray


class PictureProcessor:
    """uint8 pictures of any size to normalised pixels, DINOv2's channels first, exactly as the original prepares them with PIL."""

    def __init__(self, folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        try:
            values = json.loads(path.read_text())
            strategy = values.get("image_resize_strategy", "letterbox")
            if strategy not in ("resize-naive", "letterbox", "resize-crop"):
                raise ValueError(f"image_resize_strategy is {strategy!r}")
            means, stds, sizes = values["means"], values["stds"], [tuple(size[1:]) for size in values["input_sizes"]]
            if not values.get("use_fused_vision_backbone", len(sizes) == 2):
                means, stds, sizes = means[:1], stds[:1], sizes[:1]
            names = values.get("interpolations") or ["bicubic"] * len(sizes)
            self.views = tuple(
                _View(
                    (size[0], size[1]) if strategy == "resize-naive" else min(size),
                    _RESAMPLE[name],
                    (size[0], size[1]),
                    np.asarray(mean, np.float32),
                    np.asarray(std, np.float32),
                )
                for size, name, mean, std in zip(sizes, names, means, stds, strict=True)
            )
            # With two backbones the original pads for both with what it set last.
            self.fill = tuple(int(value * 255) for value in means[-1]) if strategy == "letterbox" else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be used ({error}); download it again") from error

    @property
    def size(self) -> tuple[int, int]:
        return self.views[0].crop

    def __call__(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """float32 [N,3 or 6,h,w] of N pictures uint8 [H,W,3]."""
        return torch.stack([torch.from_numpy(self._one(picture)) for picture in pictures])

    def _one(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        image = Image.fromarray(picture)
        if self.fill is not None:
            image = _letterboxed(image, self.fill)
        cut: dict[Any, np.ndarray] = {}
        channels = []
        for view in self.views:
            place = (view.size, view.resample, view.crop)
            if place not in cut:
                cut[place] = _resized_and_cropped(image, view)
            channels.append((cut[place] - view.mean) / view.std)
        return np.ascontiguousarray(np.concatenate(channels, axis=-1).transpose(2, 0, 1))


def read_pixels(observations: Mapping[str, Any], cameras: Sequence[str], process: PictureProcessor) -> torch.Tensor:
    """float32 [B,n,3 or 6,h,w] of n cameras; InputError where one is missing or holds something else."""
    pixels = []
    for camera in cameras:
        if camera not in observations:
            keys = ", ".join(sorted(observations))
            raise InputError(f"the observation lacks {camera!r}, which the policy looks at (it has {keys})")
        pictures = np.asarray(observations[camera])
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise InputError(
                f"the observation's {camera!r} is {pictures.dtype} of shape {pictures.shape}; it must be uint8 (B, height, width, 3)"
            )
        pixels.append(process(list(pictures)))
    return torch.stack(pixels, dim=1)


def read_prompts(observations: Mapping[str, Any], prompter: Prompter) -> list[list[int]]:
    if "instruction" not in observations:
        raise InputError("the observation lacks 'instruction', a list of one text for each picture")
    return [prompter(text) for text in observations["instruction"]]


_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def _letterboxed(image: Any, fill: tuple[int, ...]) -> Any:
    """Padded to a square, or to one pixel less where the two sides would not be equal."""
    from PIL import ImageOps

    width, height = image.size
    longer = max(width, height)
    across, down = (longer - width) // 2, (longer - height) // 2
    return ImageOps.expand(image, (across, down, across, down), fill)


def _resized_and_cropped(image: Any, view: _View) -> np.ndarray:
    """float32 [h,w,3] in [0,1]."""
    width, height = image.size
    if isinstance(view.size, int):
        shorter, longer = view.size, int(view.size * max(width, height) / min(width, height))
        new_width, new_height = (shorter, longer) if width <= height else (longer, shorter)
    else:
        new_height, new_width = view.size
    if (new_width, new_height) != (width, height):
        image = image.resize((new_width, new_height), view.resample)
    rows, columns = view.crop
    top, left = round((new_height - rows) / 2.0), round((new_width - columns) / 2.0)
    return np.asarray(image, np.float32)[top : top + rows, left : left + columns] / np.float32(255)
