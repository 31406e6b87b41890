"""A Hub on loopback: enough of the Hugging Face Hub for its own clients, and its ways to fail.

Serves the folders ``root/models/{org}/{name}`` and ``root/datasets/{org}/{name}``. A revision is
the hash of a folder's files; ``main`` is what the folder holds now, and revisions once asked for
stay. Large files are served the LFS way: a redirect to another host, their etag a sha256.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd
import yaml

LARGE = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".parquet", ".msgpack"}
ROUTES = {
    "info": r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?",
    "tree": r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    r"/tree/(?P<rev>[^/]+)(/(?P<path>.+))?",
    "paths": r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<rev>[^/]+)",
    "cdn": r"/cdn/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/(?P<rev>[^/]+)/(?P<path>.+)",
    "file": r"(?P<kind>/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
}


class Request(NamedTuple):
    method: str
    path: str
    headers: dict  # names in lower case


class Refusal(Exception):
    """An answer other than 200, as the Hub words it."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """The server; set its attributes to make it fail.

    Attributes
    ----------
    gated : dict
        Repo -> the one token that has access to its files.
    expired : set
        Tokens that are not valid.
    cut : dict
        Path of a file -> byte after which the connection breaks, each time.
    flipped : set
        Paths of files whose last byte is sent flipped.
    requests : list of Request
        All that was asked, in order.
    """

    def __init__(self, root: Path):
        self.root = root
        self.gated, self.expired, self.cut, self.flipped = {}, set(), {}, set()
        self.requests, self.stopped = [], False
        self._revisions = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # large files come from another host, to which no token may be sent
        self.cdn = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        """Refuse all connections from now on, and drop those that are open."""
        self.stopped = True
        self._server.shutdown()
        self._server.server_close()

    def commit(self, kind: str, repo: str) -> str:
        """Keep what a repo's folder holds now and return its revision."""
        folder = self.root / kind / repo
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        listing = [f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in files.items()]
        revision = hashlib.sha1("\n".join([repo, *listing]).encode()).hexdigest()
        self._revisions[kind, repo, revision] = files
        return revision

    def add_dataset(self, repo: str, splits: dict, config: str = "default") -> str:
        """Fill a dataset's folder with made rows, in the layout of the Hub; return its revision."""
        folder = self.root / "datasets" / repo
        (folder / config).mkdir(parents=True)
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        card = yaml.safe_dump({"configs": [{"config_name": config, "data_files": files}]})
        (folder / "README.md").write_text(f"---\n{card}---\n")
        for split, rows in splits.items():
            pd.DataFrame(rows).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        return self.commit("datasets", repo)

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests of a method whose path holds a part."""
        return [each for each in self.requests if each.method == method and part in each.path]

    def files(self, kind, repo, revision, token) -> tuple[str, dict]:
        """Commit and files (path -> bytes) of a revision."""
        if token in self.expired:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        if not (self.root / kind / repo).is_dir():
            # the Hub tells nobody without a token whether a repo is missing or private
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if (kind, repo, revision) not in self._revisions:
            current = self.commit(kind, repo)
            if revision not in ("main", current):
                raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            revision = current
        return revision, self._revisions[kind, repo, revision]

    def check_access(self, repo, token):
        """Refuse the files of a gated repo; its listing is open to all."""
        if repo in self.gated and token != self.gated[repo]:
            raise Refusal(
                403 if token else 401, "GatedRepo", f"Access to model {repo} is restricted."
            )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def _answer(self):
        if self.hub.stopped:
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode())
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, path, headers))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            for route, pattern in ROUTES.items():
                if found := re.fullmatch(pattern, path):
                    asked = found.groupdict()
                    kind = (asked["kind"] or "models").strip("/")
                    # the CDN needs no token: its address, signed by the Hub, is the secret
                    place = self.hub.files(kind, asked["repo"], asked["rev"] or "main", token)
                    return getattr(self, f"_{route}")(
                        kind, asked["repo"], *place, asked.get("path"), token
                    )
            raise Refusal(404, "EntryNotFound", "no such address")
        except Refusal as refusal:
            body = json.dumps({"error": str(refusal)}).encode()
            self._send(
                refusal.status,
                body,
                {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)},
            )

    def _send(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, content):
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _info(self, kind, repo, commit, files, path, token):
        siblings = [{"rfilename": name, **_entry(name, data)} for name, data in files.items()]
        self._send_json({"id": repo, "sha": commit, "private": False, "siblings": siblings})

    def _tree(self, kind, repo, commit, files, path, token):
        inside = f"{path}/" if path else ""
        names = [name for name in files if name.startswith(inside)]
        if not names:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {commit}")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for name in names:
            parts = name.removeprefix(inside).split("/")
            for depth in range(1, len(parts) if deep else min(len(parts), 2)):
                entries.setdefault(inside + "/".join(parts[:depth]), _entry(None, b""))
            if deep or len(parts) == 1:
                entries[name] = _entry(name, files[name])
        self._send_json([{"path": name, **entry} for name, entry in entries.items()])

    def _paths(self, kind, repo, commit, files, path, token):
        found = []
        for name in self.form["paths"]:
            if name in files:
                found.append({"path": name, **_entry(name, files[name])})
            elif any(other.startswith(f"{name}/") for other in files):
                found.append({"path": name, **_entry(None, b"")})
        self._send_json(found)

    def _file(self, kind, repo, commit, files, path, token):
        self.hub.check_access(repo, token)
        if path not in files:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {commit}")
        entry = _entry(path, files[path])
        if "lfs" not in entry:
            return self._bytes(files[path], path, entry["oid"], {"X-Repo-Commit": commit})
        self._send(
            302,
            headers={
                "Location": f"{self.hub.cdn}/cdn/{kind}/{repo}/{commit}/{path}",
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
                "X-Linked-Size": entry["size"],
            },
        )

    def _cdn(self, kind, repo, commit, files, path, token):
        self._bytes(files[path], path, _entry(path, files[path])["lfs"]["oid"], {})

    def _bytes(self, data, path, etag, headers):
        if path in self.hub.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, start, stop = 200, 0, len(data)
        headers = {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            status, start = 206, int(asked[1])
            stop = min(int(asked[2]) + 1, stop) if asked[2] else stop
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        cut = self.hub.cut.get(path, stop)
        if self.command == "HEAD" or cut >= stop:
            return self._send(status, data[start:stop], headers)
        # the length promised is that of the whole file
        self._send(status, data[start:cut], {**headers, "Content-Length": stop - start})
        self.close_connection = True


def _entry(name: str | None, data: bytes) -> dict:
    """What the Hub's listings say of a file, or of a folder if it has no name."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file" if name else "directory", "oid": oid, "size": len(data)}
    if name and Path(name).suffix in LARGE:
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 130}
    return entry
