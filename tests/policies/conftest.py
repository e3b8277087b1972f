"""Makes `toys` importable, and keeps the small networks of these tests on one thread, where they are fastest."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
