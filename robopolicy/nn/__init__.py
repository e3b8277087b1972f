"""Network blocks shared by two policies or more."""
