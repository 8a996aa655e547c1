from __future__ import annotations

import subprocess
import sys

import pytest

from qinco_core import optional

BLOCKED = """
import sys
sys.modules[{package!r}] = None
from qinco_core import optional
from qinco_core.errors import DependencyError
try:
    optional.{function}()
except DependencyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "function", "install"),
    [
        ("faiss", "import_faiss", 'pip install "qinco[cpu]" (or "qinco[gpu]")'),
        ("matplotlib", "import_pyplot", 'pip install "qinco[plot]"'),
        ("tensorboard", "import_summary_writer", 'pip install "qinco[tensorboard]"'),
    ],
)
def test_a_missing_package_is_named_with_its_install(package, function, install):
    script = BLOCKED.format(package=package, function=function)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert install in done.stdout
    assert package in done.stdout


def test_what_is_installed_is_given(tmp_path):
    assert optional.import_faiss().IndexFlatL2(4).d == 4
    assert optional.import_pyplot().get_backend().lower() == "agg"
    with optional.import_summary_writer()(tmp_path) as writer:
        writer.add_scalar("loss", 1.0, 0)
    assert list(tmp_path.glob("events*"))


def test_nothing_optional_is_imported_before_it_is_needed():
    script = (
        "import sys, qinco_core.evaluation.baselines, qinco_core.evaluation.picture; "
        "print({'faiss', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
