"""What models make of what the input leaves unsaid, as both reports show it: shares by value, and how far they skew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.landscape.bias import judged, newly_skewed
from stages.pages.bias_bars import Row, bias_bars
from stages.pages.page import Picture
from stages.pages.scales import value_colours
from stages.pages.words import interval, number, percent, points, points_interval

MAX_SUBJECTS = 24  # in a picture; the table has all
MARK = "✱"

HOW = (
    "A fair model would be off the reference too, by chance, the more so the fewer answers: the grey bar reaches as "
    f"far as 95 of 100 such tallies do. {MARK} marks what is beyond that, tested over all subjects at once (Holm). "
    "The dot is the total variation corrected for chance, with its 95% interval: the share of answers that would have "
    "to be another value. Dotted lines are where the pieces of a bar would end by the reference."
)
_NAMES = {"before": "before", "after": "after", "control": "control", "noise": "asked again"}


def landscape_bias(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One part for each attribute that was tallied; `entries` as `bias` in landscape.json."""
    parts = []
    for attribute in dict.fromkeys(entry["attribute"] for entry in entries):
        mine = [entry for entry in entries if entry["attribute"] == attribute]
        main = _by_bias(judged(mine))
        ranked = [entry["subject"] for entry in main]
        guidances = sorted({entry["guidance"] for entry in mine}, reverse=True)
        groups = [
            [_row(entry, _guidance(entry, guidances)) for entry in sorted(rows, key=lambda row: -row["guidance"])]
            for subject in ranked[:MAX_SUBJECTS]
            if (rows := [entry for entry in mine if entry["subject"] == subject and entry["n"]])
        ]
        order = {subject: k for k, subject in enumerate(ranked)}
        lines = sorted(mine, key=lambda row: (order.get(row["subject"], len(order)), -row["guidance"]))
        parts.append(
            {
                "title": attribute,
                "sentences": _found(attribute, main, guidances),
                "picture": _picture(attribute, groups),
                "note": _left_out(len(ranked)),
                "rows": [_line(row, _guidance(row, guidances)) for row in lines],
            }
        )
    return parts


def comparison_bias(bias: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The section on what the repair did to the tallies; `bias` as in verdict.json, None where there is none."""
    if not bias:
        return None
    parts = []
    main = judged(bias["subjects"])
    for attribute in dict.fromkeys(subject["attribute"] for subject in main):
        mine = sorted(
            (subject for subject in main if subject["attribute"] == attribute),
            key=lambda s: -max(entry["counted"] or 0.0 for entry in s["models"].values()),
        )
        models = [model for model in ("before", "after", "control") if model in mine[0]["models"]]
        groups = [
            rows
            for subject in mine[:MAX_SUBJECTS]
            if (rows := [_row(e, _NAMES[m]) for m in models if (e := subject["models"][m])["n"]])
        ]
        parts.append(
            {
                "title": attribute,
                "picture": _picture(attribute, groups),
                "note": _left_out(len(mine)),
                "others": [_NAMES[model] for model in mine[0]["changes"] if model != "after"],
                "rows": [_change_line(subject) for subject in mine],
            }
        )
    return {"sentences": _changed(bias), "parts": parts, "how": HOW}


def _by_bias(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(entries, key=lambda entry: -(entry["counted"] or 0.0))


def _guidance(entry: Mapping[str, Any], guidances: Sequence[float]) -> str:
    """The guidance, where there are several."""
    return f"guidance {entry['guidance']:g}" if len(guidances) > 1 else ""


def _row(entry: Mapping[str, Any], what: str) -> Row:
    bias = entry["bias"]
    return Row(
        subject=entry["subject"],
        what=what,
        marked=entry["beyond_noise"],
        shares={row["value"]: row["share"]["value"] for row in entry["values"]},
        bounds={row["value"]: interval(row["share"]["low"], row["share"]["high"]) for row in entry["values"]},
        expected={row["value"]: row["expected"] for row in entry["values"]},
        bias=(bias["value"], bias["low"], bias["high"]),
        chance=entry["chance"]["high"],
    )


def _picture(attribute: str, groups: Sequence[Sequence[Row]]) -> Picture | None:
    rows = [row for group in groups for row in group]
    if not rows:
        return None
    alt = f"Shares of {attribute} by subject, the most skewed first: " + "; ".join(
        f"{row.subject}{f' ({row.what})' if row.what else ''} "
        + ", ".join(f"{value} {percent(share, 0)}" for value, share in row.shares.items())
        for row in rows
    )
    values = list(dict.fromkeys(value for row in rows for value in row.shares))
    return Picture(alt, [("", bias_bars(groups, value_colours(values), MARK))], 120 + 26 * len(rows) + 10 * len(groups))


def _left_out(n: int) -> str:
    return f"The chart shows the {MAX_SUBJECTS} most skewed of {n} subjects, the table all." if n > MAX_SUBJECTS else ""


def _shares(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['value']} {percent(row['share']['value'])} [{interval(row['share']['low'], row['share']['high'])}]"
        for row in entry["values"]
    ]


def _found(attribute: str, main: Sequence[Mapping[str, Any]], guidances: Sequence[float]) -> list[str]:
    """What was found, in a few sentences."""
    at = f" at guidance {guidances[0]:g}" if len(guidances) > 1 else ""
    known = [entry for entry in main if entry["n"]]
    beyond = [entry for entry in known if entry["beyond_noise"]]
    said = [
        f"Where the input leaves {attribute} unsaid, {number(len(beyond))} of {number(len(known))} subjects are "
        f"further from the reference than chance explains{at}."
    ]
    if beyond:
        worst = beyond[0]
        row = max(worst["values"], key=lambda value: abs(value["share"]["value"] - value["expected"]))
        share = row["share"]
        said.append(
            f"Most of all {worst['subject']}: {row['value']} in {percent(share['value'])} "
            f"[{interval(share['low'], share['high'])}] of {number(worst['n'])} answers, "
            f"{percent(row['expected'])} expected."
        )
    unread, all_ = sum(entry["unread"] for entry in main), sum(entry["unread"] + entry["n"] for entry in main)
    if unread:
        said.append(
            f"Of {number(unread)} of {number(all_)} answers the value could not be told; these are left out: "
            "shares are among those that could be read."
        )
    return said


def _line(entry: Mapping[str, Any], guidance: str) -> dict[str, Any]:
    bias, chance = entry["bias"], entry["chance"] or {}
    return {
        "subject": entry["subject"],
        "guidance": guidance,
        "shares": _shares(entry) if entry["n"] else [],
        "counted": percent(entry["counted"]),
        "chance": f"{percent(chance.get('mean'))}, up to {percent(chance.get('high'))}" if chance else "–",
        "bias": percent(bias["value"]),
        "interval": interval(bias["low"], bias["high"]),
        "p": _p(entry["p_holm"]),
        "beyond": entry["beyond_noise"],
        "n": number(entry["n"]),
        "unread": number(entry["unread"]) if entry["unread"] else "",
    }


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _moved(change: Mapping[str, Any]) -> list[str]:
    return [points(change["value"]), points_interval(change["low"], change["high"])]


def _change_line(subject: Mapping[str, Any]) -> dict[str, Any]:
    models, changes = subject["models"], subject["changes"]
    return {
        "subject": subject["subject"],
        "models": [
            [percent(models[m]["bias"]["value"]), interval(models[m]["bias"]["low"], models[m]["bias"]["high"])]
            for m in ("before", "after")
        ],
        "beyond": models["after"]["beyond_noise"],
        "change": _moved(changes["after"]),
        "p": _p(changes["after"]["p_holm"]),
        "newly": subject["newly_skewed"],
        "others": [_moved(change) for model, change in changes.items() if model != "after"],
        "shares": [[_NAMES[m], _shares(models[m])] for m in models if models[m]["n"]],
        "n": " / ".join(number(models[m]["n"]) for m in ("before", "after")),
    }


def _changed(bias: Mapping[str, Any]) -> list[str]:
    """What the repair did, in a few sentences; what is newly skewed is never passed over."""
    mean, change = bias["mean"], bias["mean_change"]
    said = []
    if change["after"]["n"]:
        said.append(
            f"The mean bias over subjects went from {percent(mean['before']['value'])} to "
            f"{percent(mean['after']['value'])} ({points(change['after']['value'])} points, 95% interval "
            f"{points_interval(change['after']['low'], change['after']['high'])})."
        )
    if "control" in change and change["control"]["n"]:
        said.append(
            f"The control's changed by {points(change['control']['value'])} points "
            f"({points_interval(change['control']['low'], change['control']['high'])})."
        )
    skewed = newly_skewed(bias)
    if skewed:
        named = "; ".join(
            f"{subject['attribute']} of {subject['subject']} ({points(subject['changes']['after']['value'])} points)"
            for subject in skewed
        )
        said.append(f"Newly skewed beyond chance: {named}.")
    else:
        said.append("No subject is newly skewed beyond chance.")
    return said
