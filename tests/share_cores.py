"""Each worker of pytest-xdist computes with its share of the cores, and so does what it starts.

To be imported before numpy and torch, which read the number when they are loaded. Where every worker has a thread for
every core, the threads of small models wait for each other longer than they compute.
"""

from __future__ import annotations

import os

_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))
