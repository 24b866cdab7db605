"""A foreign run directory is data: listing, evaluating and resuming it runs none of its code."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlx.config.compose import Composer
from rlx.store.runs import RunDir

SETTINGS = (
    "recipe=null env.native=false env.num_envs=2 algo.rollout_length=8 loop.total_env_steps=32 loop.eval_every=16 loop.eval_episodes=1 "
    "log.wandb=disabled log.console=quiet"
)

EVIL_MODULE = """
import pathlib
pathlib.Path("executed").touch()
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register(id="X-v0", entry_point=CartPoleEnv, max_episode_steps=50)
"""

Rlx = Callable[[str], tuple[int, str]]
"""A command line to its exit code and all that it prints."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rlx.run import train
    from rlx.store.runs import new_meta

    root = tmp_path_factory.mktemp("runs")
    composed = Composer().compose(SETTINGS.split())
    train(RunDir.create(root, "gift", composed.config, new_meta(composed)), composed.config, overrides=[])
    return root / "gift"


@pytest.fixture(autouse=True)
def _evil_module(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current directory whose module leaves a trace when it is imported."""
    monkeypatch.syspath_prepend(here)
    (here / "evilmod.py").write_text(EVIL_MODULE)


@pytest.fixture
def gift(trained: Path, here: Path) -> Path:
    return shutil.copytree(trained, here / "runs" / "gift")


@pytest.fixture
def rlx(run_command: Callable[[str], tuple[int, str, str]]) -> Rlx:
    def run(line: str) -> tuple[int, str]:
        code, out, err = run_command(line)
        return code, out + err

    return run


def was_executed(here: Path) -> bool:
    return (here / "executed").exists()


EVERY_COMMAND = ["eval gift", "resume gift", "resume gift loop.total_env_steps=64", "show gift", "show gift --json", "ls", "ls --json"]
EVIL_CONFIGS = {
    "resolver": ("CartPole-v1", "${oc.env:HOME}", "interpolations are refused"),
    "resolver of ours": ("seed: 0", "seed: ${now:}", "interpolations are refused"),
    "python tag": ("CartPole-v1", "!!python/object/apply:os.system ['touch executed']", "is not readable YAML"),
    "python name": ("CartPole-v1", "!!python/name:os.system", "is not readable YAML"),
    "unknown key": ("seed: 0", "seed: 0\nafterwards: 'touch executed'", "afterwards: unknown key"),
    "unknown setting": ("  num_envs: 2", "  num_envs: 2\n  vector_entry_point: os:system", "env.vector_entry_point: unknown key"),
    "target": ("  clip: 0.2", "  clip: 0.2\n  _target_: os.system", "algo._target_: unknown key"),
    "target at the root": ("seed: 0", "seed: 0\n_target_: os.system", "_target_: unknown key"),
    "unknown algorithm": ("name: ppo", "name: os.system", "is for algo.name=os.system, which this version of rlx does not have"),
    "type": ("seed: 0", "seed: [os.system]", "seed must be a whole number, got ['os.system']"),
    "not a mapping": (None, "- CartPole-v1\n", "must hold key: value lines, got list"),
    "not text": (None, "\0\0\0", "is not readable YAML"),
}


@pytest.mark.parametrize("case", EVIL_CONFIGS)
def test_config_that_is_not_plain_settings_is_refused_unexecuted(case: str, rlx: Rlx, gift: Path, here: Path) -> None:
    old, new, says = EVIL_CONFIGS[case]
    config = gift / "config.yaml"
    text = config.read_text()
    assert old is None or text.count(old) == 1
    config.write_text(text.replace(old, new) if old else new)
    for command in ("eval gift", "resume gift", "resume gift loop.total_env_steps=64"):
        code, printed = rlx(command)
        assert code == 2, printed
        assert printed.startswith("rlx: runs/gift/config.yaml ")
        assert says in printed
        assert printed.count("\n") == 1
    for command in ("show gift", "ls"):
        assert rlx(command)[0] == 0
    assert not was_executed(here)
    assert len(json.loads((gift / "meta.json").read_text())["segments"]) == 1


def rewrite(gift: Path, old: str, new: str) -> None:
    """Change a setting wherever a run keeps it, as somebody would who means to deceive."""
    for path in (gift / "config.yaml", gift / "meta.json"):
        path.write_text(path.read_text().replace(old, new))
    for path in gift.glob("checkpoints/*/manifest.json"):
        content = json.loads(path.read_text().replace(old, new))
        del content["sha256"]
        path.write_text(json.dumps({**content, "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}))


def name_evil_module(gift: Path) -> None:
    rewrite(gift, "id: CartPole-v1", "id: evilmod:X-v0")


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_module_that_a_run_names_is_not_imported(command: str, rlx: Rlx, gift: Path, here: Path) -> None:
    name_evil_module(gift)
    code, printed = rlx(command)
    assert not was_executed(here)
    assert "evilmod" not in sys.modules
    if command.startswith(("eval", "resume")):
        assert code == 2
        assert printed == (
            "rlx: runs/gift uses env=evilmod:X-v0, which imports the module 'evilmod' and so runs its code; "
            "if you trust where this run comes from, say --trust\n"
        )
    else:
        assert code == 0


def test_own_run_needs_no_trust_wherever_it_is_moved_and_a_copy_of_somebody_else_does(
    rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.replace("env.native=false ", "env=evilmod:X-v0 ")
    code, printed = rlx(f"train algo=ppo {settings} --name mine")
    assert code == 0, printed
    assert "--trust" not in printed
    shutil.move(here / "runs" / "mine", here / "runs" / "moved")
    for command in ("eval moved --episodes 2", "resume moved loop.total_env_steps=64", "resume moved", "show moved"):
        code, printed = rlx(command)
        assert (code, "--trust" in printed) == (0, False), printed
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(here / "somebody else"))
        for command in ("eval moved", "resume moved", f"train algo=ppo {settings} --name moved --auto-resume"):
            code, printed = rlx(command)
            assert code == 2
            assert "imports the module 'evilmod' and so runs its code; if you trust where this run comes from, say --trust" in printed
        assert rlx("resume moved --trust loop.total_env_steps=96")[0] == 0
        assert rlx("eval moved --episodes 2")[0] == 0  # who has vouched for it once is not asked again
    assert rlx("eval moved --episodes 2")[0] == 2


def test_module_of_the_same_name_from_elsewhere_is_another_module(rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rlx(f"train algo=ppo {SETTINGS.replace('env.native=false ', 'env=evilmod:X-v0 ')} --name mine")[0] == 0
    del sys.modules["evilmod"]
    (here / "theirs").mkdir()
    (here / "theirs" / "evilmod.py").write_text(EVIL_MODULE)
    monkeypatch.syspath_prepend(here / "theirs")
    code, printed = rlx("eval mine --episodes 2")
    assert code == 2
    assert "say --trust" in printed


def test_without_a_key_training_goes_on_and_the_message_says_why_nothing_is_known_as_ones_own(
    rlx: Rlx, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "file"))
    assert rlx(f"train algo=ppo {SETTINGS.replace('env.native=false ', 'env=evilmod:X-v0 ')} --name mine")[0] == 0
    code, printed = rlx("eval mine")
    assert code == 2
    assert "say --trust" in printed
    assert "rlx/key cannot be kept, so that rlx cannot tell which runs are yours" in printed
    assert rlx("eval mine --trust --episodes 2")[0] == 0


CHANGES = {
    "learning rate": ("\n  learning_rate: 0.0003", "\n  learning_rate: 0.1", "algo.learning_rate is 0.1 there and 0.0003 in"),
    "seed": ("seed: 0", "seed: 7", "seed is 7 there and 0 in"),
    "discount": ("discount: 0.99", "discount: 0.5", "algo.discount is 0.5 there and 0.99 in"),
    "budget": ("total_env_steps: 32", "total_env_steps: 64", "loop.total_env_steps is 64 there and 32 in"),
    "environment": ("id: CartPole-v1", "id: evilmod:X-v0", "env.id is evilmod:X-v0 there and CartPole-v1 in"),
}


@pytest.mark.parametrize(
    ("command", "case"),
    [
        *(("eval gift", case) for case in CHANGES),
        ("eval gift --trust", "environment"),
        ("resume gift", "learning rate"),
        ("resume gift loop.total_env_steps=96", "budget"),
        ("resume gift loop.total_env_steps=96", "environment"),
    ],
)
def test_setting_that_was_changed_by_hand_is_refused_by_name(command: str, case: str, rlx: Rlx, gift: Path, here: Path) -> None:
    old, new, says = CHANGES[case]
    config = gift / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    code, printed = rlx(command)
    assert code == 2
    assert f"config.yaml is not what was started: {says} meta.json; restore it" in printed
    assert says in rlx("show gift")[1]
    if case != "budget":  # which another segment may have had
        (gift / "meta.json").unlink()
        code, printed = rlx(command)
        assert code == 2
        assert f"{says} its checkpoint" in printed
    assert not was_executed(here)


def test_a_comment_in_config_yaml_and_another_order_change_nothing(rlx: Rlx, gift: Path) -> None:
    config = gift / "config.yaml"
    config.write_text("# mine\n" + config.read_text())
    assert rlx("eval gift --episodes 2")[0] == 0
    assert rlx("resume gift loop.total_env_steps=64")[0] == 0
    assert "total_env_steps: 64" in config.read_text()
    assert rlx("eval gift --episodes 2")[0] == 0


def test_a_kill_between_meta_json_and_config_yaml_leaves_a_run_that_goes_on(rlx: Rlx, gift: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (gift / "config.yaml").read_text()
    assert rlx("resume gift loop.total_env_steps=64")[0] == 0
    (gift / "config.yaml").write_text(before)
    assert rlx("resume gift loop.total_env_steps=96")[0] == 0
    assert rlx("eval gift --episodes 2")[0] == 0


def test_run_of_a_version_that_kept_no_record_goes_on(rlx: Rlx, gift: Path) -> None:
    meta = json.loads((gift / "meta.json").read_text())
    (gift / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k not in ("config", "signature", "modules")}))
    for path in gift.glob("checkpoints/*/manifest.json"):
        content = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("config", "sha256")}
        path.write_text(json.dumps(content))
    assert rlx("eval gift --episodes 2")[0] == 0
    assert rlx("resume gift loop.total_env_steps=64")[0] == 0
    assert "total_env_steps: 64" in json.loads((gift / "meta.json").read_text())["config"]


@pytest.mark.parametrize("text", ['"\\x24{oc.env:SECRET}"', '"${oc.env:SECRET}"', "'${oc.env:SECRET}'", '"\\u0024{oc.env:SECRET}"'])
def test_nothing_in_a_run_is_interpolated(text: str, rlx: Rlx, gift: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    config = gift / "config.yaml"
    for changed in ("wandb_project: rlx", "kwargs: {}"):
        config.write_text(config.read_text().replace(changed, f"wandb_project: {text}" if "wandb" in changed else f"kwargs: {{{text}: 1}}"))
    (gift / "meta.json").unlink()
    for command in ("resume gift", "resume gift loop.total_env_steps=64", "eval gift", "show gift"):
        code, printed = rlx(command)
        assert code == (0 if command == "show gift" else 2)
        assert "interpolations are refused" in printed
    assert not any(b"hunter2" in p.read_bytes() for p in gift.rglob("*") if p.is_file())


@pytest.mark.parametrize("command", ["eval gift --trust --episodes 2", "resume gift --trust loop.total_env_steps=64"])
def test_module_that_a_run_names_is_imported_with_trust(command: str, rlx: Rlx, gift: Path, here: Path) -> None:
    name_evil_module(gift)
    code, printed = rlx(command)
    assert code == 0, printed
    assert was_executed(here)


def test_auto_resume_imports_only_the_module_that_the_command_names(rlx: Rlx, gift: Path, here: Path) -> None:
    name_evil_module(gift)
    code, printed = rlx(f"train {SETTINGS} --name gift --auto-resume")
    assert code == 2
    assert "uses env=evilmod:X-v0, which imports the module 'evilmod'" in printed
    code, printed = rlx(f"train {SETTINGS} --name gift --auto-resume --trust")
    assert code == 2
    assert "is another run: env.id is evilmod:X-v0 there and CartPole-v1 here" in printed
    assert not was_executed(here)


class Payload:
    """Unpickling it touches a file."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, ("executed", "w"))


@pytest.mark.parametrize("file", ["algo.pt", "run.pt"])
@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_pickle_in_a_checkpoint_with_a_matching_digest_is_not_executed(file: str, command: str, rlx: Rlx, gift: Path, here: Path) -> None:
    data = pickle.dumps(Payload())
    for checkpoint in (gift / "checkpoints").iterdir():
        (checkpoint / file).write_bytes(data)
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["files"][file] = hashlib.sha256(data).hexdigest()
        content = {k: v for k, v in manifest.items() if k != "sha256"}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        (checkpoint / "manifest.json").write_text(json.dumps({**content, "sha256": digest}))
    code, printed = rlx(command)
    assert not was_executed(here)
    assert "Traceback" not in printed
    if (command.startswith("eval") and file == "algo.pt") or "=64" in command:  # an evaluation does not read run.pt
        assert code == 4
        assert f"{file} is not plain data and was not loaded" in printed


def test_the_payload_does_touch_a_file_when_it_is_unpickled(here: Path) -> None:
    pickle.loads(pickle.dumps(Payload())).close()
    assert was_executed(here)


@pytest.mark.parametrize("reference", ["..", ".", "../..", "/", "/etc/passwd", "gift/..", "gift/checkpoints", "../../../../etc", "''", "~"])
@pytest.mark.parametrize("command", ["eval", "model", "resume", "show"])
def test_reference_that_leads_elsewhere_is_no_run(command: str, reference: str, rlx: Rlx, gift: Path, here: Path) -> None:
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    code, printed = rlx(f"{command} {reference}")
    assert code == 2, printed
    assert "no such run in runs" in printed
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before


def test_linked_run_is_the_run_it_leads_to(rlx: Rlx, gift: Path, here: Path) -> None:
    shutil.move(gift, here / "elsewhere")
    (here / "runs" / "linked").symlink_to(here / "elsewhere")
    assert rlx("eval linked --episodes 2")[0] == 0
    assert rlx("resume linked loop.total_env_steps=64")[0] == 0
    assert (here / "elsewhere" / "checkpoints" / "000000000064").is_dir()
    (here / "runs" / "circle").symlink_to(here / "runs" / "circle")
    assert rlx("ls")[0] == 0
    assert "circle: no such run" in rlx("eval circle")[1]


@pytest.mark.parametrize("file", [".lock", "config.yaml", "meta.json"])
def test_link_out_of_a_run_does_not_let_resume_overwrite_what_it_leads_to(file: str, rlx: Rlx, gift: Path, here: Path) -> None:
    target = here / "precious"
    target.write_bytes((gift / file).read_bytes() or b"precious")
    before = target.read_bytes()
    (gift / file).unlink()
    (gift / file).symlink_to(target)
    assert rlx("resume gift loop.total_env_steps=64")[0] == {".lock": 6, "config.yaml": 2, "meta.json": 0}[file]
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["plots", "checkpoints"])
def test_directory_that_is_a_link_is_not_written_through(name: str, rlx: Rlx, gift: Path, here: Path) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "000000000016").mkdir()
    shutil.rmtree(gift / name, ignore_errors=True)
    (gift / name).symlink_to(here / "photos")
    code, printed = rlx({"plots": "plot gift", "checkpoints": "resume gift loop.total_env_steps=64"}[name])
    assert code in (4, 6)
    assert f"{gift.relative_to(here) / name} is a link" in printed
    assert [p.name for p in (here / "photos").rglob("*")] == ["000000000016"]


def test_figure_replaces_a_link_and_leaves_what_it_led_to(rlx: Rlx, gift: Path, here: Path) -> None:
    (here / "precious").write_text("precious")
    (gift / "plots").mkdir()
    (gift / "plots" / "curves-episode-return_mean_100.png").symlink_to(here / "precious")
    assert rlx("plot gift --metric episode/return_mean_100")[0] == 0
    assert (here / "precious").read_text() == "precious"
    assert (gift / "plots" / "curves-episode-return_mean_100.png").read_bytes().startswith(b"\x89PNG")


def test_wandb_directory_that_is_a_link_turns_the_mirror_off(gift: Path, here: Path) -> None:
    from rlx.track.logger import NullMirror
    from rlx.track.wandb import make_mirror

    (here / "photos").mkdir()
    (gift / "wandb").symlink_to(here / "photos")
    said: list[str] = []
    mirror = make_mirror("offline", run_dir=gift, run_id="x", name="x", project="x", config={}, tags=[], segment=0, note=said.append)
    assert isinstance(mirror, NullMirror)
    assert "wandb is a link" in said[0]
    assert list((here / "photos").iterdir()) == []
