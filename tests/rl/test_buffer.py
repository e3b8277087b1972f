"""Generalised advantages against their definition, summed term by term."""

import pytest
import torch

from robopolicy.rl.buffer import RolloutBuffer, gae

GAMMA, LAM = 0.9, 0.8


def brute_force(rewards, values, following, ended, t, n, k):
    """The sum of (gamma lam)^l delta_{t+l} up to the end of the episode or of the rollout."""
    total, weight = 0.0, 1.0
    for s in range(t, len(rewards)):
        delta = rewards[s, n, k] + GAMMA * following[s, n, k] - values[s, n, k]
        total += weight * float(delta)
        if ended[s, n]:
            break
        weight *= GAMMA * LAM
    return total


def test_advantages_of_two_heads_equal_the_sum_of_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (12, 5, 2)
    rewards, values, following = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    ended = torch.rand(12, 5, generator=generator) < 0.2
    advantages, returns = gae(rewards, values, following, ended, GAMMA, LAM)
    for t in range(12):
        for n in range(5):
            for k in range(2):
                expected = brute_force(rewards, values, following, ended, t, n, k)
                assert float(advantages[t, n, k]) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(returns, advantages + values)


def test_heads_do_not_leak_into_each_other() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards, values, following = (torch.randn(6, 3, 2, generator=generator) for _ in range(3))
    ended = torch.zeros(6, 3, dtype=torch.bool)
    both, _ = gae(rewards, values, following, ended, GAMMA, LAM)
    changed = rewards.clone()
    changed[..., 1] += 7.0
    other, _ = gae(changed, values, following, ended, GAMMA, LAM)
    assert torch.equal(both[..., 0], other[..., 0])
    assert not torch.equal(both[..., 1], other[..., 1])


def _buffer() -> RolloutBuffer:
    """Three steps of two copies: copy 0 fails at step 1, copy 1 runs out of time at step 1."""
    buffer = RolloutBuffer(3, 2, {"critic": (1,)})
    for t in range(3):
        terminated = torch.tensor([t == 1, False])
        ended = torch.tensor([t == 1, t == 1])
        buffer.put(t, critic=torch.full((2, 1), float(t)), terminated=terminated, ended=ended)
        if t == 1:
            buffer.put_final(t, torch.tensor([1]), torch.tensor([[42.0]]))
    return buffer


def test_what_follows_a_failure_is_nothing_and_what_follows_a_time_out_is_its_own_last_state() -> None:
    buffer = _buffer()
    values = torch.arange(6.0).view(3, 2, 1)
    found = buffer.finals()
    assert found is not None
    positions, observations = found
    assert positions.tolist() == [3]
    assert observations.tolist() == [[42.0]]
    following = buffer.next_values(values, torch.tensor([[10.0], [11.0]]), torch.tensor([[99.0]]), GAMMA)
    #                                 step 0: values of step 1; step 1: failure, time-out; step 2: after the rollout
    assert following.squeeze(-1).tolist() == [[2.0, 3.0], [0.0, 99.0], [10.0, 11.0]]


def test_a_time_out_by_hand() -> None:
    buffer = _buffer()
    values = torch.zeros(3, 2, 1)
    following = buffer.next_values(values, torch.zeros(2, 1), torch.tensor([[5.0]]), GAMMA)
    advantages, _ = gae(torch.ones(3, 2, 1), values, following, buffer["ended"], GAMMA, LAM)
    # Copy 1: delta = 1, 1 + 0.9 * 5, 1; the last step belongs to the next episode.
    assert advantages[:, 1, 0].tolist() == pytest.approx([1 + 0.72 * 5.5, 5.5, 1.0])
    assert advantages[:, 0, 0].tolist() == pytest.approx([1 + 0.72 * 1.0, 1.0, 1.0])


def test_a_transition_whose_physics_failed_teaches_nothing() -> None:
    buffer = _buffer()
    buffer.put(1, invalid=torch.tensor([True, False]), terminated=torch.tensor([False, False]))
    values = torch.full((3, 2, 1), 3.0)
    rewards = torch.ones(3, 2, 1)
    rewards[1, 0] = 0.0
    following = buffer.next_values(values, torch.zeros(2, 1), torch.tensor([[5.0]]), GAMMA)
    advantages, _ = gae(rewards, values, following, buffer["ended"], GAMMA, LAM)
    assert float(advantages[1, 0, 0]) == pytest.approx(0.0, abs=1e-6)
    assert float(advantages[0, 0, 0]) == pytest.approx(1 + 0.9 * 3 - 3, abs=1e-6), "only its own difference"


def test_the_buffer_copies_what_it_is_given() -> None:
    buffer = RolloutBuffer(1, 2, {"critic": (1,)})
    value = torch.ones(2, 1)
    buffer.put(0, critic=value)
    buffer.put_final(0, torch.tensor([0]), value[:1])
    value.zero_()
    assert buffer["critic"].sum() == 2
    assert buffer.finals()[1].item() == 1.0  # type: ignore[index]
    buffer.clear()
    assert buffer.finals() is None


def test_rsl_rl_agrees_without_time_outs_and_its_time_outs_are_another_thing() -> None:
    """rsl_rl's formulas, written out. It adds gamma V(s_t) to the reward of a time-out instead of using V(s_{t+1})."""

    def rsl_rl(rewards, values, last, dones, time_outs):
        rewards = rewards + GAMMA * values * time_outs
        advantages, running = torch.zeros_like(rewards), torch.zeros_like(last)
        for t in reversed(range(len(rewards))):
            following = last if t == len(rewards) - 1 else values[t + 1]
            going_on = 1.0 - dones[t].float()
            delta = rewards[t] + going_on * GAMMA * following - values[t]
            running = delta + going_on * GAMMA * LAM * running
            advantages[t] = running
        return advantages

    generator = torch.Generator().manual_seed(2)
    rewards, values = (torch.randn(20, 7, 1, generator=generator) for _ in range(2))
    last = torch.randn(7, 1, generator=generator)
    buffer = RolloutBuffer(20, 7, {})
    failed = torch.rand(20, 7, generator=generator) < 0.1
    buffer.data["terminated"], buffer.data["ended"] = failed, failed
    following = buffer.next_values(values, last, None, GAMMA)
    ours, _ = gae(rewards, values, following, failed, GAMMA, LAM)
    theirs = rsl_rl(rewards, values, last, failed.unsqueeze(-1), torch.zeros_like(rewards))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    # With time-outs: equal where the last state of the episode is worth what the state before it was.
    buffer.data["terminated"] = torch.zeros_like(failed)
    buffer.put_final(0, failed.flatten().nonzero().squeeze(1), torch.zeros(int(failed.sum()), 1))
    following = buffer.next_values(values, last, values[failed], GAMMA)
    ours, _ = gae(rewards, values, following, failed, GAMMA, LAM)
    theirs = rsl_rl(rewards, values, last, failed.unsqueeze(-1), failed.unsqueeze(-1).float())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    following = buffer.next_values(values, last, values[failed] + 1.0, GAMMA)
    ours, _ = gae(rewards, values, following, failed, GAMMA, LAM)
    torch.testing.assert_close((ours - theirs)[failed], torch.full_like((ours - theirs)[failed], GAMMA))
