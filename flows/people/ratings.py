"""`faded ratings`: learns a map from the automatic measure to reviewers' scores, and puts it in force.

With `--spot-check`, people judge randomly drawn probes, and the failure rate is corrected by their verdicts.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from flows.terminal import new_table, print_plain
from flows.workspace.edit_params import edit_file, with_file
from stages.core.errors import UsageError
from stages.core.files import SCHEMA, replace_file
from stages.core.intervals import Rate, wilson
from stages.decisions import listed_keys, read_chain, valid_decisions
from stages.decisions.merge import agreement
from stages.landscape.rates import behind_apostrophe, correct, draw_uses, parse_spot_check, rate_in_use
from stages.params import DATA, Params, RatingsConfig, load_params
from stages.provenance import scale_of
from stages.ratings.apply import MOST_UNFOUNDED, Interval, Ratings, Target
from stages.ratings.fit import Fit, RatedScores, fit_ratings, gather, too_few_scores
from stages.records import audit_folder
from stages.tasks.contract import Exhibit

PARAMS = Path("params.yaml")
BOUNDS: dict[Target, tuple[str, float]] = {"quality": ("fails_below", 5), "bias": ("fails_above", 6)}
CURVE_ROWS = 9


@dataclass(frozen=True)
class RatingsLesson:
    """What the scores of an audit teach."""

    target: Target
    evidence: RatedScores
    bound: dict[str, float]  # {fails_below or fails_above: rating} in force, or proposed
    fit: Fit | None = None  # the map; None if there are too few scores
    ratings: Ratings | None = None  # the map for the file; None if it predicts no better than a constant
    refusal: str = ""  # why it cannot be put in force; "" if it can

    @property
    def threshold(self) -> float:
        assert self.ratings is not None
        return self.ratings.threshold(RatingsConfig(file="-", sha256="0" * 64, **self.bound))


def show_ratings(params: Params, name: str, target: Target, console: Console) -> RatingsLesson:
    """Print what was rated, how well a map from the automatic measure predicts it, and what it would change.

    Raises a UsageError if nothing was rated or there is nothing to rate, or a decision cannot be read.
    """
    control = _control(name)
    learnt = _learn(params, name, target, control)
    _show_evidence(name, learnt, console)
    if (fit := learnt.fit) is not None:
        numbers = ("mean error (rating points)", "95% interval")
        table = new_table("", *numbers, title="Error on unseen items", right=numbers)
        rows = (("a constant", fit.constant), (f"the best map ({fit.kind})", fit.error), ("lower by", fit.gain))
        for what, rate in rows:
            table.add_row(what, f"{rate.value:.2f}", f"{rate.low:.2f} to {rate.high:.2f}")
        console.print(table)
    if learnt.ratings is not None:
        _show_curve(learnt, learnt.ratings, console)
        effect = f"there are no probes yet: `faded audit {name}` shows what these ratings change"
        if control is not None:
            effect = _change(control, learnt.ratings, learnt.threshold)
        print_plain(console, effect)
    if learnt.refusal:
        console.print(f"[yellow]cannot be enabled:[/] {learnt.refusal}", soft_wrap=True)
    return learnt


def write_ratings(name: str, learnt: RatingsLesson, console: Console) -> None:
    """Write data/<audit>/ratings.json and name it in params.yaml.

    Raises a UsageError if the scores teach nothing, or params.yaml's layout does not allow this.
    """
    if learnt.refusal or learnt.ratings is None:
        raise UsageError(f"nothing written: {learnt.refusal}")
    data = json.dumps({"schema": SCHEMA, **learnt.ratings.model_dump(mode="json")}, indent=1, ensure_ascii=False) + "\n"
    path = DATA / name / "ratings.json"
    entry = {"file": path.as_posix(), "sha256": hashlib.sha256(data.encode()).hexdigest(), **learnt.bound}
    after, sharing = with_file(PARAMS.read_bytes().decode("utf-8"), name, ("discrepancy", "ratings"), entry)
    replace_file(path, data)
    edit_file(PARAMS, lambda _: after, console)
    audits = load_params(PARAMS).audits
    if sharing:
        console.print(f"{', '.join(sharing)} share these settings, so they change too")
    if others := [other for other in sharing if scale_of(audits[other]) != learnt.ratings.scale]:
        refused = "measured on another scale, so these ratings are refused there"
        told = f"{', '.join(others)}: {refused}; give each of them a discrepancy of its own"
        console.print(f"[yellow]{told}[/]", soft_wrap=True)
    next_step = f"commit both, and see what is now stale with `faded plan {name}`"
    print_plain(console, f"written to {path} and {PARAMS}; {next_step}")


def write_labels(params: Params, name: str, target: Target, path: Path, console: Console) -> None:
    """Write every score as the label of an answer, one JSON object per line, to calibrate a judge on.

    Scores of every scale count, as people's opinion of an answer does not depend on the measure. Raises a UsageError if
    nothing was rated, or a decision cannot be read.
    """
    [bound] = _bound(params, name, target).values()
    lines = []
    for kept in valid_decisions(read_chain(name), listed_keys(params, name), name):
        for example in kept.decision.examples:
            score = example.rating if target == "quality" else example.bias
            if score is not None:
                acceptable = score >= bound if target == "quality" else score <= bound
                label = {"item": example.item, "answer": example.output, "acceptable": acceptable}
                lines.append(json.dumps(label | {"by": kept.decision.reviewer}, ensure_ascii=False) + "\n")
    if not lines:
        raise UsageError(
            f"nobody has rated the {target} of examples of {name} yet: `faded review {name}` asks for that"
        )
    replace_file(path, "".join(lines))
    side = "more" if target == "quality" else "less"
    meaning = f"acceptable is a rating of {bound:g} or {side}"
    print_plain(console, f"{len(lines)} labels written to {path}; {meaning}")


def _bound(params: Params, name: str, target: Target) -> dict[str, float]:
    """The rating that is acceptable, as params.yaml names it or as proposed, by its key there."""
    config, (key, default) = params.audit(name).ratings, BOUNDS[target]
    return {key: (getattr(config, key) if config is not None else None) or default}


def _learn(params: Params, name: str, target: Target, control: pd.DataFrame | None) -> RatingsLesson:
    evidence = gather(params, name, target)
    if not evidence.scored:
        found = audit_folder(name).summarize
        if found.has("landscape") and not (landscape := found.landscape).modes:  # then a review has no examples
            suspected = f" ({len(landscape.suspected)} only suspected)" if landscape.suspected else ""
            raise UsageError(
                f"there is nothing to rate: examples are those of failure modes, and none of {name} was confirmed"
                f"{suspected}; raise audits.{name}.discover.budget, which also pays for more fresh probes to confirm"
                f" them, and run `faded audit {name}`"
            )
        left = f"; {evidence.of_another_scale} were of another scale" if evidence.of_another_scale else ""
        raise UsageError(
            f"nobody has rated the {target} of examples of {name} yet{left}: do so with `faded review {name}`"
        )
    bound = _bound(params, name, target)
    if refusal := too_few_scores(evidence.scored):
        return RatingsLesson(target, evidence, bound, refusal=refusal)
    fit = fit_ratings(evidence.scored, target)
    if not fit.teaches:
        refusal = (
            f"no map from the automatic measure predicts the ratings of unseen items significantly better than a"
            f" constant does (error {fit.constant.value:.2f} of the constant, lower by"
            f" {fit.gain.value:.2f}, 95% interval {fit.gain.low:.2f} to {fit.gain.high:.2f})"
        )
        return RatingsLesson(target, evidence, bound, fit, refusal=refusal)
    ratings = _as_file(params, name, target, evidence, fit)
    learnt = RatingsLesson(target, evidence, bound, fit, ratings)
    return learnt if control is None else replace(learnt, refusal=_unfounded(control, ratings, learnt.threshold))


def _as_file(params: Params, name: str, target: Target, evidence: RatedScores, fit: Fit) -> Ratings:
    def interval(rate: Rate) -> Interval:
        return Interval(value=rate.value, low=rate.low, high=rate.high)

    return Ratings.model_validate(
        {
            "target": target,
            "scale": scale_of(params.audit(name)),
            "model": fit.kind,
            "x": fit.x,
            "y": fit.y,
            "ratings": len(evidence.scored),
            "items": len({scored.item for scored in evidence.scored}),
            "reviewers": evidence.reviewers,
            "decisions": {kept.path.name: kept.sha256 for kept in evidence.decisions},
            "error": interval(fit.error),
            "constant": interval(fit.constant),
            "gain": interval(fit.gain),
            "agreement": agreement([kept.decision for kept in evidence.decisions]),
            "points": sorted((scored.discrepancy, scored.score) for scored in evidence.scored),
        }
    )


def _show_evidence(name: str, learnt: RatingsLesson, console: Console) -> None:
    evidence = learnt.evidence
    items = len({scored.item for scored in evidence.scored})
    by = ", ".join(f"{reviewer} ({given})" for reviewer, given in evidence.reviewers.items())
    landscapes = len({kept.decision.landscape for kept in evidence.decisions})
    console.print(
        f"{len(evidence.scored)} ratings of {learnt.target} of {items} items of {name}, by {by}; in"
        f" {len(evidence.decisions)} decision(s) on {landscapes} landscape(s)",
        markup=False,
    )
    if more := evidence.of_another_scale:
        since = "(task, discrepancy or prepare have changed since)"
        console.print(f"{more} more are of another scale {since} and are ignored")
    agreed = agreement([kept.decision for kept in evidence.decisions])
    unknown = "no example was rated by two reviewers, so their agreement is unknown"
    console.print(agreed.statement if agreed else unknown, markup=False)


def _show_curve(learnt: RatingsLesson, ratings: Ratings, console: Console) -> None:
    [(key, value)] = learnt.bound.items()
    numbers, title = ("automatic discrepancy", "rating"), f"Expected human ratings ({key.replace('_', ' ')} {value:g})"
    table = new_table(*numbers, "", title=title, right=numbers)
    for x in np.linspace(ratings.x[0], ratings.x[-1], CURVE_ROWS):
        badness = ratings.badness(np.array([x]))
        score, fails = float(ratings.score(badness)[0]), badness[0] > learnt.threshold
        table.add_row(f"{x:.2f}", f"{score:.1f}", "█" * round(2 * score) + ("  fails" if fails else ""))
    console.print(table)


def _change(control: pd.DataFrame, ratings: Ratings, threshold: float) -> str:
    """The share of the control's probes that fails automatically, and the share that would fail by the ratings."""
    automatic, discrepancy, valid = _automatic(control)
    people = (ratings.badness(discrepancy) > threshold) & valid
    change = (
        f"of {len(control):,} probes of the control {automatic.mean():.1%} fail automatically,"
        f" {people.mean():.1%} would by these ratings; {(automatic != people).mean():.1%} are judged differently"
    )
    return (
        change if people.any() else f"{change}: no expected rating is on the failing side, so nothing would ever fail"
    )


def _unfounded(control: pd.DataFrame, ratings: Ratings, threshold: float) -> str:
    """Why the map goes beyond the ratings; "" if it does not."""
    _, discrepancy, valid = _automatic(control)
    failed = ratings.badness(discrepancy) > threshold
    share = float((ratings.unfounded(discrepancy, failed) & valid).mean())
    if share <= MOST_UNFOUNDED:
        return ""
    return (
        f"of the control's probes {share:.0%} have a discrepancy outside the rated range ({ratings.x[0]:.2f} to"
        f" {ratings.x[-1]:.2f}), and no rating says whether they fail; rate passing examples too, or others"
    )


def _automatic(control: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Failures by the automatic measure, its discrepancies, and validity: (n,) each."""
    names = ("automatic_failed", "automatic") if "automatic" in control else ("failed", "discrepancy")
    failed, discrepancy = (control[name].to_numpy() for name in names)
    return failed.astype(bool), discrepancy, control["valid"].to_numpy(dtype=bool)


def _control(name: str) -> pd.DataFrame | None:
    """The control's probes of the last search; None if there was none."""
    found = audit_folder(name).discover
    return found.probes[found.probes["role"] == "control"] if found.has("probes") else None


def draw_spot_check(name: str, path: Path, draws: int, seed: int, console: Console) -> None:
    """Write a table of randomly drawn probes for people to judge, with pictures in a folder beside it.

    It does not say what the automatic measure found, so that this does not sway them. Raises a UsageError if there are
    no probes.
    """
    from stages.audit_run import AuditRun

    control = _drawn_from(name)
    task = AuditRun(name, "summarize").judged_task()
    space = task.concepts
    drawn = draw_uses(space, control, draws, seed)
    cells = drawn[space.names].to_numpy(dtype=np.int64)
    shown = task.exhibit(drawn["item"].tolist(), cells)
    expected = task.items.table.set_index("id")["label"].reindex(drawn["item"])
    table = pd.DataFrame(
        {
            "draws": drawn["draws"].to_numpy(),
            "item": drawn["item"].to_numpy(),
            "cell": [" ".join(map(str, cell)) for cell in cells.tolist()],
            "where": [space.describe(cell) for cell in cells],
            "input": [exhibit.text or "" for exhibit in shown],
            "picture": [_pictures(path, k, exhibit) for k, exhibit in enumerate(shown, 1)],
            "expected": expected.astype(str).to_numpy(),
            "answer": drawn["output"].to_numpy(),
            "fails": "",
        }
    )
    texts = ["item", "where", "input", "expected", "answer"]
    table[texts] = table[texts].astype(str).map(behind_apostrophe)
    replace_file(path, table.to_csv(index=False))
    next_step = "write yes or no into the column `fails` of each, then run the same command again"
    print_plain(console, f"{len(table)} probes ({draws} draws, as they occur in use) written to {path}: {next_step}")


def _pictures(path: Path, number: int, exhibit: Exhibit) -> str:
    """Write the pictures of a probe, its input or what the model drew; return the name of what is to be judged."""
    name = ""
    for kind, data in (("input", exhibit.image), ("answer", exhibit.drawn)):
        if data is not None:
            file = path.with_suffix("") / f"{number:03d}-{kind}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, data)
            name = file.as_posix()
    return name


def show_spot_check(params: Params, name: str, path: Path, console: Console, *, write: bool) -> None:
    """Print the failure rate by the measure, by people alone and corrected; with `write`, put it in force.

    Raises a UsageError if a verdict is missing or on another answer, or params.yaml's layout does not allow this.
    """
    control = _drawn_from(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    judged = parse_spot_check(data, path)
    folder = audit_folder(name).summarize
    if not folder.has("landscape"):
        raise UsageError(f"audit {name!r} has no landscape to correct yet: run `faded audit {name}`")
    space = folder.landscape.space
    corrected = correct(space, control, judged, params.audit(name).seed)
    alone = wilson(int(judged["draws"] @ judged["fails"]), corrected.overall.n)
    table = new_table("failure rate in use", "", "95% interval", right=("", "95% interval"))
    rates = [
        ("by the automatic measure", rate_in_use(space, control["failed"].to_numpy(dtype=bool), control).rate),
        ("by people's verdicts alone", alone),
        ("corrected by both", corrected.overall.rate),
    ]
    for what, rate in rates:
        table.add_row(what, f"{rate.value:.1%}", f"{rate.low:.1%} to {rate.high:.1%}")
    console.print(table)
    wrong = f"{corrected.only_automatic} only the measure, {corrected.only_people} only people found a failure in"
    console.print(f"of {corrected.overall.n} draws: {wrong}")
    if write:
        entry = {"file": path.as_posix(), "sha256": hashlib.sha256(data).hexdigest()}
        after, _ = with_file(PARAMS.read_bytes().decode("utf-8"), name, ("summarize", "spot_check"), entry)
        edit_file(PARAMS, lambda _: after, console)
        console.print(f"named in {PARAMS}: commit {path}, and run `faded audit {name}`")


def _drawn_from(name: str) -> pd.DataFrame:
    if (control := _control(name)) is None:
        raise UsageError(f"audit {name!r} has no probes to draw from yet: run `faded audit {name}`")
    return control
