"""The recipe of learned connectivity: each method on real digits, what it records, contradictions, and resuming."""

import json
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch

from synaptome import cli
from synaptome.data import Dataset, Split
from synaptome.data.augmentation import AugmentedImages
from synaptome.errors import ConfigurationError, Interrupted, RunError
from synaptome.learning.backprop import Backprop
from synaptome.learning.optimization import Optimization
from synaptome.nested import take_apart
from synaptome.networks.convolutional import ResNet20
from synaptome.networks.initialisation import INITIALISERS, frozen_weight
from synaptome.networks.registry import NETWORKS
from synaptome.recipes import RECIPES, connectivity, running
from synaptome.recipes.connectivity import CITATIONS, COMPACT, LearnedConnectivity
from synaptome.recipes.recipe import RunSettings
from synaptome.report.citations import BIBTEX
from synaptome.synapses.learned_model import learned_layers
from synaptome.synapses.learned_rules import METHODS
from synaptome.training.checkpoint import steps
from synaptome.training.compact import load_compact
from synaptome.training.measures import read_final, read_series
from synaptome.training.run import load_state, read_run, verify_run
from synaptome.training.trainer import Trainer

CPU = torch.device("cpu")
EVERY = ("baseline", *METHODS)
HELD_OUT = 1238  # of 1438 digits, so that an epoch has 8 steps


def digits(method="free-pruning", **options):
    """So fast that scores, and the logits of supermasks, which count a quarter, cross 0 in the 8 steps of an epoch."""
    fast = Optimization("adam", rate=0.3 if method == "supermask" else 0.01)
    given = {"data": "digits", "validation": HELD_OUT, "epochs": 2, "optimization": fast, **options}
    return LearnedConnectivity(method=method, **given)


def settings_of(recipe, seed=0):
    return RunSettings(recipe, seed=seed, device="cpu", threads=1)


def outcome(path):
    state = {k: v for k, v in load_state(path).items() if k not in ("seconds", "metrics", "last_row")}
    tree, tensors = take_apart(state)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_run(path).metrics]
    measures = read_series(path, "connectivity") | {
        f"final/{k}": v for k, v in read_final(path, "connectivity").items()
    }
    return tree, {name: t.numpy().tobytes() for name, t in (tensors | measures).items()}, rows


def seeded(recipe, seed=0):
    return running.build(settings_of(recipe, seed))


def made_images(channels=3, size=8, seed=0):
    """Small images of two classes, of which one is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(12) % 2
    x = torch.randn(12, channels, size, size, generator=generator) + labels.view(-1, 1, 1, 1)
    parts = [Split(x[start : start + 4], labels[start : start + 4]) for start in (0, 4, 8)]
    return Dataset("made", *parts, classes=("dark", "bright"))


def test_the_methods_are_those_that_there_are():
    hints = get_type_hints(LearnedConnectivity)
    assert get_args(hints["method"]) == EVERY
    assert set(get_args(hints["network"])) == set(NETWORKS)
    assert set(get_args(hints["initialiser"])) == set(INITIALISERS)
    assert set(CITATIONS) == {*METHODS, *INITIALISERS, *NETWORKS}
    assert set(CITATIONS.values()) <= set(BIBTEX)


@pytest.mark.parametrize("method", EVERY)
def test_every_method_learns_and_resumes_to_the_same_bits(method, tmp_path, monkeypatch):
    settings = settings_of(digits(method, epochs=3), seed=2)
    record = running.start(settings, tmp_path / "run")
    assert record.summary["test/accuracy"] > 0.5
    assert verify_run(tmp_path / "run")[-1] == "finished"
    original, done = Backprop.step, 0

    def step(self, batch):
        nonlocal done
        done += 1
        if done == 12:  # between two epochs of 8 steps
            raise Interrupted(2, "enough")
        return original(self, batch)

    monkeypatch.setattr(Backprop, "step", step)
    with pytest.raises(Interrupted):
        running.start(settings, tmp_path / "stopped", checkpoint_seconds=0.0)
    assert steps(tmp_path / "stopped" / "checkpoints")[-1] == 11
    running.resume(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "run")
    files = [tmp_path / name / COMPACT for name in ("run", "stopped")]
    assert [file.exists() for file in files] == [method != "baseline"] * 2
    assert method == "baseline" or files[0].read_bytes() == files[1].read_bytes()
    assert json.loads((tmp_path / "stopped" / "recipe.json").read_text())["options"]["method"] == method


@pytest.mark.parametrize(
    ("network", "method"), [*(("lenet", method) for method in METHODS), ("resnet20", "ternary")], ids=str
)
def test_the_compact_file_of_a_run_is_the_network_that_was_trained(network, method, tmp_path):
    recipe = digits(method, network=network, validation=1338, epochs=1, initialiser="binary", p1=0.6)
    record = running.start(settings_of(recipe, seed=4), tmp_path / "run")
    file = tmp_path / "run" / COMPACT
    trained, other = running.load_model(tmp_path / "run"), seeded(recipe, seed=9).rule.model.eval()
    x = seeded(recipe).data.test.inputs[:20]
    assert not torch.equal(other(x), trained(x))
    assert torch.equal(load_compact(file, other)(x), trained(x))
    assert record.summary["products"][COMPACT]["bytes"] == file.stat().st_size
    assert f"{COMPACT}: {file.stat().st_size} bytes, with its sha256" in verify_run(tmp_path / "run")
    content = file.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1]):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match=f"{file} is not as it was written"):
            verify_run(tmp_path / "run")
    file.unlink()
    with pytest.raises(RunError, match=f"{file} cannot be read"):
        verify_run(tmp_path / "run")


def test_lenet_of_mnist_takes_a_bit_for_each_synapse():
    """266 200 synapses are 33 275 bytes; what is told of the three layers takes little more."""
    images = Split(torch.rand(8, 1, 28, 28), torch.arange(8))
    made = Dataset("made", images, images, images, classes=tuple(map(str, range(10))))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(connectivity.data, "load", lambda *words, **options: made)
        experiment = seeded(LearnedConnectivity())
    assert 33_275 < len(experiment.products[COMPACT](experiment.rule.model)) < 35_000


def test_same_seed_same_bits_and_other_seed_other_bits(tmp_path):
    runs = [running.start(settings_of(digits(), seed), tmp_path / str(i)) for i, seed in enumerate((7, 7, 8))]
    losses = [[row["test/loss"] for row in run.metrics] for run in runs]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("method", EVERY)
def test_weights_are_a_function_of_the_seed_and_stay_so_unless_they_are_trained(method):
    experiment = seeded(digits(method, initialiser="signed-constant", p1=0.7), seed=5)
    layers = experiment.rule.model.layers
    drawn = [
        frozen_weight(layer.weight.shape, "signed-constant", seed=5, layer=n, p1=0.7)
        for n, layer in enumerate(layers, 1)
    ]
    assert [tuple(weight.shape) for weight in drawn] == [(300, 64), (100, 300), (10, 100)]
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, drawn, strict=True))
    for _ in range(3):
        experiment.rule.step(experiment.data.train[:25])
    stayed = [torch.equal(layer.weight, weight) for layer, weight in zip(layers, drawn, strict=True)]
    assert stayed == [method != "baseline"] * 3
    names = {name.rpartition(".")[2] for name, _ in experiment.rule.model.named_parameters()}
    assert names == ({"weight"} if method == "baseline" else {"scores"})


def test_one_step_is_that_of_the_definition():
    """Minimal flipping in plain torch: `W sign(s)`, `dL/ds = dL/d(W f(s)) W`, and alpha / size from the penalty."""
    recipe = digits("minimal-flipping", alpha=-3.0, optimization=Optimization(rate=0.5))
    experiment = seeded(recipe)
    layers = list(experiment.rule.model.layers)
    for layer in layers:
        torch.nn.init.uniform_(layer.scores, -0.1, 0.1)
    before = [layer.scores.detach().clone() for layer in layers]
    weights = [layer.weight.clone() for layer in layers]
    effective = [(w * s.sign()).requires_grad_() for w, s in zip(weights, before, strict=True)]
    x, y = experiment.data.train[:25]
    first, second, last = effective
    h = torch.relu(torch.relu(x.flatten(1) @ first.T) @ second.T)
    loss = torch.nn.functional.cross_entropy(h @ last.T, y)
    loss.backward()
    report = experiment.rule.step(experiment.data.train[:25])
    assert report["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for layer, start, weight, product in zip(layers, before, weights, effective, strict=True):
        expected = start - 0.5 * (product.grad * weight - 3.0 / weight.numel())
        torch.testing.assert_close(layer.scores.detach(), expected)


def test_only_minimal_methods_have_a_penalty():
    found = {method: seeded(digits(method)).rule.penalty is not None for method in EVERY}
    assert {method for method, has in found.items() if has} == {"minimal-pruning", "minimal-flipping"}


def test_a_penalty_keeps_more_synapses_as_they_are():
    changed = {}
    for alpha in (-1.0, -30.0):
        experiment = seeded(digits("minimal-pruning", alpha=alpha))
        for _ in range(8):
            experiment.rule.step(experiment.data.train[:25])
        changed[alpha] = connectivity.share_changed(experiment.rule.model)
    assert 0 <= changed[-30.0] < changed[-1.0] < 0.5


@pytest.mark.parametrize("network", ["lenet", "resnet20"])
def test_test_images_never_steer_training(network, monkeypatch):
    """Other test and validation images: the very same network, the statistics of batch normalisation included."""

    def trained(spoiled):
        original = connectivity.data.load

        def load(*words, **options):
            images = original(*words, **options)
            if not spoiled:
                return images
            bad = [Split(-part.inputs, 9 - part.targets) for part in (images.validation, images.test)]
            return replace(images, validation=bad[0], test=bad[1])

        monkeypatch.setattr(connectivity.data, "load", load)
        made = seeded(digits("free-flipping", network=network))
        monkeypatch.setattr(connectivity.data, "load", original)
        trainer = Trainer(made.rule, made.data, epochs=1, batch=25, callbacks=made.callbacks)
        return trainer.fit(), made.rule.model.state_dict()

    (row, clean), (spoiled_row, spoiled) = trained(False), trained(True)
    assert row["test/loss"] != spoiled_row["test/loss"]
    assert row["train/loss"] == spoiled_row["train/loss"]
    assert clean.keys() == spoiled.keys()
    assert all(torch.equal(clean[name], spoiled[name]) for name in clean)


def test_validation_images_are_held_out_by_number():
    experiment = seeded(digits(validation=438))
    assert (len(experiment.data.train), len(experiment.data.validation)) == (1000, 438)
    assert LearnedConnectivity().resolved().validation == 5000
    small = LearnedConnectivity(data="digits").resolved()
    assert (len(seeded(small).data.train), small.validation) == (1294, 144)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_digits(network):
    recipe = digits("free-flipping", network=network, batch=4)
    experiment = seeded(recipe)
    model = experiment.rule.model
    assert len(learned_layers(model)) == {"lenet": 3, "conv2": 5, "conv4": 7, "conv6": 9, "resnet20": 20}[network]
    experiment.rule.step(experiment.data.train[:4])
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    assert names == {"scores"}  # nothing but the connectivity is learned
    assert len(connectivity.snapshot(model)) == 1 + 3 * len(learned_layers(model))


@pytest.mark.parametrize(
    ("method", "affine", "expected"),
    [("free-pruning", None, False), ("free-pruning", True, True), ("baseline", None, True), ("baseline", False, False)],
)
def test_batch_normalisation_has_a_trained_scale_as_chosen(method, affine, expected):
    model = seeded(digits(method, network="resnet20", affine=affine)).rule.model
    assert isinstance(model, ResNet20)
    assert model.norm.affine == expected
    assert model.output.bias is None


@pytest.mark.parametrize(("shift", "flip"), [(4, True), (2, False), (0, True), (0, False)])
def test_training_images_are_changed_as_chosen_and_no_others(shift, flip, monkeypatch):
    monkeypatch.setattr(connectivity.data, "load", lambda *words, **options: made_images())
    recipe = LearnedConnectivity("conv2", data="cifar10", shift=shift, flip=flip, batch=2)
    images = seeded(recipe).data
    assert isinstance(images.train, AugmentedImages) == bool(shift or flip)
    if shift or flip:
        assert (images.train.padding, images.train.flip) == (shift, flip)
    assert type(images.validation) is type(images.test) is Split
    assert torch.equal(images.train.inputs, made_images().train.inputs)
    cited = ("ivan2020", "he2015", "frankle2019")
    assert seeded(recipe).citations == ((*cited, "he2016") if shift or flip else cited)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "free-prunning"}, "unknown method 'free-prunning' .did you mean 'free-pruning'"),
        ({"method": "prune"}, "unknown method 'prune'"),
        ({"method": "baseline", "density": 0.3}, "the baseline trains its weights .* but density 0.3 is given"),
        ({"method": "baseline", "alpha": -1.0, "threshold": 0.1}, "alpha -1.0 and threshold 0.1"),
        ({"method": "free-flipping", "alpha": -1.0}, "alpha is an option of minimal-pruning and minimal-flipping"),
        ({"method": "free-pruning", "density": 0.3}, "density is an option of edge-popup"),
        ({"method": "edge-popup", "density": 0.0}, r"in \(0, 1\]; given 0.0"),
        ({"method": "ternary", "threshold": -1.0}, "at least 0; given -1.0"),
        ({"method": "minimal-pruning", "alpha": float("nan")}, "alpha is a finite number"),
        ({"initialiser": "he", "p1": 0.7}, "he is symmetric"),
        ({"initialiser": "binary", "p1": 1.5}, r"in \[0, 1\]; given 1.5"),
        ({"flip": True}, "those of mnist are not flipped"),
        ({"data": "digits", "flip": True}, "those of digits are not flipped"),
        ({"shift": -1}, "shift is a number of pixels, at least 0; given -1"),
        ({"robustness": (0.1, 1.0)}, r"in \[0, 1\); given 1.0"),
        ({"batch": 0}, "batch is a whole number"),
        ({"epochs": 0}, "epochs is a whole number"),
    ],
)
def test_contradictions_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ConfigurationError, match=message):
        LearnedConnectivity(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 5000}, "validation=5000 leaves no training example: there are 1438"),
        ({"validation": -1}, "must be a count"),
        ({"affine": True}, "affine is for batch normalisation, which lenet has none of"),
        ({"activation": "rellu"}, "unknown activation 'rellu'"),
        ({"network": "conv3"}, "unknown network 'conv3'"),
    ],
)
def test_what_cannot_run_is_refused_before_a_folder_is_made(options, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        running.start(settings_of(digits(**options)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipe_json_keeps_every_choice(tmp_path):
    optimization = Optimization("adam", 1e-3, schedule="drops", drops=(0.3, 0.6))
    for recipe in (
        LearnedConnectivity(
            "resnet20",
            "edge-popup",
            density=0.3,
            initialiser="binary",
            p1=0.25,
            activation="selu",
            affine=True,
            data="cifar10",
            shift=4,
            flip=True,
            batch=128,
            epochs=3,
            validation=17,
            optimization=optimization,
            robustness=(0.0, 0.5),
        ),
        LearnedConnectivity("conv4", "minimal-flipping", alpha=-0.5),
        LearnedConnectivity("conv6", "ternary", threshold=0.0, data="fashion"),
        LearnedConnectivity("lenet", "baseline", affine=None),
    ):
        document = json.loads(json.dumps(settings_of(recipe).document()))
        assert RunSettings.from_document(document, RECIPES, tmp_path) == settings_of(recipe)


@pytest.mark.parametrize("method", ["free-flipping", "baseline"])
def test_measures_of_a_run(method, tmp_path):
    recipe = digits(method, robustness=(0.0, 0.5, 0.95))
    record = running.start(settings_of(recipe), tmp_path / "run")
    tested = read_final(tmp_path / "run", "robustness")
    assert tested["rate"].tolist() == [0.0, 0.5, 0.95]
    accuracy = tested["accuracy"].mean(1).tolist()
    assert accuracy[0] == pytest.approx(record.summary["test/accuracy"])
    assert accuracy[0] > accuracy[1] > accuracy[2]
    series, last = read_series(tmp_path / "run", "connectivity"), read_final(tmp_path / "run", "connectivity")
    rows = [row.get("connections/changed") for row in record.metrics]
    assert len(rows) == 3
    if method == "baseline":
        assert series == last == {}
        assert rows == [None] * 3
        return
    assert series["step"].tolist() == [0, 8, 16]
    assert series["changed"].tolist() == rows
    assert rows[0] == 0 < rows[1] < rows[2] == last["changed"].item() < 1
    sizes = {1: 300 * 64, 2: 300 * 100, 3: 1000}
    for number, size in sizes.items():
        assert series[f"layer{number}/masks"].sum(1).tolist() == [size] * 3
        assert series[f"layer{number}/weights"].sum(1).tolist() == [size] * 3
        assert last[f"layer{number}/score_counts"].sum().item() == size
        assert torch.equal(series[f"layer{number}/masks"][-1], last[f"layer{number}/masks"])
    flipped = sum(int(last[f"layer{number}/masks"][0]) for number in sizes)
    assert rows[2] == pytest.approx(flipped / sum(sizes.values()))


def test_tables_and_reports_name_what_ran():
    assert digits("baseline")._describe() == "dense"
    assert digits("free-flipping")._describe() == "free flipping"
    assert digits("minimal-pruning", alpha=-0.25)._describe() == "minimal pruning, alpha -0.25"
    assert digits("edge-popup", density=0.3)._describe() == "edge-popup, density 0.3"
    assert digits("ternary")._describe() == "ternary"
    assert digits("baseline")._citations() == ("he2015", "lecun1998")
    assert digits("supermask", initialiser="glorot", network="conv4")._citations() == (
        "zhou2019",
        "glorot2010",
        "frankle2019",
    )
    assert digits("edge-popup", initialiser="signed-constant", network="resnet20")._citations() == (
        "ramanujan2020",
        "he2016",
    )
    assert digits("ternary", initialiser="binary")._citations() == ("koster2022", "ivan2020", "lecun1998")


def test_the_rate_drops_as_chosen():
    optimization = Optimization("adam", 1e-3, schedule="drops", drops=(0.5,))
    experiment = seeded(digits(epochs=1, optimization=optimization))
    rates = []
    for _ in range(8):
        rates.append(experiment.rule.optimizer.param_groups[0]["lr"])
        experiment.rule.step(experiment.data.train[:25])
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 4)


def test_the_command_line(tmp_path, capsys):
    words = f"--data digits --validation {HELD_OUT} --epochs 1 --method edge-popup --density 0.3 --activation swish"
    code = cli.main(
        ["run", "connectivity", *words.split(), "--quiet", "--threads", "1", "--out", str(tmp_path / "run")]
    )
    assert code == 0
    assert "edge-popup, density 0.3" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "compact bytes" in page
    assert f">{(tmp_path / 'run' / COMPACT).stat().st_size:,}<" in page
    options = json.loads((tmp_path / "run" / "recipe.json").read_text())["options"]
    assert (options["density"], options["activation"], options["alpha"]) == (0.3, "swish", None)


def test_the_published_grid_is_of_runs_that_exist(capsys):
    assert cli.main(["sweep", "connectivity", "--grid", "published", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 5
    for method, line in zip(LearnedConnectivity.grids["published"]["method"], listed, strict=True):
        assert method in line
