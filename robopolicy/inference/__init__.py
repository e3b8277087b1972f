"""The runner used by evaluation and by the robot."""
