"""What process 0 asks of the others; the rules that use it are tested with real processes."""

import pytest
import torch
from torch import distributed

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.learning.parallel.orders import Orders, listening, own_group


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/home/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection reset by peer\nmore"),
        RuntimeError("Application timeout caused pair closure"),
        distributed.DistBackendError("NCCL communicator was aborted"),
    ],
    ids=["gloo", "timeout", "nccl"],
)
def test_a_process_that_is_gone_is_told_of(alone, error):
    said = str(error).splitlines()[0]
    with pytest.raises(WorkerLostError) as told, listening(2.5):
        raise error
    assert "process 0 of 1 waited for the others, and one of them has ended, or did not answer within 2.5 s" in str(
        told.value
    )
    assert said in str(told.value)
    assert "more" not in str(told.value)


def test_other_errors_stay_what_they_are(alone):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"), listening(2.5):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(3), torch.zeros(9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(2, 2).long()],
    ids=["real", "too many", "none", "two axes"],
)
def test_labels_are_classes_and_not_more_than_was_said(alone, labels):
    with pytest.raises(ConfigurationError, match="learn classes, int64, from 1 to 8 a step; given"):
        Orders(8, 2.5).give(0, labels)


def test_there_is_somebody_to_share_with(alone):
    with pytest.raises(ConfigurationError, match="shared out among two processes or more"):
        own_group(2.5)
