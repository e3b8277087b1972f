"""Properties of windows and round trips for whatever shapes and values come along."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.datasets.detect import make_writer, open_source, writable_formats
from robopolicy.datasets.episodes import Episodes
from robopolicy.datasets.windows import WindowSampler, WindowShape, batch_indices, split_episodes
from robopolicy.features import TASK_INDEX, Feature, FeatureSpec

NUMBERS = FeatureSpec((Feature("observation.state", (1,)), Feature("action", (1,), kind="action")))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    n_obs_steps=st.integers(1, 4),
    horizon=st.integers(1, 12),
    first=st.integers(-3, 2),
    drop_last=st.integers(0, 6),
)
def test_windows_equal_a_loop_over_steps(
    lengths: list[int], n_obs_steps: int, horizon: int, first: int, drop_last: int
) -> None:
    n = sum(lengths)
    values = np.arange(n, dtype=np.float32)[:, None]
    episodes = Episodes({"observation.state": values, "action": values}, np.cumsum(lengths), NUMBERS, Path("m"), "m")
    sampler = WindowSampler(episodes, WindowShape(n_obs_steps, horizon, first, drop_last), ["observation.state"])
    expected, start = [], 0
    for length in lengths:
        for t in range(max(length - drop_last, 1)):
            observed = [start + min(max(t + i, 0), length - 1) for i in range(1 - n_obs_steps, 1)]
            wanted = [t + first + i for i in range(horizon)]
            acted = [start + min(max(w, 0), length - 1) for w in wanted]
            padded = [not 0 <= w < length for w in wanted]
            expected.append((observed, acted, padded))
        start += length
    assert len(sampler) == len(expected)
    batch = sampler.batch(np.arange(len(sampler)))
    for row, (observed, acted, padded) in enumerate(expected):
        assert batch["observation.state"][row, :, 0].tolist() == observed
        assert batch["action"][row, :, 0].tolist() == acted
        assert batch["action_is_pad"][row].tolist() == padded


@settings(max_examples=60, deadline=None)
@given(n_windows=st.integers(1, 60), batch=st.integers(1, 40), seed=st.integers(0, 99))
def test_an_epoch_shows_no_window_twice(n_windows: int, batch: int, seed: int) -> None:
    steps = max(n_windows // batch, 1)
    seen = np.concatenate([batch_indices(n_windows, batch, s, seed) for s in range(steps)])
    assert 0 <= seen.min() <= seen.max() < n_windows
    counts = np.bincount(seen, minlength=n_windows)
    assert counts.max() - counts.min() <= 1


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 50), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 99))
def test_splits_are_disjoint_and_complete(n: int, fraction: float, seed: int) -> None:
    train, held_out = split_episodes(n, fraction, seed)
    assert sorted([*train, *held_out]) == list(range(n))
    assert len(train) >= 1
    assert len(held_out) >= 1


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[FeatureSpec, list[dict[str, np.ndarray]], tuple[str, ...]]:
    """Numbers of any value, an image of any content, instructions in any characters."""
    state = draw(st.integers(1, 4))
    side = draw(st.sampled_from([(16, 16), (18, 24)]))
    tasks = tuple(
        draw(
            st.lists(
                st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
                min_size=1,
                max_size=3,
                unique=True,
            )
        )
    )
    features = FeatureSpec(
        (
            Feature("observation.state", (state,)),
            Feature("observation.images.top", (*side, 3), "uint8", "image"),
            Feature(TASK_INDEX, (), "int64", "language"),
            Feature("action", (2,), kind="action"),
        ),
        rate_hz=draw(st.sampled_from([5.0, 10.0, 30.0])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    episodes = []
    for n in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)):
        values = draw(st.lists(FLOATS, min_size=n * (state + 2), max_size=n * (state + 2)))
        numbers = np.array(values, np.float32).reshape(n, -1)
        episodes.append(
            {
                "observation.state": numbers[:, :state],
                "action": numbers[:, state:],
                "observation.images.top": rng.integers(0, 256, (n, *side, 3), dtype=np.uint8),
                TASK_INDEX: rng.integers(0, len(tasks), n),
            }
        )
    return features, episodes, tasks


@pytest.mark.parametrize("name", writable_formats())
@settings(max_examples=12, deadline=None)
@given(data=datasets())
def test_whatever_is_written_comes_back(
    name: str, data: tuple[FeatureSpec, list[dict[str, np.ndarray]], tuple[str, ...]]
) -> None:
    features, episodes, tasks = data
    options = {"video": False} if name.startswith("lerobot") else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset"
        with make_writer(name, path, features, tasks=tasks, **options) as writer:
            for episode in episodes:
                writer.add(episode)
        with open_source(path) as source:
            assert source.features.rate_hz == features.rate_hz
            assert source.tasks == tasks
            assert source.n_episodes == len(episodes)
            for number, wanted in enumerate(episodes):
                found = source.read(number, features.keys())
                for key, values in wanted.items():
                    np.testing.assert_array_equal(found[key], values, err_msg=key)
