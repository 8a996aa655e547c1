"""A decoder as an ONNX file, for programs that know nothing of qinco.

Input `codes`, int64 [N, M], of an IVF model [N, 1 + M] with the list number first; output `vectors`, float32 [N, D].
N is free.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qinco_core.codec.product import AnyNetwork
from qinco_core.errors import DependencyError, ForeignFileError, UsageError
from qinco_core.files import atomic_output, check_output
from qinco_core.optional import import_onnx, import_onnxruntime

INPUT, OUTPUT = "codes", "vectors"
# of a protobuf message
_MOST_BYTES = (1 << 31) - (1 << 20)
# relative to the largest entry: sums in another order
_TOLERANCE = 1e-5


class Decoder(nn.Module):
    """A network from codes as `Codec.encode` gives them to vectors."""

    def __init__(self, network: AnyNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors float32 [N, D] of codes int64 [N, M], or [N, 1 + M] with the list number first."""
        network = self.network
        lists = codes[:, 0] if network.config.ivf_K else None
        symbols = codes if lists is None else codes[:, 1:]
        return network.denormalize(network.decode(symbols, lists_N=lists))


def export_onnx(network: AnyNetwork, path: str | Path, *, properties: dict[str, str], force: bool) -> float:
    """Write the decoder of a model, and run it beside ours on random codes.

    Args:
        network: the model, on the CPU.
        path: the `.onnx` file.
        properties: what the file says of itself, by name.
        force: overwrite what is there.

    Returns:
        The largest difference to our own decoding, relative to the largest entry.

    Raises:
        DependencyError: onnx, onnxscript or onnxruntime is not installed.
        UsageError: the model is too large for one ONNX file.
        ForeignFileError: the file does not decode as we do; nothing is kept.
        OutputExistsError, StorageError: the output exists, or the disk is full or read-only.
    """
    check_output(path, force=force)
    import_onnx()
    runtime = import_onnxruntime()
    size = sum(tensor.numel() for tensor in network.state_dict().values()) * 4
    if size > _MOST_BYTES:
        raise UsageError(f"the model has {size >> 20:,} MiB of tensors, but an ONNX file holds less than 2 GiB")
    decoder = Decoder(network).eval()
    content = _exported(decoder, properties)
    difference = _difference(runtime, content, decoder)
    if not difference <= _TOLERANCE:
        raise ForeignFileError(f"{path} would decode otherwise than qinco (by {difference:.1e}): nothing was written")
    with atomic_output(path, force=force) as temporary:
        temporary.write_bytes(content)
    return difference


def _exported(decoder: Decoder, properties: dict[str, str]) -> bytes:
    codes = _random_codes(decoder, 3)
    with _quiet():
        program = torch.onnx.export(
            decoder,
            (codes,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(properties)
    return bytes(program.model_proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on itself from our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise DependencyError(f'this needs onnxscript ({error}): pip install "qinco[onnx]"') from error
    finally:
        logger.setLevel(level)


def _difference(runtime: Any, content: bytes, decoder: Decoder) -> float:
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 257):
        codes = _random_codes(decoder, count)
        with torch.no_grad():
            ours = decoder(codes).numpy()
        (theirs,) = session.run([OUTPUT], {INPUT: codes.numpy()})
        worst = max(worst, float(np.abs(theirs - ours).max() / max(np.abs(ours).max(), 1e-30)))
    return worst


def _random_codes(decoder: Decoder, count: int) -> Tensor:
    config, generator = decoder.network.config, torch.Generator().manual_seed(count)
    symbols = torch.randint(config.K, (count, config.M), generator=generator)
    if not config.ivf_K:
        return symbols
    return torch.cat([torch.randint(config.ivf_K, (count, 1), generator=generator), symbols], dim=1)
