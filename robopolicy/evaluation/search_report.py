"""The page of a search for composition weights; opens anywhere, loads nothing from elsewhere."""

from collections.abc import Mapping
from html import escape

from matplotlib.axes import Axes

from robopolicy.evaluation.report import chart, page
from robopolicy.evaluation.result import EvalInfo
from robopolicy.evaluation.search import Candidate, NoiseFit, SearchResult


def build_search_report(result: SearchResult) -> str:
    """The whole page as text."""
    head = (
        f"<h1>Composition on {escape(result.task)}</h1>"
        f'<p class="sub">Operator {escape(result.operator)}; parents: {escape(", ".join(result.names))}</p>'
        f'<p class="sub">Weights were chosen on seeds {_seeds(result.validation_seeds)} and are reported on seeds '
        f"{_seeds(result.test_seeds)}, which no choice has seen.</p>"
        f'<section class="note"><p>{escape(result.verdict())}</p></section>'
    )
    charts = f'<div class="charts">{_curve(result)}{_closed_form(result)}</div>'
    return page(f"Composition on {result.task}", "\n".join([head, charts, _table(result), _paired(result)]))


def _seeds(seeds: list[int]) -> str:
    return f"{min(seeds)} to {max(seeds)} ({len(seeds)} episodes)"


def _curve(result: SearchResult) -> str:
    two = len(result.names) == 2
    order = sorted(result.validation, key=lambda p: p[0].weights) if two else result.validation
    tested = {c: i for c, i in result.test}

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        for name, pairs, colour, marker in (
            ("validation seeds (choosing)", order, colours["success"], "s"),
            ("test seeds (reporting)", [(c, tested[c]) for c, _ in order if c in tested], colours["score"], "o"),
        ):
            at = [c.weights[0] if two else order.index(next(p for p in order if p[0] == c)) for c, _ in pairs]
            scores = [i.score for _, i in pairs]
            axes.plot(at, [s.value for s in scores], color=colour, marker=marker, markersize=3.5, label=name)
            axes.fill_between(at, [s.low for s in scores], [s.high for s in scores], color=colour, alpha=0.15)
        chosen = result.chosen.weights[0] if two else [c for c, _ in order].index(result.chosen)
        axes.axvline(chosen, color=colours["ink"], linewidth=1.2, ls=":", label="chosen", zorder=1)
        axes.set_xlabel(f"weight of {result.names[0]}" if two else "point of the grid")
        axes.set_ylabel("mean score")
        axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)

    hint = "Mean score with its interval; the ends are the parents themselves." if two else "Mean score, interval."
    return f'<section><h2>Score by weight</h2><p class="hint">{hint}</p>{chart(draw, "score by weight")}</section>'


def _closed_form(result: SearchResult) -> str:
    fit = result.fit
    if fit is None:
        return ""

    def draw(axes: Axes, colours: Mapping[str, str]) -> None:
        styles = ("-", "--", ":", "-.")
        shown = range(1) if len(result.names) == 2 else range(len(result.names))
        for i in shown:
            axes.plot(
                fit.sigmas,
                [w[i] for w in fit.weights],
                color=colours["score"],
                ls=styles[i % len(styles)],
                marker="o",
                markersize=3,
                label=f"{result.names[i]}, closed form",
            )
            axes.axhline(fit.overall[i], color=colours["success"], ls=styles[i % len(styles)], label="all levels")
            axes.axhline(result.chosen.weights[i], color=colours["ink"], lw=1, ls=":", label="chosen by rollouts")
        axes.set_xscale("log")
        axes.set_ylim(-0.05, 1.05)
        axes.set_xlabel("noise level sigma")
        axes.set_ylabel("weight")
        axes.legend(frameon=False, labelcolor=colours["ink"], fontsize=9)

    return (
        '<section><h2>Weight that predicts the noise best</h2><p class="hint">Least squares on '
        f"{fit.windows} windows of held-out demonstrations; costs no rollouts.</p>"
        f"{chart(draw, 'closed-form weight by noise level')}{_errors(result, fit)}</section>"
    )


def _errors(result: SearchResult, fit: NoiseFit) -> str:
    header = "".join(f'<th class="number">{escape(n)}</th>' for n in result.names)
    rows = "".join(
        f'<tr><td class="number">{s:.3g}</td>' + "".join(f'<td class="number">{e:.3g}</td>' for e in errors) + "</tr>"
        for s, errors in zip(fit.sigmas, fit.errors, strict=True)
    )
    return (
        '<p class="hint">Mean squared error of the predicted noise.</p><div class="scroll"><table><thead><tr>'
        f'<th class="number">sigma</th>{header}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _role(result: SearchResult, candidate: Candidate) -> str:
    roles = []
    if candidate.control:
        roles.append("control")
    elif candidate.parent is not None:
        roles.append("parent, better on validation seeds" if candidate == result.better_parent else "parent")
    if candidate == result.equal:
        roles.append("equal weights")
    if candidate == result.chosen:
        roles.append("chosen on validation seeds")
    if candidate == result.leaked:
        roles.append("leaked best: chosen on these very seeds, optimistic")
    return ", ".join(roles)


def _table(result: SearchResult) -> str:
    validated: dict[Candidate, EvalInfo] = {c: i for c, i in result.validation}
    # What is reported comes before the rest of the grid, which only the leaked best needs.
    ordered = sorted(result.test, key=lambda pair: not _role(result, pair[0]) and "closed" not in pair[0].label)
    rows = ""
    for candidate, info in ordered:
        seen = validated.get(candidate)
        cells = [
            f"<td>{escape(candidate.label)}</td><td>{escape(_role(result, candidate))}</td>",
            f'<td class="number">{seen.score if seen else ""}</td>',
            f'<td class="number">{info.score}</td><td class="number">{info.success}</td>',
        ]
        rows += f"<tr>{''.join(cells)}</tr>"
    return (
        '<section><h2>Every composition</h2><p class="hint">Mean scores and success rates with 95 % intervals.</p>'
        '<div class="scroll"><table><thead><tr><th>policy</th><th>role</th><th class="number">validation score</th>'
        '<th class="number">test score</th><th class="number">test success</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _paired(result: SearchResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(c.name_a.removeprefix('a (').removesuffix(')'))}</td>"
        f'<td class="number">{c.difference}</td><td class="number">{c.p_success:.3g}</td>'
        f'<td class="number">{c.wins} / {c.ties} / {c.losses}</td><td>{escape(c.conclusion)}</td></tr>'
        for c in result.comparisons()
    )
    return (
        f'<section><h2>Paired tests of {escape(result.chosen.label)}</h2><p class="hint">On test seeds, episode by '
        "episode: mean difference of scores (bootstrap), exact McNemar test on success.</p>"
        '<div class="scroll"><table><thead><tr><th>against</th><th class="number">difference</th>'
        '<th class="number">McNemar p</th><th class="number">higher / equal / lower</th><th>conclusion</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></section>"
    )
