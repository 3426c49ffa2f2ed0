"""Networks whose synapses are what you choose, watch and train.

import synaptome as syn

layer = syn.FailingLinear(784, 300, failure=0.5)             # a fresh mask for each example
layer = syn.SparseLinear(784, 1000, density=0.05)            # truly sparse: no dense matrix anywhere
model = syn.rewire(model, syn.Failing(0.3), where="*.fc*")   # any model, in place
"""

from synaptome.synapses.failing import Failing, FailingLinear, Failures
from synaptome.synapses.failing_conv import FailingConv2d
from synaptome.synapses.failing_recurrent import FailingRNN, FailingRNNCell
from synaptome.synapses.failing_sparse import FailingSparseLinear
from synaptome.synapses.predict import Prediction, predict
from synaptome.synapses.rewire import rewire
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_conv import SparseConv2d
from synaptome.synapses.sparsity import Sparse
from synaptome.synapses.wiring import Dense, Kind, Wiring
from synaptome.topology.evolution import Evolution

__version__ = "0.1.0"

__all__ = [
    "Dense",
    "Evolution",
    "Failing",
    "FailingConv2d",
    "FailingLinear",
    "FailingRNN",
    "FailingRNNCell",
    "FailingSparseLinear",
    "Failures",
    "Kind",
    "Prediction",
    "Sparse",
    "SparseConv2d",
    "SparseLinear",
    "Wiring",
    "__version__",
    "predict",
    "rewire",
]
