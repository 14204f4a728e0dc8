r"""Compiles a program for TPU cores that are not there, and says what memory a core needs.

Google's compiler for TPUs comes as the package libtpu; JAX hands it a program and the name of a
slice. It needs neither a TPU nor TensorFlow: run it by its path, in an environment that holds jax
and libtpu and is best kept from TensorFlow's packages (`make tpu-ready` makes one)::

  .venv-tpu/bin/python -P official_bert/tpu_compile.py --program=step.pb --topology=v5e:2x4 \
    --output=result.json

The result has `seconds`, `core` (its kind), and in bytes `arguments`, `results`, `shared` (the
results that lie where arguments lay), `temporaries`, `code`, `peak`; or `error`, the compiler's
reason to refuse, such as too little memory.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

# libtpu asks the metadata server of a TPU machine who it is, and waits for an answer.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import topologies
from jax.interpreters import mlir
from jaxlib import xla_client
from jaxlib.mlir import ir

# StableHLO has no copy, which TensorFlow puts before a variable's new value; to the compiler a
# reshape to the same shape says the same.
_COPY = re.compile(r"mhlo\.copy (%\S+)(?: \{[^}]*\})? : (tensor<[^>]*>)")


def compile_for_tpu(program: bytes, topology: str) -> dict[str, Any]:
    """Compiles a serialized HLO module, one copy for each core of a slice.

    Args:
      program: an `HloModuleProto`.
      topology: the slice, such as `v5e:2x4`.

    Returns:
      The result as the module describes it.
    """
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(program))
    with mlir.make_ir_context():
        module = ir.Module.parse(_COPY.sub(r"mhlo.reshape \1 : (\2) -> \2", text))
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = len(devices), 1
    options.executable_build_options.num_replicas = len(devices)
    numbers = np.array([[device.id] for device in devices])
    options.device_assignment = xla_client.DeviceAssignment.create(numbers)
    started = time.monotonic()
    found: dict[str, Any] = {"core": devices[0].device_kind}
    try:
        executable = devices[0].client.compile(
            module,
            executable_devices=xla_client.DeviceList(tuple(devices)),
            compile_options=options,
        )
    except JaxRuntimeError as error:
        return found | {"error": " ".join(str(error).split())}
    memory = executable.get_compiled_memory_stats()
    return found | {
        "seconds": time.monotonic() - started,
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "shared": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", required=True, type=pathlib.Path)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    arguments = parser.parse_args(argv)
    found = compile_for_tpu(arguments.program.read_bytes(), arguments.topology)
    arguments.output.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
