"""A network of learned synapses as the seed of its frozen weights and a bit, or a trit, for each synapse.

One safetensors file. A mask of two values is packed in bits, eight to a byte, one of three values in trits, five to a
byte (3^5 = 243), the first digit being the least. Whatever else the model's state holds, such as biases, the statistics
of batch norm and layers that are not learned, stands in it as it is. Nothing in the file is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import synaptome
from synaptome.errors import ConfigurationError, RunError
from synaptome.networks.initialisation import frozen_weight, weight_layers
from synaptome.synapses.learned_weight import LearnedWeight
from synaptome.training.checkpoint import tensor_digest
from synaptome.training.files import storage_errors, write_bytes

FORMAT = 1
METADATA = "synaptome"
MASK, STATE = "mask.", "state."
DIGITS = {2: 8, 3: 5}  # of each base, in a byte


class _Version(msgspec.Struct, frozen=True):
    format: int
    synaptome: str


class _Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A learned layer: its shape, how it was learned, and the sha256 of its weights as the mask leaves them."""

    shape: tuple[int, ...]
    learned: dict[str, str | float | bool | None]
    sha256: str


class _Header(_Version, frozen=True, forbid_unknown_fields=True):
    seed: int
    initialiser: str
    p1: float | None
    layers: dict[str, _Layer]
    sha256: str  # of all tensors in the file


def save_compact(model: nn.Module, path: str | Path, *, seed: int, initialiser: str, p1: float | None = None) -> None:
    """Write a trained network as a seed and a bit, or a trit, for each learned synapse; all of the file or nothing.

    Args:
        model, seed, initialiser, p1: as for `compact_bytes`.
        path: of the file, usually `*.safetensors`.

    Raises:
        ConfigurationError: as `compact_bytes`.
        RunError: the file cannot be written; what was there before is intact.
    """
    content = compact_bytes(model, seed=seed, initialiser=initialiser, p1=p1)
    with storage_errors(f"writing {path}"):
        write_bytes(Path(path), content)


def compact_bytes(model: nn.Module, *, seed: int, initialiser: str, p1: float | None = None) -> bytes:
    """What `save_compact` writes. The same network, seed and version of synaptome give the same bytes.

    Scores are not kept, only what they say: that is the network at inference.

    Args:
        model: with learned layers, whose weights are those of `synaptome.networks.initialisation.initialise(model,
            initialiser, seed=seed, p1=p1)`.
        seed, initialiser, p1: what the weights were drawn with.

    Raises:
        ConfigurationError: the model has no learned layer; the weights of one are trained, or not those of this seed
            and initialiser; or it is a supermask whose inference is `expected`, which no mask stands for.
    """
    layers, tensors = {}, {STATE + name: tensor for name, tensor in _other_state(model).items()}
    for name, (layer, number) in _learned(model).items():
        what = f"{name or 'the model'} ({layer.learned.method})"
        if layer.learned.train_weights:
            raise ConfigurationError(f"the weights of {what} are trained, and no seed brings them back; save its state")
        if layer.learned.inference == "expected":
            raise ConfigurationError(
                f"the inference of {what} is 'expected', the mean over masks, and the file holds one mask; choose "
                f"inference='thresholded'"
            )
        frozen = frozen_weight(layer.weight.shape, initialiser, seed=seed, layer=number, p1=p1)
        if not torch.equal(frozen.to(layer.weight.dtype), layer.weight.cpu()):
            raise ConfigurationError(
                f"the weights of {what} are not those of initialiser={initialiser!r}, seed={seed} and p1={p1}; give "
                f"what they were drawn with"
            )
        mask = layer.mask().cpu()
        tensors[MASK + name] = _packed(mask, layer.learned.values)
        shape = tuple(layer.weight.shape)
        layers[name] = _Layer(shape, asdict(layer.learned), tensor_digest(frozen * mask))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = _Header(FORMAT, synaptome.__version__, seed, initialiser, p1, layers, _digest(tensors))
    return safetensors.torch.save(tensors, {METADATA: msgspec.json.encode(header).decode()})


def load_compact(path: str | Path, model: nn.Module) -> nn.Module:
    """Rebuild in `model` the network that `save_compact` wrote, to the same bits at inference.

    Scores are those of `set_mask`: training may go on from there.

    Args:
        path: of the file.
        model: of the same architecture and methods, with any weights; as it was if an error is raised.

    Returns:
        The model.

    Raises:
        ConfigurationError: the model is of another architecture, or its layers learn by another method.
        RunError: the file is missing, truncated, changed, not of this kind or of another version.
    """
    header, tensors = _read(Path(path))
    learned, others = _learned(model), _other_state(model)
    expected = {MASK + name for name in learned} | {STATE + name for name in others}
    for name in sorted(expected ^ set(tensors)):
        whose = "the model lacks it" if name in tensors else "the file lacks it"
        raise ConfigurationError(f"{path} is of another architecture: {name.partition('.')[2]}: {whose}")
    for name, tensor in others.items():
        found = tensors[STATE + name]
        if found.shape != tensor.shape:
            raise ConfigurationError(
                f"{path} is of another architecture: {name} is {list(found.shape)} in the file and "
                f"{list(tensor.shape)} in the model"
            )
    rebuilt = {name: _rebuilt(path, name, *learned[name], header, tensors[MASK + name]) for name in learned}
    with torch.no_grad():
        for name, (weight, mask) in rebuilt.items():
            layer = learned[name][0]
            layer.weight.copy_(weight)
            layer.set_mask(mask.to(layer.scores.device))
    model.load_state_dict({name: tensors[STATE + name] for name in others}, strict=False)
    return model


def _learned(model: nn.Module) -> dict[str, tuple[LearnedWeight, int]]:
    """The learned layers by name, each with the number by which `initialise` draws it."""
    numbered = enumerate(weight_layers(model).items(), 1)
    learned: dict[str, tuple[LearnedWeight, int]] = {
        name: (layer, number) for number, (name, layer) in numbered if isinstance(layer, LearnedWeight)
    }
    if not learned:
        raise ConfigurationError(f"a {type(model).__name__} has no learned layer; save its state_dict instead")
    return learned


def _other_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without the weights and scores of its learned layers."""
    state: dict[str, Tensor] = model.state_dict()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LearnedWeight):
            for own in ("weight", "scores"):
                del state[f"{name}.{own}" if name else own]
    return state


def _read(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    try:
        content = path.read_bytes()
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
        text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][METADATA]
        version = msgspec.json.decode(text, type=_Version)
        if version.format == FORMAT:
            header = msgspec.json.decode(text, type=_Header)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever the parsers raise of a file that may hold anything
        raise RunError(f"{path} is truncated or damaged, or no compact network ({error!r})") from None
    if version.format != FORMAT:
        raise RunError(
            f"{path} was written by synaptome {version.synaptome} in format {version.format}; synaptome "
            f"{synaptome.__version__} reads format {FORMAT}"
        )
    if _digest(tensors) != header.sha256:
        raise RunError(f"{path} is not as it was saved (its sha256 differs)")
    return header, tensors


def _rebuilt(
    path: str | Path, name: str, layer: LearnedWeight, number: int, header: _Header, packed: Tensor
) -> tuple[Tensor, Tensor]:
    """The frozen weights of a layer, and its mask, after they were checked."""
    what, saved, learned = name or "the model", header.layers.get(name), layer.learned
    if saved is None:
        raise RunError(f"{path} is damaged: it does not describe {what}")
    if saved.shape != tuple(layer.weight.shape):
        raise ConfigurationError(
            f"{path} is of another architecture: the weight of {what} is {list(saved.shape)} in the file and "
            f"{list(layer.weight.shape)} in the model"
        )
    for option, own in asdict(learned).items():
        if saved.learned.get(option) != own:
            raise ConfigurationError(
                f"{path}: {what} has {option}={saved.learned.get(option)!r} in the file and {own!r} in the model"
            )
    mask = _unpacked(packed, learned.values, saved.shape)
    try:
        weight = frozen_weight(saved.shape, header.initialiser, seed=header.seed, layer=number, p1=header.p1)
    except ConfigurationError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if mask is None or tensor_digest(weight * mask) != saved.sha256:
        raise RunError(
            f"{path}: the weights of {what} are not those that were saved; the file is damaged, or the layers of the "
            f"model come in another order"
        )
    layer.check_mask(mask)
    return weight, mask


def _packed(mask: Tensor, values: tuple[int, ...]) -> Tensor:
    """A mask as digits, each the place of its value among the values, in bytes."""
    base = len(values)
    digits = np.searchsorted(np.array(values), mask.numpy().reshape(-1)).astype(np.uint8)
    digits = np.pad(digits, (0, -len(digits) % DIGITS[base])).reshape(-1, DIGITS[base])
    return torch.from_numpy((digits * base ** np.arange(DIGITS[base])).sum(1).astype(np.uint8))


def _unpacked(packed: Tensor, values: tuple[int, ...], shape: tuple[int, ...]) -> Tensor | None:
    """The mask of a shape, int8; None if these bytes hold none."""
    base, count = len(values), math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != (-(-count // DIGITS[base]),):
        return None
    numbers = packed.numpy().astype(np.int64)[:, None] // base ** np.arange(DIGITS[base])
    if (numbers[:, -1] >= base).any():
        return None
    digits = (numbers % base).reshape(-1)[:count]
    return torch.from_numpy(np.array(values, np.int8)[digits].reshape(shape))


def _digest(tensors: dict[str, Tensor]) -> str:
    """The sha256 of all tensors and their names."""
    each: list[Any] = [[name, tensor_digest(tensor)] for name, tensor in sorted(tensors.items())]
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()
