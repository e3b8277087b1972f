"""robopolicy: robot policy learning from demonstrations to a moving robot."""

__version__ = "0.1.0"
