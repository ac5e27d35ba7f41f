"""A lab host's root: which parts of this machine it shows, and the /etc it has of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.lab.commands import execute
from tests.lab.spec import HostSpec

# What a Linux root consists of; everything else at the top level is this machine's own
# business (checkouts, data, Python environments) and hidden.
SYSTEM_FOLDERS = {"bin", "sbin", "usr", "etc", "var", "dev", "proc", "sys"}
KEPT_IN_VAR_LIB = {"dpkg", "pam", "misc", "shells.state", "ucf"}
PRIVATE_IN_ETC = (
    "cron.d", "cron.daily", "cron.hourly", "cron.weekly", "cron.monthly", "crontab", "docker",
    "ssh", "sudoers", "sudoers.d", "profile.d", "environment", "environment.d", "pip.conf",
    "gitconfig", "npmrc", "motd", "update-motd.d", "issue", "issue.net", "ssl/private",
    "rsyncd.conf", "fstab", "mtab", "hosts", "hostname", "resolv.conf", "shadow-", "passwd-",
    "group-", "gshadow-", "containerd", "cni", "security/limits.d", "supervisor", "systemd", "apt",
)  # fmt: skip

# What an old minimal server does not have. Globs, because versions are in the names.
NOT_ON_BARE = (
    "python*", "pydoc*", "pip*", "py3*", "perl*", "zstd*", "unzstd", "zst*", "pzstd", "pigz",
    "unpigz", "rsync*", "nc", "nc.*", "netcat", "ncat", "socat", "tmux", "screen", "curl*",
    "wget*", "git", "git-*", "gcc*", "g++*", "cc", "c++", "c89*", "c99*", "cpp*", "clang*",
    "*-gcc*", "*-g++*", "node*", "npm*", "npx", "ruby*", "php*", "aria2c", "jq", "lz4*", "busybox",
    "psql", "pg_*", "mysql*", "mariadb*", "redis*", "lua*", "tclsh*", "sftp-server", "java*",
    "docker-compose",
)  # fmt: skip

NOT_ON_JUMP = ("docker*", "containerd*", "ctr", "runc")

# Basic tools come from these packages; with busybox' tools a host has none of them.
BASIC_PACKAGES = (
    "bash", "dash", "coreutils", "findutils", "diffutils", "grep", "sed", "mawk", "gawk",
    "tar", "gzip", "bzip2", "xz-utils", "procps", "hostname", "less", "bsdextrautils",
)  # fmt: skip
# Applets that must not take the place of what sudo, dockerd and the lab itself run.
NOT_AS_APPLET = {
    "mount", "umount", "su", "login", "passwd", "chpasswd", "adduser", "addgroup", "ip",
    "modprobe", "nsenter", "unshare", "nc", "wget", "init", "busybox", "dpkg", "dpkg-deb",
}  # fmt: skip

# Folders every host has of its own: (octal mode, path).
FOLDERS = [
    *(("0755", path) for path in ("home", "mnt", "media", "srv", "opt", "data1", "run", "boot")),
    *(("0755", f"usr/local/{name}") for name in ("bin", "sbin", "lib", "share", "etc")),
    *(("0755", path) for path in ("var/log", "var/lib/docker", "var/lib/sudo", "var/cache")),
    *(("0755", path) for path in ("var/spool", "var/mail", "etc/ssh", "etc/profile.d")),
    *(("0700", path) for path in ("root", "root/.ssh")),
    *(("1777", path) for path in ("tmp", "var/tmp")),
    ("0755", "proc"),
    ("0755", "sys"),
    ("0755", "dev"),
]

PAM_WITHOUT_DELAY = """\
auth    required pam_unix.so nodelay
account required pam_unix.so
session required pam_permit.so
"""
SUDOERS = """\
Defaults env_reset
Defaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
root ALL=(ALL:ALL) ALL
%sudo ALL=(ALL:ALL) ALL
"""
# Text in GB 18030, as login messages on old Chinese servers are; not valid UTF-8.
NOISE = "警告：本系统仅限授权用户使用".encode("gb18030")


def hidden_paths(spec: HostSpec) -> list[str]:
    """List what this machine has and the host must not see, without leading slashes."""
    hidden = {
        entry.name
        for entry in Path("/").iterdir()
        if entry.name not in SYSTEM_FOLDERS and not re.fullmatch(r"lib\w*", entry.name)
    }
    hidden |= {"usr/local", "usr/src", "var/log", "var/tmp", "var/cache", "var/spool", "var/mail"}
    hidden |= {"var/backups", "var/local", "var/opt", "var/www"}
    hidden |= {f"var/lib/{e.name}" for e in Path("/var/lib").iterdir()} - {
        f"var/lib/{name}" for name in KEPT_IN_VAR_LIB
    }
    hidden |= {f"etc/{name}" for name in PRIVATE_IN_ETC}
    # Normally below a hidden folder already, but nothing forbids a checkout in /usr or /var.
    hidden |= {str(path).lstrip("/") for path in _own_places()}
    if spec.kind == "bare":
        hidden |= _programs(NOT_ON_BARE)
    if spec.kind == "jump":
        hidden |= _programs(NOT_ON_JUMP)
    if spec.tools == "busybox":
        hidden |= _basic_programs() | {f"usr/bin/{applet}" for applet in _applets()}
        hidden |= {f"usr/sbin/{applet}" for applet in _applets()}
        hidden.discard("usr/bin/busybox")
    existing = {path for path in hidden if Path("/", path).is_symlink() or Path("/", path).exists()}
    return sorted(path for path in existing if not _below_another(path, existing))


def links(spec: HostSpec) -> list[tuple[str, str]]:
    """List the symbolic links that the host has of its own, as (path, target)."""
    if spec.tools != "busybox":
        return []
    return [(f"usr/bin/{applet}", "busybox") for applet in _applets()]


def _applets() -> list[str]:
    return sorted(set(execute("busybox", "--list").split()) - NOT_AS_APPLET)


def _basic_programs() -> set[str]:
    shipped = execute("dpkg", "-L", *BASIC_PACKAGES, check=False).splitlines()
    found = set()
    for path in map(Path, shipped):
        if path.parent.name in ("bin", "sbin") and path.name not in NOT_AS_APPLET:
            found |= {f"usr/bin/{path.name}", f"usr/sbin/{path.name}"}
    return found


def _own_places() -> list[Path]:
    checkout = Path(__file__).resolve().parents[2]
    places = [checkout, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    system = {Path("/usr"), Path("/")}
    return [place for place in places if place not in system]


def _programs(globs: Iterable[str]) -> set[str]:
    places = ("usr/bin", "usr/sbin", "usr/lib/openssh", "usr/lib", "usr/games")
    return {
        str(path).lstrip("/")
        for place in places
        for glob in globs
        for path in Path("/", place).glob(glob)
        if place != "usr/lib" or glob == "sftp-server"
    }


def _below_another(path: str, paths: set[str]) -> bool:
    return any(str(parent) in paths for parent in Path(path).parents)


def folders(spec: HostSpec) -> list[tuple[str, str]]:
    """List the folders that the host has of its own, as (octal mode, path)."""
    return [*FOLDERS, *([] if spec.username == "root" else [("0755", f"home/{spec.username}")])]


def own_etc(spec: HostSpec, known: dict[str, str]) -> dict[str, tuple[int, bytes]]:
    """Compose the host's own files in /etc.

    Args:
        spec: The host.
        known: Names and addresses of the hosts that it can see.

    Returns:
        Per path below /etc its mode and content.
    """
    names = "".join(f"{address} {name}\n" for name, address in known.items())
    files = {
        "hostname": (0o644, f"{spec.name}\n"),
        "hosts": (0o644, f"127.0.0.1 localhost\n{names}"),
        "resolv.conf": (0o644, ""),
        "environment": (0o644, ""),
        "fstab": (0o644, ""),
        "sudoers": (0o440, SUDOERS),
        "pam.d/sshd": (0o644, PAM_WITHOUT_DELAY),
        "pam.d/sudo": (0o644, PAM_WITHOUT_DELAY),
        "pam.d/su": (0o644, PAM_WITHOUT_DELAY),
        **_accounts(spec),
    }
    texts = {path: (mode, text.encode()) for path, (mode, text) in files.items()}
    if spec.kind == "bare":
        texts["issue.net"] = (0o644, b"*" * 60 + b"\n" + NOISE + b"\n" + b"*" * 60 + b"\n")
        texts["profile.d/notice.sh"] = (0o644, b"echo '" + NOISE + b"'\n")
    return texts


def _accounts(spec: HostSpec) -> dict[str, tuple[int, str]]:
    system = [
        line.split(":")
        for line in Path("/etc/passwd").read_text().splitlines()
        if line.count(":") == 6
    ]
    kept = [user for user in system if 0 < int(user[2]) < 1000 or user[0] == "nobody"]
    shell = "/bin/sh" if spec.tools == "busybox" else "/bin/bash"
    users = [["root", "x", "0", "0", "root", "/root", shell], *kept]
    groups = [
        line.split(":")[:3]
        for line in Path("/etc/group").read_text().splitlines()
        if line.count(":") == 3
    ]
    groups = [g for g in groups if int(g[2]) < 1000 or g[0] == "nogroup"]
    if not any(group[0] == "docker" for group in groups):
        groups.append(["docker", "x", "999"])
    if spec.username != "root":
        users.append([spec.username, "x", "1000", "1000", "", spec.home, shell])
        groups.append([spec.username, "x", "1000"])
    members = {"sudo": spec.username} if spec.kind == "bare" else {}
    return {
        "passwd": (0o644, "".join(":".join(user) + "\n" for user in users)),
        "group": (0o644, "".join(":".join([*g, members.get(g[0], "")]) + "\n" for g in groups)),
        "shadow": (0o600, "".join(f"{user[0]}:*:19700:0:99999:7:::\n" for user in users)),
        "gshadow": (0o600, "".join(f"{g[0]}:*::{members.get(g[0], '')}\n" for g in groups)),
    }


def home_files(spec: HostSpec, authorized_key: str) -> dict[str, bytes]:
    """Compose what the login user's home holds when the host is fresh."""
    if spec.kind != "bare":
        return {".ssh/authorized_keys": authorized_key.encode()}
    noise = b"echo '" + NOISE + b"'\necho '" + NOISE + b"' >&2\n"
    return {
        "部署 说明.txt": "先备份，再部署。\n".encode(),
        ".bashrc": noise,
        ".profile": noise,
    }
