"""Times SDXL base's networks in PyTorch, in OpenVINO and in this program, in turn, on one machine.

    pip install -r tools/bench/requirements.txt
    cargo build --release
    python tools/bench/compare.py unet:512:2:bf16 unet:512:2:f32 vae:512:1:f32 text:2:f32

A mode is WHAT:SIZE:BATCH:PRECISION (text has no size). Each timing is a process of its own, which
warms up first; the programs take turns, round by round, and the median over all rounds counts.
Prints a Markdown table. The method, and what it found: docs/performance.md.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What makes PyTorch do as on a processor without AVX-512: its own kernels, and the libraries'.
AVX2 = {
    "SDXL_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


class Mode:
    def __init__(self, text):
        parts = text.split(":")
        if parts[0] == "text" and len(parts) == 3:
            parts.insert(1, "512")
        if len(parts) != 4 or parts[0] not in ("unet", "vae", "text"):
            raise argparse.ArgumentTypeError(f"{text}: not WHAT:SIZE:BATCH:PRECISION")
        self.what, self.precision = parts[0], parts[3]
        self.size, self.batch = int(parts[1]), int(parts[2])

    def __str__(self):
        size = "77 tokens" if self.what == "text" else f"{self.size}x{self.size}"
        return f"{self.what} {size}, batch {self.batch}"

    def arguments(self):
        return ["--size", str(self.size), "--batch", str(self.batch), "--precision", self.precision]


def busy_seconds():
    """Time all processors have worked since the start."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command, environment):
    """The command's JSON object, with the time that other programs took beside it."""
    busy, own = busy_seconds(), children_seconds()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(f"{' '.join(map(str, command))}: failed ({done.returncode})", file=sys.stderr)
        return None
    own = children_seconds() - own
    others = max(0.0, busy_seconds() - busy - own)
    return json.loads(done.stdout) | {"others": others / (others + own)}


def describe():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    field = lambda key: next(l.split(":", 1)[1].strip() for l in lines if l.startswith(key))
    flags = field("flags").split()
    has = [f for f in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if f in flags]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return (
        f"{field('model name')} (family {field('cpu family')}, model {field('model')}; {', '.join(has)}), "
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.system()}"
    )


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "diffusers", "transformers", "openvino"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            pass
    return ", ".join(found)


class Comparison:
    def __init__(self, options):
        self.options = options
        self.environment = dict(os.environ)
        if options.avx2:
            self.environment |= AVX2
        self.timings = {}

    def peers(self, mode):
        found = [p for p in self.options.peers if p != "openvino" or mode.precision != "f32"]
        if "openvino" in found and not importlib.util.find_spec("openvino"):
            print("openvino is not installed, so it is left out", file=sys.stderr)
            found.remove("openvino")
        # Peers know 32 bits and bf16; what we have besides is held against their bf16.
        return [(p, mode.precision if mode.precision == "f32" else "bf16") for p in found]

    def model_file(self, mode):
        name = f"{mode.what}-{mode.size}-{mode.batch}.xml"
        return self.options.cache / name

    def ours(self, mode):
        command = [self.options.sdxl, "bench", mode.what, *mode.arguments(), "--json"]
        command += ["--repeats", str(self.options.repeats), "--threads", str(self.options.threads)]
        return run(command, self.environment)

    def peer(self, mode, peer, precision):
        command = [sys.executable, HERE / "peer.py", peer, "--what", mode.what]
        command += ["--size", str(mode.size), "--batch", str(mode.batch), "--precision", precision]
        command += ["--repeats", str(self.options.repeats), "--threads", str(self.options.threads)]
        if peer == "openvino":
            file = self.model_file(mode)
            command += ["--model", file]
            if not file.exists():
                convert = [c if c != peer else "convert" for c in command]
                subprocess.run(convert, env=self.environment, check=True)
        return run(command, self.environment)

    def measure(self, mode):
        for _ in range(self.options.rounds):
            for peer, precision in self.peers(mode):
                self.note(mode, (peer, precision), self.peer(mode, peer, precision))
            self.note(mode, ("sdxl", mode.precision), self.ours(mode))

    def note(self, mode, who, result):
        if result is not None:
            self.timings.setdefault((mode, who), []).append(result)
            each = ", ".join(f"{s:.3f}" for s in result["seconds_each"])
            others = f"{100 * result['others']:.0f} % of the work was other programs'"
            print(f"{mode}, {' '.join(who)}: {each} s; {others}", file=sys.stderr, flush=True)

    def table(self):
        print("| network | program | seconds | GFLOP/s | share of peak | peak memory, MiB | sdxl is faster by | others |")
        print("|---|---|---|---|---|---|---|---|")
        modes = dict.fromkeys(mode for mode, _ in self.timings)
        for mode in modes:
            mine = self.timings.get((mode, ("sdxl", mode.precision)))
            for (_, who), results in ((k, v) for k, v in self.timings.items() if k[0] is mode):
                seconds = self.seconds(results)
                memory = max(r["peak_rss_bytes"] for r in results) / 2**20
                rate = share = ratio = ""
                if mine:
                    gflop = mine[0]["gflop"]
                    rate = f"{gflop / seconds:.0f}"
                    # The peak is that of this program's precision.
                    if who[1] == mode.precision:
                        peak = max(r["peak_gflop_per_second"] for r in mine)
                        share = f"{100 * gflop / seconds / peak:.0f} %"
                    if who[0] != "sdxl":
                        ratio = f"{seconds / self.seconds(mine):.2f}"
                others = max(r["others"] for r in results)
                print(
                    f"| {mode} | {' '.join(who)} | {seconds:.3f} | {rate} | {share} | {memory:.0f} "
                    f"| {ratio} | {100 * others:.0f} % |"
                )

    def seconds(self, results):
        return statistics.median(s for r in results for s in r["seconds_each"])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modes", nargs="+", type=Mode, metavar="WHAT:SIZE:BATCH:PRECISION")
    parser.add_argument("--peers", nargs="*", default=["torch", "openvino"], choices=["torch", "openvino"])
    parser.add_argument("--sdxl", type=Path, default=HERE.parents[1] / "target/release/sdxl")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="timed calls in a process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--avx2", action="store_true", help="as on a processor without AVX-512")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache/sdxl-bench", help="OpenVINO's files (5 GB a mode)"
    )
    options = parser.parse_args()
    comparison = Comparison(options)
    if not options.sdxl.exists():
        parser.error(f"{options.sdxl}: there is no such program; run `cargo build --release` first")
    try:
        for mode in options.modes:
            comparison.measure(mode)
    except KeyboardInterrupt:
        print("stopped; what was measured:", file=sys.stderr)
    isa = ", instructions up to AVX2" if options.avx2 else ""
    print(f"{describe()}; {options.threads} threads{isa}; {versions()}\n")
    comparison.table()


if __name__ == "__main__":
    main()
