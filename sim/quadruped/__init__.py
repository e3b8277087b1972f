"""Quadrupeds in MuJoCo: robots from published dimensions, batched physics, rewards, terrains."""
