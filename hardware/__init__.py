"""The safety gate: what stands between any policy and a controller."""
