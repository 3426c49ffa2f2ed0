"""The time of steps, and of nothing else."""

from torch import nn

from synaptome.training.stopwatch import Stopwatch


class Slow:
    """A rule of which everything takes time, by a clock that is its own."""

    def __init__(self):
        self.now, self.model = 100.0, nn.Linear(1, 1)
        self.lasts = iter([3.0, 1.0, 2.0, 5.0, 4.0])

    def step(self, batch):
        self.now += next(self.lasts)
        return {"loss": 1.0}

    def evaluate(self, batch):
        self.now += 1000.0
        return {"loss": 2.0}

    def state_dict(self):
        self.now += 1000.0
        return {"state": 3}

    def load_state_dict(self, state):
        self.now += 1000.0
        self.loaded = state


def test_steps_count_with_what_lies_between_them_and_without_evaluation_and_checkpoints():
    rule = Slow()
    watch = Stopwatch(rule, clock=lambda: rule.now)
    assert watch.model is rule.model
    assert (watch.seconds, watch.median) == (0.0, 0.0)
    rule.now += 50.0  # before the first
    assert watch.step(None) == {"loss": 1.0}
    assert watch.seconds == 3.0
    rule.now += 0.5  # a batch is made
    watch.step(None)
    assert (watch.seconds, watch.median) == (4.5, 2.25)
    rule.now += 20.0
    assert watch.evaluate(None) == {"loss": 2.0}
    rule.now += 20.0
    watch.step(None)
    assert watch.seconds == 6.5
    assert watch.state_dict() == {"state": 3}
    watch.step(None)
    assert watch.seconds == 11.5
    watch.load_state_dict({"state": 4})
    assert rule.loaded == {"state": 4}
    watch.step(None)
    assert (watch.seconds, watch.median) == (15.5, 3.0)
