"""Writes the marker of an image, while the image is built: what it is and what it was made from."""

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from jaxinterp.artefacts import package_digest


def main() -> None:
    """Writes the marker to the path that is given."""
    accelerator = os.environ["ACCELERATOR"]
    locks = [Path("requirements.lock"), Path("containers", "locks", f"{accelerator}.lock")]
    packages = subprocess.run(["/usr/bin/dpkg-query", "--show"], capture_output=True, text=True, check=True).stdout
    marker = {
        "name": f"jaxinterp-{accelerator}",
        "accelerator": accelerator,
        "version": importlib.metadata.version("jaxinterp"),
        "commit": os.environ["COMMIT"],
        "code": package_digest(),
        "lock": hashlib.sha256(b"".join(path.read_bytes() for path in locks)).hexdigest(),
        "base": os.environ["BASE"],
        "debian": hashlib.sha256(packages.encode()).hexdigest(),
    }
    Path(sys.argv[1]).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
