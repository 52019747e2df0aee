"""A server on this machine that speaks the protocol of the Hugging Face hub, for models and data sets.

server = HubServer()
commit = server.add("some/model", {"config.json": b"{}", "model.safetensors": weights})
server.add("some/set", {"data/train.parquet": rows}, kind="dataset")
with server.running():            # the hub; afterwards a machine without a connection
    ...

`hub_here` lets the libraries of this process use it, `server.environment(folder)` those of another. Small files are
served as the hub serves them, behind a relative redirect; large and binary ones behind a redirect to a store of blobs.
Whoever has `token` makes repositories and adds commits, whose large files come as Git LFS has them.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Kind = Literal["model", "dataset"]
_IN_BLOB_STORE = (".safetensors", ".gguf", ".bin", ".parquet", ".arrow", ".model", ".zip")


@dataclass
class Repository:
    """One repository: its commits, which files each holds, and what its branches and tags stand for.

    Attributes:
        refusal: None, or why nobody may have its files: the hub's error code, "GatedRepo" or "RepoNotFound".
        tags: what the hub says of it, such as "license:mit".
    """

    name: str
    kind: Kind
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    tags: tuple[str, ...] = ()
    visibility: str = "public"


class HubServer:
    """A hub with the repositories that were added to it.

    Attributes:
        requests: each request as "METHOD /path", in the order in which they arrived.
        ranges: the Range header of each request for a blob, or None.
        blobs: what the store of blobs gives for a SHA-256.
        breaks_off_after: None, or after how many bytes the next answer with a blob ends.
        token: of the one who may write; None lets nobody.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.ranges: list[str | None] = []
        self.blobs: dict[str, bytes] = {}
        self.breaks_off_after: int | None = None
        self.token: str | None = None
        self._repositories: dict[tuple[Kind, str], Repository] = {}
        self._server: http.server.ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The address, which stays the same when the server is stopped and started again."""
        if not self._port:
            with self.running():
                pass
        return f"http://127.0.0.1:{self._port}"

    def add(
        self, name: str, files: Mapping[str, bytes] | Path, kind: Kind = "model", branches: tuple[str, ...] = ("main",)
    ) -> str:
        """Add a commit to a repository, which is made if there is none, and return its name.

        Args:
            files: contents by path, or a folder that holds them.
            branches: branches or tags that stand for the commit from now on.
        """
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        listing = json.dumps({path: hashlib.sha1(content).hexdigest() for path, content in sorted(files.items())})
        commit = hashlib.sha1(f"{kind} {name} {listing}".encode()).hexdigest()
        repository = self.repository(name, kind)
        repository.commits[commit] = dict(files)
        repository.branches |= dict.fromkeys(branches, commit)
        self.blobs |= {hashlib.sha256(content).hexdigest(): content for content in files.values()}
        return commit

    def repository(self, name: str, kind: Kind = "model") -> Repository:
        """Return a repository, which is made if there is none."""
        return self._repositories.setdefault((kind, name), Repository(name, kind))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen on 127.0.0.1 inside the block, and refuse connections after it."""
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            # Each connection ends with its answer, so that none outlives the server.
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_POST(self) -> None:
                hub._answer(self)

            def do_PUT(self) -> None:
                hub._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        server = Server(("127.0.0.1", self._port), Handler)
        self._port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def environment(self, folder: Path) -> dict[str, str]:
        """Return environment variables that let another process use this hub, with its caches in `folder`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder),
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        self.requests.append(f"{request.command} {unquote(path)}")
        parts = [unquote(part) for part in path.strip("/").split("/")]  # a revision may have a slash
        if self._writes(request, parts):
            allowed = self.token is not None and request.headers.get("Authorization") == f"Bearer {self.token}"
            # The store of blobs has addresses of its own that are signed.
            if allowed or parts[0] == "put":
                self._take(request, parts)
            else:
                self._refuse(request, 401, "Unauthorized")
        elif parts[0] == "blobs" and parts[1] in self.blobs:
            self.ranges.append(request.headers.get("Range"))
            ends, self.breaks_off_after = self.breaks_off_after, None
            self._send(request, self.blobs[parts[1]], {"ETag": f'"{parts[1]}"'}, ends=ends)
        elif parts[0] == "blobs":
            self._send(request, b"", {}, 404)
        elif parts[:2] == ["api", "resolve-cache"]:
            kind: Kind = "dataset" if parts[2] == "datasets" else "model"
            content = self._repositories[kind, "/".join(parts[3:5])].commits[parts[5]]["/".join(parts[6:])]
            self._send(request, content, {"ETag": f'"{_git_sha1(content)}"', "X-Repo-Commit": parts[5]})
        elif parts[0] == "api" and parts[1] in ("models", "datasets"):
            self._answer_about(request, "dataset" if parts[1] == "datasets" else "model", parts[2:])
        else:
            kind = "dataset" if parts[0] == "datasets" else "model"
            parts = parts[1:] if kind == "dataset" else parts
            if len(parts) > 4 and parts[2] == "resolve":
                self._answer_file(request, kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._refuse(request, 404, "RepoNotFound")

    @staticmethod
    def _writes(request: http.server.BaseHTTPRequestHandler, parts: list[str]) -> bool:
        asked = {"repos", "validate-yaml"} & set(parts[1:2]) or {"preupload", "commit"} & set(parts[4:5])
        return request.command == "PUT" or (request.command == "POST" and bool(asked or parts[-1] == "batch"))

    def _take(self, request: http.server.BaseHTTPRequestHandler, parts: list[str]) -> None:
        """Answer one of the steps in which a repository is made and a commit is added to it."""
        body = _body(request)
        if request.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.blobs[parts[1]] = body
            self._send(request, b"", {})
        elif parts[1] == "validate-yaml":
            self._send_json(request, {"errors": [], "warnings": []})
        elif parts[1] == "repos":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            known = (wanted["type"], name) in self._repositories
            if not known:
                self.repository(name, wanted["type"]).visibility = wanted.get("visibility", "public")
            about = {"url": f"{self.url}/{wanted['type']}s/{name}"}
            self._send(request, json.dumps(about).encode(), {}, 409 if known else 200)
        elif parts[-1] == "batch":
            answers = []
            for file in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.url}/put/{file['oid']}"}}
                answers.append(file | ({} if file["oid"] in self.blobs else {"actions": upload}))
            self._send_json(request, {"transfer": "basic", "objects": answers})
        elif parts[4] == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_IN_BLOB_STORE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send_json(request, {"files": modes})
        else:
            kind: Kind = "dataset" if parts[1] == "datasets" else "model"
            name = "/".join(parts[2:4])
            repository = self.repository(name, kind)
            files = dict(repository.commits.get(repository.branches.get(parts[5], ""), {}))
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.blobs[value["oid"]]
            commit = self.add(name, files, kind, (parts[5],))
            address = f"{self.url}/{kind}s/{name}/commit/{commit}"
            self._send_json(request, {"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})

    def _answer_about(self, request: http.server.BaseHTTPRequestHandler, kind: Kind, parts: list[str]) -> None:
        """Answer a question about a repository: what it holds at a revision, or its files one by one."""
        name, question = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        revision = parts[3] if len(parts) > 3 else "main"
        known = self._find(request, kind, name, revision)
        if known is None:
            return
        repository, commit = known
        files = repository.commits[commit]
        if question == "refs":
            refs = [
                {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": c} for ref, c in repository.branches.items()
            ]
            self._send_json(request, {"branches": refs, "tags": [], "converts": []})
        elif question == "tree":
            recursive = "recursive=true" in urlsplit(request.path).query.lower()
            self._send_json(request, _tree(files, "/".join(parts[4:]), recursive))
        elif question == "paths-info":
            body = request.rfile.read(int(request.headers["Content-Length"])).decode()
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            self._send_json(request, [entries[path] for path in paths if path in entries])
        elif question == "revision":
            siblings = [_sibling(path, content) for path, content in files.items()]
            about = {"_id": commit[:24], "id": name, "sha": commit, "private": False, "downloads": 0}
            about |= {"tags": list(repository.tags)}
            self._send_json(request, about | {"siblings": siblings, "lastModified": "2026-01-31T12:00:00.000Z"})
        else:
            self._refuse(request, 404, "EntryNotFound")

    def _answer_file(
        self, request: http.server.BaseHTTPRequestHandler, kind: Kind, name: str, revision: str, path: str
    ) -> None:
        known = self._find(request, kind, name, revision)
        if known is None:
            return
        repository, commit = known
        content = repository.commits[commit].get(path)
        if content is None:
            self._refuse(request, 404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        sha256 = hashlib.sha256(content).hexdigest()
        if path.endswith(_IN_BLOB_STORE):
            # Another host than the hub's, as the store is: the library follows redirects within the hub by itself.
            status, location, etag = 302, f"http://localhost:{self._port}/blobs/{sha256}", sha256
        else:
            status, etag = 307, _git_sha1(content)
            location = f"/api/resolve-cache/{kind}s/{name}/{commit}/{path}"
        headers = {
            "Location": location,
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{etag}"',
        }
        self._send(request, b"", headers, status)

    def _find(
        self, request: http.server.BaseHTTPRequestHandler, kind: Kind, name: str, revision: str
    ) -> tuple[Repository, str] | None:
        """Return a repository and commit, or None after having refused the request as the hub does."""
        repository = self._repositories.get((kind, name))
        if repository is None:
            self._refuse(request, 401, "RepoNotFound")
        elif repository.refusal is not None:
            self._refuse(request, 403 if repository.refusal == "GatedRepo" else 401, repository.refusal)
        else:
            commit = repository.branches.get(revision, revision)
            if commit in repository.commits:
                return repository, commit
            self._refuse(request, 404, "RevisionNotFound")
        return None

    def _refuse(
        self, request: http.server.BaseHTTPRequestHandler, status: int, code: str, headers: dict[str, str] | None = None
    ) -> None:
        self._send(request, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, status)

    def _send_json(self, request: http.server.BaseHTTPRequestHandler, answer: Any) -> None:
        self._send(request, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(
        self,
        request: http.server.BaseHTTPRequestHandler,
        content: bytes,
        headers: dict[str, str],
        status: int = 200,
        ends: int | None = None,
    ) -> None:
        asked, whole = request.headers.get("Range"), len(content)
        if asked and status == 200 and request.command == "GET":
            start, _, end = asked.removeprefix("bytes=").partition("-")
            status, first, last = 206, int(start), int(end) if end else whole - 1
            content = content[first : last + 1]
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{whole}"}
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content[:ends])


def _body(request: http.server.BaseHTTPRequestHandler) -> bytes:
    """Return what a request brings, whether its length is said or it comes in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    body = b""
    while length := int(request.rfile.readline(), 16):
        body += request.rfile.read(length)
        request.rfile.readline()
    return body


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _git_sha1(content), "size": len(content), "path": path}
    if path.endswith(_IN_BLOB_STORE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """List what is in a folder: files, and the folders in it."""
    start = f"{folder}/" if folder else ""
    entries = {path: _tree_entry(path, content) for path, content in files.items() if path.startswith(start)}
    for path in list(entries):
        for parent in Path(path).parents:
            if str(parent) != "." and str(parent).startswith(start):
                entries[str(parent)] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": str(parent)}
    return [entry for path, entry in sorted(entries.items()) if recursive or "/" not in path.removeprefix(start)]


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_sha1(content)}
    if path.endswith(_IN_BLOB_STORE):
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def hub_here(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries of this process use a hub, with their caches in `folder`."""
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.url)
    files_of_datasets = f"{server.url}/datasets/{{repo_id}}/resolve/{{revision}}/{{path}}"
    monkeypatch.setattr("datasets.config.HUB_DATASETS_URL", files_of_datasets)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
