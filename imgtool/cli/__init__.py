"""The command line. Importing it makes Python look for garbage less often: commands end before any is worth it."""

from __future__ import annotations

import gc

gc.set_threshold(100_000, 20, 100)
