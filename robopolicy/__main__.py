"""`python -m robopolicy` is the `robopolicy` command; torchrun starts it this way."""

import sys

from robopolicy.cli import main

sys.exit(main())
