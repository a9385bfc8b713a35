"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# A busy machine is not a fault: no test has a deadline of milliseconds.
settings.register_profile("dlhpc", deadline=None)
settings.load_profile("dlhpc")

# A test never sees the runs, the profiles or the queue of the person who runs it.
for name in [name for name in os.environ if name.startswith("DLHPC_")]:
    del os.environ[name]
