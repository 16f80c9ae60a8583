"""A program for the tests of trackers: writes steps FIRST..LAST of a run to a metrics log that goes on after RESUMED.

Arguments: folder, trackers (comma between them), RESUMED, FIRST, LAST. Ends without closing anything when LAST is
followed by `kill`.
"""

import os
import sys
from pathlib import Path

from turborec.engine.log import MetricsLog
from turborec.engine.trackers import Tracking


def main() -> None:
    folder, kinds, resumed, first, last = sys.argv[1:6]
    with MetricsLog(Path(folder), int(resumed), Tracking(tuple(kinds.split(",")), "shop")) as metrics:
        for step in range(int(first), int(last) + 1):
            metrics.write("train", step, {"loss": 1 / step, "note": "text"})
            if step % 3 == 0:
                metrics.write("epoch", step, {"epoch": step // 3, "ndcg@10": step / 100})
        if "kill" in sys.argv:
            os._exit(9)


if __name__ == "__main__":
    main()
