"""Suspends a deployed flow until a person decides, with a typed form and without a process.

`suspend_flow_run` stores the form and ends the process. When the run is resumed, the flow starts from its top, where
DVC finds nothing to do up to the gate. There the same call, identified by its key, returns what was entered in the
form. A decision made in another way is found in its file, and the form is ignored.
"""

import itertools
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from prefect import flow_runs
from prefect.exceptions import Pause
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import Suspended
from pydantic import Field, ValidationError, create_model

from flows.people.approval import expire
from flows.people.artifacts import artifact, modes_of
from flows.people.draft import Fields, decision_of
from flows.people.review.links import review_url
from flows.people.waiting import actions, deployed_run, end_wait, pause_key, why_field
from flows.request import close_request, how_to_decide, open_request, read_modes, waits_until
from flows.views.labels import DECIDED, code, decided_markdown, prose, publish
from stages.core.errors import UsageError
from stages.decisions import Standing, listed_keys, record_decision, standing
from stages.decisions.names import same_person
from stages.params import Params
from stages.records import ModeRecord

_REJECT = "Reject ends the audit here: no repair is made."
Choice = Literal["undecided", "repair", "accept", "ignore"]


class DecisionForm(RunInput):
    """What Prefect's page asks for; that of a landscape has two more fields for each failure mode, see `make_form`."""

    decision: Literal["approve", "reject"] = Field(description=_REJECT)
    reviewer: str = Field(min_length=1, pattern=r"\S", description="Your name, as it should be recorded.")
    reason: str = Field("", description="Why, in a sentence.")

    def fields(self, modes: Sequence[ModeRecord]) -> Fields:
        fields = {"reviewer": self.reviewer, "reason": self.reason, "decision": self.decision}
        for mode in modes:
            if (action := getattr(self, mode.id, "undecided")) != "undecided":
                fields[f"action.{mode.id}"] = action
            fields[f"reason.{mode.id}"] = getattr(self, why_field(mode.id), "")
        return fields


def wait_for_decision(params: Params, audit: str) -> None:
    """Suspend the current flow run until the audit's landscape is decided; return once it is.

    An invalid answer is reported in the log and on the next form, which has its own key.
    """
    from flows.recur.notify import notify

    logger = get_run_logger()
    run = deployed_run()
    assert run is not None
    problem = None
    for attempt in itertools.count(1):
        expire(params, audit)
        now = standing(params, audit)
        if now.complete:
            for decision in now.decisions:
                word = "approved" if decision.approve else "rejected"
                logger.info("%s %s landscape %s (%s)", decision.reviewer, word, decision.landscape, decision.via)
            close_request(audit)
            if run.empirical_policy.pause_keys:  # this run asked, and its page must not ask any more
                publish(artifact(audit, "decision", DECIDED, partial(decided_markdown, now.decisions)))
            return
        request = open_request(params, audit, (str(run.id), get_current_settings().api.url or ""))
        modes = read_modes(audit)
        form = make_form(audit, now, modes, problem)
        this = pause_key(audit, now.landscape, attempt)
        url = review_url(audit)
        beside = how_to_decide(audit) + (f", {url}," if url is not None else "") + " or the form behind Resume"
        # Notify before suspending, as the process may be killed at any moment: rather twice than never.
        if this not in (run.empirical_policy.pause_keys or ()):
            text = partial(describe, audit, now, modes, problem)
            publish([*modes_of(audit), *artifact(audit, "decision", "Your decision is needed", text)])
            logger.warning(beside)
            notify("needs decision", audit, _where_to_decide(audit), this)
        try:
            # Prefect's function has no argument for the message beside the state.
            suspended = partial(Suspended, message=beside)
            with patch.object(flow_runs, "Suspended", suspended):
                answer = suspend_flow_run(wait_for_input=form, timeout=request.seconds_left, key=this)
            _record(params, audit, answer, now)
            problem = None
        except Pause:
            if (now := standing(params, audit)).complete:  # decided before there was a suspended run to resume
                end_wait(audit, now, request.runs)
            raise
        except (ValidationError, UsageError) as error:
            what = "the form was not filled in correctly: " if isinstance(error, ValidationError) else ""
            problem = what + " ".join(str(error).split())
            logger.warning("%s, so %s is asked about again", problem, audit)


def _where_to_decide(audit: str) -> str:
    url = review_url(audit)
    return how_to_decide(audit) + (f" or {url}" if url is not None else "")


def make_form(audit: str, now: Standing, modes: Sequence[ModeRecord], problem: str | None = None) -> type[DecisionForm]:
    """The form for one landscape."""
    # Prefect's page hides the text above a form that is longer than the window, so fields describe what must be read.
    refusal = f" The last answer was not accepted: {prose(problem)}." if problem is not None else ""
    what = f"{_where_to_decide(audit)}.{refusal} {_REJECT}"
    fields: dict[str, Any] = {"decision": (Literal["approve", "reject"], Field(description=what))}
    for mode in modes:
        name = mode.id
        fields[name] = (Choice, Field("undecided", title=name, description=f"{code(mode.text)}, {_fails(mode)}"))
        fields[why_field(name)] = (str, Field("", title=f"{name}: why", description="To repair or accept a mode."))
    form = create_model("DecisionForm", __base__=DecisionForm, **fields)
    return form.with_initial_data(description=describe(audit, now, modes, problem))


def describe(audit: str, now: Standing, modes: Sequence[ModeRecord], problem: str | None = None) -> str:
    """The text above the form's fields, as markdown; arguments as in `make_form`."""
    lines = [f"**{waits_until(audit)}: `faded review {audit}`**, on {socket.gethostname()} in `{Path.cwd()}`"]
    if (url := review_url(audit)) is not None:
        lines.append(f"The failure modes with examples: [review page]({url})")
    shown = [f"- {mode.id}: {code(mode.text)}, {_fails(mode)}" for mode in modes]
    lines.append("\n".join(shown) or "No failure mode was found.")
    if now.needed > 1:
        so_far = ", ".join(code(decision.reviewer) for decision in now.decisions) or "nobody yet"
        lines.append(f"{now.needed} reviewers are needed, approved so far: {so_far}")
    lines += [f"**Not valid:** {prose(why)}" for why in now.problems]
    if problem is not None:
        lines.append(f"**The last answer was not accepted:** {prose(problem)}")
    return "\n\n".join([*lines, f"Landscape {now.landscape}"])


def _fails(mode: ModeRecord) -> str:
    return f"fails in {mode.rate:.0%} ({mode.low:.0%} to {mode.high:.0%})"


def _record(params: Params, audit: str, answer: DecisionForm, now: Standing) -> None:
    """Record the form's answer. Raises a UsageError if it is refused."""
    modes = read_modes(audit)
    decision = decision_of(answer.fields(modes), now.landscape, modes)
    # The form returns the same answer each time the flow starts, also if it was recorded before a resume or kill.
    for earlier in now.decisions:
        same = earlier.approve == decision.approve and actions(earlier.modes) == actions(decision.modes)
        if same and same_person(earlier.reviewer, decision.reviewer):
            return
    if listed_keys(params, audit):  # anybody who sees the form could sign as anybody
        raise UsageError(
            f"decisions on {audit} are signed, which this form cannot do: get your own link on the machine of"
            f" the audit, `faded review {audit} --link --reviewer NAME`"
        )
    record_decision(params, audit, decision, "prefect")
