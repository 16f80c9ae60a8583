"""What runs in RecBole's environment: `python -m turborec.recbole JSON`, where JSON is a `Task`."""

import json
import os
import sys
from pathlib import Path

from turborec.engine import world
from turborec.errors import InterruptedRunError, UserError
from turborec.launch import local
from turborec.recbole import check, training
from turborec.recbole.job import Task
from turborec.shown import visible


def main(text: str) -> int:
    """Carry out a task; the exit code."""
    task = Task.model_validate_json(text)
    if task.processes > 1 and "WORLD_SIZE" not in os.environ:
        return local.run(task.processes, [text], Path(str(task.out)), task.restarts, ("-m", "turborec.recbole"))
    try:
        with world.joined():
            if task.kind == "check":
                return check.check(task.job, task.weights, task.as_json)
            results = training.train(task.job, Path(str(task.out)))
            if not world.leads():
                return 0
    except InterruptedRunError as error:
        print(f"\n{visible(str(error))}", file=sys.stderr)
        return error.code
    except UserError as error:
        print(f"turborec: {visible(str(error))}", file=sys.stderr)
        return 2
    if task.as_json:
        facts = {part: {"masked": r.masked, "kept": r.kept, "counts": r.card["history"]} for part, r in results.items()}
        print(json.dumps({"folder": task.out, "results": facts}))
        return 0
    for part, result in results.items():
        told = "  ".join(f"{name} {value:.4f}" for name, value in result.values.items())
        print(f"{part} (history {result.card['history']}): {told}")
    print(f"The run is in {task.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
