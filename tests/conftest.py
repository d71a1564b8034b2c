import os
import tempfile
from pathlib import Path

# Set before anything imports jax: the CPU, and one folder of compiled programs for all workers and subprocesses.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "jaxinterp-tests-compiled"))

import hypothesis

hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("project")
