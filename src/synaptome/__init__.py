"""Networks whose synapses are what you choose, watch and train.

import synaptome as syn

layer = syn.FailingLinear(784, 300, failure=0.5)             # a fresh mask for each example
layer = syn.SparseLinear(784, 1000, density=0.05)            # truly sparse: no dense matrix anywhere
layer = syn.LearnedLinear(784, 300, method="flip")           # frozen weights, learned signs
model = syn.rewire(model, syn.Failing(0.3), where="*.fc*")   # any model, in place
"""

from synaptome.networks.multilevel import prolong
from synaptome.networks.stable import StableNetwork
from synaptome.synapses.antisymmetric import Antisymmetric, AntisymmetricLinear
from synaptome.synapses.failing import Failing, FailingLinear, Failures
from synaptome.synapses.failing_conv import FailingConv2d
from synaptome.synapses.failing_recurrent import FailingRNN, FailingRNNCell
from synaptome.synapses.failing_sparse import FailingSparseLinear
from synaptome.synapses.learned import LearnedConv1d, LearnedConv2d, LearnedConv3d, LearnedLinear
from synaptome.synapses.learned_model import check_optimizer, connectivity, penalty
from synaptome.synapses.learned_rules import Learned
from synaptome.synapses.learned_sparse import to_sparse
from synaptome.synapses.predict import Prediction, predict
from synaptome.synapses.rewire import rewire
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_conv import SparseConv2d
from synaptome.synapses.sparsity import Sparse
from synaptome.synapses.wiring import Dense, Kind, Wiring
from synaptome.topology.evolution import Evolution

__version__ = "0.1.0"

__all__ = [
    "Antisymmetric",
    "AntisymmetricLinear",
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
    "Learned",
    "LearnedConv1d",
    "LearnedConv2d",
    "LearnedConv3d",
    "LearnedLinear",
    "Prediction",
    "Sparse",
    "SparseConv2d",
    "SparseLinear",
    "StableNetwork",
    "Wiring",
    "__version__",
    "check_optimizer",
    "connectivity",
    "penalty",
    "predict",
    "prolong",
    "rewire",
    "to_sparse",
]
