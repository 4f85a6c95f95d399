"""Times one network in PyTorch or OpenVINO and prints a JSON object.

`compare.py` runs this, a process for each timing, so that the peak of memory is that network's.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path


def peak_rss():
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def torch_call(options):
    import torch

    from networks import build, inputs

    torch.set_num_threads(options.threads)
    network = build(options.what, options.precision)
    arguments = inputs(options.what, options.size, options.batch, options.precision)

    def call():
        with torch.inference_mode():
            network(*arguments)

    return call


def convert(options):
    """Writes the network as OpenVINO's files: in a process of its own, since it takes more memory
    than running it."""
    import openvino
    import torch
    from openvino.frontend.pytorch.patch_model import __make_16bit_traceable as traceable

    from networks import build, inputs

    # Weights of 16 bits, or the network would have to be in memory three times in 32.
    network = build(options.what, "bf16").to(torch.float16)
    traceable(network)
    arguments = inputs(options.what, options.size, options.batch, "f32")
    with torch.no_grad():
        model = openvino.convert_model(network, example_input=arguments)
    model.reshape({port: list(value.shape) for port, value in zip(model.inputs, arguments)})
    options.model.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, options.model, compress_to_fp16=False)


def openvino_call(options):
    import openvino

    from networks import inputs

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": options.precision,
        "INFERENCE_NUM_THREADS": options.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "PERFORMANCE",
    }
    compiled = core.compile_model(core.read_model(options.model), "CPU", settings)
    arguments = inputs(options.what, options.size, options.batch, "f32")
    values = [value.contiguous().numpy() for value in arguments]
    request = compiled.create_infer_request()
    return lambda: request.infer(values, share_inputs=True, share_outputs=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["torch", "openvino", "convert"])
    parser.add_argument("--what", choices=["unet", "vae", "text"], required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="OpenVINO's file of the network")
    options = parser.parse_args()
    if options.peer == "convert":
        convert(options)
        return
    call = {"torch": torch_call, "openvino": openvino_call}[options.peer](options)
    call()
    times = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    json.dump({"seconds_each": times, "peak_rss_bytes": peak_rss()}, sys.stdout)


if __name__ == "__main__":
    main()
