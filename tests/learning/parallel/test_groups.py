"""Groups of processes: what is told of one that is gone, and how a process leaves them."""

import subprocess
import sys

import pytest
import torch
from torch import distributed

from synaptome.errors import ConfigurationError, WorkerLostError
from synaptome.learning.parallel import groups
from synaptome.learning.parallel.groups import listening, own_group

# Threads of torch get Python's lock only when the process waits for something, so that they let go of tensors late.
ENDING = """
import sys
import torch
from torch import distributed
from synaptome.learning.parallel.groups import own_group

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
group = own_group(60)
sys.setswitchinterval(1000)
for _ in range(50):
    works = [distributed.broadcast(torch.zeros(100), 0, group=group, async_op=True) for _ in range(20)]
    for work in works:
        work.wait()
"""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection reset by peer\nmore"),
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


def test_there_is_somebody_to_share_with(alone):
    with pytest.raises(ConfigurationError, match="shared out among two processes or more"):
        own_group(2.5)


def test_leaving_ends_the_group_and_says_nothing_of_one_that_is_lost(alone, monkeypatch):
    groups._leave()
    assert not distributed.is_initialized()
    groups._leave()
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "is_initialized", lambda: True)
        groups._leave()  # as if it could not be destroyed


def test_a_process_ends_well_right_after_a_collective_call(tmp_path):
    """Without `leave_at_exit` every fifth process is aborted."""
    words = [sys.executable, "-c", ENDING, tmp_path / "store"]
    both = [subprocess.Popen([*words, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        told = [process.communicate(timeout=100)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], told
