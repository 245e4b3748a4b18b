"""A Hub on 127.0.0.1 for the tests: the routes that the real clients call, in memory, on the standard library alone.

It answers as the Hub does where the clients can tell the difference: LFS for large or binary files, one commit for
many files, revisions, private repositories that strangers cannot see, tokens that may read but not write. What goes
wrong on a network is made to go wrong on demand (`LoopbackHub.fail`).
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, STRANGER, ORGANISATION = "tester", "stranger", "lab"
WRITE_TOKEN, READ_TOKEN, STRANGER_TOKEN = "hf_write", "hf_read", "hf_stranger"
ACCOUNTS = {WRITE_TOKEN: (OWNER, "write"), READ_TOKEN: (OWNER, "read"), STRANGER_TOKEN: (STRANGER, "write")}
NAMESPACES = {OWNER: (OWNER, ORGANISATION), STRANGER: (STRANGER,)}

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".arrow", ".pt")
LFS_FROM_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Blob:
    """One file's content."""

    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        content = self.data
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Commit:
    """One state of a repository: every file by its path."""

    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """One repository with its history."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        content = json.dumps([len(self.commits), branch, title, {path: blob.sha256 for path, blob in files.items()}])
        made = Commit(hashlib.sha1(content.encode()).hexdigest(), title, files)
        self.commits[made.oid] = made
        self.branches[branch] = made.oid
        return made

    def at(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]


class Refusal(Exception):
    """An answer that is an error; `code` is what clients read from the X-Error-Code header."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass
class Fault:
    """What shall go wrong with matching requests number `first` to `last`; see `LoopbackHub.fail`."""

    method: str | None
    path: str
    first: int
    last: float
    kind: int | str | None
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if self.method not in (None, method) or re.search(self.path, path) is None:
            return False
        self.seen += 1
        return self.first <= self.seen <= self.last


class LoopbackHub:
    """The server and what it holds; use it as a context manager."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.wipe()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self.thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def wipe(self) -> None:
        """Forget all repositories, uploads, faults and requests."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []

    def fail(
        self,
        method: str | None,
        path: str,
        *,
        nth: int = 1,
        times: float = float("inf"),
        status: int | str | None = None,
    ) -> None:
        """Let requests fail, from the `nth` that matches, `times` times.

        Args:
            method: The HTTP method; None: any.
            path: A regular expression, searched in the request's path.
            nth: The first matching request that fails, counted from 1.
            times: How many fail from there on.
            status: The answer's status; None cuts the connection in the middle of the request, "truncated" in the middle of
                the answer; "damaged" changes the answer's body, "slow" holds it back for a moment.
        """
        self.faults.append(Fault(method, path, nth, nth + times - 1, status))

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        """One repository as it stands on the server."""
        return self.repos[KINDS[kind], repo_id]

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Every file of one repository at a revision."""
        return {path: blob.data for path, blob in self.repo(repo_id, kind).at(revision).files.items()}

    def count(self, method: str, path: str) -> int:
        """How many requests came whose path matches the regular expression."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []
REPO_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"


def route(method: str, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a handler method for an HTTP method and a path pattern whose groups become its arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES.append((method, re.compile(path + r"/?"), function))
        return function

    return register


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # small answers would otherwise wait 40 ms for the client's acknowledgement
    query: dict[str, str]
    body: bytes
    fault: int | str | None

    def log_message(self, *unused: object) -> None:
        """Keep the test output clean."""

    def handle_any(self) -> None:
        """Read the request, find its route, answer."""
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = next((f for f in self.hub.faults if f.strikes(self.command, path)), None)
        self.fault = None if fault is None else fault.kind
        if fault is not None and self.fault is None:
            self._cut()
            return
        self.body = self._read_body()
        if self.fault == "slow":
            time.sleep(0.2)
        try:
            if isinstance(self.fault, int):
                raise Refusal(self.fault, "the server is having a bad day")
            with self.hub.lock:
                self._dispatch(path)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.answer({"error": refusal.message, **refusal.body}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _dispatch(self, path: str) -> None:
        for method, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else self.command):
                function(self, **match.groupdict())
                return
        raise Refusal(404, f"no such route: {self.command} {path}")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _cut(self) -> None:
        self.rfile.read(min(64, int(self.headers.get("Content-Length", 0))))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send JSON, or bytes as they are."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = headers or {}
        if self.fault == "damaged":
            data = b"{" + data[:1] + b"\xff<html>" + data[8:]
        self.send_response(status)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.fault == "truncated":
            self.close_connection = True
            data = data[: len(data) // 2]
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and what may they do?

    def user(self) -> tuple[str | None, str]:
        """The account behind the request's token and the token's role."""
        header = self.headers.get("Authorization")
        if header is None:
            return None, "none"
        account = ACCOUNTS.get(header.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def readable(self, kind: str, repo_id: str) -> Repo:
        """The repository, if it exists and the asker may know that."""
        name, _ = self.user()
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and repo_id.split("/")[0] not in NAMESPACES.get(name or "", ())):
            raise Refusal(404 if name else 401, "Repository not found", "RepoNotFound")
        return repo

    def require_write(self, namespace: str) -> None:
        """Refuse unless the token may write under the namespace."""
        name, role = self.user()
        if name is None:
            raise Refusal(401, "Invalid username or password.")
        if role != "write" or namespace not in NAMESPACES[name]:
            raise Refusal(403, f'You don\'t have the rights to create or change a repository under "{namespace}"')

    def writable(self, kind: str, repo_id: str) -> Repo:
        """The repository, if the asker may write to it."""
        repo = self.readable(kind, repo_id)
        self.require_write(repo_id.split("/")[0])
        return repo

    # The account, and repositories as a whole

    @route("GET", r"/api/whoami-v2")
    def whoami(self) -> None:
        name, role = self.user()
        if name is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": other} for other in NAMESPACES[name] if other != name]
        token = {"accessToken": {"role": role, "displayName": role}}
        self.answer({"type": "user", "name": name, "fullname": name, "email": "", "orgs": orgs, "auth": token})

    @route("POST", r"/api/repos/create")
    def create(self) -> None:
        asked = json.loads(self.body)
        name, _ = self.user()
        namespace = asked.get("organization") or name or ""
        self.require_write(namespace)
        repo_id, kind = f"{namespace}/{asked['name']}", KINDS[asked.get("type") or "model"]
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            raise Refusal(409, "You already created this repo", url=url)
        repo = Repo(private=asked.get("private") is True or asked.get("visibility") == "private")
        repo.commit("main", "initial commit", {".gitattributes": Blob(b"", lfs=False)})
        self.hub.repos[kind, repo_id] = repo
        self.answer({"url": url, "name": repo_id})

    @route("DELETE", r"/api/repos/delete")
    def delete(self) -> None:
        asked = json.loads(self.body)
        name, _ = self.user()
        kind, repo_id = KINDS[asked.get("type") or "model"], f"{asked.get('organization') or name}/{asked['name']}"
        self.writable(kind, repo_id)
        del self.hub.repos[kind, repo_id]
        self.answer({})

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self) -> None:
        front = re.match(r"\s*---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        errors = []
        try:
            data = yaml.safe_load(front.group(1)) if front else None
            if data is not None and not isinstance(data, dict):
                errors.append({"message": "the metadata must be a mapping"})
            for entry in (data or {}).get("model-index", []):
                if not entry.get("name") or any("task" not in r or "metrics" not in r for r in entry["results"]):
                    errors.append({"message": '"model-index" needs a name, and per result a task and metrics'})
        except yaml.YAMLError as problem:
            errors.append({"message": f"not valid YAML: {problem}"})
        warnings = [] if front else [{"message": "empty or missing yaml metadata in repo card"}]
        self.answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    # Reading

    @route("GET", REPO_API + r"(?:/revision/(?P<revision>.+))?")
    def info(self, kind: str, repo_id: str, revision: str | None) -> None:
        repo = self.readable(kind, repo_id)
        commit = repo.at(revision or "main")
        siblings: list[dict[str, Any]] = []
        for path, blob in commit.files.items():
            siblings.append({"rfilename": path})
            if self.query.get("blobs"):
                siblings[-1] |= {"size": len(blob.data), "blobId": blob.git_oid}
                if blob.lfs:
                    siblings[-1]["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 130}
        about = {"private": repo.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        now = "2026-01-01T00:00:00.000Z"
        dates = {"createdAt": now, "lastModified": now}
        self.answer({"_id": repo_id, "id": repo_id, "sha": commit.oid, "siblings": siblings, **about, **dates})

    @route("GET", REPO_API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+?))?")
    def tree(self, kind: str, repo_id: str, revision: str, folder: str | None) -> None:
        prefix = f"{folder}/" if folder else ""
        entries = _entries(self.readable(kind, repo_id).at(revision), prefix)
        if not entries and folder:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", "false").lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        self.answer(entries)

    @route("POST", REPO_API + r"/paths-info/(?P<revision>.+)")
    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        paths = (
            json.loads(self.body)["paths"]
            if self.body.startswith(b"{")
            else parse_qs(self.body.decode()).get("paths", [])
        )
        entries = _entries(self.readable(kind, repo_id).at(revision), "")
        self.answer([entry for entry in entries if entry["path"] in paths])

    @route("GET", REPO_API + r"/refs")
    def refs(self, kind: str, repo_id: str) -> None:
        repo = self.readable(kind, repo_id)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.branches.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repo.tags.items()]
        self.answer({"branches": branches, "converts": [], "tags": tags})

    @route(
        "GET", r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+?)"
    )
    def resolve(self, kind: str | None, repo_id: str, revision: str, path: str) -> None:
        commit = self.readable(kind or "models", repo_id).at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(path)
        if blob is None:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        headers |= {"ETag": f'"{blob.sha256 if blob.lfs else blob.git_oid}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(blob.data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(blob.data, 200, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(blob.data)), len(blob.data) - 1)
        if first > last:
            raise Refusal(416, f"bytes */{len(blob.data)}")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.data)}"
        self.answer(blob.data[first : last + 1], 206, headers)

    # Writing

    @route("POST", REPO_API + r"/branch/(?P<branch>.+)")
    def branch(self, kind: str, repo_id: str, branch: str) -> None:
        repo = self.writable(kind, repo_id)
        if branch in repo.branches:
            raise Refusal(409, "Reference already exists")
        repo.branches[branch] = repo.at(json.loads(self.body or b"{}").get("startingPoint", "main")).oid
        self.answer({})

    @route("POST", REPO_API + r"/tag/(?P<revision>.+)")
    def tag(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.writable(kind, repo_id)
        name = json.loads(self.body)["tag"]
        if name in repo.tags:
            raise Refusal(409, "Tag already exists")
        repo.tags[name] = repo.at(revision).oid
        self.answer({})

    @route("DELETE", REPO_API + r"/(?P<sort>branch|tag)/(?P<name>.+)")
    def delete_reference(self, kind: str, repo_id: str, sort: str, name: str) -> None:
        repo = self.writable(kind, repo_id)
        if (repo.branches if sort == "branch" else repo.tags).pop(name, None) is None:
            raise Refusal(404, f"no {sort} {name}", "RevisionNotFound")
        self.answer({})

    @route("POST", REPO_API + r"/preupload/(?P<revision>.+)")
    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        present = self.writable(kind, repo_id).at(revision).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            lfs = path.endswith(LFS_SUFFIXES) or asked["size"] > LFS_FROM_BYTES
            known = present.get(path)
            oid = (known.sha256 if known.lfs else known.git_oid) if known else None
            answers.append(
                {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        self.answer({"files": answers})

    @route("POST", r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind: str | None, repo_id: str) -> None:
        self.writable(kind or "models", repo_id)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            objects.append({"oid": asked["oid"], "size": asked["size"]})
            if asked["oid"] not in self.hub.lfs:
                href = f"{self.hub.endpoint}/lfs-storage/{asked['oid']}"
                objects[-1]["actions"] = {"upload": {"href": href}}
        self.answer({"transfer": "basic", "objects": objects})

    @route("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content does not have the promised sha256")
        self.hub.lfs[oid] = self.body
        self.answer({})

    @route("POST", REPO_API + r"/commit/(?P<revision>.+)")
    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.writable(kind, repo_id)
        if revision not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, title = dict(repo.at(revision).files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    title = value["summary"]
                    if value.get("parentCommit", repo.branches[revision]) != repo.branches[revision]:
                        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
                case "lfsFile":
                    if value["oid"] not in self.hub.lfs:
                        raise Refusal(400, f"LFS pointer points to a file that does not exist: {value['path']}")
                    files[value["path"]] = Blob(self.hub.lfs[value["oid"]], lfs=True)
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                case "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {path: blob for path, blob in files.items() if not path.startswith(prefix)}
                case "copyFile":
                    files[value["path"]] = repo.at(value.get("srcRevision") or revision).files[value["srcPath"]]
                case other:
                    raise Refusal(400, f"unknown commit operation {other}")
        made = repo.commit(revision, title, files)
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}/commit/{made.oid}"
        self.answer({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _entries(commit: Commit, prefix: str) -> list[dict[str, Any]]:
    """All files and folders under a prefix, as the tree route lists them."""
    entries: list[dict[str, Any]] = []
    folders: set[str] = set()
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.split("/")[:-1]
        for depth in range(prefix.count("/") + 1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                entries.append(
                    {"type": "directory", "path": folder, "size": 0, "oid": hashlib.sha1(folder.encode()).hexdigest()}
                )
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
        entries.append(entry)
    return entries


def client_environment(hub: LoopbackHub, home: str) -> dict[str, str]:
    """Environment of a process whose only Hub is this one, for an owner who may write."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": home,
        "HF_TOKEN": WRITE_TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    return environment
