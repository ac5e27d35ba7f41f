"""Debian's registry on the loopback: with a password and an authority of its own where wanted.

Whether it is a mirror or an image's own registry is a matter of who asks for what: a mirror
of Docker Hub is a registry that holds `library/…`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import bcrypt
import docker
import urllib3
import zstandard

from tests.lab.archives import ImageSpec, MadeImage, write_archive
from tests.lab.commands import CLEAN_ENVIRONMENT, execute
from tests.lab.errors import LabError
from tests.lab.packages import REGISTRY, install_packages

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPES = {
    "none": "application/vnd.docker.image.rootfs.diff.tar",
    "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
_START_SECONDS = 30

Compression = Literal["none", "gzip", "zstd"]


@dataclass(frozen=True)
class PushedImage:
    """An image in a registry.

    Attributes:
        repository: Where it is.
        tag: Its tag.
        digest: `sha256:…` of its manifest.
        manifest: The manifest.
        made: The image without its compression.
        architecture: What it is said to be for.
    """

    repository: str
    tag: str
    digest: str
    manifest: Mapping[str, Any]
    made: MadeImage
    architecture: str

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of the layers as the registry keeps them, lowest first."""
        return tuple(layer["digest"] for layer in self.manifest["layers"])

    @property
    def blob_bytes(self) -> tuple[int, ...]:
        """Their sizes."""
        return tuple(layer["size"] for layer in self.manifest["layers"])


class LabAuthority:
    """An authority that nobody trusts yet, and the certificate of a registry on 127.0.0.1.

    Args:
        folder: Where its files go.
    """

    def __init__(self, folder: Path) -> None:
        self.bundle, self.certificate, self.key = (
            folder / name for name in ("ca.pem", "registry.pem", "registry.key")
        )
        own_key, request = folder / "ca.key", folder / "registry.csr"
        new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-batch")
        execute(
            *new, "-x509", "-days", "2", "-subj", "/CN=lab authority",
            "-addext", "keyUsage=critical,keyCertSign",
            "-keyout", str(own_key), "-out", str(self.bundle),
        )  # fmt: skip
        execute(*new, "-subj", "/CN=registry", "-keyout", str(self.key), "-out", str(request))
        names = folder / "names"
        names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        execute(
            "openssl", "x509", "-req", "-days", "2", "-in", str(request), "-CA", str(self.bundle),
            "-CAkey", str(own_key), "-CAcreateserial", "-extfile", str(names),
            "-out", str(self.certificate),
        )  # fmt: skip


class LabRegistry:
    """A registry that runs while the context does.

    Args:
        user: Name and password that it wants to see; nobody needs any when left out.
        authority: Signs its certificate; it speaks http when left out.

    Attributes:
        address: Host and port, as image names have them.
        url: The same with its scheme.
    """

    def __init__(
        self, user: tuple[str, str] | None = None, authority: LabAuthority | None = None
    ) -> None:
        self._user = user
        self._authority = authority
        self.address = ""
        self.url = ""

    def __enter__(self) -> Self:
        install_packages(REGISTRY)
        self._folder = Path(tempfile.mkdtemp(prefix="crossgap-registry-"))
        config = self._folder / "config.yml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        log = self._folder / "log"
        # Whoever kills the tests ends it, too.
        command = ("setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(config))
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=CLEAN_ENVIRONMENT
            )
        self.address = f"127.0.0.1:{self._port(log)}"
        self.url = f"{'https' if self._authority else 'http'}://{self.address}"
        self._http = urllib3.PoolManager(
            ca_certs=str(self._authority.bundle) if self._authority else None
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.clear()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def push(
        self,
        spec: ImageSpec,
        compression: Compression = "gzip",
        tamper: Mapping[int, bytes] | None = None,
    ) -> PushedImage:
        """Make an image and put it here.

        Args:
            spec: The image; its name is the repository and the tag.
            compression: Of its layers.
            tamper: Per position of a layer, other content than its diff id says.
        """
        repository, _, tag = spec.name.rpartition(":")
        archive = self._folder / "image.tar"
        made = write_archive(archive, [spec], form="oci")[0]
        layers = []
        with tarfile.open(archive) as tar:
            for position, diff_id in enumerate(made.diff_ids):
                packed = self._folder / "layer"
                content = tar.extractfile(f"blobs/{diff_id.replace(':', '/')}")
                assert content
                if tamper and position in tamper:
                    packed.write_bytes(gzip.compress(tamper[position]))
                else:
                    _pack(content, packed, compression)
                layers.append(self.put_blob(repository, packed, LAYER_TYPES[compression]))
            config = tar.extractfile(f"blobs/{made.config_digest.replace(':', '/')}")
            assert config
            configured = self.put_blob(repository, config.read(), CONFIG_TYPE)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": configured,
            "layers": layers,
        }
        digest = self.put_manifest(repository, tag, manifest)
        return PushedImage(repository, tag, digest, manifest, made, spec.architecture)

    def push_index(
        self,
        repository: str,
        tag: str,
        images: Sequence[PushedImage],
        further: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Put a multi-platform image here and return the digest of its index.

        Args:
            repository: Where; the images have to be there already.
            tag: Its tag.
            images: One per architecture.
            further: Entries that are no images, before the others.
        """
        entries = [
            {
                "mediaType": MANIFEST_TYPE,
                "digest": image.digest,
                "size": len(_encoded(image.manifest)),
                "platform": {"os": "linux", "architecture": image.architecture},
            }
            for image in images
        ]
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [*further, *entries],
        }
        return self.put_manifest(repository, tag, index)

    def push_from_engine(self, engine_url: str, name: str, repository: str, tag: str) -> None:
        """Have an engine push one of its images here.

        Raises:
            LabError: It did not; carries its words.
        """
        target = f"{self.address}/{repository}"
        auth = {"username": self._user[0], "password": self._user[1]} if self._user else {}
        with docker.APIClient(base_url=engine_url, timeout=120, version="1.41") as engine:
            engine.tag(name, target, tag)
            try:
                events = engine.push(target, tag, stream=True, decode=True, auth_config=auth)
                errors = [event["error"] for event in events if "error" in event]
            finally:
                engine.remove_image(f"{target}:{tag}")
        if errors:
            raise LabError(f"the engine did not push {name}: {errors[0]}")

    def put_blob(self, repository: str, content: bytes | Path, kind: str) -> dict[str, Any]:
        """Upload a blob and return its descriptor."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if isinstance(content, bytes):
            digest = _digest(content)
        else:
            with content.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        begun = self._ask("POST", f"/v2/{repository}/blobs/uploads/")
        where = re.sub(r"^https?://[^/]+", "", begun.headers["Location"])
        where += f"{'&' if '?' in where else '?'}digest={digest}"
        kinds = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if isinstance(content, bytes):
            self._ask("PUT", where, content, kinds)
        else:
            with content.open("rb") as file:
                self._ask("PUT", where, file, kinds)
        return {"mediaType": kind, "digest": digest, "size": size}

    def put_manifest(self, repository: str, reference: str, document: Mapping[str, Any]) -> str:
        """Upload a manifest or an index under a tag and return its digest."""
        content = _encoded(document)
        kinds = {"Content-Type": document["mediaType"]}
        self._ask("PUT", f"/v2/{repository}/manifests/{reference}", content, kinds)
        return _digest(content)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        shown = {}
        if self._user:
            secret = base64.b64encode(":".join(self._user).encode()).decode()
            shown["Authorization"] = f"Basic {secret}"
        answer = self._http.request(
            method, self.url + path, body=body, headers={**shown, **(headers or {})}, timeout=60
        )
        if answer.status >= 300:
            said = answer.data[:500].decode("utf-8", "replace")
            raise LabError(f"the registry refused {method} {path}: {answer.status} {said}")
        return answer

    def _config(self) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": "lab"}
        if self._authority:
            files = {"certificate": self._authority.certificate, "key": self._authority.key}
            http["tls"] = {name: str(path) for name, path in files.items()}
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self._folder / "data")}},
            "http": http,
        }
        if self._user:
            name, password = self._user
            secret = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
            users = self._folder / "users"
            users.write_text(f"{name}:{secret}\n")
            config["auth"] = {"htpasswd": {"realm": "lab", "path": str(users)}}
        return config

    def _port(self, log: Path) -> int:
        """Return the port that the system gave it, once it listens."""
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text()):
                return int(found[1])
            time.sleep(0.02)
        self._process.kill()
        self._process.wait()
        raise LabError(f"the registry does not start: {log.read_text()[-2000:]}")


def _pack(content: IO[bytes], target: Path, compression: Compression) -> None:
    with target.open("wb") as file:
        if compression == "none":
            shutil.copyfileobj(content, file)
        elif compression == "zstd":
            zstandard.ZstdCompressor().copy_stream(content, file)
        else:
            with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
                shutil.copyfileobj(content, packed)


def _encoded(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
