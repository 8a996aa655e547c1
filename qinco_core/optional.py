"""Packages that only some work needs, imported when that work is asked for."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from types import ModuleType
from typing import Any

from qinco_core.errors import DependencyError


def import_faiss() -> ModuleType:
    """The `faiss` module.

    Raises:
        DependencyError: it is not installed or does not load.
    """
    return _load("faiss", "Faiss", 'pip install "qinco[cpu]" (or "qinco[gpu]")')


def import_fsspec() -> ModuleType:
    """The `fsspec` module.

    Raises:
        DependencyError: it is not installed or does not load.
    """
    return _load("fsspec", "fsspec", 'pip install "qinco[remote]", and s3fs or gcsfs where the address wants it')


def import_onnx() -> ModuleType:
    """The `onnx` module.

    Raises:
        DependencyError: it is not installed or does not load.
    """
    return _load("onnx", "ONNX", 'pip install "qinco[onnx]"')


def import_onnxruntime() -> ModuleType:
    """The `onnxruntime` module, with its reports to Microsoft switched off unless the user has set them on.

    Raises:
        DependencyError: it is not installed or does not load.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it loads; its own switch comes too late
    return _load("onnxruntime", "ONNX Runtime", 'pip install "qinco[onnx]"')


def import_pyplot() -> ModuleType:
    """The `matplotlib.pyplot` module, drawing to files unless the program has set up a display before.

    Raises:
        DependencyError: it is not installed or does not load.
    """
    install = 'pip install "qinco[plot]"'
    if "matplotlib.pyplot" not in sys.modules:
        _load("matplotlib", "Matplotlib", install).use("Agg")
    return _load("matplotlib.pyplot", "Matplotlib", install)


def import_ray() -> ModuleType:
    """The `ray` module, with its reports to its makers switched off unless the user has set them on.

    Raises:
        DependencyError: it is not installed or does not load.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # keep Ray from warning that it will some day leave CUDA_VISIBLE_DEVICES alone where no GPU is asked for
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return _load("ray", "Ray", 'pip install "qinco[ray]"')


def import_summary_writer() -> Any:
    """The class `torch.utils.tensorboard.SummaryWriter`.

    Raises:
        DependencyError: TensorBoard is not installed or does not load.
    """
    module = _load("torch.utils.tensorboard", "TensorBoard", 'pip install "qinco[tensorboard]"')
    return module.SummaryWriter


def _load(module: str, name: str, install: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            # their deprecation warnings are not for our users to act on
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(f"this needs {name}, which cannot be imported ({error}): {install}") from error
