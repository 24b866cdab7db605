"""One file per algorithm; `rlx.config.algo_registry` lists them."""
