"""The layers' parameters that break implementations serve emitted layers too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "layers"))
