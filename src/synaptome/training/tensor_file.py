"""One file of named tensors, as safetensors, that tells when it was damaged or put in another's place."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from synaptome.errors import RunError
from synaptome.training.checkpoint import tensor_digest
from synaptome.training.files import write_bytes

FORMAT = 1
METADATA = "synaptome"  # a single key, because safetensors writes several in any order
SUFFIX = ".safetensors"


def tensor_file(folder: Path, place: str) -> Path:
    """The file of a place, such as `spectra/00003`, in a folder."""
    return folder / f"{place}{SUFFIX}"


def write_tensors(folder: Path, place: str, tensors: dict[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU with a sha256 for each, and the place; all of the file or nothing of it.

    Raises:
        OSError: the disk is full or not writable; what was there before is intact.
    """
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    metadata = json.dumps({"format": FORMAT, "place": place, "sha256": digests}, sort_keys=True)
    write_bytes(tensor_file(folder, place), safetensors.torch.save(tensors, {METADATA: metadata}))


def read_tensors(folder: Path, place: str) -> dict[str, Tensor]:
    """The tensors of a file, after every byte of them was checked.

    Raises:
        RunError: the file is missing, truncated, changed, or was written as another; file and tensor are named.
    """
    file = tensor_file(folder, place)
    try:
        content = file.read_bytes()
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        document = json.loads(header["__metadata__"][METADATA])
        version, belongs, digests = document["format"], document["place"], dict(document["sha256"])
        found = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever the parsers raise of a file that may hold anything
        raise RunError(f"{file} is truncated or damaged, or holds no measures ({error!r})") from None
    if version != FORMAT:
        raise RunError(f"{file} has format {version}; this version of synaptome reads format {FORMAT}")
    if belongs != place:
        raise RunError(f"{file} is not in its place: it was written as {belongs}")
    for name in sorted({*found, *digests}):
        if found.get(name) != digests.get(name):
            raise RunError(f"{file}: the tensor {name!r} is not the one that was saved")
    return tensors
