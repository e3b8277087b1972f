import io
import json
import re

import av
import cv2
import numpy as np
import pytest
from evaluation_fakes import (
    FEATURES,
    GOAL,
    STATE,
    BlindTask,
    CrashingTask,
    DyingTask,
    ForgetfulTask,
    MeasuredTask,
    PointTask,
    UnavailableTask,
    UnmeasuredTask,
    start,
    straight_steps,
)
from evaluation_policies import PointPolicy

from robopolicy.errors import DataError, FeatureMismatch, RobopolicyError
from robopolicy.evaluation.result import CurvePoint, EvalInfo
from robopolicy.evaluation.rollout import evaluate, seed_purpose
from robopolicy.features import Control, Feature, FeatureSpec

SEEDS = range(100_000, 100_009)


def run(policy=None, task=PointTask, seeds=SEEDS, **options):
    options = {"record_video": 0, "pictures": 0, "progress": False} | options
    return evaluate(policy or PointPolicy(), task, seeds, **options)


def test_a_policy_that_always_succeeds_scores_one():
    result = run()
    assert result.score.value == 1.0
    assert result.success.value == 1.0
    assert [e.seed for e in result.episodes] == list(SEEDS)
    assert [e.steps for e in result.episodes] == [straight_steps(s) for s in SEEDS]
    assert result.info.purpose == "test"


def test_a_policy_that_cannot_succeed_scores_what_it_reached():
    policy = PointPolicy()
    policy.weight.data.fill_(0.4)  # Stops at 0.2, 0.3 short of the goal.
    result = run(policy)
    np.testing.assert_allclose([e.score for e in result.episodes], 0.85, atol=1e-6)
    assert result.success.value == 0.0
    assert result.success.low == 0.0
    assert {e.steps for e in result.episodes} == {PointTask.max_steps}


@pytest.mark.parametrize("strategy", ["receding", "ensemble"])
def test_episodes_do_not_depend_on_how_many_run_beside_them(strategy):
    reference = run(PointPolicy(0.4), n_envs=1, strategy=strategy).episodes
    assert len({e.steps for e in reference}) > 2
    for n_envs in (2, 4, 9):
        assert run(PointPolicy(0.4), n_envs=n_envs, strategy=strategy).episodes == reference
    shuffled = run(PointPolicy(0.4), seeds=list(reversed(SEEDS)), n_envs=2, strategy=strategy).episodes
    assert shuffled[::-1] == reference
    alone = run(PointPolicy(0.4), seeds=[SEEDS[4]], strategy=strategy).episodes
    assert alone == [reference[4]]


def test_worker_processes_do_not_change_the_result():
    options = {"latency_steps": 1, "latency_jitter_steps": 1, "n_envs": 3, "pictures": 4, "record_video": 2}
    here, there = (run(PointPolicy(0.4), workers=w, **options) for w in (0, 2))
    assert there.episodes == here.episodes
    assert there.pictures == here.pictures
    assert there.videos == here.videos
    assert there.info.timing["workers"] == 2


def test_chunks_of_all_environments_are_asked_for_together():
    policy = PointPolicy(0.4, n_action_steps=4)
    result = run(policy, n_envs=3)
    per_episode = [-(-e.steps // 4) for e in result.episodes]
    assert len(set(per_episode)) > 1
    assert sum(policy.calls) == sum(per_episode)
    # Episodes of different lengths replace each other in three slots, yet one call serves all of them.
    busy = [0, 0, 0]
    for chunks in per_episode:
        busy[busy.index(min(busy))] += chunks
    assert len(policy.calls) == max(busy)


def test_latency_delays_the_first_action_by_holding():
    late = run(latency_steps=2)
    assert [e.steps for e in late.episodes] == [straight_steps(s) + 2 for s in SEEDS]
    first = late.episodes[0]
    np.testing.assert_allclose(first.rewards[:2], 1 - (0.5 - start(first.seed)) / 2, atol=1e-5)
    assert late.info.runner["latency_steps"] == 2


def test_the_policy_is_evaluated_without_dropout_and_left_as_it_was():
    policy = PointPolicy().train()
    policy.dropout.p = 0.9
    policy.normalizer.eval()
    assert run(policy).score.value == 1.0
    assert policy.training
    assert policy.dropout.training
    assert not policy.normalizer.training


def test_features_are_compared_before_anything_moves():
    delta = Feature("action", (1,), kind="action", control=Control("joint", "delta"))
    policy = PointPolicy(features=FeatureSpec((FEATURES[STATE], FEATURES[GOAL], delta), 10.0))
    with pytest.raises(FeatureMismatch, match=r"'action' control: checkpoint has delta .* task 'point' has absolute"):
        run(policy, task=CrashingTask)
    assert policy.calls == []


def test_videos_are_of_the_best_and_the_worst_and_start_and_end_are_pictured():
    policy = PointPolicy(0.0)
    policy.weight.data.fill_(-0.4)  # Moves to -0.2: score depends on the start.
    result = run(policy, record_video=3, pictures=2)
    scores = {e.seed: e.score for e in result.episodes}
    chosen = list(result.videos)
    assert scores[chosen[0]] == max(scores.values())
    assert scores[chosen[1]] == min(scores.values())
    assert len(chosen) == 3
    with av.open(io.BytesIO(result.videos[chosen[0]])) as container:
        assert sum(1 for _ in container.decode(video=0)) == PointTask.max_steps + 1
    assert result.info.notes == []

    assert list(result.pictures) == list(SEEDS[:2])
    task = PointTask()
    task.reset(seed=SEEDS[0])
    first, last = (cv2.imdecode(np.frombuffer(p, np.uint8), cv2.IMREAD_COLOR_RGB) for p in result.pictures[SEEDS[0]])
    np.testing.assert_array_equal(first, task.render())
    task.x = -0.2
    np.testing.assert_array_equal(last, task.render())


def test_a_task_without_pictures_is_evaluated_all_the_same(tmp_path):
    result = run(task=BlindTask, record_video=2, pictures=3)
    assert (result.videos, result.pictures, result.score.value) == ({}, {}, 1.0)
    result.save(tmp_path / "out")


def test_a_task_that_is_no_function_of_its_seed_is_found_out():
    result = run(task=ForgetfulTask, record_video=2)
    assert len(result.info.notes) == 2
    assert re.match(
        "not reproducible: replaying the actions of seed 10000. gave reward .* at step 0", result.info.notes[0]
    )


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (CrashingTask, RuntimeError, "(?s)worker-0 failed.*in step.*ZeroDivisionError: the solver exploded"),
        (DyingTask, RuntimeError, "worker-0 died with exit code -9"),
        (UnavailableTask, RobopolicyError, r"^install robopolicy\[extra\]$"),
    ],
)
def test_a_failing_worker_says_why(task, error, message):
    with pytest.raises(error, match=message):
        run(task=task, workers=1, n_envs=2)


def test_bad_arguments_are_refused():
    for seeds in ([], [1, 1], [-1]):
        with pytest.raises(RobopolicyError, match="at least one seed, all distinct"):
            run(seeds=seeds)
    with pytest.raises(RobopolicyError, match="unknown task 'pusht-pixel'"):
        run(task="pusht-pixel")
    with pytest.raises(RobopolicyError, match="n_envs must be at least 1"):
        run(n_envs=0)


def test_seed_ranges_have_purposes():
    assert seed_purpose([0, 99_999]) == "training"
    assert seed_purpose([100_000, 199_999]) == "test"
    assert seed_purpose([200_000]) == "validation"
    assert seed_purpose([199_999, 200_000]) == "mixed"
    assert "demonstrations" in run(seeds=[1, 2]).info.notes[0]


def test_saving_writes_everything_and_loads_back(tmp_path):
    result = run(PointPolicy(0.4), record_video=2, pictures=3, checkpoint="outputs/<run>", provenance={"git": "abc"})
    curve = [CurvePoint(100, 0.2, 0.1, 0.3, 0.0), result.info.curve_point(200)]
    folder = result.save(tmp_path / "evaluation", curve=curve)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    videos = [f"evaluation/videos/episode_{s}.mp4" for s in sorted(result.videos)]
    assert names == ["evaluation/eval_info.json", "evaluation/report.html", *videos]

    data = json.loads((folder / "eval_info.json").read_text())
    assert data["format"] == "robopolicy-eval"
    assert data["score"]["mean"] == result.score.value
    assert data["score"]["low"] <= data["score"]["mean"] <= data["score"]["high"]
    assert data["success"]["successes"] == sum(e["success"] for e in data["episodes"])
    assert data["seeds"] == {"first": 100_000, "last": 100_008, "count": 9}
    assert data["timing"]["policy_ms_per_chunk"].keys() == {"p50", "p95", "p99"}
    assert EvalInfo.load(folder) == result.info == EvalInfo.load(folder / "eval_info.json")


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("precious")
    result = run()
    with pytest.raises(RobopolicyError, match="out exists"):
        result.save(target)
    assert (target / "mine.txt").read_text() == "precious"
    result.save(target, overwrite=True)
    assert sorted(p.name for p in target.iterdir()) == ["eval_info.json", "report.html"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_save_leaves_the_old_folder_and_no_rest(tmp_path, monkeypatch):
    result, target = run(), tmp_path / "out"
    result.save(target)
    before = (target / "eval_info.json").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        result.save(target, overwrite=True)
    assert (target / "eval_info.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_one_episode_has_no_interval_but_is_valid_json(tmp_path):
    info = run(seeds=[100_000]).info
    data = json.loads(info.to_json())
    assert data["score"] == {"mean": 1.0, "low": None, "high": None, "method": data["score"]["method"]}


def test_damaged_evaluations_are_refused(tmp_path):
    file = tmp_path / "eval_info.json"
    with pytest.raises(DataError, match=r"eval_info.json: cannot read"):
        EvalInfo.load(file)
    for content, message in (
        ("{", "not valid JSON"),
        ("{}", "not an evaluation"),
        (json.dumps({"format": "robopolicy-eval", "version": 1, "task": "x"}), "damaged evaluation: 'score_name'"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            EvalInfo.load(file)


@pytest.mark.parametrize("workers", [0, 2])
def test_metrics_are_the_best_of_each_episode_with_an_interval(workers, tmp_path):
    result = run(task=MeasuredTask, workers=workers)
    assert result.score.value == 1.0
    for episode in result.episodes:
        # On the way from the start to 0.5 in steps of 0.1 the point comes within 0.05 of the middle.
        way = start(episode.seed) + 0.1 * np.arange(1, episode.steps)
        assert episode.metrics == {"nearness": pytest.approx(1 - np.abs(way).min(), abs=1e-6)}
    nearness = result.metrics["nearness"]
    assert nearness.value == pytest.approx(np.mean([e.metrics["nearness"] for e in result.episodes]))
    assert nearness.low < nearness.value < nearness.high
    assert f"nearness {nearness}, success" in result.info.summary()
    result.save(tmp_path / "eval")
    stored = json.loads((tmp_path / "eval/eval_info.json").read_text())
    assert stored["metrics"] == {"nearness": {"mean": nearness.value, "low": nearness.low, "high": nearness.high}}
    assert EvalInfo.load(tmp_path / "eval").metrics == result.metrics
    assert "Mean nearness" in (tmp_path / "eval/report.html").read_text()


def test_evaluations_stored_before_there_were_metrics_can_be_read(tmp_path):
    run().save(tmp_path / "eval")
    file = tmp_path / "eval/eval_info.json"
    data = json.loads(file.read_text())
    assert data.pop("metrics") == {}
    for episode in data["episodes"]:
        del episode["metrics"]
    file.write_text(json.dumps(data))
    assert EvalInfo.load(file).metrics == {}


def test_a_task_that_does_not_give_its_metrics_is_an_error():
    with pytest.raises(RobopolicyError, match=r"info\['metrics'\] should hold \['nearness'\], found \[\]"):
        run(task=UnmeasuredTask)
