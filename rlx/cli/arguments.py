"""Arguments of the command line, checked before typer sees them. A mistake is answered on one line with what to type instead."""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Any

from typer.core import TyperCommand, TyperGroup

from rlx.errors import ConfigError

_VERBS = {
    "run": "train", "start": "train", "fit": "train", "learn": "train", "launch": "train", "continue": "resume", "restart": "resume",
    "evaluate": "eval", "test": "eval", "score": "eval", "enjoy": "watch", "render": "watch", "view": "watch", "visualize": "watch",
    "delete": "rm", "remove": "rm", "del": "rm",
    "list": "ls", "runs": "ls", "status": "ls", "ps": "ls", "info": "show", "describe": "show", "inspect": "show", "cat": "show",
    "tune": "sweep", "optimize": "sweep", "optuna": "sweep", "multirun": "sweep", "hpo": "sweep", "grid": "sweep", "search": "sweep",
    "figure": "plot", "curve": "plot", "upload": "sync", "wandb": "sync", "tournament": "arena", "match": "arena", "check": "doctor",
    "settings": "config", "options": "config", "keys": "config", "environments": "envs", "algorithms": "algos", "diff": "compare",
}  # fmt: skip
_OPTIONS = {
    "render": "video", "record": "video", "record_video": "video", "n_episodes": "episodes", "n_eval_episodes": "episodes",
    "num_episodes": "episodes", "n": "episodes", "ckpt": "checkpoint", "step": "checkpoint", "sample": "stochastic", "n_jobs": "jobs",
    "parallel": "jobs", "n_trials": "trials", "num_trials": "trials", "num_seeds": "seeds", "n_seeds": "seeds", "metric": "objective",
    "run_name": "name", "exp_name": "name", "experiment_name": "name", "dry": "dry-run", "resume": "auto-resume", "m": "multirun",
    "direction": "minimize", "workers": "jobs",
}  # fmt: skip
"""Options of other tools, and what they are called here."""
_NUMBER = re.compile(r"-[\d.]")


_MOST = {"--episodes": 1_000_000, "--simulations": 100_000, "--openings": 100_000, "--opening-plies": 1_000, "--horizon": 100_000,
         "--video": 10_000, "--steps": 1_000_000}  # fmt: skip
"""Upper limits of options. A larger number is a typing mistake, and would run out of memory or time."""


def _number(name: str, text: str, option: Any) -> int | None:
    """The whole number that an option is given; None if the option takes no number.

    Raises:
        ConfigError: if the text is no such number, or one above the limit.
    """
    from rlx.config.whole_numbers import not_whole, whole

    kind = getattr(getattr(option, "type_descriptor", None), "annotation", None)
    if kind is float and text.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise ConfigError(f"{name} {text}: expected a finite number")
    if kind is not int:
        return None
    number = whole(text)
    if number is None:
        raise ConfigError(f"{name} {text}: expected {not_whole(text)}")
    if number > _MOST.get(name, number):
        raise ConfigError(f"{name} {text}: expected at most {_MOST[name]:,}")
    return number


class Verb(TyperCommand):
    """A command that reads 1e3 as a whole number, and suggests a correction for an unknown word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing or {"-h", "--help"} & set(args):
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, self._read(args))
        except Exception as error:
            if not hasattr(error, "format_message"):  # one of typer's usage errors
                raise
            raise ConfigError(f"{error.format_message().rstrip('.')}; `rlx {self.name} --help` shows how it is used") from error

    @property
    def takes_settings(self) -> bool:
        """Whether the command takes KEY=VALUE words."""
        return any(param.name == "overrides" for param in self.params)

    def _options(self) -> dict[str, Any]:
        return {name: param for param in self.params if param.param_type_name == "option" for name in (*param.opts, *param.secondary_opts)}

    def _read(self, args: list[str]) -> list[str]:
        """The arguments, with whole numbers written out.

        Raises:
            ConfigError: for an unknown option, and for a word that is no KEY=VALUE where only those can be.
        """
        options, read = self._options(), list(args)
        i = 0
        while i < len(read) and read[i] != "--":
            word, equals, value = read[i].partition("=")
            if not word.startswith("-") or word == "-" or _NUMBER.match(word):
                if self.takes_settings and self.name != "resume" and word and not equals and word[0] not in "+~":
                    advice = self._instead(args)
                    example = f"; {advice}" if advice else ", e.g. algo=ppo or algo.learning_rate=3e-4"
                    raise ConfigError(f"{read[i]}: expected key=value{example}")
            elif (option := options.get(word)) is None:
                if word.startswith("--") or len(word) == 2 or not all(f"-{letter}" in options for letter in word[1:]):
                    advice = self._instead(args) or f"`rlx {self.name} --help` lists those there are"
                    raise ConfigError(f"{word}: unknown option; {advice}")
            elif not option.is_flag:
                i += not equals
                text = value if equals else read[i] if i < len(read) else None
                if text is not None and (number := _number(word, text, option)) is not None:
                    read[i] = f"{word}={number}" if equals else str(number)
            i += 1
        return read

    def _instead(self, args: list[str]) -> str:
        """The command that was probably meant, as a question; "" if one of its words means nothing."""
        words = Translation(args, self._options(), takes_settings=self.takes_settings, verb=str(self.name)).words
        return f"did you mean `rlx {self.name} {shlex.join(words)}`?" if words else ""


class Verbs(TyperGroup):
    """The group of all commands, which suggests a command for an unknown one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if ctx.resilient_parsing or word in self.commands or word.startswith("-"):
            return super().resolve_command(ctx, args)
        near = [] if "=" in word else difflib.get_close_matches(word, self.commands, n=1)
        verb = _VERBS.get(word.lower(), near[0] if near else None)
        if verb is not None:
            raise ConfigError(f"{word}: no such command; did you mean `rlx {shlex.join([verb, *args[1:]])}`?")
        train = self.commands["train"]
        assert isinstance(train, Verb)
        instead = Translation(args, train._options(), takes_settings=True, verb="train").words
        advice = f"did you mean `rlx train {shlex.join(instead)}`?" if instead else f"expected one of {', '.join(self.commands)}"
        raise ConfigError(f"{word}: no such command; {advice}")


class Translation:
    """Arguments as another tool takes them, translated into those of rlx. `words` is empty if one of them has no translation."""

    def __init__(self, args: list[str], options: dict[str, Any], *, takes_settings: bool, verb: str) -> None:
        from rlx.config.algo_registry import ALGORITHMS
        from rlx.config.compose import Composer
        from rlx.config.saved import leaf_keys
        from rlx.config.schema import RunConfig

        self._options, self._settings, self._verb = options, takes_settings, verb
        self._envs = {name.lower(): name for name in Composer().env_ids()} if takes_settings else {}
        self._experiments = Composer().options("experiment") if takes_settings else []
        self._algos = list(ALGORITHMS)
        algo = next((name for arg in args for name in ALGORITHMS if arg.lower().rpartition("=")[2] == name), "ppo")
        self._keys = leaf_keys(RunConfig.defaults(ALGORITHMS[algo].config()))
        self.words: list[str] = []
        rest = [arg for arg in args if arg]
        while rest:
            found = self._next(rest)
            if found is None:
                self.words = []
                return
            self.words.append(found)

    def _next(self, rest: list[str]) -> str | None:
        """The next word of the translation. Removes from `rest` the one or two words that it translates."""
        from rlx.config.synonyms import as_typed, key_for

        word = rest.pop(0)
        name, equals, value = word.partition("=")
        option = self._option(name)
        if option is not None:
            if not self._options[option].is_flag and not equals and rest:
                return f"{option}={rest.pop(0)}"
            return f"{option}={value}" if equals and not self._options[option].is_flag else option
        if not self._settings:
            return None if name.startswith("-") else word
        if rest[:1] == ["="]:  # algo = ppo
            rest.pop(0)
            equals, value = "=", rest.pop(0) if rest else ""
        colon = re.fullmatch(r"([A-Za-z_.]+):(.+)", name)
        if colon and not equals and key_for(colon[1], self._keys):
            name, equals, value = colon[1], "=", colon[2]
        bare = not name.startswith("-") and not equals
        if bare and (member := self._member(word)):
            return member
        key = name if name in self._keys and name.partition(".")[1] else key_for(name, self._keys)
        if key is None:
            return word if equals and name.startswith("env.kwargs.") else None
        if not equals and rest and (not rest[0].startswith("-") or _NUMBER.match(rest[0])) and "=" not in rest[0]:
            value = rest.pop(0)
        elif bare:
            return None
        if key == "env":
            value = self._envs.get(value.lower(), value)
        if not value and isinstance(self._keys.get(key), bool):
            value = "true"
        return as_typed(name, value, key).partition(": ")[0]

    def _option(self, name: str) -> str | None:
        """The option that a word with leading dashes means, or None."""
        from rlx.config.synonyms import key_for, plain_name

        if not name.startswith("-") or name in self._options:
            return name if name in self._options else None
        theirs = {option.lstrip("-"): option for option in self._options if option.startswith("--")}
        if (called := _OPTIONS.get(plain_name(name))) in theirs:
            return theirs[str(called)]
        near = difflib.get_close_matches(name.lstrip("-"), theirs, n=1, cutoff=0.7)
        if near and not (self._settings and self._verb != "sweep" and key_for(name, self._keys)):
            return theirs[near[0]]
        return None

    def _member(self, word: str) -> str | None:
        """GROUP=MEMBER for a word that is the name of a member, or None."""
        if word.lower() in self._algos:
            return f"algo={word.lower()}"
        if word.lower() in self._envs:
            return f"env={self._envs[word.lower()]}"
        if word in self._experiments:
            return f"experiment={word}"
        return f"env={word}" if re.search(r"-v\d+$", word) or re.fullmatch(r"[\w.]+:[\w.-]+", word) else None
