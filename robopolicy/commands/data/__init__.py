"""robopolicy data VERB: everything about datasets."""

from importlib import import_module

from robopolicy.errors import unknown

VERBS = {
    "info": "format, episodes, steps, rate, and ranges and NaNs of every key",
    "convert": "a dataset in another format, or merged from several, streamed with bounded memory",
    "view": "one episode as an HTML page, a PNG sheet or a rerun recording",
    "contract": "a draft of the contract for ROS 2 recordings, or a report on how regularly their topics spoke",
    "doctor": "damage, bad recordings and a wrongly declared action space; exit status 2 on errors",
    "quality": "per-episode scores (action divergence, transition diversity), and the best episodes as a dataset",
    "replay": "recorded actions executed again in the simulator: how many episodes end where they did",
    "merge": "several datasets as one, in the format of the first",
    "split": "a dataset into several: by fractions, episode numbers or masks",
    "fetch": "a published dataset of the catalog, downloaded and checked; --list shows the catalog",
    "record": "demonstrations of a scripted expert, as an episode store or robomimic HDF5",
}
"""Each verb is the module of its name in this package, with a function `run(arguments)`."""


def run(arguments: list[str]) -> None:
    """Dispatches to the module of the verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: robopolicy data VERB ...\n")
        for verb, about in VERBS.items():
            print(f"  {verb:<9} {about}")
        print("\nrobopolicy data VERB --help lists the arguments of a verb.")
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise unknown("verb of 'robopolicy data'", verb, VERBS)
    import_module(f"robopolicy.commands.data.{verb}").run(rest)
