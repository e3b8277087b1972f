"""One progress bar for all long work: lively on a terminal, a line now and then in a log file."""

import sys
from typing import Any


def progress_bar(**options: Any) -> Any:
    """A tqdm bar; into a file or a pipe it writes at most every ten seconds."""
    # Imported here, because every verb imports this module and few need a bar.
    from tqdm import tqdm

    live = sys.stderr.isatty()
    return tqdm(mininterval=0.2 if live else 10.0, maxinterval=10.0 if live else 60.0, dynamic_ncols=live, **options)
