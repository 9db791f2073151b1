"""The complete params.yaml, and reading it."""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from stages.core.errors import UsageError, did_you_mean
from stages.params.audit import MAX_NAME, AuditConfig
from stages.params.repair import RepairConfig
from stages.params.slices import unknown_attributes
from stages.params.strict import (
    OLD_KEYS,
    Strict,
    errors_in,
    parse_yaml,
    read_bytes,
    refuse_old_keys,
    short_value,
    validation_lines,
)
from stages.params.usage import usage_error

# Audits become names of folders, stages and files, on every system on which people share them.
_NAME = re.compile(rf"(?!-)[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
_OF_WINDOWS = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)


class RunnerConfig(Strict):
    """Where stages run; `runner: dask` is short for `runner: {kind: dask}`."""

    kind: Literal["threads", "dask", "ray"] = "threads"
    address: str | None = Field(None, description="of a running scheduler or cluster; by default one is started here")
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="stages without GPUs at once, where none is at an address; by default half the cores",
    )
    gpus: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="GPUs of this machine to use, where none is at an address; by default all there are",
    )
    workspace: str | None = Field(
        None, description="folder of the worker's own clone, where workers do not see the driver's files"
    )
    remote: str | None = Field(None, description="DVC remote through which outputs travel then; by default DVC's own")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _either_here_or_there(self) -> Self:
        if self.address is not None:
            if self.kind == "threads":
                raise ValueError(f"threads have no address, found {self.address!r}: dask and ray take one")
            given = [name for name in ("workers", "gpus") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{' and '.join(given)}: a cluster at an address says itself what it has")
        return self


class Params(Strict):
    """The complete params.yaml."""

    audits: dict[str, AuditConfig]
    repairs: dict[str, RepairConfig] = Field(default_factory=dict, description="by the name of their audit")
    runner: RunnerConfig = Field(default_factory=RunnerConfig, description="where stages run")
    proposer: dict[str, Any] | None = Field(None, description="a language model that proposes concepts")

    @model_validator(mode="before")
    @classmethod
    def _no_old_keys(cls, params: Any) -> Any:
        return refuse_old_keys(params, OLD_KEYS)

    @field_validator("audits")
    @classmethod
    def _one_at_least(cls, audits: dict[str, AuditConfig]) -> dict[str, AuditConfig]:
        if not audits:
            raise ValueError("there is no audit yet; `faded init` writes one")
        folders: dict[str, str] = {}
        for name in audits:
            if error := name_error(name):
                raise ValueError(f"{short_value(name)}: {error}")
            if (other := folders.setdefault(name.lower(), name)) != name:
                raise ValueError(f"{other} and {name} differ only in case, which some systems ignore")
        return audits

    @model_validator(mode="after")
    def _repairs_have_audits(self) -> Self:
        for name in self.repairs:
            if name not in self.audits:
                raise ValueError(f"repairs.{name}: there is no audit of that name, found {sorted(self.audits)}")
        return self

    @model_validator(mode="after")
    def _usage_is_of_levels(self) -> Self:
        for name, audit in self.audits.items():
            if error := usage_error(audit.usage, audit.concepts):
                raise ValueError(f"audits.{name}.{error}")
        return self

    @property
    def shares(self) -> dict[str, dict[str, str | int]]:
        """The shares of divided searches, AUDIT-1, AUDIT-2, ..., each a separate stage that any worker may run."""
        return {
            f"{name}-{part}": {"audit": name, "part": part}
            for name, audit in self.audits.items()
            if audit.discover.shards > 1
            for part in range(1, audit.discover.shards + 1)
        }

    def audit(self, name: str) -> AuditConfig:
        """Return an audit by name; raises a UsageError with the known names."""
        if name not in self.audits:
            raise UsageError(
                f"no audit {name!r} in params.yaml, found: {', '.join(self.audits)}{did_you_mean(name, self.audits)}"
            )
        return self.audits[name]

    def check_slices(self, name: str, attributes: Iterable[Any]) -> None:
        """Check that the gates of an audit and of its repair only name attributes of its items.

        Raises a UsageError with one line for each unknown attribute.
        """
        audit, repair, known = self.audit(name), self.repairs.get(name), list(attributes)
        errors = unknown_attributes(audit.gates.slices if audit.gates else (), known, f"audits.{name}.gates.slices")
        errors += unknown_attributes(repair.gates.slices if repair else (), known, f"repairs.{name}.gates.slices")
        if errors:
            raise UsageError("\n".join(errors))

    def repair(self, name: str) -> RepairConfig:
        self.audit(name)
        if name not in self.repairs:
            raise UsageError(f"audit {name!r} has no entry under repairs: in params.yaml, so it ends after its report")
        return self.repairs[name]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises a UsageError with one line per error: its place, what was found and what was expected.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise UsageError(f"no {path.name} in {path.parent.resolve()}: run this in the folder that holds it") from None
    return _checked(data, str(path))


@lru_cache(maxsize=1)  # a command reads it before it enters the workspace, and again afterwards
def _checked(data: bytes, name: str) -> Params:
    raw = parse_yaml(data, name)
    if not isinstance(raw, dict):
        raise UsageError(f"{name}: expected a mapping with the keys audits and repairs, found {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise errors_in(name, validation_lines(error, Params)) from None


def name_error(name: str) -> str | None:
    """Return what is wrong with the name of an audit, or None."""
    if not _NAME.fullmatch(name):
        return f"expected a name of 1 to {MAX_NAME} letters (a-z, A-Z), digits, - and _, not beginning with -"
    if _OF_WINDOWS.fullmatch(name):
        return "no file of Windows may have that name, choose another"
    return None
