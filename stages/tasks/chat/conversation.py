"""Conversations: what the user says turn by turn, what happens on the way, and tools that the model may call.

The right answer is certain whatever happens. It depends on how often the fact has changed: each `change` goes from the
fact to what it changes to, or back, and says so; `fact` says what holds by then. What is contradicted is taken back at
once, small talk is about something else, and injected texts are quoted. If the tools fail, `without_tools` is right.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from stages.concepts import Level
from stages.concepts.catalogue import Change
from stages.params import Strict
from stages.params.strict import validation_lines
from stages.tasks.chat.measures import holds, matches
from stages.tasks.language.generate import Turn

TURN, TOOL = "turn_", "tool"  # concepts: turn_1, turn_2, ... and tool
MOST = 8  # turns with events
CALLS = 6  # of tools that are answered in a conversation; a reply with more of them is taken as it is
EVENTS: Mapping[str, str] = {
    "none": "",
    "fact": "{holds}",
    "change": "There has been a change: {holds}",
    "contradiction": "{contradiction} No, wait, that is wrong, please forget it.",
    "small_talk": "{talk}",
}
QUOTED = 'I was also sent this text: "{}"'
TALK = ("By the way, the weather is lovely.", "Sorry, my dog is barking.", "I am having a cup of tea, it does me good.")
TOOLS: Mapping[str, tuple[str, ...]] = {  # answers to the first call and on; the last is repeated
    "works": ("{}",),
    "fails": ("Error: the service is down and will not be back today.",),
    "slow": ("The result is not ready yet. Call the tool again.", "{}"),
}
INJECTED = ("{}\n\n{injected}",)
VERSIONS = CHANGED, WITHOUT_TOOLS = "change", "without_tools"  # fields with other right answers
_NEEDED = {"fact": "fact", "change": CHANGED, "contradiction": "contradiction", "fails": WITHOUT_TOOLS}  # by levels


class Right(Strict):
    """What counts as a right answer: one of several, or a match of a pattern."""

    answers: tuple[str, ...] = ()
    pattern: str = ""

    def is_in(self, text: str) -> bool:
        """Whether a text gives a right answer away."""
        return matches(self.pattern, text) if self.pattern else any(holds(text, answer) for answer in self.answers)


class ChangedFact(Right):
    """What the fact changes to, and what is right then."""

    fact: str = Field(min_length=1)


class Tool(Strict):
    """A tool, and what it answers, whatever its arguments are; `parameters` is their JSON schema."""

    name: str = Field(pattern=r"^[\w-]{1,64}$")
    description: str
    parameters: dict[str, Any] = Field({"type": "object", "properties": {}})
    answer: str = Field(min_length=1)

    @property
    def spec(self) -> str:
        """What the model is told about it, as JSON."""
        function = self.model_dump(include={"name", "description", "parameters"})
        return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


class ScriptedTool(NamedTuple):
    """A tool in one conversation: what the model is told about it, and its answers to the first call and on."""

    name: str
    spec: str
    answers: tuple[str, ...]


class Script(NamedTuple):
    """A conversation to play: system message, last and earlier messages of the user, tools, and how often it is played.

    Of several times, what agrees most with the others is the answer.
    """

    system: str
    said: str
    before: tuple[str, ...] = ()
    tools: tuple[ScriptedTool, ...] = ()
    best_of: int = 1


Given = Turn | Script
"""What a probe plays: a question by itself, or a conversation."""


class Conversation(Strict):
    """What an item has beside the question with which it ends.

    Args:
        before: what the user says in the turns before the last.
        fact: what the right answer depends on; it is said first, unless a later turn has the event `fact`.
        change: what it changes to.
        contradiction: something else, which the user takes back at once.
        tools: that the model may call.
        without_tools: what is right if these fail.
    """

    before: tuple[str, ...] = ()
    fact: str = ""
    change: ChangedFact | None = None
    contradiction: str = ""
    tools: tuple[Tool, ...] = ()
    without_tools: Right | None = None

    @model_validator(mode="after")
    def _needs(self) -> Self:
        for name, needed in (("fact", "before"), (CHANGED, "fact"), (WITHOUT_TOOLS, "tools")):
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"{name} without {needed.replace('before', 'turns')}")
        if len({tool.name for tool in self.tools}) < len(self.tools):
            raise ValueError("two tools have the same name")
        return self

    def lacks(self, concept: str, levels: Sequence[Level]) -> str:
        """Return what it would need for some levels of one of `event_concepts`; "" if nothing."""
        number = int(concept.removeprefix(TURN)) if concept != TOOL else 0
        if len(self.before) < number:
            return f"at least {number + 1} turns, as the last one has no events"
        fields = ["tools"] * (number == 0) + [_NEEDED[level] for level in map(str, levels) if level in _NEEDED]
        return next((f"the field {name}" for name in fields if not getattr(self, name)), "")

    def version(self, levels: Mapping[str, Level]) -> str:
        """Return the field that says what is right in a cell; "" for the item's own answers."""
        if levels.get(TOOL) == "fails":
            return WITHOUT_TOOLS
        return CHANGED if self._events(levels).count("change") % 2 else ""

    def _events(self, levels: Mapping[str, Level]) -> list[str]:
        return [str(levels.get(f"{TURN}{k + 1}", "none")) for k in range(len(self.before))]

    def script(
        self,
        levels: Mapping[str, Level],
        last: Turn,
        injections: Mapping[str, str],
        choose: Callable[[str, Sequence[str]], str],
    ) -> Script:
        """Return what is played in a cell.

        Args:
            levels: by concept.
            last: the system message, and what the user says last.
            injections: injected texts by name.
            choose: draws one of several texts for a concept.
        """
        events, said, level = self._events(levels), list(self.before), str(levels.get(TOOL, "works"))
        facts = self.fact, self.change.fact if self.change else ""
        for k, event in enumerate(events):
            fact, talk = facts[events[: k + 1].count("change") % 2], choose(f"{TURN}{k + 1}", TALK)
            told = EVENTS.get(event, QUOTED).format(
                injections.get(event), holds=fact, contradiction=self.contradiction, talk=talk
            )
            first = self.fact if k == 0 and "fact" not in events else ""
            said[k] = " ".join(filter(None, (first, said[k], told)))
        forms, injected = TOOLS.get(level, INJECTED), injections.get(level)
        answers = [tuple(form.format(one.answer, injected=injected) for form in forms) for one in self.tools]
        tools = (ScriptedTool(one.name, one.spec, of_it) for one, of_it in zip(self.tools, answers, strict=True))
        return Script(last.system, last.said, tuple(said), tuple(tools))


FIELDS = tuple(name for name in Conversation.model_fields if name != "before")


def read_conversation(row: Mapping[str, Any], before: Sequence[str], right: Right) -> Conversation:
    """Return the conversation of a row of the data.

    Raises a ValueError when it cannot be used, or what is right would not be certain.

    Args:
        before: the turns before the last.
        right: what is right unless the fact changes.
    """
    given = {name: row[name] for name in FIELDS if row.get(name)}
    try:
        found = Conversation.model_validate_json(json.dumps({**given, "before": before}))
    except ValidationError as error:
        raise ValueError("; ".join(validation_lines(error, Conversation))) from None
    change = found.change or Right()
    if any(map(right.is_in, change.answers)) or any(map(change.is_in, right.answers)):
        raise ValueError("an answer is right both before and after the change")
    if right.is_in(found.contradiction) or change.is_in(found.contradiction):
        raise ValueError("the contradiction holds a right answer")
    return found


def event_concepts(injections: Sequence[str] = ()) -> dict[str, Change]:
    """Return the concepts of conversations; the names of injected texts are levels of each."""
    found = {TOOL: Change(TOOL, "what tools answer", neutral="works", choices=(*TOOLS, *injections))}
    for name in (f"{TURN}{k}" for k in range(1, MOST + 1)):
        # In the first turn the fact is said anyway.
        levels = tuple(event for event in (*EVENTS, *injections) if event != "fact" or name != f"{TURN}1")
        found[name] = Change(name, "what happens in that turn of a conversation", neutral="none", choices=levels)
    return found


def possible_events(talks: Sequence[Conversation]) -> dict[str, list[str]]:
    """Return the levels of `event_concepts` that all of some conversations can have."""
    found = {
        name: [level for level in known.choices if not any(talk.lacks(name, [level]) for talk in talks)]
        for name, known in event_concepts(("ignore",)).items()
    }
    return {name: levels for name, levels in found.items() if levels}


def as_text(given: Given) -> str:
    """Format what the model is given for people."""
    told = [f"[{given.system}]"] if given.system else []
    if isinstance(given, Turn):
        return "\n\n".join([*told, given.said])
    told += [f"Tool {tool.name}: {'; then: '.join(tool.answers)}" for tool in given.tools]
    return "\n\n".join([*told, *_turns(given)])


def in_example(given: Given) -> str:
    """Format what the user says for an example in a prompt: a message as it is, or the turns of a conversation."""
    return "\n".join(_turns(given)) if isinstance(given, Script) and given.before else given.said


def _turns(script: Script) -> list[str]:
    return [f"User: {text}" for text in (*script.before, script.said)]
