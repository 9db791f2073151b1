"""A cache of the Hugging Face hub, and a hub on this machine, with content that a test made."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from tests.endpoints import Responder, listening

Kind = Literal["model", "dataset"]


def in_cache(monkeypatch: Any, cache: Path, name: str, made: Path, *, kind: Kind = "model") -> str:
    """Put a folder into a cache in huggingface_hub's layout, and prevent downloads; return its commit."""
    import huggingface_hub.constants

    commit = commit_of(name)
    home = cache / f"{kind}s--{name.replace('/', '--')}"
    shutil.copytree(made, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return commit


@contextlib.contextmanager
def hub(models: Mapping[str, Path], datasets: Mapping[str, Path] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories for huggingface_hub; yields the URL, and the list of files that were downloaded.

    It serves what the library needs: the commit of a branch, the list of its files, and the files.
    """
    homes = {("models", name): folder for name, folder in models.items()}
    homes |= {("datasets", name): folder for name, folder in (datasets or {}).items()}
    fetched: list[str] = []

    class Handler(Responder):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            for (kind, name), folder in homes.items():
                commit = commit_of(name)
                if path.startswith(f"api/{kind}/{name}/revision/"):
                    return self._give(json.dumps({"id": name, "sha": commit, "siblings": []}).encode(), commit)
                if path.startswith(f"api/{kind}/{name}/tree/{commit}"):
                    return self._give(json.dumps(_tree(folder)).encode(), commit)
                start = f"{'datasets/' if kind == 'datasets' else ''}{name}/resolve/{commit}/"
                if path.startswith(start) and (file := folder / path.removeprefix(start)).is_file():
                    if self.command == "GET":
                        fetched.append(f"{name}/{path.removeprefix(start)}")
                    return self._give(file.read_bytes(), commit)
            return self._give(b"", "", 404, **{"X-Error-Code": "RepoNotFound"})

        def _give(self, content: bytes, commit: str, status: int = 200, **headers: str) -> None:
            etag = hashlib.sha1(content).hexdigest()
            more = {"Content-Length": str(len(content)), "ETag": f'"{etag}"', "X-Repo-Commit": commit, **headers}
            self.respond(status, more, content)

    with listening(Handler) as port:
        yield f"http://127.0.0.1:{port}", fetched


def commit_of(name: str) -> str:
    """The single commit of a test's repository."""
    return hashlib.sha1(name.encode()).hexdigest()


def _tree(folder: Path) -> list[dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
            "path": str(path.relative_to(folder)),
        }
        for path in files
    ]
