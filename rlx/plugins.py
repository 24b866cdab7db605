"""The names that an algorithm of your own imports (`algo=my_module:MyAlgo`). Packages declare algorithms and environments as entry points:

    [project.entry-points."rlx.algorithms"]
    my_algo = "my_package:MyAlgo"

    [project.entry-points."rlx.environments"]
    my_env = "my_package:MyEnv"

An algorithm is a class with the methods of `rlx.types.Algorithm` and an attribute `Config`, a dataclass that inherits from
`AlgoConfig`. This module has the names that such a class needs; `rlx.config.algo_registry` finds and imports it.
"""

from __future__ import annotations

from rlx.config.algos.base_config import AlgoConfig, GradientConfig, Suits
from rlx.config.setting import setting

__all__ = ["AlgoConfig", "GradientConfig", "Suits", "setting"]
