"""Random Octo checkpoints in its authors' layout, written from the names and shapes that flax gives their network, not from ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

T5 = {
    "model_type": "t5",
    "d_model": 24,
    "d_ff": 40,
    "d_kv": 6,
    "num_heads": 4,
    "num_layers": 1,
    "vocab_size": 12,
    "feed_forward_proj": "relu",
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "is_encoder_decoder": True,
}
CAMERAS = ("image_primary", "image_wrist")
DIMS = {"action_horizon": 3, "action_dim": 5}
WORDS = ("<pad>", "</s>", "<unk>", "pick", "up", "the", "spoon", "open", "drawer", "go", "left", "right")


def dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def attention(name: str, width: int, heads: int) -> dict[str, tuple[int, ...]]:
    size = width // heads
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        shapes |= {f"{name}/{part}/kernel": (width, heads, size), f"{name}/{part}/bias": (heads, size)}
    return shapes | {f"{name}/out/kernel": (heads, size, width), f"{name}/out/bias": (width,)}


def shapes(
    model: Mapping[str, Any], sizes: Mapping[str, int], proprio: int = 0, t5: Mapping[str, Any] = T5, words: int = 16
) -> dict:
    """Every array of a checkpoint. sizes: of the square pictures."""
    width, top, result = model["token_embedding_size"], "octo_transformer/", {}
    horizon = model["max_horizon"]
    counts = {}
    for name, spec in model["observation_tokenizers"].items():
        kwargs, group = spec["kwargs"], f"obs_{name}"
        if spec["name"] == "LowdimObsTokenizer":
            counts[group], features = proprio, kwargs.get("n_bins", 256) if kwargs.get("discretize") else 1
        else:
            encoder, channels = kwargs["encoder"], 6 if kwargs.get("task_stack_keys") else 3
            place = f"{top}observation_tokenizers_{name}/{encoder['name']}_0/"
            features = encoder["kwargs"].get("num_features", 512)
            patch = encoder["kwargs"].get("patch_size", {"SmallStem16": 16}.get(encoder["name"], 32))
            side = patch if encoder["name"] == "PatchEncoder" else patch // 16
            if encoder["name"] != "PatchEncoder":
                for i, out in enumerate(encoder["kwargs"].get("features", (32, 96, 192, 384))):
                    result |= {f"{place}StdConv_{i}/kernel": (3, 3, channels, out), f"{place}StdConv_{i}/bias": (out,)}
                    result |= norm(f"{place}GroupNorm_{i}", out)
                    channels = out
            result |= {f"{place}embedding/kernel": (side, side, channels, features), f"{place}embedding/bias": (features,)}
            counts[group] = (sizes[kwargs["obs_stack_keys"][0]] // patch) ** 2
        result |= dense(f"{top}{group}_projection", features, width)
    counts |= {f"readout_{name}": count for name, count in model["readouts"].items()}
    result |= {f"{top}{group}_pos_embedding": (1, horizon, count, width) for group, count in counts.items()}
    result |= dense(f"{top}task_language_projection", t5["d_model"], width)
    result[f"{top}task_language_pos_embedding"] = (1, words, width)
    kwargs, trunk = model["transformer_kwargs"], f"{top}BlockTransformer_0/Transformer_0/"
    for i in range(kwargs["num_layers"]):
        block = f"{trunk}encoderblock_{i}/"
        result |= norm(f"{block}LayerNorm_0", width) | norm(f"{block}LayerNorm_1", width)
        result |= attention(f"{block}MultiHeadDotProductAttention_0", width, kwargs["num_attention_heads"])
        result |= dense(f"{block}MlpBlock_0/Dense_0", width, kwargs["mlp_dim"])
        result |= dense(f"{block}MlpBlock_0/Dense_1", kwargs["mlp_dim"], width)
    return result | norm(f"{trunk}encoder_norm", width) | head_shapes(model) | t5_shapes(t5)


def head_shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    spec, width, top = model["heads"]["action"], model["token_embedding_size"], "heads_action/"
    name, kwargs, result = spec["name"], spec["kwargs"], {}
    size = kwargs.get("action_horizon", kwargs.get("pred_horizon", 1)) * kwargs["action_dim"]
    if kwargs.get("use_map", name in ("MSEActionHead", "L1ActionHead")):
        result |= {f"{top}map_head/probe": (1, size if name == "DiscreteActionHead" else 1, width)}
        result |= attention(f"{top}map_head/MultiHeadDotProductAttention_0", width, 8) | norm(
            f"{top}map_head/LayerNorm_0", width
        )
        result |= dense(f"{top}map_head/MlpBlock_0/Dense_0", width, 4 * width)
        result |= dense(f"{top}map_head/MlpBlock_0/Dense_1", 4 * width, width)
    if name == "DiscreteActionHead":
        return result | dense(f"{top}vocab_proj", width, kwargs["vocab_size"])
    if name != "DiffusionActionHead":
        return result | dense(f"{top}mean_proj", width, size)
    time, hidden, top = kwargs.get("time_dim", 32), kwargs.get("hidden_dim", 256), f"{top}diffusion_model/"
    result[f"{top}time_preprocess/kernel"] = (time // 2, 1)
    result |= dense(f"{top}cond_encoder/Dense_0", time, 2 * time) | dense(f"{top}cond_encoder/Dense_1", 2 * time, time)
    result |= dense(f"{top}reverse_network/Dense_0", time + width + size, hidden)
    for i in range(kwargs.get("num_blocks", 3)):
        block = f"{top}reverse_network/MLPResNetBlock_{i}/"
        result |= norm(f"{block}LayerNorm_0", hidden)
        result |= dense(f"{block}Dense_0", hidden, 4 * hidden) | dense(f"{block}Dense_1", 4 * hidden, hidden)
    return result | dense(f"{top}reverse_network/Dense_1", hidden, size)


def t5_shapes(t5: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    top, width, inner = "octo_transformer/task_tokenizers_language/hf_model/", t5["d_model"], t5["num_heads"] * t5["d_kv"]
    result: dict[str, tuple[int, ...]] = {f"{top}shared/embedding": (t5["vocab_size"], width)}
    for i in range(t5["num_layers"]):
        block = f"{top}encoder/block/{i}/layer/"
        result |= {f"{block}0/SelfAttention/{part}/kernel": (width, inner) for part in "qkv"}
        result |= {f"{block}0/SelfAttention/o/kernel": (inner, width), f"{block}0/layer_norm/weight": (width,)}
        result |= {f"{block}1/DenseReluDense/wi/kernel": (width, t5["d_ff"]), f"{block}1/layer_norm/weight": (width,)}
        result |= {f"{block}1/DenseReluDense/wo/kernel": (t5["d_ff"], width)}
    bias = f"{top}encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding"
    buckets = t5.get("relative_attention_num_buckets", 32)
    return result | {bias: (buckets, t5["num_heads"]), f"{top}encoder/final_layer_norm/weight": (width,)}


def pack(tree: Any) -> bytes:
    """As flax.serialization: arrays are extension 1, (shape, dtype, bytes) packed."""

    def array(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError(type(value))
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True))

    return msgpack.packb(tree, default=array, strict_types=True)


def nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return tree


def image_tokenizer(key: str, encoder: str = "SmallStem16", goal: bool = True, **kwargs: Any) -> dict[str, Any]:
    kwargs = (
        {"features": [32, 32, 32, 64], "num_features": 24, **kwargs}
        if encoder != "PatchEncoder"
        else {"num_features": 24, **kwargs}
    )
    spec = {"obs_stack_keys": [key], "encoder": {"name": encoder, "kwargs": kwargs}}
    return {"name": "ImageTokenizer", "kwargs": {**spec, **({"task_stack_keys": [key]} if goal else {})}}


def write(
    folder: Path,
    head: Mapping[str, Any] | None = None,
    tokenizers: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    proprio: int = 0,
    old: bool = False,
    statistics: Mapping[str, Any] | None = None,
    change: Any = lambda flat: flat,
    **model: Any,
) -> Path:
    """A checkpoint, its T5 beside it. old: with the names and the attention of December 2023. change: of the arrays, by path."""
    sizes = sizes or {"image_primary": 32, "image_wrist": 16}
    head = head or {"name": "DiffusionActionHead", "kwargs": {**DIMS, "hidden_dim": 32}}
    head = {"name": head["name"], "kwargs": {"readout_key": "readout_action", **head["kwargs"]}}
    tokenizers = tokenizers or {name: image_tokenizer(f"image_{name}") for name in ("primary", "wrist")}
    model = {
        "observation_tokenizers": dict(tokenizers),
        "task_tokenizers": {"language": {"name": "LanguageTokenizer", "kwargs": {"encoder": "t5_test"}}},
        "heads": {"action": head},
        "readouts": {"action": 1},
        "transformer_kwargs": {"num_layers": 2, "mlp_dim": 48, "num_attention_heads": 8, "add_position_embedding": False},
        "token_embedding_size": 32,
        "max_horizon": 6,
        **({} if old else {"repeat_task_tokens": True, "use_correct_attention": True}),
        **model,
    }
    words, window, dims = 7, 3, head["kwargs"]["action_dim"]
    rng = np.random.default_rng(0)
    flat = {}
    for key, shape in shapes(model, sizes, proprio, words=words).items():
        scale = 1.0 if key.endswith(("scale", "layer_norm/weight")) else 0.0
        flat[key] = (scale + rng.normal(0, 0.3, shape)).astype(np.float32)
    seen: dict[str, Any] = {key: np.zeros((1, window, size, size, 3), np.uint8) for key, size in sizes.items()}
    if proprio:
        seen["proprio"] = np.zeros((1, window, proprio), np.float32)
    seen["pad_mask" if old else "timestep_pad_mask"] = np.ones((1, window), bool)
    task: dict[str, Any] = {key: value[:, 0] for key, value in seen.items() if key.startswith("image_")}
    task["language_instruction"] = {
        "input_ids": np.zeros((1, words), np.int64),
        "attention_mask": np.zeros((1, words), np.int64),
    }
    batch = {"observation": seen, "tasks" if old else "task": task}
    moments = {"mean": [0.1] * dims, "std": [0.5] * dims, "mask": [True] * (dims - 1) + [False]}
    one = {"action": moments, "proprio": {"mean": [1.0] * proprio, "std": [2.0] * proprio}}
    text = {"name": "HFTokenizer", "kwargs": {"tokenizer_name": "t5_test", "tokenizer_kwargs": {"max_length": words}}}
    step = folder / "70" / "default"
    step.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": model, "text_processor": text, "window_size": window}))
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics or {"bridge_dataset": one}))
    (folder / "example_batch.msgpack").write_bytes(pack(batch))
    (step / "checkpoint").write_bytes(pack(nested(change(flat))))
    write_t5(folder.parent / "t5_test")
    return folder


def write_t5(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(T5))
