"""Players by name: runs, and opponents such as uct:1000."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.envs.games.openspiel import Game
    from rlx.evaluation.match import Player, SearchingPlayer


def load_run(
    name: str, *, checkpoint: str = "latest", simulations: int | None = None, trust: bool = False
) -> tuple[SearchingPlayer, Game, str]:
    """A trained player of games, its game, and its name.

    Raises:
        ConfigError: if the run does not play games.
    """
    import torch

    from rlx.build import env_factory
    from rlx.envs.registry import GameEnvFactory
    from rlx.errors import ConfigError
    from rlx.evaluation.loading import choose_checkpoint, load_policy
    from rlx.store.layout import runs_directory
    from rlx.store.runs import RunDir

    run = RunDir.open(runs_directory(), name)
    config = run.config(trust=trust)
    if not config.env.is_game:
        raise ConfigError(
            f"{run.reference} is {config.algo.name} on {config.env.id}, which is no game; rlx eval {run.reference} evaluates it"
        )
    if simulations is not None:
        config.algo.search.num_eval_simulations = simulations
    make_env = env_factory(config)
    assert isinstance(make_env, GameEnvFactory)
    algo: Any = load_policy(config, choose_checkpoint(run, checkpoint), make_env(1), device=torch.device("cpu"))
    return algo, make_env.game, run.reference


def find_player(name: str, game: Game, *, simulations: int | None = None, key: str = "--opponent", trust: bool = False) -> Player:
    """A run that plays this game, or a known opponent.

    Raises:
        ConfigError: if there is neither, or the run plays another game.
    """
    from rlx.envs.games.opponents import NAMES, parse_opponent
    from rlx.errors import ConfigError
    from rlx.evaluation.match import KnownPlayer, RunPlayer

    try:
        make_opponent = parse_opponent(name, key)
    except ConfigError:
        pass
    else:
        make_opponent(game, 0)  # raises before the match if it cannot play this game
        return KnownPlayer(name, make_opponent)
    try:
        algo, own, reference = load_run(name, simulations=simulations, trust=trust)
    except ConfigError as error:
        raise ConfigError(f"{key} {name}: neither a run ({error}) nor one of {NAMES}") from error
    if str(own) != str(game):
        raise ConfigError(f"{key} {name} plays {own}, not {game}")
    return RunPlayer(reference, algo)
