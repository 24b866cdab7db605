"""Watching: an agent's explanation of its imagination, shown in a terminal, as text, as a film and as a picture."""

from __future__ import annotations

import codecs
import fcntl
import itertools
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from fake_terminal import FakeTerminal
from launch import TIMEOUT_S, default_signals, run_main
from rich.console import Console
from test_i2a import act, boards, give_weight, make

import rlx
from rlx import ops
from rlx.algos.i2a import I2A
from rlx.config.algos.i2a_config import Decide, Imagination
from rlx.envs.grids.grid_env import make_grid
from rlx.envs.grids.grid_settings import MiniPacmanSettings, SokobanSettings
from rlx.evaluation.episodes import run_episodes
from rlx.evaluation.watching import Decision, Moment, play, watch_run
from rlx.render.watch_view import find_room, view
from rlx.store.runs import RunDir
from rlx.types import Explanation

Command = Callable[[str], tuple[int, str, str]]
SHORT = "recipe=null env.num_envs=4 algo.rollout_length=8 loop.total_env_steps=96 loop.eval_every=0 log.wandb=disabled log.console=quiet"
TINY = ("algo.num_minibatches=2 algo.num_epochs=1 algo.num_channels=4 algo.hidden_size=16 algo.num_encoder_channels=4 algo.encoder_size=8 "
        "algo.num_model_channels=8 algo.model_batch_size=16 algo.rollout_depth=3 algo.model_fraction=0.1")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with runs that know next to nothing: of algorithms on grid worlds, and two on something else."""
    directory = tmp_path_factory.mktemp("watch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("RLX_RUNS_DIR", raising=False)
        sokoban = "env=sokoban env.size=5 env.max_episode_steps=9"
        for name, words in {
            "boxes": f"algo=i2a {sokoban} {TINY}",
            "search": f"algo=i2a algo.decide=search {sokoban} {TINY.replace('algo.encoder_size=8 ', '')}",
            "ghosts": f"algo=i2a env=minipacman env.max_episode_steps=4 {TINY}",
            "pictures": f"algo=ppo {sokoban} env.observation=rgb algo.num_minibatches=2",
            "actor": f"algo=a2c {sokoban}",
            "pole": "algo=ppo env=cartpole algo.num_minibatches=2",
        }.items():
            assert run_main(f"train {words} {SHORT} --name {name}", patch) == 0
    return directory


@pytest.fixture
def inside(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """That directory as the current one, and a place for what is written."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("RLX_RUNS_DIR", raising=False)
    return tmp_path


# What an agent says of its imagination


def explain(algo: I2A, obs: torch.Tensor) -> Explanation:
    return algo.explain(obs, (), torch.zeros(len(obs), dtype=torch.bool), mode="eval")[1]


@pytest.mark.parametrize("settings", [
    {"imagination": Imagination.perfect}, {"imagination": Imagination.off}, {"imagination": Imagination.perfect, "decide": Decide.search},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_what_is_explained_is_what_would_have_been_done(settings: dict[str, Any], mode: Any) -> None:
    algo, _ = make(**settings)
    give_weight(algo)
    obs = boards(6)
    acted = act(algo, obs, mode, seed=3)
    torch.manual_seed(3)
    output, explained = algo.explain(obs, (), torch.zeros(6, dtype=torch.bool), mode=mode)
    assert torch.equal(output.action, acted.action)
    if "logits" in acted.extras:
        assert torch.allclose(explained.probs, acted.extras["logits"].softmax(-1), atol=1e-6)
        assert torch.allclose(explained.value, 10.0 * acted.extras["value"], atol=1e-5), "in units of the environment"


def test_a_row_begins_with_its_action_and_shows_what_follows() -> None:
    algo, _ = make(imagination=Imagination.perfect)
    obs = boards(3)
    told = explain(algo, obs)
    assert told.planes is not None
    assert told.reward is not None
    assert told.planes.shape == (3, 4, 3, 4, 7, 7)
    assert told.reward.shape == (3, 4, 3)
    for a in range(4):
        reached, events, _ = algo.grid.step(obs.numpy(), np.full(3, a), np.random.default_rng(0))
        assert torch.equal(told.planes[:, a, 0], torch.from_numpy(reached).float())
        assert torch.allclose(told.reward[:, a, 0], torch.from_numpy(events @ algo.grid.event_reward))


def test_saliency_is_the_share_of_the_policy_that_hangs_on_a_rollout() -> None:
    algo, _ = make(imagination=Imagination.perfect)
    give_weight(algo)
    obs = boards(5)
    torch.manual_seed(0)
    saliency = explain(algo, obs).saliency
    assert saliency is not None
    assert torch.allclose(saliency.sum(-1), torch.ones(5))
    torch.manual_seed(0)
    planes = algo._planes(obs)
    c_ia = algo._encode(*algo._imagine(planes))
    logits, _ = algo.net(planes, c_ia)
    moved = []
    for a in range(4):
        without = c_ia.clone()
        without[:, 8 * a : 8 * a + 8] = 0.0
        moved.append(ops.categorical_kl(logits, algo.net(planes, without)[0]))
    expected = torch.stack(moved, dim=1)
    assert torch.allclose(saliency, expected / expected.sum(-1, keepdim=True), atol=1e-4)
    assert saliency.std(-1).min() > 0.0


def test_where_nothing_imagined_has_a_weight_saliency_is_even() -> None:
    algo, _ = make(imagination=Imagination.perfect)
    told = explain(algo, boards(2))
    assert torch.equal(told.saliency, torch.full((2, 4), 0.25))
    assert torch.allclose(told.probs, told.probs_without, atol=1e-6)


def test_with_imagination_off_the_policy_is_the_one_without_it() -> None:
    algo, _ = make(imagination=Imagination.perfect)
    give_weight(algo)
    told, off = explain(algo, boards(4)), explain(algo.ablate({"imagination": "off"}), boards(4))
    assert torch.equal(off.probs, told.probs_without)
    assert not torch.allclose(told.probs, told.probs_without, atol=1e-3)
    assert off.saliency is None, "nothing is read"
    assert off.planes is not None, "but it is imagined"


def test_shuffled_shows_what_is_read() -> None:
    algo, _ = make(imagination=Imagination.perfect)
    give_weight(algo)
    obs = boards(1)
    torch.manual_seed(1)
    usual = explain(algo, obs)
    torch.manual_seed(1)
    dealt = explain(algo.ablate({"imagination": "shuffled"}), obs)
    assert usual.planes is not None
    assert dealt.planes is not None
    assert not torch.equal(usual.planes, dealt.planes)
    assert sorted(x.sum().item() for x in usual.planes[0]) == sorted(x.sum().item() for x in dealt.planes[0])
    assert not torch.equal(usual.probs, dealt.probs)


def test_an_agent_of_phase_one_has_nothing_to_show() -> None:
    algo, _ = make(imagination=Imagination.learned, model_fraction=0.5)
    told = explain(algo, boards(2))
    assert (told.planes, told.reward, told.saliency, told.q_value) == (None, None, None, None)
    assert torch.equal(told.probs, algo.net(algo._planes(boards(2)), None)[0].softmax(-1))


def test_a_search_shows_the_value_of_every_action() -> None:
    algo, _ = make(imagination=Imagination.perfect, decide=Decide.search, num_rollouts=2)
    torch.manual_seed(0)
    told = explain(algo, boards(3))
    torch.manual_seed(0)
    assert torch.allclose(told.q_value, 10.0 * algo._plan(algo._planes(boards(3))).q_value, atol=1e-5)
    assert told.planes is not None
    reached, _, _ = algo.grid.step(boards(3).numpy(), np.full(3, 2), np.random.default_rng(0))
    assert torch.equal(told.planes[:, 2, 0], torch.from_numpy(reached).float())


# Playing


def test_what_is_watched_is_what_is_evaluated() -> None:
    algo, _ = make(imagination=Imagination.perfect)
    env = make_grid(SokobanSettings(max_episode_steps=30), 1)
    seeds = np.array([3, 8])
    torch.manual_seed(0)
    played = run_episodes(env, algo, seeds)
    torch.manual_seed(0)
    moments = list(play(env, algo, seeds))
    ends = [m for m in moments if m.action is None]
    assert [(pytest.approx(m.return_), m.step) for m in ends] == [(e.return_, e.length) for e in played]
    assert [m.episode for m in ends] == [1, 2]
    assert len(moments) == sum(e.length + 1 for e in played)
    for before, after in itertools.pairwise(moments):
        if before.action is not None:
            reached, _, _ = env.rules.step(before.planes[None], before.action, np.random.default_rng(0))
            np.testing.assert_array_equal(after.planes, reached[0])


def test_steps_are_decisions_of_all_episodes() -> None:
    algo, _ = make(imagination=Imagination.off)
    env = make_grid(SokobanSettings(max_episode_steps=4), 1)
    assert sum(m.action is not None for m in play(env, algo, np.arange(5), steps=10)) == 10


def test_a_run_is_watched_from_python(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    found = watch_run(RunDir(trained / "runs" / "boxes"), ablation={"imagination": "copy"}, steps=3)
    assert found.grid is not None
    assert (found.title, found.depth, found.grid.planes_shape) == ("boxes at 96 env steps, imagination copy", 3, (4, 5, 5))
    moments = list(found.moments)
    assert [m.step for m in moments] == [0, 1, 2]
    for moment in moments:
        assert moment.decision is not None
        assert moment.decision.planes is not None
        np.testing.assert_array_equal(moment.decision.planes, np.broadcast_to(moment.planes, (4, 3, 4, 5, 5)))
    assert watch_run(RunDir(trained / "runs" / "actor")).depth == 0
    assert capsys.readouterr() == ("", "")


# The view


def moment_of(settings: Any, depth: int) -> tuple[Moment, Any]:
    grid = make_grid(settings, 1).rules
    planes = grid.observe(grid.begin(np.array([1])))[0]
    a = grid.num_actions
    even = np.full(a, 1.0 / a, dtype=np.float32)
    frames = np.broadcast_to(planes, (a, depth, *planes.shape)).copy()
    explanation = Decision(even, 1.5, even, frames, np.full((a, depth), -0.1, dtype=np.float32), even)
    moment = Moment(episode=1, step=2, planes=planes, reward=-0.1, events=("step",), return_=-0.2, action=np.array([1]),
                    decision=explanation)  # fmt: skip
    return moment, grid


@pytest.mark.parametrize("settings", [SokobanSettings(), SokobanSettings(size=20), MiniPacmanSettings(task="hunt")], ids=str)
@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 40), (200, 60)], ids=str)
@pytest.mark.parametrize("depth", [1, 3, 10])
def test_the_view_fits_into_the_terminal(settings: Any, size: tuple[int, int], depth: int) -> None:
    moment, grid = moment_of(settings, depth)
    width, height = size
    room = find_room(grid, depth, width, height, colour=True)
    console = Console(width=width, height=height, force_terminal=True, color_system="truecolor", legacy_windows=False, _environ={})
    lines = console.render_lines(view(moment, grid, "a run", room), pad=False)
    assert len(lines) <= height
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    for name in grid.action_names:
        assert name in text
    assert text.count("saliency") == grid.num_actions
    assert text.count("-0.10") == grid.num_actions * room.depth, "no reward is cut off"


def test_colours_of_the_board_are_those_of_its_cells() -> None:
    moment, grid = moment_of(SokobanSettings(), 1)
    room = find_room(grid, 1, 120, 50, colour=True)
    assert room.wide_board
    console = Console(width=120, height=50, force_terminal=True, color_system="truecolor", legacy_windows=False, _environ={})
    first = console.render_lines(view(moment, grid, "a run", room), pad=False)[1 + 3]
    seen = [s.style.bgcolor.get_truecolor() for s in first for _ in s.text if s.style and s.style.bgcolor][: 2 * 7 : 2]
    assert [list(c) for c in seen] == grid.colours[grid.kinds(moment.planes[None])[0, 3]].tolist()


# The command


def test_without_a_terminal_every_step_is_text(inside: Path, run_command: Command) -> None:
    code, out, err = run_command("watch boxes --seed 1")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    steps = [line for line in out.splitlines() if line.endswith("boxes at 96 env steps")]
    assert "episode 1, step 1, return +0.0" in steps[0]
    assert "episode 1, after" in steps[-1]
    assert out.count("▶") == out.count("saliency") // 4 == len(steps) - 1
    assert run_command("watch boxes --seed 1")[1] == out
    assert run_command("watch boxes --seed 2")[1] != out
    assert run_command("watch boxes --seed 1 --steps 2")[1].count("▶") == 2


@pytest.mark.parametrize("reading", ["on", "off", "shuffled", "copy", "perfect"])
def test_it_reads_what_it_is_told_to(reading: str, inside: Path, run_command: Command) -> None:
    code, out, err = run_command(f"watch boxes --imagination {reading} --steps 1")
    assert (code, err) == (0, "")
    assert f"imagination {reading}" in out
    assert ("saliency" in out) == (reading != "off")


@pytest.mark.parametrize(("run", "said", "unsaid"), [
    ("search", "Q        ", "saliency"), ("ghosts", "power for 0 steps", "Q        "), ("pictures", "policy", "without"),
    ("actor", "policy", "without"),
])  # fmt: skip
def test_other_agents_are_watched_too(run: str, said: str, unsaid: str, inside: Path, run_command: Command) -> None:
    code, out, err = run_command(f"watch {run} --stochastic --episodes 2 --steps 12" if run != "search" else "watch search --steps 12")
    assert (code, err) == (0, "")
    assert said in out
    assert unsaid not in out


def test_a_film_has_a_frame_for_every_board(inside: Path, run_command: Command) -> None:
    path = inside / "films" / "boxes.gif"
    code, out, err = run_command(f"watch boxes --stochastic --gif {path} --steps 5 --fps 4")
    assert (code, out, err) == (0, f"{path}\n", "")
    frames = imageio.imread(path)
    assert frames.ndim == 4
    assert len(frames) == 5
    assert imageio.immeta(path)["duration"] == 250


def test_a_film_that_would_be_too_long_is_refused(inside: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlx.render.watch_files._MAX_FRAMES", 3)
    code, _, err = run_command(f"watch boxes --gif {inside / 'a.gif'} --steps 5")
    assert code == 2
    assert "more than 3 frames; stop earlier with --steps" in err
    assert not (inside / "a.gif").exists()


def test_a_picture_is_of_the_decision_that_was_asked_for(inside: Path, run_command: Command) -> None:
    pictures = []
    for steps in ("", "--steps 1", "--steps 3"):
        path = inside / "boxes.png"
        code, out, err = run_command(f"watch boxes --png {path} {steps}")
        assert (code, out, err) == (0, f"{path}\n", "")
        pictures.append(imageio.imread(path)[..., :3])
    assert pictures[0].shape == pictures[2].shape
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()
    wall = np.array([120, 92, 72])
    assert (pictures[0] == wall).all(-1).mean() > 0.1, "the board is in its colours"


@pytest.mark.parametrize("words", ["search", "search --decide tree", "ghosts", "actor"])
def test_every_agent_has_a_picture(words: str, inside: Path, run_command: Command) -> None:
    assert run_command(f"watch {words} --png {inside / 'a.png'}")[0] == 0
    assert imageio.imread(inside / "a.png").shape[0] > 300


@pytest.mark.parametrize(("run", "settings"), [("actor", SokobanSettings()), ("ghosts", MiniPacmanSettings())])
def test_a_picture_names_the_colour_of_every_kind_of_cell(run: str, settings: Any, inside: Path, run_command: Command) -> None:
    grid = make_grid(settings, 1).rules
    assert len(grid.kind_names) == len(grid.glyphs) == len(grid.colours)
    assert run_command(f"watch {run} --png {inside / 'a.png'}")[0] == 0
    below = imageio.imread(inside / "a.png")[-31:, :, :3]  # where no board is
    for name, colour in zip(grid.kind_names, grid.colours, strict=True):
        assert (below == colour).all(-1).sum() >= 11 * 11, name


@pytest.mark.parametrize(("words", "said"), [
    ("actor --imagination off", "actor is algo=a2c, which has no such ablation; leave it out, or choose a run of algo=i2a"),
    ("boxes --imagination of", "off"),
    ("boxes --gif a.mp4", "expected an ending of .gif"), ("boxes --png a.jpg", "expected an ending of .png"),
    ("boxes --gif a.gif --png a.png", "not both"), ("boxes --png a.png --steps 1000", "choose one of 1 to"), ("nobody", "no such run"),
])  # fmt: skip
def test_a_mistake_is_one_line(words: str, said: str, inside: Path, run_command: Command) -> None:
    code, out, err = run_command(f"watch {words}")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_game_is_for_rlx_play(here: Path, run_command: Command) -> None:
    tiny = "algo.num_blocks=1 algo.num_channels=4 algo.search.num_simulations=8 env.num_envs=2 loop.total_env_steps=4 loop.eval_every=0"
    assert run_command(f"train algo=alphazero env=tic_tac_toe recipe=null {tiny} log.wandb=disabled log.console=quiet --name three")[0] == 0
    code, _, err = run_command("watch three")
    assert code == 2
    assert "rlx play three shows it" in err


def test_a_film_that_cannot_be_written_says_so(inside: Path, run_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside / "file").write_text("")
    for option, name in (("--gif", "a.gif"), ("--png", "a.png")):
        code, _, err = run_command(f"watch boxes --steps 1 {option} {inside / 'file' / name}")
        assert code == 6
        assert "cannot be written" in err
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    code, _, err = run_command(f"watch boxes --steps 1 --gif {inside / 'a.gif'}")
    assert code == 2
    assert "pip install 'rlx[video]'" in err


class Session:
    """rlx watch in a terminal of its own.

    Args:
        words: of the command line.
    """

    def __init__(self, words: str, height: int = 30, width: int = 100) -> None:
        self.terminal = FakeTerminal(height, width)
        self._end, other = pty.openpty()
        self.resize(height, width, other)
        env = {k: v for k, v in os.environ.items() if k not in ("CI", "COLUMNS", "LINES", "NO_COLOR")}
        env |= {
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(rlx.__file__).parents[1]),
        }
        command = [sys.executable, "-c", f"import os; os.setsid(); os.close(os.open({os.ttyname(other)!r}, os.O_RDWR)); "
                   f"from rlx.cli.main import main; import sys; sys.argv[1:] = {['watch', *words.split()]!r}; main()"]  # fmt: skip
        self.process = subprocess.Popen(command, env=env, stdin=other, stdout=other, stderr=other, preexec_fn=default_signals)
        os.close(other)
        self.said = ""

    def resize(self, height: int, width: int, descriptor: int | None = None) -> None:
        fcntl.ioctl(self._end if descriptor is None else descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, key: str) -> None:
        os.write(self._end, key.encode())

    def read_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        decoder = codecs.getincrementaldecoder("utf-8")()
        while not done():
            assert time.monotonic() < deadline, self.terminal.screen.text()
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    text = decoder.decode(os.read(self._end, 65536))
                except OSError:  # nobody holds the other end any more
                    text = ""
                self.said += text
                self.terminal.feed(text)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def session(inside: Path) -> Iterator[Callable[..., Session]]:
    opened: list[Session] = []
    yield lambda *args: opened.append(Session(*args)) or opened[-1]
    for one in opened:
        one.close()


def test_a_terminal_shows_it_live_and_ctrl_c_leaves(session: Callable[..., Session]) -> None:
    watched = session("boxes --stochastic --episodes 1000 --fps 20")
    terminal = watched.terminal
    watched.read_until(lambda: terminal.shows("episode 2, step 3"))
    assert "25" not in terminal.modes, "the cursor is hidden"
    assert 0x785C48 in terminal.colours(), "walls are brown"
    watched.press("\x03")
    watched.read_until(lambda: watched.process.poll() is not None)
    watched.read_until(lambda: "left" in watched.said)
    assert watched.process.wait(TIMEOUT_S) == 0
    assert terminal.modes == {"25", "7"}, "the terminal is as it was"
    assert "policy shift" in watched.said.rpartition("\x1b[?1049l")[2], "what was seen last stays in the history"
    assert "Traceback" not in watched.said


def test_keys_pause_a_new_size_is_drawn_and_a_signal_leaves_the_terminal_as_it_was(session: Callable[..., Session]) -> None:
    watched = session("boxes --stochastic --episodes 1000 --fps 10")
    terminal = watched.terminal
    watched.read_until(lambda: terminal.shows("episode 1, step 2"))
    watched.press("n")  # one step, and stop
    watched.read_until(lambda: not select.select([watched._end], [], [], 1.0)[0])
    stopped = terminal.screen.text().splitlines()[0]
    watched.terminal = FakeTerminal(40, 80)
    watched.resize(40, 80)
    watched.read_until(lambda: watched.terminal.shows("space: pause"))
    assert watched.terminal.screen.text().splitlines()[0].startswith(stopped[:20]), "the same step"
    assert watched.terminal.screen.text().splitlines()[39].startswith("space: pause"), "in the last line"
    watched.process.send_signal(signal.SIGTERM)
    watched.read_until(lambda: watched.process.poll() is not None)
    watched.read_until(lambda: "1049" not in watched.terminal.modes)
    assert watched.process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert {"25", "7"} <= watched.terminal.modes


def test_other_environments_are_text_films_and_pictures_too(inside: Path, run_command: Command) -> None:
    code, out, err = run_command("watch pole --steps 2")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line] == [
        "episode",
        "value",
        "action:",
        "input:",
        "episode",
        "reward",
        "action:",
        "input:",
    ]
    assert run_command(f"watch pole --steps 2 --fps 10 --gif {inside / 'a.gif'}") == (0, f"{inside / 'a.gif'}\n", "")
    assert len(imageio.imread(inside / "a.gif")) == 2
    assert imageio.immeta(inside / "a.gif")["duration"] == 100
    assert run_command(f"watch pole --steps 2 --png {inside / 'a.png'}")[0] == 0
    assert imageio.imread(inside / "a.png").shape[1] > 400
