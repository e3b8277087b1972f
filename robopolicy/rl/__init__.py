"""Reinforcement learning: PPO, generalised advantages, Lagrange multipliers, the H-infinity game."""
