"""features.json of a TFDS dataset: which features an episode has, and how each is decoded from a tf.train.Example.

TFDS flattens nested names (`steps/observation/image_0`) and concatenates fixed-shape features over the steps. Ragged tensors, other
than RGB images, video and audio are not supported: they are remembered with the reason, and are read by data.formats.tfds_features.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from data.errors import InputError, reason
from data.formats.base import Feature

# Listed, because np.dtype("bfloat16") works or fails with what else is imported.
_DTYPES = {"bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
_ENCODINGS = ("none", "bytes", "zlib")


def parse_features(tree: dict[str, Any], where: str) -> dict[str, Feature]:
    """Leaves of a parsed features.json by flattened name. InputError when it is not an RLDS description with `steps`."""
    try:
        leaves = {leaf.name: leaf for leaf in _walk(tree, "", ())}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{where}: not a TFDS feature description ({reason(error)}); write the dataset with TFDS 4.6 or newer"
        ) from None
    if not any(name.startswith("steps/") for name in leaves):
        raise InputError(
            f"{where}: no `steps` feature, so this is not an RLDS dataset of episodes (features: {sorted(leaves)})"
        )
    return leaves


def _walk(node: dict[str, Any], name: str, outer: tuple[int, ...]) -> list[Feature]:
    if "featuresDict" in node:
        children = node["featuresDict"]["features"]
        return [leaf for key, child in children.items() for leaf in _walk(child, f"{name}/{key}" if name else key, outer)]
    if "sequence" in node:
        # The outermost `steps` is the time axis; a sequence inside a step is one more axis of the step's shape.
        inner = () if name == "steps" else (int(node["sequence"].get("length", -1)),)
        return _walk(node["sequence"]["feature"], name, outer + inner)
    if "image" in node:
        shape, dtype = _shape(node["image"]), node["image"].get("dtype", "uint8")
        bad = (
            ""
            if dtype == "uint8" and shape[-1:] == (3,) and not outer
            else f"an image of {dtype} {[*outer, *shape]}, not one RGB uint8"
        )
        return [Feature(name, "image", dtype, shape, bad)]
    if "text" in node:
        return [Feature(name, "text", "string", outer, "a sequence of texts within a step" if outer else "")]
    if "tensor" in node or "classLabel" in node:
        tensor = node.get("tensor", {"dtype": "int64"})
        shape, dtype = outer + _shape(tensor), tensor["dtype"]
        bad = ""
        encoding = tensor.get("encoding", "none").lower()
        if encoding not in _ENCODINGS:
            bad = f"a tensor in encoding {encoding!r}"
        elif outer and encoding != "none":
            bad = f"a sequence of tensors in encoding {encoding!r} within a step"
        elif -1 in shape:
            bad = f"a tensor of variable shape {list(shape)}"
        if dtype in ("string", "object"):
            return [Feature(name, "text", "string", shape, bad or ("a tensor of several texts" if shape else ""))]
        if dtype not in _DTYPES:
            bad = bad or f"a tensor of {dtype}"
        return [Feature(name, "tensor", dtype, shape, bad, encoding)]
    return [Feature(name, "tensor", unsupported=f"a {node.get('pythonClassName', '?').rsplit('.', 1)[-1]} feature")]


def _shape(node: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", ()))


def decode(feature: Feature, values: Any, source: str) -> Any:
    """All values of one leaf, stacked over steps: [N, *shape] of its dtype for tensors, uint8 [N,H,W,3] RGB, or a list of N strings."""
    if feature.unsupported:
        raise InputError(f"{source}: {feature.name} is {feature.unsupported}, which this reader does not support")
    kept_as_bytes = feature.kind != "tensor" or feature.encoding != "none"
    if len(values) and isinstance(values[0], bytes) != kept_as_bytes:
        expected, found = ("bytes", "numbers") if kept_as_bytes else ("numbers", "bytes")
        raise InputError(f"{source}: {feature.name} holds {found}, features.json says {expected} ({feature.kind})")
    if feature.kind == "text":
        return [value.decode("utf-8", errors="replace") for value in values]
    if feature.kind == "image":
        return _decode_images(values, f"{source}: {feature.name}")
    if feature.encoding != "none":
        return _decode_bytes(feature, values, f"{source}: {feature.name}")
    try:
        array = np.array(values, dtype=feature.dtype)
    except OverflowError as error:
        raise InputError(f"{source}: {feature.name} is not {feature.dtype} ({error})") from None
    size = int(np.prod(feature.shape))
    if array.size % max(size, 1):
        raise InputError(
            f"{source}: {feature.name} has {array.size} values, which do not divide into steps of {list(feature.shape)}"
        )
    return array.reshape(-1, *feature.shape)


def _decode_bytes(feature: Feature, values: Any, where: str) -> np.ndarray:
    """Tensors kept as one string a step, compressed or not, as Kuka keeps its poses."""
    try:
        data = b"".join(zlib.decompress(value) if feature.encoding == "zlib" else value for value in values)
        return np.frombuffer(data, feature.dtype).reshape(len(values), *feature.shape)
    except (zlib.error, ValueError, TypeError) as error:
        raise InputError(f"{where}: not {feature.encoding} of {feature.dtype}{list(feature.shape)} ({error})") from None


def _decode_images(encoded: Any, where: str) -> np.ndarray:
    import cv2

    # The pixels are those of tf.io.decode_jpeg(dct_method="INTEGER_ACCURATE"); TFDS decodes with the faster, less exact transform.
    frames: np.ndarray | None = None
    for step, data in enumerate(encoded):
        # TensorFlow does not rotate by EXIF either.
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if data else None
        if bgr is None:
            raise InputError(f"{where}: the image of step {step} cannot be decoded; drop the episode with --skip-bad")
        if frames is None:
            frames = np.empty((len(encoded), *bgr.shape), np.uint8)
        if bgr.shape != frames.shape[1:]:
            raise InputError(
                f"{where}: the image of step {step} is {bgr.shape}, step 0 is {frames.shape[1:]}; resize them to one size"
            )
        cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=frames[step])
    return np.empty((0, 0, 0, 3), np.uint8) if frames is None else frames
