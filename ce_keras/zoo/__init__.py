"""The zoo: ResNeXt-29, -50 and -101, with the paper's designs ready made and any other on request.

    model = ce_keras.zoo.resnext50(mode="dual")

Every function has the arguments of `keras.applications`, in their order.
"""

from ce_keras.designs import PUBLISHED, Published, choose_design, published
from ce_keras.zoo.perceptron import fully_connected
from ce_keras.zoo.resnext import (
    Constructor,
    build_resnext,
    resnext11,
    resnext29,
    resnext38,
    resnext50,
    resnext101,
    trained_parameters,
)

#: Every network of the zoo by name.
NETWORKS: dict[str, Constructor] = {
    "resnext11": resnext11,
    "resnext29": resnext29,
    "resnext38": resnext38,
    "resnext50": resnext50,
    "resnext101": resnext101,
}

__all__ = [
    "NETWORKS",
    "PUBLISHED",
    "Published",
    "build_resnext",
    "choose_design",
    "fully_connected",
    "published",
    "resnext11",
    "resnext29",
    "resnext38",
    "resnext50",
    "resnext101",
    "trained_parameters",
]
