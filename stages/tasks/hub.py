"""Models and data sets of the Hugging Face hub: local folders, repository IDs, commits, and safe downloads.

Stages read only the local cache, so an audit needs no network. `faded prefetch AUDIT` fills that cache beforehand.
Files that could run code when read are never downloaded: no pickles, no Python files.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import local_file

_ON_HUB = " of the Hugging Face hub at "
NAME = r"^[\w.-]+(/[\w.-]+)*$"  # a folder under inputs, or an ID on the hub
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
PICTURE_FILES = ("*.png", "*.jpg", "*.jpeg", "*.webp", "*.bmp")
DATASET_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.txt", "README.md", *PICTURE_FILES)
_SAFE = {*MODEL_FILES, *DATASET_FILES}


def local_folder(inputs: Path, name: str, revision: str | None, where: str) -> Path | None:
    """Return the folder `name` under data/<audit>/inputs; None if the name is an ID on the hub.

    A folder under inputs takes precedence; a name that cannot be an ID on the hub must be such a folder. Raises a
    UsageError if the name leads out of inputs, is a file or can be neither, or if a folder is given a revision.

    Args:
        inputs: data/<audit>/inputs.
        name: as in params.yaml.
        revision: as in params.yaml; not allowed for a folder.
        where: key of params.yaml, for messages.
    """
    path = inputs / name
    if not path.exists() and name.count("/") <= 1 and not name.startswith("."):
        return None
    folder = local_file(inputs, name, where)
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} is a file, expected a folder, or an ID of the Hugging Face hub")
    if revision is not None:
        parent = where.rpartition(".")[0]
        raise UsageError(f"{parent}.revision: {folder} is a folder, only what is on the hub has a revision")
    return folder


@dataclass(frozen=True)
class Repository:
    """The files wanted from a repository; the cache is searched for the same files that are downloaded.

    Args:
        name: ID, "ORG/NAME".
        revision: commit, tag or branch; None is the hub's default branch.
        wanted: patterns of files, each ending in a suffix of MODEL_FILES or DATASET_FILES.
        ignored: patterns of files to exclude from these ("*/*" excludes files in subfolders).
    """

    name: str
    revision: str | None = None
    wanted: tuple[str, ...] = MODEL_FILES
    ignored: tuple[str, ...] = ()
    kind: Literal["model", "dataset"] = "model"

    def __post_init__(self) -> None:
        unsafe = [w for w in self.wanted if not any(fnmatch.fnmatch(w, pattern) for pattern in _SAFE)]
        if unsafe:
            raise ValueError(f"not fetched from a hub: {', '.join(unsafe)}; expected {', '.join(sorted(_SAFE))}")

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}" if self.revision else self.name

    def local(self, inputs: Path, where: str) -> Path | None:
        """The folder of this name under data/<audit>/inputs, see `local_folder`."""
        return local_folder(inputs, self.name, self.revision, where)

    def found(self, inputs: Path, where: str) -> tuple[Path, str]:
        """Return the folder with the files, under inputs or in the cache, and their origin, for people and the record.

        Raises a UsageError if they are in neither, with the command that downloads them.
        """
        if (folder := self.local(inputs, where)) is not None:
            return folder, f"the folder {self.name}"
        snapshot = self.cached(inputs, where)
        return snapshot.folder, snapshot.origin

    def prefetch(self, inputs: Path, where: str) -> list[str]:
        """Download it unless it is a folder under inputs; return a line for people."""
        return [] if self.local(inputs, where) is not None else [self.fetch(where)]

    def cached(self, inputs: Path, where: str) -> "Snapshot":
        """Find it in the local cache, without network access.

        Raises a UsageError if it is missing or incomplete, with the command that downloads it.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        find: Callable[..., str] = snapshot_download
        try:
            folder = find(
                self.name,
                revision=self.revision,
                repo_type=self.kind,
                allow_patterns=list(self.wanted),
                ignore_patterns=list(self.ignored),
                local_files_only=True,
            )
        except HFValidationError as error:
            raise UsageError(
                f"{where}: {self.name} is not an ID on the Hugging Face hub: {_first_line(error)}"
            ) from None
        except OSError as error:  # includes LocalEntryNotFoundError, whose message is about calls of the library
            there = sorted(p.name for p in inputs.iterdir() if p.is_dir()) if inputs.is_dir() else []
            held = "a part of it only" if type(error).__name__ == "IncompleteSnapshotError" else "nothing of it"
            raise UsageError(
                f"{where}: {self} is not a folder in {inputs} (found there: {', '.join(there) or 'nothing'}), and the"
                f" local cache of the Hugging Face hub holds {held}. {remedy(inputs)}"
            ) from None
        return Snapshot(Path(folder), self.name)

    def fetch(self, where: str) -> str:
        """Download it into the local cache.

        Raises a UsageError if HF_HUB_OFFLINE forbids it, there is no such repository or revision, or access is denied;
        an InfrastructureError if the hub cannot be reached.

        Returns:
            A line for people: name, commit and size.
        """
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

        if constants.HF_HUB_OFFLINE:
            raise UsageError(
                f"{where}: {self} has to be downloaded, and HF_HUB_OFFLINE=1 forbids it: set HF_HUB_OFFLINE=0"
            )
        get: Callable[..., str] = snapshot_download
        try:
            folder = Path(
                get(
                    self.name,
                    revision=self.revision,
                    repo_type=self.kind,
                    allow_patterns=list(self.wanted),
                    ignore_patterns=list(self.ignored),
                )
            )
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise UsageError(f"{where}: the Hugging Face hub has no {self} for us: {_first_line(error)}") from None
        except Exception as error:  # exceptions of the HTTP client, which depends on the library's version
            raise InfrastructureError(f"{where}: {self} could not be fetched: {_first_line(error)}") from None
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        told = f"{self.kind} {self.name} at {folder.name}: {size / 1e6:.1f} MB"
        return told if self.revision == folder.name else f"{told}; to pin it: revision: {folder.name}"


@dataclass(frozen=True)
class Snapshot:
    """A repository of the hub in the local cache.

    Args:
        name: ID of the repository.
    """

    folder: Path
    name: str

    @property
    def commit(self) -> str:
        """Hash of the commit, which the cache uses as the folder's name."""
        return self.folder.name

    @property
    def origin(self) -> str:
        """Origin for people and the record; it names the commit, because a branch moves."""
        return f"{self.name}{_ON_HUB}{self.commit}"


def repository_of(origin: str) -> str | None:
    """Return the ID of the repository in an origin; None if it is not of the hub.

    >>> repository_of(Snapshot(Path("0a1b2c"), "org/name").origin)
    'org/name'
    """
    name, on_hub, _ = origin.partition(_ON_HUB)
    return name if on_hub else None


def remedy(inputs: Path) -> str:
    """Return what to do about a repository that is not in the cache; `inputs` is data/<audit>/inputs."""
    return f"Run `faded prefetch {inputs.parent.name}` where there is a network, or put the folder into {inputs}"


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
