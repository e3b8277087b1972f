"""Checkpoints of robomimic: real ones give the same actions as in robomimic, all others are refused."""

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robopolicy.cli import main
from robopolicy.errors import CheckpointError
from robopolicy.inference.runner import PolicyRunner
from robopolicy.policies.bc_rnn import Mixture
from robopolicy.training import checkpoint
from robopolicy.training.robomimic import load_robomimic

SIZES = OrderedDict([("object", 2), ("robot0_eef_quat", 4)])
ENV = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {"control_freq": 20, "controller_configs": {"type": "OSC_POSE", "control_delta": True}},
}


def contents(**changes: Any) -> dict[str, Any]:
    """What robomimic saves of a BC-RNN-GMM policy with 2 + 4 states, hidden 3, one layer, 2 modes, 7 actions."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "policy.nets.rnn.nets.weight_ih_l0": (12, 6),
        "policy.nets.rnn.nets.weight_hh_l0": (12, 3),
        "policy.nets.rnn.nets.bias_ih_l0": (12,),
        "policy.nets.rnn.nets.bias_hh_l0": (12,),
    }
    for head, rows in (("mean", 14), ("scale", 14), ("logits", 2)):
        for prefix in ("policy.nets.decoder.nets.", "policy.nets.rnn.per_step_net.nets."):
            shapes |= {f"{prefix}{head}.weight": (rows, 3), f"{prefix}{head}.bias": (rows,)}
    config = {
        "algo": {
            "actor_layer_dims": [],
            "gmm": {"enabled": True, "num_modes": 2, "min_std": 0.0001, "std_activation": "softplus"},
            "rnn": {"enabled": True, "horizon": 10, "hidden_dim": 3, "num_layers": 1, "rnn_type": "LSTM"},
        },
        "observation": {"modalities": {"obs": {"low_dim": list(SIZES), "rgb": []}, "goal": {}}},
        "train": {},
    }
    saved = {
        "model": OrderedDict((k, torch.randn(*s, generator=generator)) for k, s in shapes.items()),
        "config": json.dumps(config),
        "algo_name": "bc",
        "env_metadata": ENV,
        "shape_metadata": {"ac_dim": 7, "all_shapes": OrderedDict((k, [n]) for k, n in SIZES.items())},
    }
    return saved | changes


def configured(**changes: Any) -> dict[str, Any]:
    """The same with entries of its configuration changed; double underscores stand for dots."""
    saved = contents()
    config = json.loads(saved["config"])
    for name, value in changes.items():
        table, parts = config, name.split("__")
        for part in parts[:-1]:
            table = table.setdefault(part, {})
        table[parts[-1]] = value
    return saved | {"config": json.dumps(config)}


def written(path: Path, saved: Any) -> Path:
    torch.save(saved, path)
    return path


def test_a_checkpoint_becomes_a_run_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = {k: {"mean": [[0.5] * n], "std": [[2.0] * n]} for k, n in SIZES.items()}
    file = written(tmp_path / "model.pth", contents(obs_normalization_stats=stats))
    assert main(["import", str(file), str(tmp_path / "run")]) == 0
    assert f"next: robopolicy eval {tmp_path / 'run'}" in capsys.readouterr().out
    policy, about = checkpoint.load(tmp_path / "run")
    assert about["task"] == "robomimic-lift"
    assert about["provenance"]["robomimic"]["env_metadata"] == ENV
    assert (policy.config.n_obs_steps, policy.config.hidden, policy.config.modes) == (10, 3, 2)
    features = policy.features
    assert features.keys() == ["observation.object", "observation.robot0_eef_quat", "action"]
    assert features["observation.robot0_eef_quat"].names == ("x", "y", "z", "w")
    assert (features.rate_hz, features.action.control.mode) == (20, "delta")
    # robomimic's states minus 0.5, divided by 2; its actions as they are.
    values = torch.tensor([2.5, 0.5])
    assert policy.normalizer.normalize("observation.object", values).tolist() == [1.0, 0.0]
    assert policy.normalizer.normalize("action", torch.full((7,), 0.25)).tolist() == [0.25] * 7
    network = policy.network
    assert torch.equal(network.recurrent.weight_hh_l0, contents()["model"]["policy.nets.rnn.nets.weight_hh_l0"])
    assert torch.equal(network.logits.bias, contents()["model"]["policy.nets.decoder.nets.logits.bias"])
    assert main(["import", str(file), str(tmp_path / "run")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_task_of_the_user_for_an_environment_that_is_none_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.pth", contents(env_metadata=ENV | {"env_name": "Door"}))
    assert main(["import", str(file), str(tmp_path / "a")]) == 2
    assert "'Door'" in (message := capsys.readouterr().err)
    assert "--task" in message
    assert not (tmp_path / "a").exists()
    assert main(["import", str(file), str(tmp_path / "a"), "--task", "robomimic-lift"]) == 0
    # Absolute actions of 7 numbers are those of none of our tasks.
    controller = {"type": "OSC_POSE", "control_delta": False}
    absolute = ENV | {"env_kwargs": {"control_freq": 20, "controller_configs": controller}}
    assert load_robomimic(written(tmp_path / "b.pth", contents(env_metadata=absolute)))[1] is None


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([1, 2], "content is no dictionary"),
        ({}, "algo_name should be str, found 'None'"),
        (contents(algo_name="bcq"), "algorithm 'bcq'; known is bc"),
        (contents(config="{"), "config is not valid JSON"),
        (contents(config="[]"), "config is no dictionary"),
        (contents(action_normalization_stats={"actions": {}}), "scales its actions"),
        (contents(env_metadata={"env_name": torch.zeros(1)}), "env_metadata is not plain data"),
        (contents(shape_metadata={"ac_dim": 7, "all_shapes": {"object": [2]}}), "lacks the observations robot0"),
        (contents(shape_metadata={"ac_dim": 7, "all_shapes": {k: [3, 84] for k in SIZES}}), "one dimension, found"),
        (contents(shape_metadata={"all_shapes": {k: [n] for k, n in SIZES.items()}}), "ac_dim should be int"),
        (contents(model={}), "do not fit its configuration .*Missing key"),
        (contents(model={"a": 1}), "no finite tensors: a"),
        (contents(model={k: v * torch.nan for k, v in contents()["model"].items()}), "no finite tensors"),
        (contents(obs_normalization_stats={"object": {"mean": [[0.0, 1.0]], "std": [[1, 0]]}}), "should be 2 numbers"),
        (contents(obs_normalization_stats={}), r"obs_normalization_stats\.object should be dict"),
        (configured(algo__gaussian__enabled=True), "gaussian.enabled is true"),
        (configured(algo__transformer__enabled=True), "transformer.enabled is true"),
        (configured(algo__rnn__open_loop=True), "open_loop is true"),
        (configured(algo__rnn__rnn_type="RNN"), "make no network"),
        (configured(algo__rnn__num_layers=10**9), "make no network"),
        (configured(algo__rnn__hidden_dim=10**6), "do not fit its configuration .*size mismatch"),
        (configured(algo__rnn__hidden_dim="400"), "hidden_dim should be int"),
        (configured(algo__gmm__std_activation="exp"), "std_activation 'exp'"),
        (configured(train__frame_stack=2), "frame_stack 2"),
        (configured(observation__modalities__obs__rgb=["agentview_image"]), "reads rgb obs"),
        (configured(observation__modalities__goal__low_dim=["object"]), "reads low_dim goal"),
        (configured(observation__encoder={"low_dim": {"core_class": "MLP"}}), "encodes its states"),
    ],
)  # fmt: skip
def test_all_else_is_refused_by_name(tmp_path: Path, saved: Any, message: str) -> None:
    file = written(tmp_path / "model.pth", saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_robomimic(file)
    assert str(caught.value).startswith(f"{file}: ")


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    file = written(tmp_path / "model.pth", contents(env_metadata=Hostile(trap)))
    with pytest.raises(CheckpointError, match="holds more than plain data"):
        load_robomimic(file)
    assert not trap.exists()
    torch.load(file, weights_only=False)
    assert trap.exists(), "the trap works"


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_robomimic(tmp_path / "none.pth")
    whole = written(tmp_path / "model.pth", contents()).read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="no robomimic checkpoint"):
            load_robomimic(tmp_path / "cut.pth")


def heaviest(means: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Means [..., D_a] of the mode with the largest share, of means [..., K, D_a]."""
    index = logits.argmax(dim=-1)[..., None, None].expand(*logits.shape[:-1], 1, means.shape[-1])
    return means.gather(-2, index).squeeze(-2)


RNN = {"rnn.enabled": True, "rnn.hidden_dim": 32, "rnn.horizon": 4}


@pytest.mark.parametrize(
    ("algo", "normalize"),
    [
        (RNN | {"gmm.enabled": True, "actor_layer_dims": ()}, False),
        (RNN | {"actor_layer_dims": (24,), "rnn.rnn_type": "GRU"}, False),
        ({"gmm.enabled": True, "actor_layer_dims": (24, 16)}, False),
        ({"actor_layer_dims": (24, 16)}, True),
    ],
    ids=["bc-rnn-gmm", "bc-rnn", "bc-gmm", "bc"],
)
def test_a_checkpoint_that_robomimic_trained_acts_as_in_robomimic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: dict[str, Any], normalize: bool
) -> None:
    pytest.importorskip("robomimic")
    import robomimic.utils.file_utils as file_utils
    from robomimic_networks import OBSERVATIONS, configuration, train_and_save, write_demonstrations

    data = write_demonstrations(tmp_path / "demos.hdf5")
    config = configuration(data, algo, normalize, seq_length=4 if "rnn.enabled" in algo else 1)
    trained = train_and_save(config, tmp_path / "model.pth")
    assert main(["import", str(tmp_path / "model.pth"), str(tmp_path / "run")]) == 0
    ours, about = checkpoint.load(tmp_path / "run")
    assert about["task"] == "robomimic-lift"
    count = sum(p.numel() for p in trained.nets["policy"].parameters())
    assert sum(p.numel() for p in ours.parameters()) == count
    theirs, _ = file_utils.policy_from_checkpoint(device="cpu", ckpt_path=str(tmp_path / "model.pth"))
    theirs.start_episode()
    runner = PolicyRunner(ours, 1)
    rng = np.random.default_rng(0)
    # Both draw the mode, and 1e-4 of noise: here both take the mean of the heaviest one.
    monkeypatch.setattr(Mixture, "sample", lambda m, _: heaviest(m.mean, m.logits))
    monkeypatch.setattr(
        torch.distributions.MixtureSameFamily,
        "sample",
        lambda m: heaviest(m.component_distribution.base_dist.loc, m.mixture_distribution.logits),
    )
    for step in range(11):
        observed = {k: rng.normal(0.3, 2.0, n).astype(np.float32) for k, n in OBSERVATIONS.items()}
        expected = theirs(dict(observed))
        action = runner.step({f"observation.{k}": v[None] for k, v in observed.items()})[0]
        np.testing.assert_allclose(action, expected, atol=1e-5, err_msg=f"step {step}")
