"""Importing is cheap, needs no more than it must, and changes nothing."""

import subprocess
import sys
import textwrap
from importlib.util import find_spec

from package_source import files

BEYOND_THE_FLOOR = {"cli": "the command line is typer's and rich's", "__main__": "the command line as a module"}
"""Modules that may need more than the training floor to be imported, each with its reason."""

HIDDEN = (
    *("duckdb", "pyarrow", "pyspark", "py4j", "rich", "typer"),
    *("tensorboard", "scipy", "pandas", "matplotlib", "jinja2", "ir_measures"),
)
"""All that is not on the training floor: torch, numpy, pydantic, ruamel.yaml and safetensors are."""


def run(program: str, *arguments: str) -> None:
    """Run a program in a fresh interpreter, warnings as errors; its complaint is the test's."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


OPTIONAL = {"nn.keyed_triton": "triton", "nn.scan_triton": "triton", "nn.scan_mamba_ssm": "mamba_ssm"}
"""Modules that are loaded only where a package is installed, and which."""


def modules() -> list[str]:
    missing = {name for name, package in OPTIONAL.items() if find_spec(package) is None}
    return [f"turborec.{name}".rstrip(".") for name in files() if name not in missing]


def test_importing_the_package_imports_no_torch() -> None:
    run("""
        import sys
        import turborec
        heavy = {"torch", "numpy", "pydantic"} & set(sys.modules)
        assert not heavy, heavy
    """)


def test_the_command_line_answers_without_torch() -> None:
    run("""
        import sys
        import turborec.cli
        assert "torch" not in sys.modules
    """)


def test_the_training_floor_imports_with_nothing_else_installed() -> None:
    program = f"""
        import importlib, sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {HIDDEN!r}:
                    raise ModuleNotFoundError(f"{{name}} is hidden", name=name)

        sys.meta_path.insert(0, Hidden())
        for module in sys.argv[1:]:
            importlib.import_module(module)
    """
    run(program, *(module for module in modules() if module.removeprefix("turborec.").split(".")[0] not in BEYOND_THE_FLOOR))


def test_importing_any_module_changes_no_global_state() -> None:
    run(
        """
        import importlib, locale, logging, os, random, signal, sys
        import numpy as np
        import rich.console  # draws random numbers when it is imported
        import torch

        def world():
            return {
                "torch random state": torch.get_rng_state().tolist(),
                "numpy random state": np.random.get_state()[1].tolist(),
                "python random state": random.getstate(),
                "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
                "default type": torch.get_default_dtype(),
                "gradients": (torch.is_grad_enabled(), torch.is_anomaly_enabled()),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "products": torch.get_float32_matmul_precision(),
                "numpy errors": np.geterr(),
                "environment": dict(os.environ),
                "folder": os.getcwd(),
                "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
                "log": [(log.level, list(log.handlers)) for log in (logging.getLogger(), logging.getLogger("turborec"))],
                "locale": locale.getlocale(),
            }

        before = world()
        for module in sys.argv[1:]:
            importlib.import_module(module)
            after = world()
            changed = [name for name in before if before[name] != after[name]]
            assert not changed, f"{module} changes {changed}"
        """,
        *modules(),
    )
