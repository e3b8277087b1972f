"""The doctor finds each fault that was put into a healthy recording, where it was put, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
from dataset_files import without_checksums, write_lerobot, write_replay_buffer
from mixed import write_mixed
from recordings import arm_features, planar_episode, write

from robopolicy.cli import main
from robopolicy.datasets import motion
from robopolicy.datasets.cameras import camera_problems
from robopolicy.datasets.doctor import diagnose, format_diagnosis
from robopolicy.datasets.motion import Spans, idle_segment, jerky_segment, jumps, longest_run, stamp_problems
from robopolicy.errors import DataError
from robopolicy.features import Control, Feature, FeatureSpec

ABSOLUTE, DELTA = (Control("end_effector_pose", mode, "world") for mode in ("absolute", "delta"))
CAMERA = "observation.images.top"


def healthy(n=6):
    return [planar_episode("absolute", seed) for seed in range(n)]


def with_camera(episodes):
    """A camera that sees a bright square at the place of the arm."""
    for episode in episodes:
        frames = np.full((len(episode["action"]), 32, 32, 3), 40, np.uint8)
        frames[:, ::4] = 90
        for t, (x, y) in enumerate(np.rint(14 + 12 * episode["observation.state"]).astype(int)):
            frames[t, y : y + 4, x : x + 4] = 250
        episode[CAMERA] = frames
    features = arm_features(ABSOLUTE)
    return replace(features, features=(*features.features, Feature(CAMERA, (32, 32, 3), "uint8", "image")))


def found(path, **options):
    """(level, check, episode, step) of every finding."""
    return [(f.level, f.check, f.episode, f.step) for f in diagnose(path, progress=False, **options).findings]


def test_a_healthy_recording_has_no_finding(tmp_path):
    episodes = healthy()
    path = write(tmp_path / "d", with_camera(episodes), episodes)
    assert found(path) == []
    assert [g.value for g in diagnose(path, progress=False).guesses] == ["absolute"]


def test_a_wrongly_declared_mode_is_an_error(tmp_path):
    path = write(tmp_path / "d", arm_features(DELTA), healthy())
    (finding,) = diagnose(path, progress=False).findings
    assert (finding.level, finding.check) == ("error", "action space")
    assert "declared delta, looks absolute" in finding.message
    undeclared = write(tmp_path / "u", arm_features(None), healthy())
    assert found(undeclared) == [("info", "action space", None, None)]


def test_idle_jerky_and_jumping_segments(tmp_path):
    episodes = healthy()
    for key, values in episodes[1].items():
        episodes[1][key] = np.concatenate([values[:20], np.repeat(values[20:21], 30, axis=0), values[20:]])
    episodes[2]["action"][30:60] = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    state = episodes[3]["observation.state"]
    state[40:, 0] += 1.5 * np.sign(state[39, 0] - state[40, 0])
    result = found(write(tmp_path / "d", arm_features(ABSOLUTE), episodes))
    assert ("warning", "idle", 1, 20) in result
    assert ("warning", "jump", 3, 40) in result
    (jerk,) = [f for f in result if f[1] == "jerky"]
    assert jerk[2] == 2
    assert 28 <= jerk[3] <= 34
    assert len(result) == 3


def test_idle_by_hand():
    columns = np.concatenate([np.arange(5), np.full(25, 5.0), np.arange(6, 10)])[:, None]
    spans = Spans.of(columns, np.array([len(columns)]))
    assert idle_segment(columns, spans, 10.0) == (5, 25)
    assert idle_segment(columns, spans, 20.0) is None, "25 steps are 1.25 s at 20 Hz"
    assert idle_segment(columns, spans, None) == (5, 25)


def test_jerky_by_hand():
    still = np.linspace(0, 1, 40)[:, None]
    shaking = still + 0.2 * (-1.0) ** np.arange(40)[:, None] * (np.arange(40)[:, None] >= 20)
    for columns, expected in ((still, None), (shaking, 20)):
        segment = jerky_segment(columns, Spans.of(columns, np.array([40])), 10.0)
        assert (segment is None) if expected is None else abs(segment[0] - expected) <= 6
        assert segment is None or segment[0] + segment[1] == 40


def test_angle_wraps_are_no_jumps():
    angle = (np.linspace(0, 20, 200) + np.pi) % (2 * np.pi) - np.pi
    spans = Spans.of(angle[:, None], np.array([200]))
    ((step, dimension, change),) = jumps(angle[:, None], spans)
    assert dimension == 0
    assert angle[step] - angle[step - 1] == change
    assert motion.is_wrap(change, float(spans.full[0]))
    assert not motion.is_wrap(4.0, float(spans.full[0]))


def test_longest_run():
    assert longest_run(np.array([0, 1, 1, 0, 1, 1, 1, 0], bool)) == (4, 3)
    assert longest_run(np.array([1, 1], bool)) == (0, 2)
    assert longest_run(np.zeros(0, bool))[1] == 0


def test_saturated_constant_and_outside(tmp_path):
    names = ("x", "y", "z", "g")
    spec = arm_features(None, names)
    bounded = replace(spec.action, low=(-0.5, -5.0, -5.0, -1.0), high=(0.5, 5.0, 0.001, 1.0))
    episodes = []
    for episode in healthy():
        n = len(episode["action"])
        clipped = np.clip(episode["action"][:, :1], -0.5, 0.5)
        gripper = np.sign(np.arange(n) - n / 2 + 0.5)
        extra = np.column_stack([clipped, episode["action"][:, 1], np.zeros(n), gripper]).astype(np.float32)
        episodes.append(episode | {"action": extra})
    episodes[4]["action"][7, 1] = 9.0
    for declared in (True, False):
        features = replace(spec, features=(spec["observation.state"], bounded if declared else spec.action))
        result = diagnose(write(tmp_path / str(declared), features, episodes), progress=False).findings
        saturated = [f.message for f in result if f.check == "saturated"]
        share = np.mean(np.concatenate([e["action"][:, 0] for e in episodes]) == -0.5)
        assert saturated[0].startswith(f"dimension 0 is at its lower bound -0.5 in {100 * share:.1f} % of all steps")
        assert [m[:28] for m in saturated] == ["dimension 0 is at its lower ", "dimension 0 is at its upper "]
        assert [f.message for f in result if f.check == "constant"] == ["dimensions 2 never change"]
        outside = [f for f in result if f.check == "outside bounds"]
        assert len(outside) == declared
    outside = next(f for f in diagnose(tmp_path / "True", progress=False).findings if f.check == "outside bounds")
    assert (outside.level, outside.episode, outside.step) == ("error", 4, 7)


def test_an_action_that_never_changes_is_an_error(tmp_path):
    episodes = [e | {"action": np.zeros_like(e["action"])} for e in healthy()]
    assert ("error", "constant", None, None) in found(write(tmp_path / "d", arm_features(None), episodes))


def test_duplicates(tmp_path):
    episodes = healthy(5)
    episodes.append({k: v.copy() for k, v in episodes[1].items()})
    near = {k: v + np.float32(1e-4) for k, v in episodes[2].items()}
    episodes.append(near)
    assert found(write(tmp_path / "d", arm_features(ABSOLUTE), episodes)) == [
        ("warning", "duplicate", 5, None),
        ("warning", "near-duplicate", 6, None),
    ]
    messages = [f.message for f in diagnose(tmp_path / "d", progress=False).findings]
    assert "episode 1" in messages[0]
    assert "episode 2" in messages[1]


def test_short_episodes(tmp_path):
    episodes = [*healthy(), {k: v[:3] for k, v in planar_episode("absolute", 9).items()}]
    assert found(write(tmp_path / "d", arm_features(ABSOLUTE), episodes)) == [("warning", "short", 6, None)]


def test_not_finite_values_are_named_and_the_rest_is_still_examined(tmp_path):
    episodes = healthy()
    path = write(tmp_path / "d", arm_features(ABSOLUTE), [*episodes, episodes[0]])
    without_checksums(path)
    values = np.load(path / "observation.state.npy", mmap_mode="r+")
    values[80 * 2 + 11, 1] = np.nan
    values[80 * 2 + 12, 1] = np.inf
    values.flush()
    assert found(path) == [("error", "not finite", 2, 11), ("warning", "duplicate", 6, None)]


def test_numbers_whose_squares_overflow_are_damage(tmp_path):
    features = FeatureSpec(
        (Feature("observation.state", (2,), "float64"), Feature("action", (2,), kind="action")), 10.0
    )
    episodes = [e | {"observation.state": e["observation.state"].astype(np.float64)} for e in healthy()]
    episodes[3]["observation.state"][8, 1] = -1e200
    with np.errstate(all="raise"):
        result = found(write(tmp_path / "d", features, episodes))
    assert result == [("error", "not finite", 3, 8), ("info", "action space", None, None)]


def test_cameras_alone_are_examined(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    frames[4] = 0
    path = write(tmp_path / "d", FeatureSpec((Feature(CAMERA, (8, 8, 3), "uint8", "image"),)), [{CAMERA: frames}] * 2)
    assert found(path) == [("warning", "camera", 0, 4), ("warning", "camera", 1, 4)]


def test_an_unreadable_episode_is_a_finding(tmp_path):
    arrays = {
        k: np.concatenate([e[o] for e in healthy()]) for k, o in (("state", "observation.state"), ("action",) * 2)
    }
    path = write_replay_buffer(tmp_path / "d.zarr", arrays, np.arange(1, 7) * 80, chunk=80)
    chunk = path / "data" / "action" / "3.0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    chunk.write_bytes(damaged)
    result = found(path)
    assert ("error", "unreadable", 3, None) in result
    assert [f[1] for f in result] == ["unreadable", "action space"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f[20:40].fill(0), ("warning", "camera", 2, 20)),
        (lambda f: f[10:12].fill(128), ("warning", "camera", 2, 10)),
        (lambda f: f.__setitem__(slice(30, 50), f[30]), ("warning", "camera", 2, 30)),
        (lambda f: f.__setitem__(slice(None), f[0]), ("error", "camera", 2, 0)),
        (lambda f: f.fill(3), ("error", "camera", 2, 0)),
    ],
    ids=["black", "blank", "frozen", "always frozen", "always black"],
)
def test_camera_drop_outs(tmp_path, change, expected):
    episodes = healthy()
    features = with_camera(episodes)
    change(episodes[2][CAMERA])
    path = write(tmp_path / "d", features, episodes)
    (problem,) = found(path)
    assert problem[:3] == expected[:3]
    # The arm may be so slow that a frame is its neighbour's.
    assert abs(problem[3] - expected[3]) <= 1
    assert found(path, images=False) == []


def test_a_camera_may_repeat_itself_while_nothing_moves():
    frames = np.tile(np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5, (20, 1, 1, 1))
    assert camera_problems(frames, np.zeros((20, 1)), 10.0) == []
    assert camera_problems(frames, np.linspace(0, 0.05, 20)[:, None], 10.0) == []
    (problem,) = camera_problems(frames, np.linspace(0, 0.2, 20)[:, None], 10.0)
    assert (problem.kind, problem.steps, problem.whole) == ("frozen", 20, True)
    # What a video codec does to a frozen picture does not hide it.
    noisy = frames + np.random.default_rng(0).integers(0, 4, frames.shape).astype(np.uint8)
    assert camera_problems(noisy, np.linspace(0, 0.2, 20)[:, None], 10.0)[0].steps == 20


def test_time_stamps():
    regular = np.arange(20) / 10
    assert stamp_problems(regular, 10.0) == []
    assert stamp_problems(regular + 1e9, None) == []
    gap = regular + np.where(np.arange(20) >= 7, 0.3, 0.0)
    assert stamp_problems(gap, 10.0)[0][:2] == ("warning", 7)
    back = regular.copy()
    back[5] = back[4]
    assert stamp_problems(back, 10.0) == [("error", 5, "time does not advance: 0.4 s, then 0.4 s")]
    jitter = regular + np.random.default_rng(0).uniform(-0.02, 0.02, 20)
    assert "periods vary" in stamp_problems(jitter, 10.0)[0][2]
    assert [p[2] for p in stamp_problems(np.arange(20) / 9.5, 10.0)] == ["mean rate 9.5 Hz, declared 10 Hz"]
    assert stamp_problems(np.zeros(1), 10.0) == []
    assert stamp_problems(np.array([0.0, np.nan, 0.2]), 10.0)[0][:2] == ("error", 1)


def test_time_stamps_of_a_lerobot_dataset(tmp_path):
    write_lerobot(tmp_path / "d", lengths=[12, 15], video=False)
    assert "time stamps" not in [f[1] for f in found(tmp_path / "d")]
    file = tmp_path / "d" / "data" / "chunk-000" / "file-001.parquet"
    table = pyarrow.parquet.read_table(file)
    place = table.schema.get_field_index("timestamp")
    late = np.arange(15, dtype=np.float32) / 10 + np.where(np.arange(15) >= 6, 0.5, 0).astype(np.float32)
    pyarrow.parquet.write_table(table.set_column(place, "timestamp", pyarrow.array(late)), file)
    result = [f for f in found(tmp_path / "d") if f[1] == "time stamps"]
    assert result[0] == ("warning", "time stamps", 1, 6)
    assert {f[2] for f in result} == {1}


def test_quaternion_signs(tmp_path):
    from recordings import quaternion, smooth

    features = FeatureSpec((Feature("observation.pose", (7,)), Feature("action", (2,), kind="action")), 10.0)
    episodes = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        four = quaternion(smooth(rng, 60, 3))
        four[25 if seed == 1 else 60 :] *= -1
        pose = np.concatenate([smooth(rng, 60, 3), four], axis=1).astype(np.float32)
        episodes.append({"observation.pose": pose, "action": smooth(rng, 60, 2).astype(np.float32)})
    result = found(write(tmp_path / "d", features, episodes))
    assert ("info", "quaternion sign", 1, 25) in result
    assert "jump" not in [f[1] for f in result]


def test_the_mixed_dataset_is_examined_in_full(tmp_path):
    # Numbers and pictures of every kind, a 1-step episode, language, booleans, two cameras.
    result = diagnose(write_mixed(tmp_path / "d"), progress=False)
    assert result.count("error") == 0
    assert [f.episode for f in result.findings if f.check == "short"] == [0, 1, 3]
    assert "4 episodes, 25 steps" in format_diagnosis(result)


def test_command_line(tmp_path, capsys):
    good = str(write(tmp_path / "good", arm_features(ABSOLUTE), healthy()))
    wrong = str(write(tmp_path / "wrong", arm_features(DELTA), healthy()))
    short = str(
        write(tmp_path / "short", arm_features(ABSOLUTE), [*healthy(), {k: v[:3] for k, v in healthy()[0].items()}])
    )
    assert main(["data", "doctor", good]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert main(["data", "doctor", wrong, "--no-images"]) == 2
    printed = capsys.readouterr()
    assert "looks absolute" in printed.out
    assert "the doctor found 1 errors and 0 warnings" in printed.err
    assert main(["data", "doctor", short]) == 0
    capsys.readouterr()
    assert main(["data", "doctor", short, "--strict", "--json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"error": 0, "warning": 1, "info": 0}
    assert data["findings"][0]["episode"] == 6
    assert data["guesses"][0]["what"] == "mode"
    assert main(["data", "doctor", str(tmp_path / "nothing")]) == 2
    assert "no such dataset" in capsys.readouterr().err
    with pytest.raises(DataError, match="no such dataset"):
        diagnose(tmp_path / "nothing")
