"""Changes to params.yaml by commands: levels, shares, compute, ratings and keys of an audit, and nothing else.

Each raises a UsageError if the file's layout does not allow it without changing other lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from ruamel.yaml.comments import CommentedMap

from flows.workspace.yaml_edit import LayoutError, as_text, edited, in_one_line
from stages.concepts import Level
from stages.core.errors import UsageError
from stages.params.usage import MeasuredConfig


def with_proposed(
    text: str,
    audit: str,
    concepts: Mapping[str, Sequence[Level]],
    prepare: Mapping[str, Any],
    proposed: Mapping[str, str],
) -> str:
    """The text of params.yaml with the proposed concepts of an audit.

    Args:
        concepts: all levels of concepts that are new, or have new levels behind their own.
        prepare: keys of `prepare:`, lists or mappings of texts that are new or longer.
        proposed: by concept, who proposed it.
    """

    def change(params: Any) -> None:
        block = params["audits"][audit]
        if isinstance(block["concepts"], str):
            raise LayoutError(f"concepts: {block['concepts']} is the name of a grid")
        for name, levels in concepts.items():
            there = block["concepts"].setdefault(as_text(name), in_one_line([]))
            there.extend(map(as_level, levels[len(there) :]))
        for key, new in prepare.items():
            if isinstance(new, Mapping):
                block["prepare"].setdefault(key, {}).update({as_text(name): as_text(one) for name, one in new.items()})
            else:
                block["prepare"][key] = [as_text(one) for one in new]
        block.setdefault("proposed", in_one_line({})).update(
            {as_text(name): as_text(told) for name, told in proposed.items()}
        )

    wanted = f"there:\n  concepts: {dict(concepts)}\n  prepare: {dict(prepare)}\n  proposed: {dict(proposed)}"
    return _edited(text, change, f"audits.{audit}", wanted)


def with_usage(text: str, audit: str, levels: Mapping[str, Mapping[Level, float]], measured: MeasuredConfig) -> str:
    """The text of params.yaml with measured shares of levels under `usage:` of an audit.

    Levels of other concepts and named combinations stay. The number of changes goes, as it now follows from the shares.
    """

    def change(params: Any) -> None:
        block = params["audits"][audit]
        if not isinstance(block.get("usage"), Mapping):
            block["usage"] = {}
        usage = block["usage"]
        usage.pop("changes", None)
        there = usage.setdefault("levels", {})
        for name, shares in levels.items():
            row: dict[Any, float] = {as_level(level): share for level, share in shares.items()}
            there[as_text(name)] = in_one_line(row)
        usage["measured"] = in_one_line(
            {
                "inputs": measured.inputs,
                "source": as_text(measured.source),
                "worth": {as_text(name): as_level(n) for name, n in measured.worth.items()},
            }
        )

    wanted = "\n".join(f"    {name}: {_one_line(shares)}" for name, shares in levels.items())
    return _edited(text, change, f"audits.{audit}.usage", f"there:\n  levels:\n{wanted}")


def with_shards(text: str, audit: str, shards: int, gpus: int | None) -> str:
    """The text of params.yaml with the search of an audit divided into shares; 1 leaves it undivided.

    Args:
        shards: its new `discover.shards`.
        gpus: its new `compute.gpus`; None leaves it unchanged.
    """

    def change(params: Any) -> None:
        block = params["audits"][audit]
        if shards > 1:
            block["discover"]["shards"] = shards
        else:
            block["discover"].pop("shards", None)
        if gpus is not None:
            block.setdefault("compute", {})["gpus"] = gpus

    asked = "" if gpus is None else f", and audits.{audit}.compute.gpus: {gpus}"
    return _edited(text, change, f"the shares of {audit}", f"audits.{audit}.discover.shards: {shards}{asked} there")


def with_compute(text: str, audit: str, changes: Mapping[str, str | int]) -> str:
    """The text of params.yaml with new values in the `compute:` of an audit; missing keys are added."""
    wanted = ", ".join(f"{name}: {value}" for name, value in changes.items())
    return _edited(
        text,
        lambda params: params["audits"][audit].setdefault("compute", {}).update(changes),
        f"audits.{audit}.compute",
        f"there: {wanted}",
    )


def with_keys(text: str, keys: Mapping[str, Mapping[str, str]]) -> str:
    """The text of params.yaml with other public keys of reviewers.

    Args:
        keys: by audit, all its keys by reviewer; names are only added or removed.
    """

    def change(params: Any) -> None:
        for audit, listed in keys.items():
            feedback = params["repairs"][audit]["feedback"]
            if not listed:
                feedback.pop("keys", None)
                continue
            there = feedback.setdefault("keys", {})
            for name in [name for name in there if name not in listed]:
                del there[name]
            there.update({as_text(name): line for name, line in listed.items() if name not in there})

    wanted = "\n".join(f"  repairs.{audit}.feedback.keys: {_one_line(listed)}" for audit, listed in keys.items())
    return _edited(text, change, "the keys", f"there:\n{wanted}")


def with_file(text: str, audit: str, place: tuple[str, str], entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The text of params.yaml with a file of people's opinions, and other audits that share it through an alias.

    Args:
        place: block and key of the entry: `discrepancy.ratings`, `summarize.spot_check`.
        entry: the file, its hash, and what else there is to say.
    """
    name, key = place

    def change(params: Any) -> None:
        block = params["audits"][audit]
        own = dict(block.non_merged_items()) if isinstance(block, CommentedMap) else block
        own[name][key] = in_one_line(dict(entry))

    after = _edited(text, change, f"audits.{audit}.{name}", f"there:\n  {key}: {_one_line(entry)}", shared=True)
    old, new = (yaml.safe_load(one)["audits"] for one in (text, after))
    return after, [name for name in old if name != audit and new[name] != old[name]]


def _edited(text: str, change: Callable[[Any], object], what: str, wanted: str, *, shared: bool = False) -> str:
    try:
        return edited(text, change, shared=shared)
    except LayoutError:
        others = "" if shared else ", or other audits that share it"
        raise UsageError(
            f"{what} cannot be changed without altering the layout of params.yaml{others}; write {wanted}"
        ) from None


def as_level(level: Level) -> Level:
    """A level as people would write it."""
    if isinstance(level, str):
        return as_text(level)
    return int(level) if level == int(level) else level


def _one_line(entry: Mapping[Any, Any]) -> str:
    return "{" + ", ".join(f"{as_level(key)}: {value}" for key, value in entry.items()) + "}"
