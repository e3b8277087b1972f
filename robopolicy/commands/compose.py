"""robopolicy compose A B [C ...]: one policy of several checkpoints, by given weights or by an honest search."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from robopolicy.commands.evaluate import SamplerArgs
from robopolicy.errors import DataError, RobopolicyError


@dataclass
class ComposeArgs:
    """Composes diffusion and flow checkpoints without training.

    Without --search the weights are those given. With --search a grid of weights is scored on validation seeds, the
    best is frozen, and parents, equal weights and the frozen ones are compared on test seeds, in report.html and
    search.json.
    """

    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more checkpoints, or runs whose last checkpoint is taken."""
    weights: tuple[float, ...] = ()
    """One per checkpoint, with sum 1; default: equal."""
    operator: Literal["convex", "and", "or"] = "convex"
    """convex: weighted mean of scores; and, or: superposition by likelihood."""
    temperature: float = 1.0
    """T of the operator `or`."""
    overlap: bool = False
    """Allow chunks of different lengths; the rest is left to the longer one."""
    clip: float | None = None
    """Largest magnitude of composed clean chunks (normalised), 0 for none; default: the checkpoints' tightest."""
    sampler: SamplerArgs = field(default_factory=SamplerArgs)
    output: Path | None = None
    """Folder of the new run; default outputs/<date>_composed."""
    task: str | None = None
    """Task of the composition; default: the checkpoints'."""
    search: bool = False
    """Search for the weights."""
    grid: tuple[float, ...] = tuple(i / 10 for i in range(11))
    """Weights of the first checkpoint to try; with three or more, all combinations of these values with sum 1."""
    episodes: int = 200
    """Test episodes of the search."""
    search_episodes: int | None = None
    """Validation episodes per point of the grid; default: as many as test episodes."""
    leaked: bool = True
    """Score the whole grid on test seeds, too, to show the leaked best."""
    data: Path | None = None
    """Demonstrations for the closed-form weights; those the checkpoints were trained on are left out."""
    windows: int = 512
    """Windows of demonstrations for the closed-form weights."""
    workers: int = 0
    """Processes that step the environments; 0 steps them in this one."""
    device: str = "cpu"
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""


def run(arguments: list[str]) -> None:
    """Writes the composed checkpoint, and with --search its report, and says what to do next."""
    args = tyro.cli(ComposeArgs, args=arguments, prog="robopolicy compose")
    import torch

    from robopolicy.policies.composed import compose
    from robopolicy.training import checkpoint

    if args.threads:
        torch.set_num_threads(args.threads)
    output = args.output or Path("outputs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_composed"
    _check(args, output)
    loaded = [checkpoint.load(p, args.device) for p in args.checkpoints]
    names = _names(args.checkpoints)
    composed = compose(
        [policy for policy, _ in loaded],
        args.weights or None,
        args.operator,
        names=names,
        overlap=args.overlap,
        temperature=args.temperature,
        clip=args.clip,
    )
    task = _task(args.task, [about["task"] for _, about in loaded], composed)
    composed = _with_sampler(composed, args.sampler)
    provenance: dict[str, Any] = {
        "parents": [
            {"checkpoint": about["path"], "sha256": about["provenance"]["sha256"]["model.safetensors"]}
            | {k: about["provenance"].get(k) for k in ("dataset_hash", "seed", "step")}
            for _, about in loaded
        ]
    }
    result = None
    if args.search:
        result = _search(args, composed, task, names, [about["provenance"] for _, about in loaded])
        weights = result.chosen.weights
        own = result.chosen.parent is not None
        composed = composed.with_weights(weights, sampler=None if own else composed.config.sampler)
        provenance["search"] = {"weights": list(weights), "verdict": result.verdict()}
    observation = _observation(args.checkpoints)
    with checkpoint.replaced_directory(output) as folder:
        path = folder / "checkpoints" / "00000000"
        checkpoint.save(path, composed, task, observation, provenance)
        checkpoint.link_last(path)
        if result is not None:
            from robopolicy.evaluation.search_report import build_search_report

            (folder / "search.json").write_text(result.to_json())
            (folder / "report.html").write_text(build_search_report(result))
    if result is not None:
        print("\n".join(_summary(result)))
        print(f"report: {output / 'report.html'}")
    text = " ".join(f"{w:g}" for w in composed.config.weights)
    sampler = composed.config.sampler
    how = f"{sampler.name}, {sampler.steps} steps, {sampler.schedule} levels"
    print(f"composed ({args.operator}) by weights {text}, sampled by {how}: {output}")
    print(f"next: robopolicy eval {output}")


def _check(args: ComposeArgs, output: Path) -> None:
    """What can be refused before anything is loaded."""
    from robopolicy.policies.composed import check_weights

    if len(args.checkpoints) < 2:
        raise RobopolicyError(f"compose needs at least two checkpoints, got {len(args.checkpoints)}")
    if output.exists():
        raise RobopolicyError(f"{output}: exists already; choose another --output")
    if args.search and args.weights:
        raise RobopolicyError("--weights and --search exclude each other: a search finds the weights")
    if not args.search and args.data:
        raise RobopolicyError("--data is for the closed-form weights of a search: add --search")
    if args.weights:
        check_weights(args.weights, len(args.checkpoints), args.operator)
    for name in ("episodes", "search_episodes", "windows"):
        value = getattr(args, name)
        if value is not None and value < 2:
            raise RobopolicyError(f"--{name.replace('_', '-')} {value}: at least 2 are needed")


def _names(paths: tuple[Path, ...]) -> list[str]:
    """Short distinct names: the folder of the run, or else the whole path, with a number when both are equal."""
    from robopolicy.training import checkpoint

    resolved = [checkpoint.resolve(p) for p in paths]
    short = [p.parent.parent.name if p.parent.name == "checkpoints" else p.name for p in resolved]
    names = short if len(set(short)) == len(short) else [str(p) for p in paths]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]


def _with_sampler(composed: Any, args: SamplerArgs) -> Any:
    wanted = {k: v for k, v in vars(args).items() if v is not None}
    if not wanted:
        return composed
    from robopolicy.commands.evaluate import override_sampler

    override_sampler(composed, args)
    return composed.with_weights(composed.config.weights, sampler=composed.config.sampler)


def _task(wanted: str | None, tasks: list[str], composed: Any) -> str:
    """The task that offers all inputs of the composition: the one asked for, one of the parents', or a variant."""
    from robopolicy.registry import task_class, task_names

    if wanted is not None:
        composed.features.require(task_class(wanted).features, "composition", f"task {wanted!r}")
        return wanted
    lines: list[str] = []
    families = {t.split("-")[0] for t in tasks}
    for task in dict.fromkeys([*tasks, *(n for n in task_names() if n.split("-")[0] in families)]):
        missing = composed.features.compare(task_class(task).features, "composition", f"task {task!r}")
        if not missing:
            return task
        lines += missing if task in tasks else []
    raise RobopolicyError(f"none of the checkpoints' tasks has all inputs; name one with --task: {'; '.join(lines)}")


def _observation(paths: tuple[Path, ...]) -> dict[str, Any]:
    """A stored input of all parents; where they share a key the longest history is kept."""
    from robopolicy.training import checkpoint

    stored: dict[str, Any] = {}
    for path in paths:
        for key, value in checkpoint.stored_observation(path).items():
            if key not in stored or value.shape[1] > stored[key].shape[1]:
                stored[key] = value
    return stored


def _search(args: ComposeArgs, composed: Any, task: str, names: list[str], provenance: list[dict[str, Any]]) -> Any:
    """Runs the search with a bar over the evaluations."""
    import torch

    from robopolicy.evaluation.result import EvalInfo
    from robopolicy.evaluation.rollout import evaluate
    from robopolicy.evaluation.search import Candidate, fit_noise, search_weights, simplex_grid
    from robopolicy.progress import progress_bar
    from robopolicy.sim.task import TEST_SEEDS, VALIDATION_SEEDS

    count = len(names)
    grid = simplex_grid(args.grid, count)
    if args.operator == "and":  # It takes equal weights only.
        grid = [(1 / count,) * count, *(p for p in grid if 1.0 in p)]
    fit = None
    if args.data is not None:
        batch = held_out_windows(args.data, composed, task, provenance, names, args.windows)
        fit = fit_noise(composed, batch, torch.Generator().manual_seed(0))
    interior = composed.config.sampler
    validation = range(VALIDATION_SEEDS, VALIDATION_SEEDS + (args.search_episodes or args.episodes))
    test = range(TEST_SEEDS, TEST_SEEDS + args.episodes)
    runs = len(grid) * (2 if args.leaked else 1) + (0 if args.leaked else count + 2) + 3

    with progress_bar(total=runs, desc="search", unit="evaluation") as bar:

        def score(candidate: Candidate, seeds: list[int]) -> EvalInfo:
            # Parents sample as they do by themselves; controls by the sampler of the operator.
            alone = candidate.parent is not None and not candidate.control
            operator = "convex" if candidate.control else args.operator
            policy = composed.with_weights(candidate.weights, operator, None if alone else interior)
            info: EvalInfo = evaluate(
                policy,
                task,
                seeds,
                workers=args.workers,
                record_video=0,
                pictures=0,
                checkpoint=candidate.label,
                progress=False,
            ).info
            bar.set_postfix_str(f"{info.purpose} {candidate.label}: {info.score.value:.3f}", False)
            bar.update()
            return info

        result = search_weights(
            score, names, grid, validation, test, operator=args.operator, leaked=args.leaked, fit=fit
        )
        bar.total = bar.n
    settings = {"sampler": vars(interior), "clip": composed.config.clip, "temperature": args.temperature}
    return replace(result, settings=settings)


def held_out_windows(
    path: Path, composed: Any, task: str, provenance: list[dict[str, Any]], names: list[str], windows: int
) -> dict[str, Any]:
    """Windows of demonstrations that no parent was trained on.

    Of a dataset that parents were trained on, the episodes all of them held out; of any other, all. `DataError` when
    no episode is left.
    """
    import numpy as np

    from robopolicy.datasets.detect import find_dataset
    from robopolicy.datasets.windows import split_episodes
    from robopolicy.training.config import DataConfig, TrainConfig
    from robopolicy.training.data import load_data, validation_batch

    try:
        path = find_dataset(path.expanduser())
    except DataError as error:
        raise RobopolicyError(f"--data {error}") from error
    config = TrainConfig(composed.config, task, DataConfig(path, validation_fraction=0.0))
    data = load_data(config, path)
    left, count = set(data.train_ids.tolist()), data.episodes.n_episodes
    for about, name in zip(provenance, names, strict=True):
        if about.get("dataset_hash") != data.provenance["dataset_hash"]:
            continue
        held_out = int(about.get("validation_episodes") or 0)
        left &= set(split_episodes(count, held_out / count, int(about["seed"]))[1].tolist())
        if not left:
            raise DataError(
                f"{path}: {name} leaves no episode that all checkpoints held out; train them with one --seed and "
                "--data.validation-fraction, or give other demonstrations"
            )
    data.validation_ids = np.array(sorted(left))
    batch = validation_batch(data, composed, windows, seed=0)
    assert batch is not None
    return batch


def _summary(result: Any) -> list[str]:
    lines = []
    for candidate, info in result.test:
        marks = [
            name for name, c in (("chosen", result.chosen), ("better parent", result.better_parent)) if c == candidate
        ]
        if candidate == result.leaked:
            marks.append("leaked best")
        if marks or candidate.parent is not None or candidate == result.equal:
            note = f"  ({', '.join(marks)})" if marks else ""
            lines.append(f"{candidate.label:<32} score {info.score}, success {info.success}{note}")
    return [*lines, result.verdict()]
