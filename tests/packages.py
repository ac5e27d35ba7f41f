"""The Debian packages that the tests and benchmarks need beside those of the lab.

python -m tests.packages    # installs what all tests need, or says how
"""

from __future__ import annotations

import sys

from tests.lab import LabUnavailable
from tests.lab.packages import PROGRAMS, REGISTRY, install_packages, missing_packages

BROWSER = {
    "chromium": "chromium",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-*": "fonts-noto-cjk",
    "/usr/lib/*/libatomic.so.1": "libatomic1",  # for the Node.js that Playwright brings
}
# What a host may or may not have; the tests want to see both.
SHELLS_AND_TOOLS = {"bash": "bash", "openssl": "openssl", "shasum": "perl"}
# What benchmarks measure us against.
BENCHMARK = {"aria2c": "aria2"}
ALL = {**PROGRAMS, **REGISTRY, **SHELLS_AND_TOOLS, **BROWSER, **BENCHMARK}


def main() -> int:
    """Install what all tests need where this user may, and return 0: the tests judge the rest."""
    if missing := missing_packages(ALL):
        print(f"Debian packages needed for all tests: {' '.join(missing)}", flush=True)  # noqa: T201
    try:
        install_packages(ALL)
    except LabUnavailable as error:
        print(f"Some tests cannot run: {error.reason}. {error.remedy}", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
