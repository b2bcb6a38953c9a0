"""`python -m ds_train`, which is also what the deepspeed launcher starts in every rank."""

from __future__ import annotations

import sys

from ds_train.cli import main

sys.exit(main())
