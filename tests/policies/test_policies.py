"""Every policy overfits a batch, obeys its generators and masks padding; all but the MLP floor keep both modes."""

import pytest
import torch
from toys import CONFIGS, IMAGE_SPEC, SPEC, make, train

from robopolicy.policies.base import chunk_error

GENERATIVE = [n for n in CONFIGS if n != "bc"]
OF_CHUNKS = [n for n in GENERATIVE if n != "bc-rnn"]
"""Those whose chunks stay in one mode."""


def _batch(size: int = 8, seed: int = 0, steps: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observation.state": torch.rand(size, steps, 2, generator=generator) * 2 - 1,
        "action": torch.rand(size, 4, 2, generator=generator) * 2 - 1,
        "action_is_pad": torch.zeros(size, 4, dtype=torch.bool),
    }


@pytest.mark.parametrize("name", list(CONFIGS))
def test_overfits_one_batch(name: str) -> None:
    policy, batch = make(name), _batch(steps=CONFIGS[name].n_obs_steps)
    # The same eight windows many times over: noise levels need variety, the data does not.
    repeated = {k: v.repeat_interleave(16, 0) for k, v in batch.items()}
    losses = train(policy, lambda _: repeated, 700)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    with torch.inference_mode():
        chunk = policy.predict({"observation.state": batch["observation.state"]}, torch.Generator().manual_seed(1))
    assert chunk.shape == (8, 4, 2)
    error = (chunk - batch["action"]).abs().mean()
    assert error < 0.12, f"mean error {error:.3f} where an untrained policy has about 0.6"


def _two_modes(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    side = torch.randint(0, 2, (128, 1, 1), generator=generator) * 2.0 - 1.0
    action = 0.6 * side + 0.03 * torch.randn(128, 4, 2, generator=generator)
    return {
        "observation.state": torch.zeros(128, 2, 2),
        "action": action,
        "action_is_pad": torch.zeros(128, 4, dtype=torch.bool),
    }


def _shares(name: str) -> tuple[float, float, float]:
    """Shares of samples in the left mode, in the right mode, and anywhere between them."""
    policy = make(name)
    train(policy, _two_modes, 500)
    with torch.inference_mode():
        chunk = policy.predict({"observation.state": torch.zeros(200, 2, 2)}, torch.Generator().manual_seed(1))
    left = ((chunk + 0.6).abs().flatten(1) < 0.25).all(1)
    right = ((chunk - 0.6).abs().flatten(1) < 0.25).all(1)
    middle = chunk.flatten(1).mean(1).abs() < 0.3
    return tuple(float(s.float().mean()) for s in (left, right, middle))  # type: ignore[return-value]


@pytest.mark.parametrize("name", OF_CHUNKS)
def test_generative_policies_keep_both_modes(name: str) -> None:
    left, right, middle = _shares(name)
    assert left >= 0.25, f"left {left}, right {right}, middle {middle}"
    assert right >= 0.25, f"left {left}, right {right}, middle {middle}"
    assert middle < 0.05


def test_the_mean_squared_error_floor_goes_through_the_middle() -> None:
    left, right, middle = _shares("bc")
    assert middle == 1.0
    assert left == right == 0.0


@pytest.mark.parametrize("name", GENERATIVE)
def test_noise_comes_from_the_generators_alone(name: str) -> None:
    policy = make(name).eval()
    # Zero-initialised heads of a new network would hide the noise.
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    observation = {"observation.state": torch.rand(3, CONFIGS[name].n_obs_steps, 2)}
    with torch.inference_mode():
        first = policy.predict(observation, torch.Generator().manual_seed(5))
        torch.manual_seed(99)
        again = policy.predict(observation, torch.Generator().manual_seed(5))
        other = policy.predict(observation, torch.Generator().manual_seed(6))
        rows = policy.predict(observation, [torch.Generator().manual_seed(i) for i in (7, 8, 9)])
        alone = policy.predict({k: v[1:2] for k, v in observation.items()}, [torch.Generator().manual_seed(8)])
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.allclose(rows[1], alone[0], atol=1e-4), "a row does not depend on its neighbours"


def test_loss_depends_on_the_generator_only() -> None:
    policy, batch = make("edm-mlp"), _batch()
    losses = [policy.loss(batch, torch.Generator().manual_seed(s))[0].item() for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_padding_mask_by_hand() -> None:
    output, target = torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[0.0], [0.0]]])
    pad = torch.tensor([[False, True]])
    assert chunk_error(output, target, pad, False).item() == 13.0
    assert chunk_error(output, target, pad, True).item() == 1.0
    assert chunk_error(output, target, torch.ones(1, 2, dtype=torch.bool), True).item() == 0.0


@pytest.mark.parametrize("name", ["edm-mlp", "ddpm-v-transformer", "bc"])
def test_images_reach_the_chunk_and_train(name: str) -> None:
    policy = make(name, IMAGE_SPEC)
    policy.encoder.crop = 64
    images = torch.zeros(4, 2, 72, 72, 3, dtype=torch.uint8)
    images[:, :, 8:28, 8:64] = 255
    batch = _batch(4) | {"observation.images.top": images}
    loss, _ = policy.loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    policy.eval()
    # Zero-initialised heads of a new network would hide the image.
    for parameter in policy.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.inference_mode():
        observation = {k: batch[k] for k in ("observation.state", "observation.images.top")}
        first = policy.predict(observation, torch.Generator().manual_seed(0))
        flipped = observation | {"observation.images.top": images.flip(2)}
        second = policy.predict(flipped, torch.Generator().manual_seed(0))
    assert not torch.equal(first, second)
    assert policy.first_action == 1


def test_golden_output_passes_through_normaliser_and_weights() -> None:
    policy = make("edm-mlp").eval()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    observation = {"observation.state": torch.rand(1, 2, 2)}
    with torch.inference_mode():
        before = policy.golden(observation, torch.Generator().manual_seed(0))
        for name, parameter in policy.named_parameters():
            kept = parameter.detach().clone()
            parameter.add_(0.1)
            after = policy.golden(observation, torch.Generator().manual_seed(0))
            assert not torch.equal(before, after), f"{name} does not show"
            parameter.copy_(kept)
        policy.normalizer.scale_observation_state.mul_(2)
        assert not torch.equal(before, policy.golden(observation, torch.Generator().manual_seed(0)))


def test_state_noise_is_for_training_only_and_has_the_asked_spread() -> None:
    policy = make("edm-mlp", SPEC)
    policy.encoder.state_noise = 0.5
    observation = {"observation.state": torch.zeros(2000, 2, 2)}
    noisy = policy.encoder(observation, policy.normalizer, torch.Generator().manual_seed(0))
    assert abs(noisy.mean().item()) < 0.02
    assert noisy.std().item() == pytest.approx(0.5, abs=0.02)
    assert policy.encoder(observation, policy.normalizer).abs().max() == 0


def test_images_too_small_for_the_spatial_softmax_are_refused() -> None:
    from robopolicy.errors import RobopolicyError
    from robopolicy.features import Feature, FeatureSpec
    from robopolicy.nn.encoder import ObservationEncoder
    from robopolicy.nn.vision import VisionConfig

    spec = FeatureSpec((Feature("observation.images.top", (96, 96, 3), "uint8", "image"),))
    assert ObservationEncoder(spec, VisionConfig(crop=33)).dim == 64
    with pytest.raises(RobopolicyError, match="32 px after cropping are too few"):
        ObservationEncoder(spec, VisionConfig(crop=32))
