"""Feature specs: comparison, errors, round trips."""

import json

import pytest

from robopolicy.errors import FeatureMismatch, RobopolicyError
from robopolicy.features import Control, Feature, FeatureSpec

PIXEL = Control("pixel_target", "absolute", frame="image")
STATE = Feature("observation.state", (2,), names=("x", "y"), units=("px", "px"), low=(0, 0), high=(512, 512))
ACTION = Feature("action", (2,), kind="action", names=("x", "y"), control=PIXEL)
SPEC = FeatureSpec((STATE, ACTION), rate_hz=10)


def test_equal_specs_match_and_a_richer_side_may_have_more_inputs() -> None:
    assert SPEC.compare(SPEC) == []
    richer = FeatureSpec((STATE, Feature("observation.extra", (3,)), ACTION), 10)
    assert SPEC.compare(richer) == []
    assert len(richer.compare(SPEC)) == 1


def test_equal_shapes_are_not_enough() -> None:
    delta = FeatureSpec((STATE, Feature("action", (2,), kind="action", control=Control("joint", "delta"))), 10)
    (line,) = SPEC.compare(delta)
    assert "absolute pixel_target" in line
    assert "delta joint" in line


def test_names_and_units_are_compared_only_where_both_sides_say_them() -> None:
    swapped = Feature("observation.state", (2,), names=("y", "x"), units=("px", "px"))
    silent = Feature("observation.state", (2,))
    assert len(SPEC.compare(FeatureSpec((swapped, ACTION), 10))) == 1
    assert SPEC.compare(FeatureSpec((silent, ACTION), 10)) == []
    metres = Feature("observation.state", (2,), names=("x", "y"), units=("m", "m"))
    assert "units" in SPEC.compare(FeatureSpec((metres, ACTION), 10))[0]


def test_missing_keys_get_a_did_you_mean_that_names_both_sides() -> None:
    typo = FeatureSpec((Feature("observation.stat", (2,)), ACTION), 10)
    with pytest.raises(
        FeatureMismatch,
        match=r"task has 'observation.state' \[2\], dataset d does not. Did you mean 'observation.stat'",
    ):
        SPEC.require(typo, "task", "dataset d")


@pytest.mark.parametrize(
    "change",
    [{"shape": (3,), "names": (), "units": (), "low": (), "high": ()}, {"dtype": "float64"}, {"kind": "goal"}],
)
def test_shape_dtype_and_kind_differences_are_found(change: dict) -> None:
    other = Feature.from_dict({**STATE.__dict__, **change})
    assert [n for n in change if any(f" {n}:" in line for line in SPEC.compare(FeatureSpec((other, ACTION), 10)))]


def test_rates_are_compared() -> None:
    assert "10 Hz" in SPEC.compare(FeatureSpec((STATE, ACTION), 20))[0]
    assert SPEC.compare(FeatureSpec((STATE, ACTION), None)) == []


def test_json_round_trip_keeps_everything_and_the_hash_sees_every_field() -> None:
    again = FeatureSpec.from_dict(json.loads(json.dumps(SPEC.to_dict())))
    assert again == FeatureSpec.from_dict(SPEC.to_dict())
    assert again.schema_hash() == FeatureSpec.from_dict(SPEC.to_dict()).schema_hash()
    hashes = {SPEC.schema_hash()}
    for change in ({"names": ("a", "b")}, {"units": ("m", "m")}, {"high": (1.0, 1.0)}, {"dtype": "float64"}):
        hashes.add(FeatureSpec((Feature.from_dict({**STATE.__dict__, **change}), ACTION), 10).schema_hash())
    hashes.add(FeatureSpec((STATE, ACTION), 20).schema_hash())
    assert len(hashes) == 6


def test_inconsistent_features_are_refused() -> None:
    with pytest.raises(RobopolicyError, match="3 names for shape"):
        Feature("observation.state", (2,), names=("a", "b", "c"))
    with pytest.raises(RobopolicyError, match="only actions"):
        Feature("observation.state", (2,), control=PIXEL)
    with pytest.raises(RobopolicyError, match="2 times"):
        FeatureSpec((STATE, STATE))
    with pytest.raises(RobopolicyError, match="Did you mean 'state'"):
        Feature("x", (1,), kind="stat")  # type: ignore[arg-type]
