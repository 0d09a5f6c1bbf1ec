"""Settings of the success classifier. Free of heavy imports. The comments are what `--help` prints."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import LEARNING_RATE, NONNEGATIVE, POSITIVE, check_settings

LITE = "efficientnet-lite0"


@dataclass(frozen=True)
class ClassifierConfig:
    """The classifier."""

    features: str = LITE  # frozen network: this one comes with a PyPI package; or a timm name, or a folder timm saved
    cameras: tuple[str, ...] = ()  # those to look through; none means all that the store has
    image_size: int = 128  # side in pixels that frames are brought to, where the network allows it
    proprio: bool = True  # look at the robot's own state too, where the store has it
    last: int = 3  # observations at the end that are averaged
    components: int = 64  # of the features that the head sees
    hidden: int = 64
    members: int = 5  # heads, whose logits are averaged
    steps: int = 400  # of training each head
    learning_rate: float = 1e-3
    early: float = 0.4  # share of the failures that are drawn from the middle of episodes
    seed: int = 0  # of the split into training and test episodes, and of the heads

    def __post_init__(self) -> None:
        check_settings(self, image_size=(32, 1024), last=POSITIVE, components=POSITIVE, hidden=POSITIVE, members=POSITIVE)
        check_settings(self, steps=POSITIVE, learning_rate=LEARNING_RATE, early=(0, 0.9), seed=NONNEGATIVE)
