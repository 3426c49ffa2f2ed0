"""Compact networks: the same bits in another process, the size of the file, and files that are not what they say."""

import inspect
import json
import struct
import subprocess
import sys
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from torch import nn

import synaptome as syn
from synaptome.errors import ConfigurationError, RunError
from synaptome.networks.initialisation import initialise
from synaptome.synapses.learned_model import learned_layers
from synaptome.synapses.learned_rules import METHODS
from synaptome.training.compact import _digest, load_compact, save_compact


def make(method, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 11), nn.Linear(11, 3)
    )
    return syn.rewire(model, syn.Learned(method, **options), where=["0", "4"])


def trained(method, seed=5, initialiser="he", p1=None, **options):
    """A network whose learned weights come from a seed, and everything else from chance."""
    model = make(method, **options)
    initialise(model, initialiser, seed=seed, p1=p1)
    with torch.no_grad():
        for layer in learned_layers(model).values():
            layer.scores.normal_()
        for other in (model[5].weight, model[4].bias, model[1].running_mean):
            other.normal_()
    return model.eval()


@pytest.mark.parametrize("initialiser", ["glorot", "signed-constant"])
@pytest.mark.parametrize("method", METHODS)
def test_a_network_comes_back_to_the_bit(tmp_path, method, initialiser):
    p1 = 0.3 if initialiser == "signed-constant" else None
    model, path = trained(method, 7, initialiser, p1), tmp_path / "network.safetensors"
    save_compact(model, path, seed=7, initialiser=initialiser, p1=p1)
    other = make(method).eval()
    assert load_compact(path, other) is other
    x = torch.randn(9, 1, 4, 4)
    assert torch.equal(other(x), model(x))
    assert syn.connectivity(other) == syn.connectivity(model)
    assert torch.equal(other[4].weight, model[4].weight)
    other.train()(x).sum().backward()  # and can be trained on
    assert other[4].scores.grad is not None


def test_another_process_rebuilds_the_same_bits(tmp_path):
    model, path, x = trained("flip"), tmp_path / "network.safetensors", torch.linspace(-1, 1, 48).view(3, 1, 4, 4)
    save_compact(model, path, seed=5, initialiser="he")
    script = f"""
import sys, torch
from torch import nn
import synaptome as syn
from synaptome.training.compact import load_compact
{inspect.getsource(make)}
torch.set_num_threads(1)
model = load_compact(sys.argv[1], make("flip").eval())
x = torch.linspace(-1, 1, 48).view(3, 1, 4, 4)
print(model(x).detach().numpy().tobytes().hex())
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == model(x).detach().numpy().tobytes().hex()


@pytest.mark.parametrize(("method", "bits"), [("flip", 1), ("ternary", 1.6)])
def test_lenet_takes_a_bit_or_a_trit_for_each_synapse(tmp_path, method, bits):
    widths = (784, 300, 100, 10)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))
    syn.rewire(model, syn.Learned(method))
    initialise(model, "he", seed=1)
    save_compact(model, tmp_path / "lenet", seed=1, initialiser="he")
    assert 266_200 * bits / 8 <= (tmp_path / "lenet").stat().st_size <= 266_200 * bits / 8 + 1500


def test_double_precision_and_a_lone_layer(tmp_path):
    layer = syn.LearnedLinear(6, 5, method="edge-popup", density=0.3).double()
    initialise(layer, "he", seed=2)
    nn.init.normal_(layer.scores)
    save_compact(layer, tmp_path / "layer", seed=2, initialiser="he")
    other = load_compact(tmp_path / "layer", syn.LearnedLinear(6, 5, method="edge-popup", density=0.3).double())
    assert torch.equal(other.effective_weight(), layer.effective_weight())


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (lambda: trained("flip"), {"seed": 6}, r"the weights of 0 \(free-flipping\) are not those of .*'he', seed=6"),
        (lambda: trained("flip"), {"initialiser": "glorot"}, "are not those of initialiser='glorot'"),
        (lambda: trained("flip"), {"initialiser": "hee"}, "unknown initialiser 'hee'"),
        (lambda: trained("flip", train_weights=True), {}, r"weights of 0 \(free-flipping\) are trained, and no seed"),
        (
            lambda: trained("supermask", inference="expected"),
            {},
            "inference of 0 .* is 'expected', the mean over masks",
        ),
        (lambda: nn.Linear(2, 2), {}, "a Linear has no learned layer"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, model, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        save_compact(model(), tmp_path / "network", **({"seed": 5, "initialiser": "he"} | arguments))
    assert not list(tmp_path.iterdir())


def wider():
    model = make("flip")
    model[0] = syn.LearnedConv2d(1, 4, 4, method="flip")
    return model


def deeper():
    return make("flip").append(nn.Linear(3, 3))


def other_order():
    model = make("flip")
    return nn.ModuleDict({"first": nn.Linear(1, 1), **dict(model.named_children())})


def without_bias():
    model = make("flip")
    model[5] = nn.Linear(11, 3, bias=False)
    return model


def other_width():
    model = make("flip")
    model[5] = nn.Linear(11, 4)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (wider, r"the weight of 0 is \[4, 1, 3, 3\] in the file and \[4, 1, 4, 4\] in the model"),
        (deeper, r"of another architecture: 6.bias: the file lacks it"),
        (without_bias, "of another architecture: 5.bias: the model lacks it"),
        (other_order, "of another architecture: first.bias: the file lacks it"),
        (other_width, r"5.weight is \[3, 11\] in the file and \[4, 11\] in the model"),
        (lambda: make("prune"), "0 has method='free-flipping' in the file and 'free-pruning' in the model"),
        (lambda: nn.Linear(2, 2), "a Linear has no learned layer"),
    ],
)
def test_another_architecture_is_refused_and_left_as_it_was(tmp_path, model, message):
    save_compact(trained("flip"), tmp_path / "network", seed=5, initialiser="he")
    other = model()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ConfigurationError, match=message):
        load_compact(tmp_path / "network", other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def rewritten(path, change):
    """The file again, with changes to its header and its tensors, whose sha256 fits."""
    content = path.read_bytes()
    tensors = safetensors.torch.load(content)
    header = json.loads(json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]["synaptome"])
    change(header, tensors)
    header["sha256"] = _digest(tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"synaptome": json.dumps(header)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h, t: h.update(format=2, synaptome="9.9"),
            r"written by synaptome 9\.9 in format 2; synaptome .* format 1",
        ),
        (lambda h, t: h.update(seed="import os"), "truncated or damaged, or no compact network"),
        (lambda h, t: h.update(seed=-1), "is damaged: a seed is a whole number"),
        (lambda h, t: h.update(initialiser="__import__"), "is damaged: unknown initialiser"),
        (lambda h, t: h.update(more=1), "truncated or damaged, or no compact network"),
        (lambda h, t: h.update(seed=4), "the weights of 0 are not those that were saved"),
        (lambda h, t: h["layers"].pop("4"), "it does not describe 4"),
        (lambda h, t: t["mask.4"].bitwise_xor_(1), "the weights of 4 are not those that were saved"),
        (lambda h, t: t.update({"mask.4": t["mask.4"][:-1].clone()}), "the weights of 4 are not those that were saved"),
        (lambda h, t: t.update({"mask.4": t["mask.4"].float()}), "the weights of 4 are not those that were saved"),
    ],
)
def test_hostile_files_are_refused(tmp_path, change, message):
    save_compact(trained("flip"), tmp_path / "network", seed=5, initialiser="he")
    rewritten(tmp_path / "network", change)
    with pytest.raises(RunError, match=message):
        load_compact(tmp_path / "network", make("flip"))


def test_trits_that_no_byte_holds_are_refused(tmp_path):
    save_compact(trained("ternary"), tmp_path / "network", seed=5, initialiser="he")
    rewritten(tmp_path / "network", lambda h, t: t["mask.4"].fill_(243))
    with pytest.raises(RunError, match="the weights of 4 are not those that were saved"):
        load_compact(tmp_path / "network", make("ternary"))


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "network"
    save_compact(trained("flip"), path, seed=5, initialiser="he")
    content = path.read_bytes()
    with pytest.raises(RunError, match="none cannot be read: No such file"):
        load_compact(tmp_path / "none", make("flip"))
    for cut in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(RunError, match="truncated or damaged, or no compact network"):
            load_compact(path, make("flip"))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match="is not as it was saved"):
        load_compact(path, make("flip"))
    path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}))
    with pytest.raises(RunError, match="no compact network"):
        load_compact(path, make("flip"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"writing .*none/network failed: No such file"):
        save_compact(trained("flip"), tmp_path / "none" / "network", seed=5, initialiser="he")
