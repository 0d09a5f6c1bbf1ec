"""LeRobot policies of other types (SmolVLA, pi0, VQ-BeT, ...), run by the lerobot package where that is installed.

Nothing of theirs is read here: the package loads, normalises and samples. K samples are K copies of the observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError
from data.torchvision_repair import repair_torchvision
from policies.base import ActionSpec, Observations, ObservationSpec
from policies.checkpoint import read_config
from policies.formats.lerobot import ACTION, Feature, action_bounds, read_features
from policies.history import to_tensor, windowed

_VERSION = "0.4.4"


class LeRobotPackagePolicy:
    """See policies.base: Policy. Their pipelines: policy(preprocess(batch)), then postprocess."""

    family = "lerobot"

    def __init__(
        self, policy: Any, before: Any, after: Any, config: Mapping[str, Any], features: Mapping[str, Feature], folder: Path
    ) -> None:
        self.policy, self.before, self.after = policy, before, after
        self.inputs = [feature for feature in features.values() if feature.kind != "ACTION"]
        self.size = features[ACTION].shape[0]
        self.time_first = config.get("type") == "tdmpc"  # Its chunks alone are [H,B,A].
        chunk = int(next((config[key] for key in ("n_action_steps", "action_chunk_size", "chunk_size") if config.get(key)), 1))
        low, high = action_bounds(folder, features[ACTION])
        names = tuple(f"action_{i}" for i in range(self.size))
        self.action_spec = ActionSpec(names, ("1",) * self.size, tuple(low), tuple(high), "unknown", 0.0, chunk)
        images = {feature.ours: (feature.shape[1], feature.shape[2]) for feature in self.inputs if feature.kind == "VISUAL"}
        vectors = {feature.ours: feature.shape[0] for feature in self.inputs if feature.kind != "VISUAL"}
        self.observation_spec = ObservationSpec(images, vectors, int(config.get("n_obs_steps") or 1))

    @classmethod
    def load(cls, folder: Path, device: str, kind: str) -> LeRobotPackagePolicy:
        """InputError where the package is not installed, or does not know or cannot load the policy."""
        repair_torchvision()
        try:
            factory = import_module("lerobot.policies.factory")
        except ImportError as error:
            raise InputError(
                f"{folder}: a LeRobot {kind!r} policy; only diffusion and act are read natively, and lerobot, which runs the others, "
                f"cannot be imported ({error}): pip install lerobot=={_VERSION}"
            ) from error
        config = read_config(folder)
        features = read_features(config, folder / "config.json")
        try:
            policy = factory.get_policy_class(kind).from_pretrained(str(folder)).to(device).eval()
            move = {"device_processor": {"device": device}}
            before, after = factory.make_pre_post_processors(
                policy.config, pretrained_path=str(folder), preprocessor_overrides=move
            )
        except (ValueError, TypeError, KeyError, NotImplementedError, ImportError, OSError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{folder}: lerobot cannot load this {kind!r} policy: {reason}") from error
        return cls(policy, before, after, config, features, folder)

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    def reset(self) -> None:
        self.policy.reset()

    @torch.no_grad()
    def sample(self, observations: Observations, num_samples: int, generator: torch.Generator | None = None) -> torch.Tensor:
        window = self.observation_spec.window
        seen = windowed(observations, window)
        tasks = [text for text in observations["instruction"] for _ in range(num_samples)]
        device = self.device
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else None))
        # Their samplers draw from torch's global generators, which are put back afterwards.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.policy.reset()
            for step in range(window):
                batch = {feature.name: self._tensor(seen, feature, step, num_samples) for feature in self.inputs}
                batch = self.before({**batch, "task": tasks})
                batch.pop(ACTION, None)  # The pipeline adds one, of None.
                self._remember(batch)
            chunks = self.after(self.policy.predict_action_chunk(batch))
        if self.time_first:
            chunks = chunks.transpose(0, 1)
        chunks = chunks[:, : self.action_spec.chunk, : self.size].float().to(device)
        return chunks.unflatten(0, (len(tasks) // num_samples, num_samples))

    def _tensor(self, seen: Mapping[str, Any], feature: Feature, step: int, copies: int) -> torch.Tensor:
        if feature.ours not in seen:
            raise InputError(
                f"the observation lacks {feature.ours!r}, the policy's {feature.name!r} (it has {', '.join(sorted(seen))})"
            )
        value = to_tensor(seen[feature.ours])[:, step]
        if feature.kind == "VISUAL":
            value = value.permute(0, 3, 1, 2).float() / 255
        return value.float().repeat_interleave(copies, 0)

    def _remember(self, batch: dict[str, Any]) -> None:
        """Some policies read their history, even one of a single step, from queues of their own, where cameras have other names."""
        queues = getattr(self.policy, "_queues", None) or {}
        if not set(queues) - {ACTION}:
            return
        cameras = [batch[feature.name] for feature in self.inputs if feature.kind == "VISUAL"]
        if cameras:
            batch.setdefault("observation.image", cameras[0])
            batch["observation.images"] = torch.stack(cameras, dim=-4)
        import_module("lerobot.policies.utils").populate_queues(queues, batch)
